"""The lines of docs/scaling.md on a Slurm of two nodes, which these tests start in a folder of their own."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.pipeline import ROOT, RUNS, TRAININGS, Clone, stages_run
from tests.warm import until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
EPOCHS = 40  # seconds of training, so that there is time to disturb it
RESULTS = ("models/cnn.safetensors", "plots/history/cnn.csv")

pytestmark = [
    pytest.mark.skipif(
        any(not shutil.which(name) for name in PROGRAMS), reason="slurm-wlm and munge are not installed"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="the daemons of Slurm are started by root"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A running cluster, as the environment in which Slurm's commands find it."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    ports = dict(zip(("controller", "n1", "n2"), free_ports(3), strict=True))
    config = folder / "slurm.conf"
    config.write_text((ROOT / "tests/slurm.conf").read_text().format(folder=folder, **ports))
    environment = {"SLURM_CONF": str(config)}
    munge = [f"--{name}-file={folder / name}" for name in ("key", "pid", "log", "seed")]
    with contextlib.ExitStack() as daemons:
        for command in (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge", *munge],
            ["slurmctld", "-D", "-f", str(config)],
            ["slurmd", "-D", "-N", "n1", "-f", str(config)],
            ["slurmd", "-D", "-N", "n2", "-f", str(config)],
        ):
            daemons.enter_context(running(command, folder / "daemons.log"))
            if command[0] == "munged":
                until((folder / "munge").exists)
        until(lambda: ask("sinfo", "--noheader", "--states=idle", "--format=%D", **environment) == "2")
        try:
            yield environment
        finally:
            ask("scancel", "--user=root", **environment)
            until(lambda: not ask("squeue", "--noheader", **environment))
    left = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in left if str(folder) in command]


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    command = ["setpriv", "--pdeathsig=TERM", *command]  # so that it ends with these tests when they are killed
    with open(log, "ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def ask(*command: str, **environment: str) -> str:
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def copied(finished, slurm, tmp_path) -> Callable[[str], Clone]:
    """Copy the finished small experiment to a folder of this name, where Slurm's commands find the cluster."""

    def copy(name: str) -> Clone:
        clone = finished.copy(tmp_path / name)
        clone.env = {key: value for key, value in clone.env.items() if not key.startswith(("SLURM", "SBATCH"))} | slurm
        return clone

    return copy


def lines_of_the_page(heading: str) -> list[str]:
    """The commands under a heading of docs/scaling.md that use Slurm, for a cluster of one core a node and no GPUs."""
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (block,) = (text for text in re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S) if "sbatch" in text)
    block = re.sub(r"--(gpus|gpus-per-node|cpus-per-task) \d+ ", "", block.replace("\\\n", ""))
    return block.replace("--nproc-per-node gpu", "--nproc-per-node 1").splitlines()


def job(clone: Clone, index: str = "N/A") -> str:
    """The number of the running job; of the one of this index in the array."""

    def running() -> list[str]:
        listed = ask("squeue", "--noheader", "--states=running", "--format=%i %K", **clone.env)
        return [number for number, of_array in map(str.split, listed.splitlines()) if of_array == index]

    until(running)
    return running()[0]


def content(clone: Clone) -> list[bytes]:
    return [(clone.folder / name).read_bytes() for name in RESULTS]


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory) -> list[bytes]:
    """The results of the longer training that nothing disturbed, outside of Slurm."""
    clone = finished.copy(tmp_path_factory.mktemp("undisturbed") / "clone")
    lengthen(clone)
    clone.run("dvc", "repro", "--single-item", "train@cnn")
    return content(clone)


def lengthen(clone: Clone) -> None:
    clone.replace("params.yaml", "cnn:\n  epochs: 1", f"cnn:\n  epochs: {EPOCHS}")


def test_a_job_that_is_cancelled_goes_on_on_another_node_to_the_same_bytes(copied, undisturbed):
    clone = copied("clone")
    lengthen(clone)
    (line,) = lines_of_the_page("One GPU")
    line = line.replace("'dvc repro'", "'dvc repro --single-item train@cnn'")
    submitted = clone.start("bash", "-c", line.replace("sbatch", "sbatch --nodelist n1"))
    until((clone.folder / ".cache/training/cnn.safetensors").exists)
    number = job(clone)
    clone.run("scancel", number)
    submitted.communicate()
    log = clone.read(".dvc/tmp/repro.log")
    assert submitted.returncode != 0
    assert "Traceback" not in log
    assert f"JOB {number} ON n1 CANCELLED" in log
    clone.run("bash", "-c", line.replace("sbatch", "sbatch --nodelist n2"))
    assert "cnn: resumed after epoch" in clone.read(".dvc/tmp/repro.log")
    assert content(clone) == undisturbed


@pytest.mark.slow
def test_two_nodes_train_one_model(copied):
    clone = copied("clone")
    (line,) = lines_of_the_page("Several machines, by Slurm")
    clone.run("bash", "-c", line.replace(":29400", f":{free_ports(1)[0]}"))
    assert stages_run(clone.read(".dvc/tmp/nodes.log")) == [*TRAININGS, "evaluate", "report"]
    for run in RUNS:
        assert clone.json(f"metrics/timing/{run}.json")["device"] == "2 × CPU, 1 thread"


@pytest.mark.slow
def test_a_study_runs_a_job_for_each_seed_and_again_only_those_that_are_missing(copied):
    clone = copied("clone")
    clone.replace("params.yaml", "  seeds: 5", "  seeds: 3")
    first, *study, missing, collect, report = lines_of_the_page("Many experiments on a cluster")
    for line in (first, "\n".join(study), collect, report):
        clone.run("bash", "-c", line)
    assert clone.run("bash", "-c", missing) == "\n"
    assert [line.split(",")[0] for line in clone.read("plots/seeds.csv").splitlines()[1::3]] == ["43", "44", "45"]
    assert "no seed is missing" in clone.attempt("bash", "-c", "\n".join(study)).stderr
    assert "45" in clone.read("report/report.md")
