import csv
import json
import os
import pty
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from argparse import Namespace
from fcntl import ioctl
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml

from stages import train
from stages.common.errors import UserError
from stages.common.formats import Epoch
from stages.common.yaml12 import read_yaml
from stages.training import tensor_file

ROOT = Path(__file__).parents[1]
ARGS = Namespace(run="resnet", model="resnet", weight_decay="train.weight_decay")
TRAIN = ("stages.train", "resnet", "--model", "resnet", "--weight-decay", "train.weight_decay")
CHECKPOINT = Path(".cache/training/resnet.safetensors")
RESULTS = ("models/resnet.safetensors", "metrics/train/resnet.json", "plots/history/resnet.csv")
EPOCHS = 20


def outputs(folder: Path) -> list[str]:
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.startswith(("params.yaml", "data/", ".cache/")))


def results() -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in RESULTS if Path(name).exists()}


def remove_results() -> None:
    """As DVC does before it runs a stage."""
    for name in results():
        Path(name).unlink()


def set_param(section: str, key: str, value: object) -> None:
    params = read_yaml(Path("params.yaml"))
    (params[section] if section else params).__setitem__(key, value)
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def test_a_training_writes_the_files_and_keys_of_the_contract(workspace, capsys):
    train.main(ARGS)
    assert outputs(workspace) == sorted([*RESULTS, "metrics/timing/resnet.json"])
    history = list(csv.DictReader(Path("plots/history/resnet.csv").read_text().splitlines()))
    assert list(history[0]) == list(Epoch.model_fields)
    assert [row["epoch"] for row in history] == ["1", "2"]
    last, best = history[-1], max(history, key=lambda row: float(row["test_accuracy"]))
    assert json.loads(Path("metrics/train/resnet.json").read_text()) == pytest.approx(
        {
            "accuracy": float(best["test_accuracy"]),
            "loss": float(best["test_loss"]),
            "last_accuracy": float(last["test_accuracy"]),
            "gap": float(last["train_accuracy"]) - float(last["test_accuracy"]),
            "best_epoch": int(best["epoch"]),
        },
        abs=1e-6,
    )
    timing = json.loads(Path("metrics/timing/resnet.json").read_text())
    assert list(timing) == [
        "train_seconds", "images_per_second", "device", "precision", "compiled", "torch", "python",
    ]  # fmt: skip
    assert timing["torch"] == torch.__version__
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"resnet: 2 epochs in [\d.]+ s, best test accuracy [\d.]+% in epoch [12]", said[-1])


def card(run: str = "resnet") -> dict:
    return tensor_file.from_bytes(Path(f"models/{run}.safetensors").read_bytes())[0]


def test_the_model_card_holds_the_runs_recipe_and_data_and_nothing_else(workspace):
    train.main(Namespace(run="resnet", model="resnet", weight_decay="ablation.weight_decay"))
    params = read_yaml(Path("params.yaml"))
    assert card() == {
        "recipe": {
            "run": "resnet",
            "model": "resnet",
            "seed": 42,
            "settings": params["resnet"],
            "train": params["train"] | {"weight_decay": 1e-4},
            "augment": params["augment"],
        },
        "data": json.loads(Path("data/dataset.json").read_text()),
    }


def test_a_cnn_has_the_same_bytes_whatever_the_width_of_the_resnet(workspace):
    contents = set()
    for width in (16, 32):
        set_param("resnet", "base_channels", width)
        train.main(Namespace(run="cnn", model="cnn", weight_decay="train.weight_decay"))
        contents.add(Path("models/cnn.safetensors").read_bytes())
        Path(".cache/training/cnn.safetensors").unlink()
    assert len(contents) == 1


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_metrics_are_those_of_the_weights_kept(workspace, keep):
    set_param("train", "keep", keep)
    set_param("resnet", "epochs", 4)
    set_param("train", "learning_rate", 0.3)
    train.main(ARGS)
    metrics = json.loads(Path("metrics/train/resnet.json").read_text())
    rows = list(csv.DictReader(Path("plots/history/resnet.csv").read_text().splitlines()))
    kept = rows[metrics["best_epoch"] - 1] if keep == "best" else rows[-1]
    assert metrics["accuracy"] == pytest.approx(float(kept["test_accuracy"]))
    checkpoint = tensor_file.from_bytes(CHECKPOINT.read_bytes())[1]
    model = tensor_file.from_bytes(Path("models/resnet.safetensors").read_bytes())[1]
    prefix = "best." if keep == "best" else "step.model."
    assert all(torch.equal(tensor, checkpoint[prefix + name]) for name, tensor in model.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run": "../x"}, r"run '\.\./x': run = '\.\./x': must match pattern"),
        ({"model": "vgg"}, r"run 'resnet': model = 'vgg': must be 'cnn' or 'resnet'"),
        ({"weight_decay": "train.momentum"}, r"'train\.momentum' is no weight decay .*ablation\.weight_decay"),
        ({"weight_decay": "1e-4; touch X"}, r"'1e-4; touch X' is no weight decay"),
    ],
)
def test_an_impossible_argument_is_named(workspace, arguments, message):
    with pytest.raises(UserError, match=message):
        train.main(Namespace(**vars(ARGS) | arguments))
    assert outputs(workspace) == []


