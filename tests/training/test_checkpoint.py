import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.common.errors import UserError
from stages.common.formats import Epoch
from stages.common.inputs import Inputs
from stages.training import checkpoint as module
from stages.training.checkpoint import FOLDER, Checkpoint, discard_finished, fingerprint, locked
from stages.training.loop import State
from tests.training.toys import recipe

FINGERPRINT = {"parameters": "p", "data": "d", "code": "c", "torch": "t", "device": "cpu"}
PATH = FOLDER / "resnet.safetensors"


def epoch(number: int, test_accuracy: float) -> Epoch:
    return Epoch(
        epoch=number,
        train_loss=1 / 3,
        train_accuracy=0.9,
        test_loss=0.1 + 0.2,
        test_accuracy=test_accuracy,
        generalization_gap=0.9 - test_accuracy,
        learning_rate=0.05,
    )


def some_state(scale: float = 1.0, accuracies: tuple[float, ...] = (0.3, 0.8)) -> State:
    random = torch.Generator().manual_seed(1)
    kernel = scale * torch.randn(4, 3, 3, 3, generator=random).to(memory_format=torch.channels_last)
    tensors = {"model.conv.weight": kernel, "model.bn.num_batches_tracked": torch.tensor(7)}
    history = [epoch(number, accuracy) for number, accuracy in enumerate(accuracies, start=1)]
    return State(tensors, history, {"conv.weight": 2 * kernel}, seconds=12.5, training_seconds=11.25)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoint(**fingerprint: str) -> Checkpoint:
    return Checkpoint("resnet", FINGERPRINT | fingerprint, "CPU, 2 threads")


def save(state: State, finished: bool = False) -> None:
    writing = checkpoint()
    writing.save(state, finished)
    writing.close()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_state_loaded_is_the_one_saved():
    save(some_state())
    loaded, expected = checkpoint().load(), some_state()
    assert loaded.history == expected.history
    assert same(loaded.tensors, expected.tensors)
    assert same(loaded.best_weights, expected.best_weights)
    assert (loaded.seconds, loaded.training_seconds) == (12.5, 11.25)
    assert [file.name for file in FOLDER.iterdir()] == ["resnet.safetensors"]


def test_without_an_interrupted_training_there_is_nothing_to_load_or_say(capsys):
    assert checkpoint().load() is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("what", FINGERPRINT)
def test_a_checkpoint_with_another_fingerprint_is_not_used_and_the_difference_named(capsys, what):
    save(some_state())
    assert checkpoint(**{what: "another"}).load() is None
    assert capsys.readouterr().out.endswith(f"starting from epoch 1, because this checkpoint has other {what}\n")


def test_the_fingerprint_of_a_training_holds_parameters_data_code_torch_and_device(folder):
    (folder / "data").mkdir()
    (folder / "data/train.npz").write_bytes(b"images")
    inputs = Inputs(lambda: recipe("cnn"), Path("data"))
    first = fingerprint(inputs, "CPU, fp32")
    assert json.loads(first["data"]) == {"data/train.npz": hashlib.sha256(b"images").hexdigest()}
    assert any(path.endswith("training/step.py") for path in json.loads(first["code"]))
    inputs.code = {**inputs.code, "stages/training/step.py": "0" * 64}
    changed = fingerprint(inputs, "CPU, bf16")
    assert {what for what in first if first[what] != changed[what]} == {"code", "device"}
    assert json.loads(first["parameters"])["train"]["weight_decay"] == 5e-4
    assert first["torch"] == torch.__version__


def test_other_devices_may_resume_and_are_told_of_the_last_digits(capsys):
    save(some_state())
    assert Checkpoint("resnet", FINGERPRINT, "CPU, 1 thread").load()
    assert "begun on CPU, 2 threads, resumed on CPU, 1 thread: the last digits will differ" in capsys.readouterr().out


def test_the_first_epoch_is_written_at_once_and_later_ones_five_seconds_apart(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)  # a stand-in for waiting
    writing = checkpoint()
    for second, accuracies, saved in ((0, (0.1,), 1), (4.9, (0.1, 0.2), 1), (5.1, (0.1, 0.2, 0.3), 3)):
        now = 100.0 + second
        writing.save(some_state(accuracies=accuracies), finished=False)
        writing._wait()
        assert len(checkpoint().load().history) == saved
    writing.save(some_state(accuracies=(0.1, 0.2, 0.3, 0.4)), finished=True)
    assert len(checkpoint().load().history) == 4
    writing.close()


def test_a_later_state_without_a_new_best_keeps_the_best_weights(monkeypatch):
    monkeypatch.setattr(module, "INTERVAL", 0)
    writing = checkpoint()
    writing.save(some_state(1.0, (0.8,)), finished=False)
    writing._wait()
    later = some_state(3.0, (0.8, 0.3))
    later.best_weights = {}  # not copied again: its values would be those of the first
    writing.save(later, finished=False)
    writing.close()
    loaded = checkpoint().load()
    assert same(loaded.tensors, later.tensors)
    assert same(loaded.best_weights, some_state(1.0).best_weights)


def test_any_flipped_bit_of_a_checkpoint_is_found(capsys):
    save(some_state())
    content, draw, used = PATH.read_bytes(), random.Random(1), 0
    for _ in range(200):
        damaged, bit = bytearray(content), draw.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        PATH.write_bytes(damaged)
        loaded = checkpoint().load()
        if loaded is None:
            assert "starting from epoch 1" in capsys.readouterr().out
        else:  # a bit that means nothing
            used += 1
            assert loaded.history == some_state().history
            assert same(loaded.tensors, some_state().tensors)
    assert used < 10


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 1000], ids=["empty", "text", "ones"])
def test_a_file_that_is_no_checkpoint_is_named_and_not_used(capsys, content):
    FOLDER.mkdir(parents=True)
    PATH.write_bytes(content)
    assert checkpoint().load() is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{PATH}: starting from epoch 1, because this checkpoint cannot be used: ")


def test_a_checkpoint_that_cannot_be_written_costs_a_line_and_no_training(small_disk, capsys, monkeypatch):
    monkeypatch.setattr(module, "INTERVAL", 0)
    small_disk(64)
    state = some_state()
    state.tensors["model.large"] = torch.zeros(100_000)
    writing = checkpoint()
    for _ in range(3):
        writing.save(state, finished=False)
        writing._wait()
    writing.save(state, finished=True)
    writing.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(
        "no checkpoint (No space left on device, 0 MiB are needed); the training goes on" in line for line in lines
    )
    assert not list(FOLDER.glob("*"))


def test_a_finished_checkpoint_is_discarded_and_one_to_resume_is_kept():
    save(some_state(), finished=False)
    discard_finished("resnet")
    assert PATH.exists()
    save(some_state(), finished=True)
    discard_finished("resnet")
    assert not PATH.exists()
    discard_finished("resnet")


def test_a_second_training_of_a_run_is_refused_and_the_lock_dies_with_its_process():
    code = "from stages.training.checkpoint import locked; f = locked('resnet'); print('held', flush=True); input()"
    environment = {"PYTHONPATH": str(Path(module.__file__).parents[2])}
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="resnet: another process trains this run in this folder"):
        locked("resnet")
    with locked("cnn"):
        pass
    holder.kill()
    holder.wait()
    with locked("resnet"):
        pass
