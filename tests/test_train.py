"""A training as a process: what it writes, what disturbs it, what it refuses. See `mine.py` for the model."""

import hashlib
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from tests.warm import Process, Server, until

ROOT = Path(__file__).parents[1]
EPOCHS, BATCHES = 40, 3  # of the run; of an epoch
MODEL, TIMING = Path("models/mine.safetensors"), Path("metrics/timing/mine.json")
HISTORY, CHECKPOINT = Path("plots/history/mine.csv"), Path(".cache/training/mine.safetensors")
RESUMED = f"mine: resumed after epoch {{}} of {EPOCHS}"


def copied_code(folder: Path) -> Path:
    """Copy the pipeline, and add a model."""
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests/mine.py", folder / "stages/models")
    return folder


@pytest.fixture(scope="module")
def trainings(tmp_path_factory) -> Iterator[Server]:
    code = copied_code(tmp_path_factory.mktemp("code"))
    server = Server(code, tmp_path_factory.mktemp("processes"), "stages.train")
    yield server
    server.process.communicate()


def write_project(prepare: Callable[..., None]) -> None:
    runs = {name: {"model": name, "weight_decay": "train.weight_decay"} for name in ("mine", "cnn", "resnet")}
    prepare(mine={"epochs": EPOCHS}, runs=runs, compare={}, train__learning_rate=0.05)