def test_without_data_the_stage_that_makes_it_is_named(workspace):
    Path("data/train.npz").unlink()
    with pytest.raises(UserError, match=r"data/train\.npz: no such file; make it with `dvc repro download`"):
        train.main(ARGS)


def edit_params() -> None:
    set_param("", "seed", 5)


def edit_data() -> None:
    with np.load("data/test.npz") as arrays:
        np.savez("data/test.npz", images=arrays["images"] // 2, labels=arrays["labels"])


def edit_code() -> None:
    with Path("copy/stages/training/step.py").open("a") as file:
        file.write("# changed\n")


@pytest.mark.parametrize(
    ("edit", "named"),
    [(edit_params, "the parameters"), (edit_data, "data/test.npz"), (edit_code, "copy/stages/training/step.py")],
)
def test_what_is_edited_while_a_training_runs_is_not_credited_with_its_results(workspace, stage, edit, named):
    shutil.copytree(ROOT / "stages", "copy/stages", ignore=shutil.ignore_patterns("__pycache__"))
    set_param("resnet", "epochs", EPOCHS)
    before = {path: path.read_bytes() for path in (Path("params.yaml"), Path("data/test.npz"))}
    edited = False

    def once() -> bool:
        nonlocal edited
        if not edited and CHECKPOINT.exists():
            edit()
            edited = True
        return False

    done = stage(*TRAIN, kill_when=once, PYTHONPATH=str(workspace / "copy"))
    assert edited
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"train: changed while this stage ran: {named}. Nothing was written")
    assert "models/resnet.safetensors" not in outputs(workspace)

    for path, content in before.items():
        path.write_bytes(content)
    if edit is edit_code:
        shutil.copy(ROOT / "stages/training/step.py", "copy/stages/training/step.py")
    again = stage(*TRAIN, PYTHONPATH=str(workspace / "copy"))
    assert f"resnet: resumed after epoch {EPOCHS} of {EPOCHS}" in again.stdout
    assert len(results()) == 3


