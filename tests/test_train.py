import contextlib
import csv
import errno
import json
import os
import random
import re
import signal
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors
import torch
from ruamel.yaml import YAML

from stages import train
from stages.core.device import Backend
from stages.core.errors import UserError
from stages.core.training import Epoch

DEFAULTS = Path(__file__).parents[1] / "params.yaml"
ARGS = Namespace(run="resnet", model="resnet18", epochs=2, weight_decay=5e-4)
CPU = Backend(torch.device("cpu"), "fp32", compile=False)


def write_data(size: int = 8, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    random = np.random.default_rng(0)
    Path("data").mkdir(exist_ok=True)
    for name, count in (("train", 40), ("test", 20)):
        images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        np.savez(f"data/{name}.npz", images=images, labels=random.integers(0, len(classes), count))
    info = {
        "name": "noise",
        "source": "images",
        "sha256": "ab12",
        "classes": list(classes),
        "image_size": size,
        "counts": {"train": 40, "test": 20},
        "mean": [0.5, 0.5, 0.5],
        "std": [0.29, 0.29, 0.29],
    }
    Path("data/dataset.json").write_text(json.dumps(info))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with small random data and parameters for a small ResNet."""
    monkeypatch.chdir(tmp_path)
    prepare()
    return tmp_path


def prepare() -> None:
    write_data()
    params = YAML(typ="safe", pure=True).load(DEFAULTS)
    params["train"] |= {"batch_size": 16, "learning_rate": 0.01}
    params["resnet"] |= {"base_channels": 16, "blocks": [1]}
    YAML().dump(params, Path("params.yaml"))


def outputs(folder: Path) -> list[str]:
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != "params.yaml" and not name.startswith("data/"))


def test_a_training_writes_the_files_and_keys_of_the_contract(workspace):
    train.main(ARGS)
    assert outputs(workspace) == [
        "metrics/timing/resnet.json",
        "metrics/train/resnet.json",
        "models/resnet.safetensors",
        "plots/history/resnet.csv",
    ]
    history = list(csv.DictReader(Path("plots/history/resnet.csv").read_text().splitlines()))
    assert list(history[0]) == [
        "epoch",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
        "generalization_gap",
        "learning_rate",
    ]
    assert [row["epoch"] for row in history] == ["1", "2"]
    last, best = history[-1], max(history, key=lambda row: float(row["test_accuracy"]))
    metrics = json.loads(Path("metrics/train/resnet.json").read_text())
    assert metrics == pytest.approx(
        {
            "best_test_accuracy": float(best["test_accuracy"]),
            "best_epoch": int(best["epoch"]),
            "final_test_accuracy": float(last["test_accuracy"]),
            "final_test_loss": float(last["test_loss"]),
            "final_train_accuracy": float(last["train_accuracy"]),
            "final_train_loss": float(last["train_loss"]),
            "generalization_gap": float(last["train_accuracy"]) - float(last["test_accuracy"]),
            "parameters": 5_170,
            "epochs": 2,
            "weight_decay": 5e-4,
        },
        abs=1e-6,
    )
    timing = json.loads(Path("metrics/timing/resnet.json").read_text())
    assert {"train_seconds", "images_per_second"} < set(timing)
    assert timing["torch"] == torch.__version__


def test_the_model_file_says_how_it_was_made(workspace):
    train.main(ARGS)
    with safetensors.safe_open("models/resnet.safetensors", framework="np") as file:
        card = json.loads(file.metadata()["card"])
    recipe = card.pop("recipe")
    assert card == {
        "run": "resnet",
        "model": "resnet18",
        "base_channels": 16,
        "blocks": [1],
        "classes": ["cat", "dog"],
        "image_size": 8,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.29, 0.29, 0.29],
    }
    assert recipe == {
        "seed": 42,
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "cosine",
        "crop_padding": 4,
        "flip": True,
        "keep": "best",
        "sync_batchnorm": False,
    }


def test_away_from_a_terminal_each_epoch_is_a_line(workspace, capsys):
    train.main(ARGS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("resnet: ResNet-4 (16 channels), 5,170 parameters, on ")
    assert [line.partition(":")[0] for line in lines[1:]] == ["resnet 1/2", "resnet 2/2"]
    assert all("loss" in line and "test" in line and "images/s" in line and "left" in line for line in lines[1:])


CPU_FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 36 bytes.")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), CPU_FULL])
def test_running_out_of_memory_names_the_batch_size_and_writes_nothing(workspace, monkeypatch, error):
    def exhausted(*args, **kwargs):
        raise error

    monkeypatch.setattr(train, "train", exhausted)
    with pytest.raises(UserError, match=r"ran out of memory at train\.batch_size = 16"):
        train.main(ARGS)
    assert outputs(workspace) == []


def test_a_full_disk_leaves_the_earlier_results_whole(workspace, monkeypatch):
    train.main(ARGS)
    earlier = results()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stages.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        train.main(Namespace(**vars(ARGS) | {"weight_decay": 1e-4}))
    assert results() == earlier
    assert not list(workspace.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("run", "../x", "must match pattern"),
        ("run", "", "must match pattern"),
        ("epochs", 0, "must be greater than or equal to 1"),
        ("weight_decay", -1.0, "must be greater than or equal to 0"),
        ("weight_decay", float("nan"), "must be a finite number"),
    ],
)
def test_an_impossible_argument_is_named(workspace, name, value, allowed):
    with pytest.raises(UserError, match=f"command line: {name} = .*: {allowed}"):
        train.main(Namespace(**vars(ARGS) | {name: value}))
    assert outputs(workspace) == []


def test_without_data_the_stage_that_makes_it_is_named(workspace):
    Path("data/train.npz").unlink()
    with pytest.raises(UserError, match=r"data/train\.npz: cannot be read .*dvc repro download"):
        train.main(ARGS)


@pytest.mark.parametrize(("epochs", "announced"), [(2, 0), (100, 1)])
def test_a_run_of_hours_on_a_cpu_is_announced_once(monkeypatch, capsys, epochs, announced):
    now = iter(range(0, 10_000, 6))  # seconds; a batch takes six
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(now))
    progress = train.Progress("cnn", epochs, 0, images=1000, backend=CPU)
    for _ in range(20):
        progress.batch(50)
    progress.close()
    assert capsys.readouterr().err.count("h to go on this CPU. `make demo` takes minutes") == announced


def test_an_epochs_line_tells_speed_and_time_left(monkeypatch, capsys):
    now = iter([0, 50, 50])
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(now))
    progress = train.Progress("cnn", 3, 0, images=200, backend=Backend(torch.device("cuda"), "bf16", compile=False))
    for _ in range(2):
        progress.batch(100)
    progress.epoch(Epoch(1, 0.51239, 0.9, 0.6, 0.875, 0.025, 0.1))
    assert capsys.readouterr().out == "cnn 1/3: loss 0.5124, train 90.00%, test 87.50%, 2 images/s, 04:10 left\n"


TRAIN = ("stages.train", "resnet", "--model", "resnet18", "--epochs", "40", "--weight-decay", "5e-4")
STATE = Path(".cache/training/resnet.safetensors")


def results() -> dict[str, bytes]:
    names = ("models/resnet.safetensors", "metrics/train/resnet.json", "plots/history/resnet.csv")
    return {name: Path(name).read_bytes() for name in names if Path(name).exists()}


def remove_results() -> None:
    """As DVC does before it runs a stage."""
    for name in results():
        Path(name).unlink()


@pytest.fixture(scope="module")
def undisturbed(stage, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    """The results of a run that nothing disturbs, and how many seconds it takes."""
    with contextlib.chdir(tmp_path_factory.mktemp("undisturbed")):
        prepare()
        began = time.perf_counter()
        done = stage(*TRAIN)
        assert done.returncode == 0, done.stderr
        return results(), time.perf_counter() - began


@pytest.mark.parametrize("trial", [*range(3), *(pytest.param(i, marks=pytest.mark.slow) for i in range(3, 24))])
def test_a_training_killed_at_any_moment_ends_with_the_bytes_of_an_undisturbed_one(
    workspace, stage, undisturbed, trial
):
    expected, seconds = undisturbed
    end = time.perf_counter() + seconds * random.Random(trial).uniform(0.4, 1.1)
    stage(*TRAIN, kill_when=lambda: time.perf_counter() > end)
    assert results().items() <= expected.items()
    remove_results()
    done = stage(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert results() == expected
    assert not STATE.exists()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_training_goes_on_after_its_last_epoch(workspace, stage, undisturbed, by):
    expected, _ = undisturbed
    stopped = stage(*TRAIN, kill_when=STATE.exists, by=by)
    assert stopped.returncode != 0
    assert "Traceback" not in stopped.stderr
    assert results() == {}
    lines = stage(*TRAIN).stdout.splitlines()
    said = re.fullmatch(r"resnet: going on after epoch (\d+), the last that an interrupted training finished", lines[1])
    assert lines[2].startswith(f"resnet {int(said[1]) + 1}/40: ")
    assert results() == expected


def test_a_training_killed_while_it_writes_its_results_writes_them_again(workspace, stage, undisturbed):
    expected, _ = undisturbed
    stage(*TRAIN, kill_when=Path("models/resnet.safetensors").exists)
    assert results().items() <= expected.items()
    remove_results()
    stage(*TRAIN)
    assert results() == expected
    assert not STATE.exists()


def test_the_state_of_a_training_with_other_parameters_is_not_used(workspace, stage):
    stage(*TRAIN, kill_when=STATE.exists)
    done = stage(*TRAIN[:-1], "1e-4")
    assert "starting anew, because this interrupted training had other parameters" in done.stdout
    assert done.stdout.count("resnet 1/40: ") == 1


def test_results_that_cannot_be_written_end_in_one_line(workspace, stage):
    Path("models").touch()
    done = stage(*TRAIN[:-3], "1", *TRAIN[-2:])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(r"train: .*'models'", line)


TOGETHER = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *TRAIN)


def kill_process(rank: int) -> bool:
    """Kill the training process of this rank once there is a state to go on from; whether it was killed."""
    if not STATE.exists():
        return False
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == os.getcwd() and process.environ().get("RANK") == str(rank):
                process.kill()
                return True
    return False


def test_two_processes_train_as_one_and_one_that_dies_ends_both(workspace, stage, undisturbed):
    done = stage(*TOGETHER)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if " on " in line] == [
        "resnet: ResNet-4 (16 channels), 5,170 parameters, on 2 × CPU, 1 thread, fp32, not compiled"
    ]
    assert done.stdout.count("resnet 40/40: ") == 1
    expected = results()
    remove_results()

    killed = False

    def kill_once() -> bool:
        nonlocal killed
        killed = killed or kill_process(rank=1)
        return False

    stopped = stage(*TOGETHER, kill_when=kill_once)
    assert killed
    assert stopped.returncode != 0
    (line,) = [line for line in stopped.stderr.splitlines() if line.startswith("train: ")]
    assert re.search("another of the 2 processes ended, and with it this training|ended from outside", line)
    assert "run this again" in line
    assert results() == {}

    again = stage(*TOGETHER)
    assert "resnet: going on after epoch" in again.stdout
    assert results() == expected
    assert not STATE.exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_training_of_two_processes_is_finished_by_one(workspace, stage, rank):
    killed = stage(*TOGETHER, kill_when=lambda: kill_process(rank) and False)
    assert killed.returncode != 0
    done = stage(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert "trained on 2 × CPU, 1 thread so far, now on CPU, " in done.stdout
    assert "resnet: going on after epoch" in done.stdout
    assert len(results()) == 3


@pytest.mark.parametrize(
    ("param", "value", "message"),
    [("batch_size", 1, "train.batch_size = 1: a batch of all 2"), ("sync_batchnorm", True, "on GPUs alone")],
)
def test_what_several_processes_cannot_do_is_refused_by_name(workspace, stage, param, value, message):
    params = YAML(typ="safe", pure=True).load(Path("params.yaml"))
    params["train"][param] = value
    YAML().dump(params, Path("params.yaml"))
    done = stage(*TOGETHER)
    assert done.returncode != 0
    assert message in done.stderr
    assert outputs(workspace) == []
