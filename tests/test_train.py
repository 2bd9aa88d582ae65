"""A training as a process: what it writes, what disturbs it, what it refuses. See `mine.py` for the model."""

import hashlib
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
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
RESULTS = [*map(str, (TIMING, MODEL, HISTORY))]
RESUMED = f"mine: resumed after epoch {{}} of {EPOCHS}"


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> Path:
    return copied_code(tmp_path_factory.mktemp("code"))


def copied_code(folder: Path) -> Path:
    """Copy the pipeline, and add a model."""
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests/mine.py", folder / "stages/models")
    return folder


@pytest.fixture(scope="module")
def trainings(code, tmp_path_factory) -> Iterator[Server]:
    server = Server(code, tmp_path_factory.mktemp("processes"), "stages.train")
    yield server
    server.close()


def write_project(prepare: Callable[..., None], **changes: object) -> None:
    runs = {name: {"model": name, "weight_decay": "train.weight_decay"} for name in ("mine", "cnn", "resnet")}
    prepare(**{"mine": {"epochs": EPOCHS}, "runs": runs, "compare": {}, "train__learning_rate": 0.05} | changes)


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
def expected(undisturbed) -> dict[str, bytes]:
    return results(undisturbed)


def results(folder: Path = Path()) -> dict[str, bytes]:
    """What must be the same in each training."""
    return {str(path): (folder / path).read_bytes() for path in (MODEL, HISTORY) if (folder / path).exists()}


def remove_results() -> None:
    """As DVC does before it runs a stage."""
    for name in RESULTS:
        Path(name).unlink(missing_ok=True)


def written() -> list[str]:
    found = [path for folder in ("models", "metrics", "plots") for path in Path(folder).rglob("*") if path.is_file()]
    return sorted(map(str, found))


