import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch

from stages.training import checkpoint as module
from stages.training.checkpoint import FOLDER, Checkpoint, State, best_epoch, from_bytes, is_stored, to_bytes
from tests.training.toys import same

FINGERPRINT = {"parameters": "p", "data": "d", "code": "c", "device": "cpu"}
PATH = FOLDER / "toy.safetensors"


def some_state(epochs: int = 2, size: int = 5) -> State:
    random = torch.Generator().manual_seed(epochs)
    weights = {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=random).to(memory_format=torch.channels_last),
        "half": torch.randn(size, generator=random).bfloat16(),
        "bn.num_batches_tracked": torch.tensor(7),
    }
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    tensors["momentum.conv.weight"] = torch.randn(4, 3, 3, 3, generator=random)
    history = [
        {"epoch": number, "train_loss": 0.1 + 0.2, "test_accuracy": 1 / number} for number in range(1, epochs + 1)
    ]
    best = {name: 2 * tensor for name, tensor in weights.items()}
    return State(tensors, history, best, seconds=12.5, training_seconds=11.25)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoint(**fingerprint: str) -> Checkpoint:
    return Checkpoint("toy", FINGERPRINT | fingerprint, "CPU, 2 threads")


def test_the_state_loaded_is_the_one_saved(capsys):
    checkpoint().save(some_state(), finished=False)
    loaded = checkpoint().load()
    assert same(loaded, some_state())
    assert (loaded.seconds, loaded.training_seconds) == (12.5, 11.25)
    assert [path.name for path in FOLDER.iterdir()] == ["toy.safetensors"]
    assert capsys.readouterr().out == ""


def test_without_a_checkpoint_there_is_nothing_to_load_or_say(capsys):
    assert checkpoint().load() is None
    assert capsys.readouterr().out == ""


def test_the_weights_to_keep_are_the_best_epochs_or_where_none_are_kept_the_last_ones():
    state = some_state()
    assert state.weights is state.best_weights
    state.best_weights = {}
    assert {name: id(tensor) for name, tensor in state.weights.items()} == {
        name.removeprefix("model."): id(tensor) for name, tensor in state.tensors.items() if name.startswith("model.")
    }


def test_the_best_epoch_is_the_first_of_the_highest_accuracy_on_validation_images_if_there_are_any():
    def rows(column: str) -> list[dict[str, float]]:
        accuracies = [0.2, 0.6, 0.6, 0.4]
        return [{"epoch": i, "train_accuracy": i, column: value} for i, value in enumerate(accuracies)]

    for column in ("test_accuracy", "validation_accuracy"):
        assert best_epoch(rows(column))["epoch"] == 1


@pytest.mark.parametrize("changed", [["data"], ["parameters"], ["code"], ["device"], ["data", "code"]])
def test_a_checkpoint_with_another_fingerprint_is_not_used_and_the_difference_named(capsys, changed):
    checkpoint().save(some_state(), finished=True)
    assert checkpoint(**dict.fromkeys(changed, "another")).load() is None
    expected = f"{PATH}: starting from epoch 1, because this checkpoint has other {' and '.join(changed)}\n"
    assert capsys.readouterr().out == expected


def test_other_devices_may_resume_and_are_told(capsys):
    checkpoint().save(some_state(), finished=False)
    assert same(Checkpoint("toy", FINGERPRINT, "2 × CPU, 1 thread").load(), some_state())
    assert capsys.readouterr().out.startswith(f"{PATH}: begun on CPU, 2 threads, resumed on 2 × CPU, 1 thread:")


@pytest.fixture
def clock(monkeypatch) -> Callable[[float], None]:
    """A stand-in clock, which also says how long each write takes."""
    now, write = [1000.0], module.write_bytes
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def set_to(time: float, write_seconds: float = 0.0) -> None:
        now[0] = time

        def slow(path: Path, content: bytes) -> None:
            now[0] += write_seconds
            write(path, content)

        monkeypatch.setattr(module, "write_bytes", slow)

    return set_to


