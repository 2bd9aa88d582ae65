import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from stages.common.formats import Epoch
from stages.common.inputs import Inputs
from stages.training import checkpoint as module
from stages.training import tensor_file
from stages.training.checkpoint import FOLDER, Checkpoint, Header, discard_finished, fingerprint
from stages.training.state import State
from tests.any_value import JSON, places, replaced
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


MODEL = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3, bias=False), "bn": nn.BatchNorm2d(4)})


def some_state(scale: float = 1.0, accuracies: tuple[float, ...] = (0.3, 0.8)) -> State:
    random = torch.Generator().manual_seed(1)

    def filled(like: torch.Tensor) -> torch.Tensor:
        return (scale * torch.randn(like.shape, generator=random)).to(like.dtype)

    weights = {name: filled(tensor) for name, tensor in MODEL.state_dict().items()}
    weights["conv.weight"] = weights["conv.weight"].to(memory_format=torch.channels_last)
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"momentum.{name}": filled(tensor) for name, tensor in MODEL.named_parameters()}
    history = [epoch(number, accuracy) for number, accuracy in enumerate(accuracies, start=1)]
    best = {name: 2 * tensor for name, tensor in weights.items()}
    return State(tensors, history, best, seconds=12.5, training_seconds=11.25)


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
    loaded, expected = checkpoint().load(MODEL), some_state()
    assert loaded.history == expected.history
    assert same(loaded.tensors, expected.tensors)
    assert same(loaded.best_weights, expected.best_weights)
    assert (loaded.seconds, loaded.training_seconds) == (12.5, 11.25)
    assert [file.name for file in FOLDER.iterdir()] == ["resnet.safetensors"]


def test_without_an_interrupted_training_there_is_nothing_to_load_or_say(capsys):
    assert checkpoint().load(MODEL) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("what", FINGERPRINT)
def test_a_checkpoint_with_another_fingerprint_is_not_used_and_the_difference_named(capsys, what):
    save(some_state())
    assert checkpoint(**{what: "another"}).load(MODEL) is None
    assert capsys.readouterr().out.endswith(f"starting from epoch 1, because this checkpoint has other {what}\n")


def test_the_fingerprint_of_a_training_holds_parameters_data_code_torch_and_device(folder):
    (folder / "data").mkdir()
    (folder / "data/train.npz").write_bytes(b"images")
    inputs = Inputs(lambda: recipe("cnn"), Path("data"))
    first = fingerprint(inputs, "CPU, fp32")
    assert json.loads(first["data"]) == {"data/train.npz": hashlib.sha256(b"images").hexdigest()}
    module = str(Path(tensor_file.__file__))
    assert inputs.code[module] in json.loads(first["code"])
    inputs.code = {f"elsewhere/{path}": digest for path, digest in inputs.code.items()}
    assert fingerprint(inputs, "CPU, fp32") == first  # of a project that was moved
    inputs.code[f"elsewhere/{module}"] = "0" * 64
    changed = fingerprint(inputs, "CPU, bf16")
    assert {what for what in first if first[what] != changed[what]} == {"code", "device"}
    assert json.loads(first["parameters"])["train"]["weight_decay"] == 5e-4
    assert first["torch"] == torch.__version__


def test_other_devices_may_resume_and_are_told_of_the_last_digits(capsys):
    save(some_state())
    assert Checkpoint("resnet", FINGERPRINT, "CPU, 1 thread").load(MODEL)
    assert "begun on CPU, 2 threads, resumed on CPU, 1 thread: the last digits will differ" in capsys.readouterr().out


def test_the_first_epoch_is_written_at_once_and_later_ones_five_seconds_apart(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)  # a stand-in for waiting
    writing = checkpoint()
    for second, accuracies, saved in ((0, (0.1,), 1), (4.9, (0.1, 0.2), 1), (5.1, (0.1, 0.2, 0.3), 3)):
        now = 100.0 + second
        writing.save(some_state(accuracies=accuracies), finished=False)
        writing._wait()
        assert len(checkpoint().load(MODEL).history) == saved
    writing.save(some_state(accuracies=(0.1, 0.2, 0.3, 0.4)), finished=True)
    assert len(checkpoint().load(MODEL).history) == 4
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
    loaded = checkpoint().load(MODEL)
    assert same(loaded.tensors, later.tensors)
    assert same(loaded.best_weights, some_state(1.0).best_weights)