def edit(**changes: object) -> None:
    """Change params.yaml as an editor does."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    for name, value in changes.items():
        section, _, key = name.partition("__")
        (params[section] if key else params)[key or section] = value
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def edit_momentum() -> None:
    edit(train__momentum=0.8)


def edit_images() -> None:
    with np.load("data/test.npz") as arrays:
        np.savez("data/test.npz", **{**arrays, "images": arrays["images"] // 2})


def append_to(path: Path) -> None:
    path.write_text(path.read_text() + "# changed\n")


def one_line(done: subprocess.CompletedProcess, status: int = 1) -> str:
    assert done.returncode == status, done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


def card_of(path: Path) -> dict:
    content = path.read_bytes()
    (entry,) = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])["__metadata__"].values()
    return json.loads(entry)


def held_after(epochs: int, trainings: Server) -> Process:
    """Start a training that finishes so many epochs and then waits for as long as there is the file `hold`."""
    Path("hold").write_text(str(epochs * BATCHES + 1))
    process = trainings.start("mine")
    process.runs_until(Path("held").exists)
    return process


def go_on(process: Process) -> subprocess.CompletedProcess:
    Path("hold").unlink()
    return process.wait()


def interrupt(trainings: Server) -> None:
    """Leave the checkpoint of a training that was killed in its second epoch."""
    held_after(1, trainings).end(signal.SIGKILL)
    Path("hold").unlink()


# What it writes


def test_a_training_writes_the_files_keys_and_columns_of_the_contract(undisturbed, monkeypatch):
    monkeypatch.chdir(undisturbed)
    assert written() == RESULTS
    history, timing = pd.read_csv(HISTORY), json.loads(TIMING.read_text())
    measured = "train_loss train_accuracy test_loss test_accuracy generalization_gap"
    assert list(history) == ["epoch", *measured.split(), "learning_rate"]
    assert history.epoch.tolist() == list(range(1, EPOCHS + 1))
    assert np.allclose(history.generalization_gap, history.train_accuracy - history.test_accuracy)
    assert np.allclose(history.learning_rate, 0.025 * (1 + np.cos(np.pi * np.arange(EPOCHS) / EPOCHS)))
    keys = "train_seconds images_per_second device instruction_set threads precision compiled torch python"
    assert list(timing) == keys.split()
    took = card_of(CHECKPOINT)
    assert timing["train_seconds"] == pytest.approx(took["seconds"], abs=0.01)
    assert timing["images_per_second"] == pytest.approx(40 * EPOCHS / took["training_seconds"], abs=0.1)
    assert took["training_seconds"] < took["seconds"]  # testing is left out
    told = ["CPU, 1 thread", 1, "fp32", False, torch.__version__]
    assert [timing[key] for key in ("device", "threads", "precision", "compiled", "torch")] == told
    *_, last = Path("said").read_text().splitlines()
    best = history.loc[history.test_accuracy.idxmax()]
    seconds, accuracy = f"{timing['train_seconds']:.1f}", f"{best.test_accuracy:.2%}"
    assert last == f"mine: {EPOCHS} epochs in {seconds} s, best test accuracy {accuracy} in epoch {best.epoch:.0f}"


def test_the_model_card_is_exactly_recipe_data_and_history(undisturbed, monkeypatch):
    monkeypatch.chdir(undisturbed)
    card, history, params = card_of(MODEL), pd.read_csv(HISTORY), yaml.safe_load(Path("params.yaml").read_text())
    assert sorted(card) == ["data", "history", "recipe", "sha256"]
    settings = {"epochs": EPOCHS, "width": 32, "outputs": 2, "frozen": False, "plain": False, "apart": False}
    shared = {key: params[key] for key in ("seed", "train", "augment")}
    assert card["recipe"] == {"run": "mine", "model": "mine", "settings": settings} | shared
    assert card["data"] == json.loads(Path("data/dataset.json").read_text())
    assert [list(row) for row in card["history"]] == [list(history)] * EPOCHS
    assert np.allclose(pd.DataFrame(card["history"]), history, rtol=1e-7)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_weights_kept_are_those_of_the_best_epoch_or_of_the_last(project, trainings, keep):
    """Tested again, by torch alone."""
    edit(train__keep=keep, mine={"epochs": EPOCHS, "plain": True})
    assert trainings.run("mine").returncode == 0
    network = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 2))
    network.load_state_dict(safetensors.torch.load_file(MODEL))
    with np.load("data/test.npz") as arrays, torch.no_grad():
        logits = network((torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.29)
        labels = torch.from_numpy(arrays["labels"])
    history = pd.read_csv(HISTORY)
    best = history.test_accuracy.idxmax()
    assert best < EPOCHS - 1
    row = history.loc[best if keep == "best" else EPOCHS - 1]
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(row.test_accuracy)
    assert F.cross_entropy(logits, labels).item() == pytest.approx(row.test_loss, rel=1e-4)


def test_frozen_layers_keep_the_weights_that_follow_from_the_seed_and_the_others_train(project, trainings):
    edit(mine={"epochs": 2, "frozen": True}, seed=7)
    assert trainings.run("mine").returncode == 0
    torch.manual_seed(7)
    first, last, weights = nn.Linear(192, 32), nn.Linear(32, 2), safetensors.torch.load_file(MODEL)
    assert torch.equal(weights["2.weight"], first.weight)
    assert not torch.allclose(weights["6.weight"], last.weight, atol=1e-3)


def test_another_hash_seed_and_another_folder_give_the_same_bytes(project, stage, expected):
    own = {"PYTHONPATH": str(copied_code(project / "code")), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    done = stage("stages.train", "mine", **own)
    assert (done.returncode, done.stderr) == (0, "")
    assert results() == expected


def test_the_history_grows_by_a_row_after_each_epoch(project, trainings):
    process = held_after(1, trainings)
    for epochs in (1, 2, 3):
        Path("hold").write_text(str(epochs * BATCHES + 1))
        process.runs_until(lambda: Path("held").read_text() == Path("hold").read_text())
        assert [line.partition(",")[0] for line in HISTORY.read_text().splitlines()] == ["epoch", *"123"[:epochs]]
    process.end(signal.SIGKILL)


# What disturbs it


@pytest.mark.parametrize("trial", [0, 1, *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 24))])
def test_a_training_killed_at_any_moments_ends_with_the_bytes_of_an_undisturbed_one(
    project, trainings, undisturbed, expected, trial
):
    moments, resumed = random.Random(trial), 0
    seconds = json.loads((undisturbed / TIMING).read_text())["train_seconds"]
    for _ in range(4):
        process = trainings.start("mine")
        until(lambda: CHECKPOINT.exists() or process.status is not None)  # noqa: B023
        end = time.monotonic() + seconds * moments.uniform(0, 0.8)
        until(lambda: time.monotonic() > end or process.status is not None)  # noqa: B023
        resumed += "resumed after epoch" in process.end(signal.SIGKILL).stdout
        assert not MODEL.exists() or results()[str(MODEL)] == expected[str(MODEL)]
        assert expected[str(HISTORY)].startswith(HISTORY.read_bytes() if HISTORY.exists() else b"")
        remove_results()
    assert resumed
    assert "resumed after epoch" in trainings.run("mine").stdout
    assert results() == expected


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_training_ends_in_one_line_and_is_resumed(project, trainings, expected, by):
    line = one_line(held_after(1, trainings).end(by), status=128 + by)
    assert line == f"train: stopped ({by.name}); run the same command again to go on"
    assert not MODEL.exists()
    Path("hold").unlink()
    said = trainings.run("mine").stdout.splitlines()
    assert said[2] == RESUMED.format(1)
    assert said[3].startswith(f"mine  2/{EPOCHS}  loss ")
    assert results() == expected


def test_a_second_training_of_the_run_is_refused_and_the_first_goes_on(project, trainings, expected):
    first = held_after(1, trainings)
    line = one_line(trainings.run("mine"))
    assert line == "train: mine: another process trains this run in this folder; wait for it, or stop it"
    assert go_on(first).returncode == 0
    assert results() == expected


def test_a_finished_training_whose_results_are_lost_writes_them_again_unless_dvc_has_them(project, trainings, expected):
    trainings.run("mine")
    timing = TIMING.read_bytes()
    remove_results()
    again = trainings.run("mine").stdout.splitlines()
    assert (len(again), again[2]) == (4, RESUMED.format(EPOCHS))
    assert results() == expected
    assert TIMING.read_bytes() == timing

    md5 = hashlib.md5(expected[str(MODEL)]).hexdigest()
    Path("dvc.lock").write_text(f"stages: {{train@mine: {{outs: [{{path: {MODEL}, md5: {md5}}}]}}}}")
    remove_results()
    assert len(trainings.run("mine").stdout.splitlines()) == 2 + EPOCHS + 1  # as `dvc repro --force` asks for
    assert results() == expected


@pytest.mark.parametrize("named", ["the parameters", "data/test.npz", "stages/training/step.py"])
def test_what_is_edited_while_a_training_runs_is_not_credited_with_its_results(
    project, trainings, code, expected, named
):
    step = code / "stages/training/step.py"
    before = {path: path.read_bytes() for path in (Path("params.yaml"), Path("data/test.npz"), step)}
    process = held_after(0, trainings)
    {"t": edit_momentum, "d": edit_images, "s": lambda: append_to(step)}[named[0]]()
    done = go_on(process)
    for path, content in before.items():
        path.write_bytes(content)
    assert one_line(done).startswith(f"train: changed while this stage ran: {named}. Nothing was written")
    assert not MODEL.exists()
    assert not TIMING.exists()
    assert RESUMED.format(EPOCHS) in trainings.run("mine").stdout
    assert results() == expected


def test_parameters_of_other_stages_and_runs_may_be_edited_meanwhile(project, trainings, expected):
    process = held_after(0, trainings)
    edit(study__margin=0.01, cnn__epochs=7, ablation__weight_decay=0.1)
    assert go_on(process).returncode == 0
    assert results() == expected


@pytest.mark.parametrize("name", ["train.py", pytest.param("training/loop.py", marks=pytest.mark.slow)])
def test_code_edited_while_python_imports_torch_is_not_credited_with_what_the_old_code_did(project, name):
    """The first is read before torch, the second after it."""
    folder = copied_code(project / "code")
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command, pipe = [sys.executable, "-m", "stages.train", "mine"], subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
    until(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text() or process.poll() is not None)
    append_to(folder / "stages" / name)
    out, err = process.communicate()
    line = one_line(subprocess.CompletedProcess(command, process.returncode, out, err))
    assert line.startswith(f"train: changed while this stage ran: stages/{name}. Nothing was written")
    assert not MODEL.exists()


@pytest.mark.parametrize(("change", "named"), [(edit_momentum, "parameters"), (edit_images, "data")])
def test_a_checkpoint_of_other_inputs_is_not_resumed(project, trainings, change, named):
    interrupt(trainings)
    change()
    again = trainings.run("mine").stdout.splitlines()
    assert again[2] == f"{CHECKPOINT}: starting from epoch 1, because this checkpoint has other {named}"
    assert again[3].startswith(f"mine  1/{EPOCHS}")


def test_a_checkpoint_of_other_code_and_another_instruction_set_is_not_resumed(project, trainings, stage):
    interrupt(trainings)
    folder = copied_code(project / "code")
    append_to(folder / "stages/training/step.py")
    kind = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    done = stage("stages.train", "mine", PYTHONPATH=str(folder), OMP_NUM_THREADS="1", **kind)
    assert f"{CHECKPOINT}: starting from epoch 1, because this checkpoint has other code and device\n" in done.stdout
    assert json.loads(TIMING.read_text())["instruction_set"] == "DEFAULT SSE41"


def test_a_full_disk_ends_in_one_line_and_leaves_no_half_a_file(small_disk, prepare, trainings):
    folder = small_disk(100)
    write_project(prepare, mine={"epochs": 2, "width": 256})
    done = trainings.run("mine")
    line = one_line(done)
    assert line == f"train: {MODEL}: the disk is full: 0 MiB are free; make room and run this again"
    assert f"{CHECKPOINT}: no checkpoint (No space left on device, 1 MiB are needed); an interrupt" in done.stdout
    assert not [path for path in written() if "plots" not in path]
    subprocess.run(["mount", "-o", "remount,size=5m", str(folder)], check=True)
    assert trainings.run("mine").returncode == 0
    assert written() == RESULTS


# What it refuses


@pytest.mark.parametrize(
    ("run", "changes", "message"),
    [
        ("nope", {}, r"'nope' is no run in params\.yaml; there is mine, cnn, resnet"),
        ("../x", {}, r"'\.\./x' is no run in params\.yaml"),
        ("mine", {"resnet__base_channels": 4}, r"params\.yaml: section resnet: base_channels = 4: must be greater "),
        ("mine", {"resnet__width": 3}, r"params\.yaml: section resnet: width is unknown; known here: epochs, base_ch"),
        ("mine", {"cnn": {}}, r"params\.yaml: section cnn: epochs is missing"),
        ("mine", {"train__warmup_epochs": 7}, r"params\.yaml: .*train\.warmup_epochs = 7: must be less than cnn\.epo"),
        ("mine", {"mine__outputs": 3}, r"the model's output for one image is \(1, 3\); it must be .* \(1, 2\)"),
        ("mine", {"train__learning_rate": 1e30}, r"the loss is no longer finite after epoch 1 at learning rate 1e\+30"),
        ("mine", {"train__precision": "tf32"}, r"train\.precision = 'tf32': this machine has no GPU"),
    ],
)
def test_what_cannot_be_trained_ends_in_one_line_before_anything_is_written(project, trainings, run, changes, message):
    edit(**changes)
    assert re.match(f"train: {message}", one_line(trainings.run(run)))
    assert written() == []


@pytest.mark.parametrize("name", ["data/train.npz", "data/test.npz", "data/dataset.json"])
def test_missing_and_damaged_images_are_named(project, trainings, name):
    content = Path(name).read_bytes()
    Path(name).write_bytes(content[:150] + b"damaged" + content[157:])
    assert re.match(f"train: {name}: .*make it (again )?with `dvc repro", one_line(trainings.run("mine")))
    Path(name).unlink()
    assert one_line(trainings.run("mine")) == f"train: {name}: no such file; make it with `dvc repro`"
    assert written() == []


def test_running_out_of_memory_names_the_batch_size_and_the_model(project, trainings):
    edit(resnet__base_channels=1024)
    line = one_line(trainings.run("resnet", memory=2**28))
    assert "ran out of memory at train.batch_size = 16 with ResNet-10, 1024 channels, beside" in line
    assert written() == []


def test_on_a_terminal_of_80_columns_there_is_a_bar_and_nothing_is_cut_off(project, trainings):
    edit(runs={"resnet_ablation": {"model": "mine", "weight_decay": "ablation.weight_decay"}})
    screen, other = pty.openpty()
    ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process, shown = trainings.start("resnet_ablation", terminal=os.ttyname(other), TERM="xterm"), b""
    while select.select([screen], [], [], 0.01)[0] or process.status is None:
        shown += os.read(screen, 65536) if select.select([screen], [], [], 0)[0] else b""
    assert process.status == 0, shown
    lines = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", shown.decode())]
    assert max(map(len, lines)) <= 80
    epochs = [line for line in lines if re.match(rf"resnet_ablation +\d+/{EPOCHS}  loss", line)]
    assert len(epochs) == EPOCHS
    figures = rf"resnet_ablation {EPOCHS}/{EPOCHS}  loss \d\.\d{{4}}  train \d+\.\d\d%  test \d+\.\d\d%  lr \S+"
    assert re.fullmatch(figures, epochs[-1])
    bars = [line for line in lines if line.startswith("resnet_ablation:") and "left" in line]
    assert bars
    assert all(re.search(r"images/s, [\d:?]+ left$", bar) for bar in bars)


# Two processes


def two_processes(trainings: Server, *folders: Path) -> list[Process]:
    """Start both as torchrun does, each in its folder."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    common = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        trainings.start("mine", cwd=folder, **common, RANK=rank, LOCAL_RANK=rank, LOCAL_WORLD_SIZE="2")
        for rank, folder in zip("01", folders or (Path.cwd(), Path.cwd()), strict=True)
    ]


def test_torchrun_gives_the_same_bytes_as_a_pair_of_which_one_was_killed(project, trainings, code, stage):
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
    together = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "stages.train", "mine")
    done = stage(*together, PYTHONPATH=str(code), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done
    assert (len(resumed), results()) == (2, resumed)


@pytest.mark.parametrize(("change", "named"), [(edit_momentum, "parameters"), (edit_images, "data")])
def test_two_machines_with_different_inputs_are_refused_before_they_train(
    project, trainings, tmp_path_factory, change, named
):
    other = shutil.copytree(project, tmp_path_factory.mktemp("other") / "machine")
    change()
    for process in two_processes(trainings, project, other):
        line = one_line(process.wait())
        assert line == f"train: the 2 processes began with different {named}; give all of them the same files"
    assert written() == []


def test_two_processes_that_end_with_different_weights_write_nothing(project, trainings):
    edit(mine={"epochs": 1, "apart": True})
    for process in two_processes(trainings):
        assert process.wait().stderr.endswith("\nRuntimeError: the 2 processes ended with different weights\n")
    assert [path for path in written() if "plots" not in path] == []
