"""The Makefile beside the pipeline: what it says of a repository, the environment, and studies over seeds."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline import ROOT


def make(folder: Path, *targets: str, **env: str) -> subprocess.CompletedProcess:
    own = ("MAKE", "DVC_", "GIT_", "OMP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    command = ["make", "--no-print-directory", *targets]
    return subprocess.run(command, cwd=folder, env=kept | env, capture_output=True, text=True)


def test_it_says_what_is_missing_of_a_repository(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    above = {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    none = make(tmp_path, "repository", **above)
    assert none.returncode == 2
    assert "not a git repository" in none.stdout.splitlines()[0]
    assert "git init && git add ." in none.stdout
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    assert make(tmp_path, "repository").stdout == "The folder .dvc is missing: git restore .dvc\n"
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    assert make(tmp_path, "repository").returncode == 0
    assert (tmp_path / ".dvc/tmp/site").stat().st_mode & 0o777 == 0o700


def test_an_old_python_is_refused_before_anything_is_made(tmp_path):
    old = tmp_path / "python3.10"
    pretend = "import sys; sys.version_info, sys.version = (3, 10), '3.10.2'; exec(sys.argv[1])"
    made = f'[ "$1" = -c ] || {{ touch {tmp_path}/made; exit 1; }}'
    old.write_text(f'#!/bin/sh\n{made}\nexec {sys.executable} -c "{pretend}" "$2"\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    refused = make(tmp_path, "environment", f"PYTHON={old}")
    assert refused.returncode == 2
    assert f"Python 3.11 or newer is needed, and {old} is 3.10.2" in refused.stderr
    assert not (tmp_path / ".venv").exists()
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_an_interrupted_installation_is_repaired_by_the_same_command(tmp_path):
    """Of a project whose environment is installed in seconds, since it asks for one small package."""
    for name in ("Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    groups = '[dependency-groups]\ntest = ["six"]\nlint = []\n'
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "x"\nversion = "1"\n{groups}')
    for _ in range(8):
        shutil.rmtree(tmp_path / ".venv", ignore_errors=True)
        begun = {"cwd": tmp_path, "start_new_session": True, "stdout": subprocess.DEVNULL}
        process = subprocess.Popen(["make", "environment"], **begun)
        time.sleep(random.uniform(0.05, 7))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = make(tmp_path, "environment")
        assert done.returncode == 0, done.stdout + done.stderr
        subprocess.run([tmp_path / ".venv/bin/python", "-c", "import six, uv"], check=True)


@pytest.fixture
def noted(tmp_path) -> Path:
    """A project whose dvc and python are stand-ins that note calls and threads in calls.txt; `MISSING` lists seeds."""
    tools = tmp_path / "tools/bin"
    tools.mkdir(parents=True)
    for name, says in (("dvc", ""), ("python", "case $* in *--missing*) echo $MISSING;; esac")):
        notes = f'echo "{name} $* threads=$OMP_NUM_THREADS" >> {tmp_path}/calls.txt'
        (tools / name).write_text(f"#!/bin/sh\n{notes}\n{says}\n")
        (tools / name).chmod(0o755)
    folder = tmp_path / "project"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc/config").touch()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / ".venv").symlink_to(tools.parent)  # a link, which make leaves alone
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize(("jobs", "threads"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_all_experiments_of_a_study_have_the_same_number_of_threads(noted, jobs, threads):
    command = "seeds", f"JOBS={jobs}", "CORES=4"
    assert "Seeds to train: none\n" in make(noted, *command, MISSING="").stdout
    done = make(noted, *command, MISSING="43,44")
    assert done.returncode == 0, done.stderr
    calls = (noted.parent / "calls.txt").read_text().splitlines()
    assert len([call for call in calls if "dvc" in call]) == 6  # before and after; then with two seeds between
    assert {call.rpartition("threads=")[2] for call in calls} == {str(threads)}
    assert "expr" not in done.stdout + done.stderr
    assert f"xargs -P {jobs} " in make(noted, "--just-print", "seeds", f"JOBS={jobs}").stdout
    make(noted, "queue", f"JOBS={jobs}", "CORES=4")
    queue = f"dvc exp run --run-all --jobs {jobs} threads={threads}"
    assert (noted.parent / "calls.txt").read_text().splitlines()[-1] == queue