def test_a_checkpoint_is_due_when_fifty_times_the_last_ones_duration_has_passed(clock):
    writing = checkpoint()
    for second, epochs, on_disk in ((0, 1, 1), (101.9, 2, 1), (102, 3, 3), (203.9, 4, 3), (204, 5, 5)):
        clock(1000 + second, write_seconds=2)
        writing.save(some_state(epochs), finished=False)
        assert len(checkpoint().load().history) == on_disk
    clock(1205, write_seconds=2)
    writing.save(some_state(6), finished=True)
    assert len(checkpoint().load().history) == 6


def test_a_write_that_fails_is_as_dear_as_one_that_does_not(clock, capsys, monkeypatch):
    clock(1000)
    tries = []

    def full(path: Path, content: bytes) -> None:
        tries.append(path)
        clock(1002)
        monkeypatch.setattr(module, "write_bytes", full)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_bytes", full)
    writing = checkpoint()
    writing.save(some_state(), finished=False)
    clock(1101)
    monkeypatch.setattr(module, "write_bytes", full)
    writing.save(some_state(), finished=False)
    assert len(tries) == 1


def test_a_checkpoint_that_cannot_be_written_costs_a_line_and_no_training(small_disk, capsys):
    small_disk(64)
    writing = checkpoint()
    for _ in range(3):
        writing.save(some_state(size=3 * 2**20), finished=True)  # 2 bytes each, twice
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        f"{PATH}: no checkpoint (No space left on device, 12 MiB are needed); an interruption would lose"
    )
    assert not list(FOLDER.glob("*"))
    writing.save(some_state(), finished=True)
    assert same(checkpoint().load(), some_state())
    writing.save(some_state(size=3 * 2**20), finished=True)
    assert "no checkpoint" in capsys.readouterr().out  # said again, since one was written meanwhile


def test_a_folder_that_cannot_be_made_costs_a_line_and_no_training(folder, capsys):
    (folder / ".cache").write_text("a file")
    checkpoint().save(some_state(), finished=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{PATH}: no checkpoint (Not a directory, 0 MiB are needed)")


def test_any_flipped_bit_is_found_or_means_nothing(capsys):
    checkpoint().save(some_state(), finished=False)
    content, draw, found = PATH.read_bytes(), random.Random(1), 0
    for bit in [draw.randrange(8 * len(content)) for _ in range(200)]:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        PATH.write_bytes(damaged)
        loaded, said = checkpoint().load(), capsys.readouterr().out
        found += loaded is None
        assert said.isprintable() or said.count("\n") == 1
        assert (
            "starting from epoch 1, because this checkpoint " in said if loaded is None else same(loaded, some_state())
        )
    assert found > 180


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\xff" * 1000, to_bytes({}, {})[:-1], b"\x02" + bytes(7) + b"[]"], ids=str
)
def test_a_file_that_is_no_checkpoint_is_named_and_not_used(capsys, content):
    FOLDER.mkdir(parents=True)
    PATH.write_bytes(content)
    assert checkpoint().load() is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        f"{PATH}: starting from epoch 1, because this checkpoint cannot be used: no safetensors file"
    )


def test_a_file_depends_on_card_and_tensors_alone_and_is_read_by_safetensors(folder):
    tensors = some_state().tensors
    content = to_bytes({"a": 1, "b": [0.1 + 0.2, "×"]}, tensors)
    shuffled = dict(reversed([(name, tensor.clone()) for name, tensor in tensors.items()]))
    assert to_bytes({"a": 1, "b": [0.1 + 0.2, "×"]}, shuffled) == content
    card, found = from_bytes(content)
    assert card == {"a": 1, "b": [0.1 + 0.2, "×"]}
    Path("x.safetensors").write_bytes(content)
    with safetensors.safe_open("x.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(tensors)
        assert list(file.metadata()) == ["card"]  # several entries would come in random order
        assert json.loads(file.metadata()["card"]) == card | {"sha256": json.loads(file.metadata()["card"])["sha256"]}
        for name, tensor in tensors.items():
            assert file.get_tensor(name).equal(tensor)
            assert found[name].equal(tensor)
            assert found[name].dtype == tensor.dtype


def test_a_model_is_stored_once_its_md5_is_in_dvcs_lock(folder):
    assert not is_stored(b"model")
    Path("dvc.lock").write_text(f"outs:\n- path: x\n  md5: {hashlib.md5(b'model').hexdigest()}\n")
    assert is_stored(b"model")
    assert not is_stored(b"another")