@pytest.fixture(scope="module")
def undisturbed(stage, prepare, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    """The results of a training that nothing disturbs, and how many seconds it takes."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("undisturbed"))
    try:
        prepare(resnet__epochs=EPOCHS)
        began = time.perf_counter()
        done = stage(*TRAIN)
        assert done.returncode == 0, done.stderr
        return results(), time.perf_counter() - began
    finally:
        os.chdir(here)


@pytest.fixture
def long(workspace) -> Path:
    set_param("resnet", "epochs", EPOCHS)
    return workspace


@pytest.mark.parametrize("trial", [*range(2), *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 24))])
def test_a_training_killed_at_any_moment_ends_with_the_bytes_of_an_undisturbed_one(long, stage, undisturbed, trial):
    expected, seconds = undisturbed
    end = time.perf_counter() + seconds * random.Random(trial).uniform(0.4, 1.1)
    stage(*TRAIN, kill_when=lambda: time.perf_counter() > end)
    assert {name: content for name, content in results().items() if "history" not in name}.items() <= expected.items()
    remove_results()
    done = stage(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert results() == expected


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_training_says_after_which_epoch_it_resumes_and_does(long, stage, undisturbed, by):
    expected, _ = undisturbed
    stopped = stage(*TRAIN, kill_when=CHECKPOINT.exists, by=by)
    assert stopped.returncode == 128 + by
    (line,) = stopped.stderr.splitlines()
    said = re.fullmatch(rf"train: stopped \({by.name}\); run the same command to resume resnet after epoch (\d+)", line)
    assert "models/resnet.safetensors" not in results()
    again = stage(*TRAIN).stdout.splitlines()
    assert again[2] == f"resnet: resumed after epoch {said[1]} of {EPOCHS}"
    assert again[3].startswith(f"resnet {int(said[1]) + 1:>2}/{EPOCHS}  loss")
    assert results() == expected


def test_a_finished_training_whose_results_are_lost_writes_them_again_without_training(long, stage, undisturbed):
    expected, _ = undisturbed
    stage(*TRAIN, kill_when=Path("models/resnet.safetensors").exists)
    remove_results()
    again = stage(*TRAIN)
    assert f"resnet: resumed after epoch {EPOCHS} of {EPOCHS}" in again.stdout
    assert results() == expected


def test_the_history_has_a_row_for_each_finished_epoch_while_the_training_runs(long, stage):
    seen = []

    def look() -> bool:
        if Path("plots/history/resnet.csv").exists():
            text = Path("plots/history/resnet.csv").read_text()
            assert text.endswith("\n")  # whole at any moment
            seen.append(len(list(csv.DictReader(text.splitlines()))))
        return bool(seen) and seen[-1] >= 5

    stage(*TRAIN, kill_when=look)
    assert seen == sorted(seen)
    assert len(set(seen) & set(range(1, 6))) >= 3


def test_a_second_training_of_the_run_is_refused(workspace, stage):
    with train.alone("resnet"):
        done = stage(*TRAIN)
    assert done.returncode == 1
    assert done.stderr == "train: resnet: another process trains this run in this folder; wait for it, or stop it\n"
    assert outputs(workspace) == []


def test_results_that_cannot_be_written_end_in_one_line(workspace, stage):
    Path("models").touch()
    done = stage(*TRAIN)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(r"train: models.*File exists|train: .*Not a directory", line)


def test_a_full_disk_ends_in_one_line_with_the_need_and_leaves_no_half_a_file(small_disk, prepare, stage):
    folder = small_disk(1000)
    prepare(resnet__epochs=1)
    done = stage(*TRAIN)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(
        r"train: models/resnet\.safetensors: the disk is full: \d+ MiB are free in .*, \d+ MiB are needed; make", line
    )
    assert "no checkpoint (No space left on device, " in done.stdout
    assert not [name for name in outputs(folder) if "models" in name]
    subprocess.run(["mount", "-o", "remount,size=50m", str(folder)], check=True)
    assert stage(*TRAIN).returncode == 0
    assert len(results()) == 3


def test_running_out_of_memory_names_the_batch_size_and_writes_nothing(workspace):
    """A real limit on the address space of the process, set after it has started."""
    set_param("resnet", "base_channels", 1024)
    code = (
        "import resource, runpy, sys; import stages.train\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30,) * 2)\n"
        f"sys.argv = {list(TRAIN)!r}; runpy.run_module('stages.train', run_name='__main__')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "ran out of memory at train.batch_size = 16 with ResNet-10, 1024 channels; make the batch" in line
    assert outputs(workspace) == []


@pytest.mark.parametrize(
    "environment",
    [{"WORLD_SIZE": "8"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONOPTIMIZE": "2"}, {"MPLBACKEND": "x"}, {"LC_ALL": "C"}],
    ids=lambda environment: next(iter(environment)),
)
def test_an_odd_environment_changes_nothing(workspace, stage, environment):
    done = stage(*TRAIN, **environment)
    assert done.returncode == 0, done.stderr
    assert len(results()) == 3


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_end_a_training(workspace, closed):
    command = f"exec {sys.executable} -m {' '.join(TRAIN)} {closed}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["sh", "-c", command], env=environment)
    assert done.returncode == 0
    assert len(results()) == 3


def on_a_terminal(columns: int, *command: str) -> str:
    """The output of a stage on a real terminal of so many columns."""
    main, other = pty.openpty()
    ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdout=other, stderr=other, stdin=other
    )
    os.close(other)
    shown = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    process.wait()
    os.close(main)
    assert process.returncode == 0, shown
    return shown.decode()


def test_on_a_terminal_of_80_columns_nothing_is_cut_off(workspace):
    set_param("resnet", "epochs", 30)
    command = ("stages.train", "resnet_ablation", "--model", "resnet", "--weight-decay", "ablation.weight_decay")
    shown = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", on_a_terminal(80, *command))]
    assert max(map(len, shown)) <= 80
    epochs = [line for line in shown if re.match(r"resnet_ablation +\d+/30  loss", line)]
    assert len(epochs) == 30
    figures = r"resnet_ablation 30/30  loss \d\.\d{4}  train \d+\.\d\d%  test \d+\.\d\d%  lr \S+"
    assert re.fullmatch(figures, epochs[-1])
    bars = [line for line in shown if line.startswith("resnet_ablation:") and "left" in line]
    assert bars
    assert all(re.search(r"images/s, [\d:?]+ left$", bar) for bar in bars)


TOGETHER = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *TRAIN)


def signal_rank(rank: int, number: int) -> list[int]:
    """Send the training process of this rank a signal, once there is a checkpoint; its id, or none."""
    for process in psutil.process_iter() if CHECKPOINT.exists() else ():
        try:
            if process.cwd() == os.getcwd() and process.environ().get("RANK") == str(rank):
                process.send_signal(number)
                return [process.pid]
        except psutil.Error:
            continue
    return []


def test_two_processes_train_as_one_and_one_that_dies_ends_both(long, stage):
    done = stage(*TOGETHER, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if " on " in line] == [
        "resnet: on 2 × CPU, 1 thread, fp32, not compiled"
    ]
    assert done.stdout.count(f"resnet {EPOCHS}/{EPOCHS}  ") == 1
    expected = results()
    remove_results()
    CHECKPOINT.unlink()

    killed = []

    def kill_once() -> bool:
        if not killed:
            killed.extend(signal_rank(1, signal.SIGKILL))
        return False

    stopped = stage(*TOGETHER, kill_when=kill_once, OMP_NUM_THREADS="1")
    assert killed
    assert stopped.returncode != 0
    (line,) = [line for line in stopped.stderr.splitlines() if line.startswith("train: ")]
    assert re.search(r"another of the 2 processes ended, so this training ended too|stopped \(SIGTERM\)", line)
    assert "models/resnet.safetensors" not in results()

    again = stage(*TOGETHER, OMP_NUM_THREADS="1")
    assert "resnet: resumed after epoch" in again.stdout
    assert results() == expected


@pytest.mark.parametrize(
    ("param", "value", "message"),
    [
        ("batch_size", 3, "train.batch_size = 3 is less than two images for each of the 2 processes"),
        ("sync_batchnorm", True, "train.sync_batchnorm needs GPUs when several processes train; set it to false"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_by_name(workspace, stage, param, value, message):
    set_param("train", param, value)
    done = stage(*TOGETHER, OMP_NUM_THREADS="1")
    assert done.returncode != 0
    assert message in done.stderr
    assert outputs(workspace) == []


def test_two_machines_with_different_parameters_are_refused_before_the_training(workspace, tmp_path_factory):
    """Two launchers, each in a folder of its own, as on machines that share none."""
    other = tmp_path_factory.mktemp("other") / "machine"
    shutil.copytree(workspace, other)
    set_param("train", "momentum", 0.8)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    together = ("torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", *together, f"--master-port={port}", f"--node-rank={rank}", "-m", *TRAIN],
            cwd=folder, env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank, folder in enumerate((workspace, other))
    ]  # fmt: skip
    said = [node.communicate()[1] for node in nodes]
    assert all(node.returncode for node in nodes)
    line = "train: the 2 processes began with different parameters; give all of them the same files"
    assert any(line in lines.splitlines() for lines in said)
    assert outputs(workspace) == outputs(other) == []


@pytest.mark.slow
def test_ctrl_c_ends_a_process_that_waits_for_another(long, stage):
    """The other one is stopped in its tracks, and the launcher kills it after half a minute."""

    def one_is_stopped() -> bool:
        found = signal_rank(1, signal.SIGSTOP)
        time.sleep(2 * len(found))  # until the other one waits for it
        return bool(found)

    done = stage(*TOGETHER, kill_when=one_is_stopped, by=signal.SIGINT, OMP_NUM_THREADS="1")
    assert done.returncode != 0
    assert "train: stopped (SIGINT) while it waited for another process; run the same command" in done.stderr