@pytest.fixture
def project(tmp_path, monkeypatch, prepare) -> Path:
    """A folder with small data and parameters, and the current one."""
    monkeypatch.chdir(tmp_path)
    write_project(prepare)
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(trainings, prepare, tmp_path_factory) -> Path:
    """The folder of a training that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_project(prepare)
        done = trainings.run("mine")
        assert (done.returncode, done.stderr) == (0, "")
        Path("said").write_text(done.stdout)
    return folder


@pytest.fixture
def expected(undisturbed) -> dict[Path, bytes]:
    return results(undisturbed)


def results(folder: Path = Path()) -> dict[Path, bytes]:
    """What must be the same in each training."""
    return {path: (folder / path).read_bytes() for path in (MODEL, HISTORY) if (folder / path).exists()}


def remove_results() -> None:
    """As DVC does before it runs a stage."""
    for path in (MODEL, TIMING, HISTORY):
        path.unlink(missing_ok=True)


def written() -> set[Path]:
    return {path for folder in ("models", "metrics", "plots") for path in Path(folder).rglob("*") if path.is_file()}


def edit(**changes: object) -> None:
    """Change params.yaml as an editor does."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    for name, value in changes.items():
        section, _, key = name.partition("__")
        (params[section] if key else params)[key or section] = value
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def edit_images() -> None:
    with np.load("data/test.npz") as arrays:
        np.savez("data/test.npz", **{**arrays, "images": arrays["images"] // 2})


def one_line(done: subprocess.CompletedProcess, status: int = 1) -> str:
    assert done.returncode == status, done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


def card_of(path: Path) -> dict:
    with safetensors.safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["card"])


def held_after(epochs: int, trainings: Server) -> Process:
    """Start a training that finishes so many epochs and then waits until it may go on."""
    Path("hold").write_text(str(epochs * BATCHES + 1))
    process = trainings.start("mine")
    process.runs_until(Path("held").exists)
    return process


def go_on(process: Process) -> subprocess.CompletedProcess:
    Path("hold").write_text("")
    return process.wait()


def test_a_training_writes_the_files_keys_and_columns_of_the_contract(undisturbed, monkeypatch):
    monkeypatch.chdir(undisturbed)
    assert written() == {MODEL, TIMING, HISTORY}
    history, timing, took = pd.read_csv(HISTORY), json.loads(TIMING.read_text()), card_of(CHECKPOINT)
    measured = "train_loss train_accuracy test_loss test_accuracy generalization_gap"
    assert list(history) == ["epoch", *measured.split(), "learning_rate"]
    assert history.epoch.tolist() == list(range(1, EPOCHS + 1))
    assert np.allclose(history.generalization_gap, history.train_accuracy - history.test_accuracy)
    assert np.allclose(history.learning_rate, 0.025 * (1 + np.cos(np.pi * np.arange(EPOCHS) / EPOCHS)))
    keys = "train_seconds images_per_second device instruction_set threads precision compiled torch python"
    assert list(timing) == keys.split()
    assert timing["train_seconds"] == pytest.approx(took["seconds"], abs=0.01)
    assert timing["images_per_second"] == pytest.approx(40 * EPOCHS / took["training_seconds"], abs=0.1)
    told = ["CPU, 1 thread", 1, "fp32", False, torch.__version__]
    assert [timing[key] for key in ("device", "threads", "precision", "compiled", "torch")] == told
    *_, last = Path("said").read_text().splitlines()
    best = history.loc[history.test_accuracy.idxmax()]
    seconds, accuracy = f"{timing['train_seconds']:.1f}", f"{best.test_accuracy:.2%}"
    assert last == f"mine: {EPOCHS} epochs in {seconds} s, best test accuracy {accuracy} in epoch {best.epoch:.0f}"


def test_the_model_file_has_the_weights_of_the_best_epoch_and_a_card_of_exactly_recipe_data_and_history(
    undisturbed, monkeypatch
):
    """The weights are tested again, by torch alone."""
    monkeypatch.chdir(undisturbed)
    card, history, params = card_of(MODEL), pd.read_csv(HISTORY), yaml.safe_load(Path("params.yaml").read_text())
    assert sorted(card) == ["data", "history", "recipe", "sha256"]
    shared = {key: params[key] for key in ("seed", "train", "augment")}
    assert card["recipe"] == {"run": "mine", "model": "mine", "settings": {"epochs": EPOCHS}} | shared
    assert card["data"] == json.loads(Path("data/dataset.json").read_text())
    assert [list(row) for row in card["history"]] == [list(history)] * EPOCHS
    assert np.allclose(pd.DataFrame(card["history"]), history, rtol=1e-7)
    layers = [nn.Linear(192, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Identity(), nn.Linear(32, 2)]
    network = nn.Sequential(nn.Identity(), nn.Flatten(), *layers)
    network.load_state_dict(safetensors.torch.load_file(MODEL))
    with np.load("data/test.npz") as arrays, torch.no_grad():
        x = (torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.29
        logits, labels = network.eval()(x), torch.from_numpy(arrays["labels"])
    best = history.test_accuracy.idxmax()
    assert best < EPOCHS - 1
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(history.test_accuracy[best])
    assert F.cross_entropy(logits, labels).item() == pytest.approx(history.test_loss[best], rel=1e-4)


@pytest.mark.parametrize("trial", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 12))])
def test_a_training_killed_at_any_moments_ends_with_the_bytes_of_an_undisturbed_one(
    project, trainings, undisturbed, expected, trial
):
    moments, seconds = random.Random(trial), json.loads((undisturbed / TIMING).read_text())["train_seconds"]
    for _ in range(4):
        process = trainings.start("mine")
        until(lambda: CHECKPOINT.exists() or process.ended())  # noqa: B023
        end = time.monotonic() + moments.uniform(0, 0.8) * seconds
        until(lambda: time.monotonic() > end or process.ended())  # noqa: B023
        process.end(signal.SIGKILL)
        assert not MODEL.exists() or results()[MODEL] == expected[MODEL]
        assert expected[HISTORY].startswith(HISTORY.read_bytes() if HISTORY.exists() else b"")
        remove_results()
    assert "resumed after epoch" in trainings.run("mine").stdout
    assert results() == expected


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_second_training_is_refused_and_the_first_one_if_interrupted_is_resumed(project, trainings, expected, by):
    first = held_after(1, trainings)
    refused = "train: mine: another process trains this run in this folder; wait for it, or stop it"
    assert one_line(trainings.run("mine")) == refused
    assert [line.partition(",")[0] for line in HISTORY.read_text().splitlines()] == ["epoch", "1"]
    edit(study__margin=0.01, cnn__epochs=7, ablation__weight_decay=0.1)  # of other stages and runs
    line = one_line(first.end(by), status=128 + by)
    assert line == f"train: stopped ({by.name}); run the same command again to go on"
    assert not MODEL.exists()
    Path("hold").write_text("")
    said = trainings.run("mine").stdout.splitlines()
    assert (said[2], said[3].startswith(f"mine  2/{EPOCHS}  loss ")) == (RESUMED.format(1), True)
    assert results() == expected


def test_a_finished_training_whose_results_are_lost_writes_them_again_unless_dvc_has_them(project, trainings, expected):
    trainings.run("mine")
    timing = TIMING.read_bytes()
    remove_results()
    again = trainings.run("mine").stdout.splitlines()
    assert (len(again), again[2]) == (4, RESUMED.format(EPOCHS))
    assert (results(), TIMING.read_bytes()) == (expected, timing)
    md5 = hashlib.md5(expected[MODEL]).hexdigest()
    Path("dvc.lock").write_text(f"stages: {{train@mine: {{outs: [{{path: {MODEL}, md5: {md5}}}]}}}}")
    remove_results()
    assert len(trainings.run("mine").stdout.splitlines()) == 2 + EPOCHS + 1  # as `dvc repro --force` asks for
    assert results() == expected


