import random
from pathlib import Path

import pytest
import torch

from stages.training import checkpoint as module
from stages.training.checkpoint import FOLDER, Checkpoint, State, from_bytes, to_bytes
from tests.training.toys import same

FINGERPRINT = {"parameters": "p", "data": "d", "code": "c", "device": "cpu"}
PATH = FOLDER / "toy.safetensors"


def some_state(epochs: int = 2) -> State:
    torch.manual_seed(epochs)
    weights = {"conv": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)}
    weights |= {"half": torch.randn(5).bfloat16(), "num_batches_tracked": torch.tensor(7)}
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    history = [{"epoch": i, "train_loss": 0.1 + 0.2, "test_accuracy": 1 / i} for i in range(1, epochs + 1)]
    tensors["model.again"] = tensors["model.conv"]  # a module may have two names
    return State(tensors, history, {name: 2 * tensor for name, tensor in weights.items()}, 12.5, 11.25)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoint(devices: str = "CPU, 2 threads", **fingerprint: str) -> Checkpoint:
    return Checkpoint("toy", FINGERPRINT | fingerprint, devices)


def test_the_state_loaded_is_the_one_saved_and_without_one_there_is_nothing_to_say(capsys):
    assert checkpoint().load() is None
    checkpoint().save(some_state(), finished=False)
    loaded = checkpoint().load()
    assert same(loaded, some_state())
    assert (loaded.seconds, loaded.training_seconds, capsys.readouterr().out) == (12.5, 11.25, "")


@pytest.mark.parametrize("changed", [["data"], ["parameters", "code", "device"]])
def test_a_checkpoint_with_another_fingerprint_is_not_used_and_of_other_devices_is_and_both_are_said(capsys, changed):
    checkpoint().save(some_state(), finished=True)
    assert checkpoint(**dict.fromkeys(changed, "another")).load() is None
    expected = f"{PATH}: starting from epoch 1, because this checkpoint has other {' and '.join(changed)}\n"
    assert capsys.readouterr().out == expected
    assert same(checkpoint("2 × CPU, 1 thread").load(), some_state())
    assert capsys.readouterr().out.startswith(f"{PATH}: begun on CPU, 2 threads, resumed on 2 × CPU, 1 thread:")


def test_a_checkpoint_is_due_when_fifty_times_the_last_ones_duration_has_passed(monkeypatch, capsys):
    """A stand-in clock, and a stand-in for a write, which takes two seconds, also where the disk is full."""
    now, written = [0.0], []

    def write(path: Path, content: bytes) -> None:
        now[0] += 2
        written.append(len(from_bytes(content)[0]["history"]))
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "write_bytes", write)
    writing = checkpoint()
    for epoch, now[0] in enumerate((1000, 1101.9, 1102, 1203.9, 1204), start=1):
        writing.save(some_state(epoch), finished=False)
    writing.save(some_state(6), finished=True)
    assert written == [1, 3, 5, 6]
    assert capsys.readouterr().out.startswith(f"{PATH}: no checkpoint (No space left on device, 0 MiB are needed)")


def test_any_flipped_bit_is_found_or_means_nothing(capsys):
    checkpoint().save(some_state(), finished=False)
    content, draw, found = PATH.read_bytes(), random.Random(1), 0
    for bit in [draw.randrange(8 * len(content)) for _ in range(200)]:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        PATH.write_bytes(damaged)
        loaded, said = checkpoint().load(), capsys.readouterr().out
        found += loaded is None
        assert said.count("starting from epoch 1, because this checkpoint ") == said.count("\n") == (loaded is None)
        assert loaded is None or same(loaded, some_state())
    assert found > 180


@pytest.mark.parametrize("content", [b"", to_bytes({}, {})[:-1], b"\x02" + bytes(7) + b"[]"])
def test_a_file_that_is_no_checkpoint_is_named_and_not_used(capsys, content):
    FOLDER.mkdir(parents=True)
    PATH.write_bytes(content)
    assert checkpoint().load() is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{PATH}: starting from epoch 1, because this checkpoint is no safetensors file")