def test_any_flipped_bit_of_a_checkpoint_is_found(capsys, tried):
    save(some_state())
    content, draw, used = PATH.read_bytes(), random.Random(1), 0
    for _ in range(200):
        damaged, bit = bytearray(content), draw.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        PATH.write_bytes(damaged)
        loaded = checkpoint().load(MODEL)
        tried("a flipped bit of a checkpoint", "starts again" if loaded is None else "read as it is")
        if loaded is None:
            assert "starting from epoch 1" in capsys.readouterr().out
        else:  # a bit that means nothing
            used += 1
            assert loaded.history == some_state().history
            assert same(loaded.tensors, some_state().tensors)
    assert used < 10


HEADER = Header(
    fingerprint=FINGERPRINT,
    workers="CPU",
    history=some_state().history,
    seconds=2.5,
    training_seconds=2.25,
    finished=False,
).model_dump(mode="json")


def named_tensors(state: State) -> dict[str, torch.Tensor]:
    steps = {f"step.{name}": tensor for name, tensor in state.tensors.items()}
    return steps | {f"best.{name}": tensor for name, tensor in state.best_weights.items()}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_place_of_its_header_is_read_as_it_is_or_the_training_starts_again(capsys, tried, data):
    """As if the digest agreed: `tensor_file` counts it anew."""
    place, value = data.draw(st.sampled_from(list(places(HEADER)))), data.draw(JSON)
    header = replaced(HEADER, place, value)
    FOLDER.mkdir(parents=True, exist_ok=True)
    PATH.write_bytes(tensor_file.to_bytes(header if isinstance(header, dict) else {}, named_tensors(some_state())))
    loaded = checkpoint().load(MODEL)
    said = capsys.readouterr().out
    assert all(line.isprintable() and len(line) < 1000 for line in said.splitlines())
    tried("any value in a checkpoint's header", "starts again" if loaded is None else "read as it is")
    if loaded is None:
        assert "starting from epoch 1, because this checkpoint " in said
    else:
        assert same(loaded.tensors, some_state().tensors)
        read = {"history": [row.model_dump() for row in loaded.history], "seconds": loaded.seconds}
        assert read == {name: header[name] for name in read}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.tensors.clear(),
        lambda state: state.tensors.pop("momentum.bn.weight"),
        lambda state: state.tensors.update({"model.more": torch.zeros(2)}),
        lambda state: state.tensors.update({"model.bn.weight": torch.zeros(5)}),
        lambda state: state.best_weights.pop("bn.weight"),
        lambda state: state.best_weights.update({"bn.weight": torch.zeros(4).double()}),
        lambda state: state.history.clear(),
        lambda state: state.history.pop(0),
    ],
    ids=["empty", "less", "more", "shape", "best", "type", "no epoch", "no first epoch"],
)
def test_a_state_of_another_model_or_of_no_epochs_is_not_used(capsys, change):
    state = some_state()
    change(state)
    header = HEADER | {"history": [row.model_dump(mode="json") for row in state.history]}
    FOLDER.mkdir(parents=True)
    PATH.write_bytes(tensor_file.to_bytes(header, named_tensors(state)))
    assert checkpoint().load(MODEL) is None
    assert "starting from epoch 1, because this checkpoint cannot be used: its " in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 1000], ids=["empty", "text", "ones"])
def test_a_file_that_is_no_checkpoint_is_named_and_not_used(capsys, content):
    FOLDER.mkdir(parents=True)
    PATH.write_bytes(content)
    assert checkpoint().load(MODEL) is None
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
    (line,) = capsys.readouterr().out.splitlines()
    assert "no checkpoint (No space left on device, 0 MiB are needed); an interruption would lose" in line
    assert not list(FOLDER.glob("*"))


def test_the_last_checkpoint_before_an_interrupt_that_cannot_be_written_is_told_too(small_disk, capsys):
    small_disk(64)
    state = some_state()
    state.tensors["model.large"] = torch.zeros(100_000)
    save(state)
    assert "no checkpoint (No space left on device" in capsys.readouterr().out


def test_a_finished_checkpoint_is_discarded_and_one_to_resume_is_kept():
    save(some_state(), finished=False)
    discard_finished("resnet")
    assert PATH.exists()
    save(some_state(), finished=True)
    discard_finished("resnet")
    assert not PATH.exists()
    discard_finished("resnet")