@pytest.mark.parametrize("named", ["the parameters", "data/test.npz", "stages/train.py; stages/training/step.py"])
def test_what_is_edited_while_a_training_runs_is_not_credited_with_its_results(project, trainings, expected, named):
    scripts = [trainings.code / "stages" / name for name in ("train.py", "training/step.py")]
    before = {path: path.read_bytes() for path in (Path("params.yaml"), Path("data/test.npz"), *scripts)}
    process = held_after(0, trainings)
    edits = {"t": lambda: edit(train__momentum=0.8), "d": edit_images}
    edits.get(named[0], lambda: [path.write_bytes(b"pass") for path in scripts])()
    done = go_on(process)
    for path, content in before.items():
        path.write_bytes(content)
    assert re.match(f"train: changed while this stage ran: {named}. Nothing was written", one_line(done))
    assert written() == {HISTORY}
    assert RESUMED.format(EPOCHS) in trainings.run("mine").stdout
    assert results() == expected


def test_a_checkpoint_of_other_inputs_or_another_instruction_set_is_not_resumed(project, trainings, stage):
    held_after(1, trainings).end(signal.SIGKILL)
    Path("hold").write_text("")
    edit(train__momentum=0.8)
    edit_images()
    (copied_code(project / "code") / "stages/training/step.py").open("a").write("# changed")
    kind = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    said = stage("stages.train", "mine", PYTHONPATH="code", OMP_NUM_THREADS="1", **kind).stdout.splitlines()
    differing = "parameters and data and code and device"
    assert said[2] == f"{CHECKPOINT}: starting from epoch 1, because this checkpoint has other {differing}"
    assert said[3].startswith(f"mine  1/{EPOCHS}")
    assert json.loads(TIMING.read_text())["instruction_set"] == "DEFAULT SSE41"


@pytest.mark.parametrize(
    ("run", "spoil", "message"),
    [
        ("nope", lambda: None, r"'nope' is no run in params\.yaml; there is mine, cnn, resnet"),
        ("mine", lambda: edit(train__learning_rate=1e30), r"the loss is no longer finite after epoch 1 at learning r"),
    ],
)
def test_what_cannot_be_trained_ends_in_one_line_before_anything_is_written(project, trainings, run, spoil, message):
    spoil()
    assert re.match(f"train: {message}", one_line(trainings.run(run)))
    assert written() == set()


def two_processes(trainings: Server, *folders: Path) -> list[Process]:
    """Start both as torchrun does, each in its folder."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    common = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        trainings.start("mine", cwd=folder, **common, RANK=rank, LOCAL_RANK=rank, LOCAL_WORLD_SIZE="2")
        for rank, folder in zip("01", folders or (Path.cwd(), Path.cwd()), strict=True)
    ]


def test_a_pair_of_which_one_was_killed_is_told_and_resumed_to_the_bytes_of_another_pair(project, trainings):
    Path("hold").write_text(str(BATCHES + 1))
    first, second = two_processes(trainings)
    first.runs_until(Path("held").exists)
    second.end(signal.SIGKILL)
    line = one_line(go_on(first))
    assert line == "train: another process ended, so this training ended too; see its message, and run this again"
    assert not MODEL.exists()
    first, second = (process.wait() for process in two_processes(trainings))
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, "")
    assert first.stdout.splitlines()[1:3] == ["mine: on 2 × CPU, 1 thread, fp32, not compiled", RESUMED.format(1)]
    resumed = results()
    CHECKPOINT.unlink()
    remove_results()
    assert [process.wait().returncode for process in two_processes(trainings)] == [0, 0]
    assert (len(resumed), results()) == (2, resumed)


def test_two_machines_with_different_inputs_are_refused_before_they_train(project, trainings, tmp_path_factory):
    other = shutil.copytree(project, tmp_path_factory.mktemp("other") / "machine")
    edit(train__momentum=0.8)
    edit_images()
    different = "the 2 processes began with different parameters and data; give all of them the same files"
    for process in two_processes(trainings, project, other):
        assert one_line(process.wait()) == f"train: {different}"
    assert written() == set()
