from pathlib import Path

import psutil
import pytest
import torch

from stages.checkpoint import Checkpoint
from stages.core.training import Epoch, State

FINGERPRINT = {"parameters": "p", "data": "d", "code": "c", "torch": "t", "device": "cpu"}
HISTORY = [Epoch(1, 2.1, 0.2, 2.0, 0.3, -0.1, 0.1), Epoch(2, 1 / 3, 0.9, 0.1 + 0.2, 0.8, 0.1, 0.05)]


def some_state() -> State:
    random = torch.Generator().manual_seed(1)
    kernel = torch.randn(4, 3, 3, 3, generator=random).to(memory_format=torch.channels_last)
    tensors = {"model.conv.weight": kernel, "model.bn.num_batches_tracked": torch.tensor(7)}
    return State(HISTORY, tensors, {"conv.weight": 2 * kernel}, seconds=12.5, training_seconds=11.25)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / ".cache" / "training" / "resnet.safetensors"


@pytest.fixture
def saved(path) -> Path:
    checkpoint = Checkpoint(path, FINGERPRINT, "CPU, 2 threads")
    checkpoint.save(some_state())
    checkpoint.save(some_state())  # which waits for the first
    checkpoint.writer.shutdown()
    return path


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_loaded_is_what_was_saved(saved):
    loaded, expected = Checkpoint(saved, FINGERPRINT, "CPU, 2 threads").load(), some_state()
    assert loaded.history == expected.history
    assert same(loaded.tensors, expected.tensors)
    assert same(loaded.best_weights, expected.best_weights)
    assert (loaded.seconds, loaded.training_seconds) == (12.5, 11.25)
    assert [file.name for file in saved.parent.iterdir()] == ["resnet.safetensors"]


def test_without_an_interrupted_training_there_is_nothing_to_load_or_say(path, capsys):
    assert Checkpoint(path, FINGERPRINT, "CPU, 2 threads").load() is None
    assert capsys.readouterr().out == ""


def test_a_saved_state_no_longer_follows_its_tensors(path):
    checkpoint, state = Checkpoint(path, FINGERPRINT, "CPU, 2 threads"), some_state()
    checkpoint.save(state)
    state.tensors["model.conv.weight"].zero_()
    checkpoint.writer.shutdown()
    assert same(Checkpoint(path, FINGERPRINT, "CPU, 2 threads").load().tensors, some_state().tensors)


def test_writing_takes_one_thread_and_starts_no_others_for_it(path):
    kernel = torch.randn(256, 256, 3, 3).to(memory_format=torch.channels_last)
    kernel.contiguous()  # large enough for OpenMP to start the threads of this thread
    checkpoint, before = Checkpoint(path, FINGERPRINT, "CPU, 2 threads"), psutil.Process().num_threads()
    checkpoint.save(State(HISTORY, {"model.conv.weight": kernel}, {}, seconds=1, training_seconds=1))
    checkpoint.writer.submit(lambda: None).result()
    assert psutil.Process().num_threads() == before + 1


@pytest.mark.parametrize("what", FINGERPRINT)
def test_the_state_of_another_training_is_not_used_and_a_line_says_why(saved, capsys, what):
    assert Checkpoint(saved, FINGERPRINT | {what: "other"}, "CPU, 2 threads").load() is None
    line = f"{saved}: starting anew, because this interrupted training had other {what}\n"
    assert capsys.readouterr().out == line


def test_the_state_of_other_workers_is_used_and_a_line_says_so(saved, capsys):
    loaded = Checkpoint(saved, FINGERPRINT, "2 × CPU, 1 thread").load()
    assert same(loaded.tensors, some_state().tensors)
    assert capsys.readouterr().out == (
        f"{saved}: trained on CPU, 2 threads so far, now on 2 × CPU, 1 thread: the result will differ in its last "
        "digits from one of a single kind\n"
    )


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_an_unreadable_state_is_not_used_and_a_line_says_so(saved, capsys, content):
    saved.write_bytes(saved.read_bytes()[:-100] if content is None else content)
    assert Checkpoint(saved, FINGERPRINT, "CPU, 2 threads").load() is None
    line = capsys.readouterr().out
    assert line.startswith(f"{saved}: starting anew, because this state of an interrupted training cannot be read")
    assert line.count("\n") == 1


def test_a_state_that_cannot_be_written_is_an_error_at_the_next_epoch(tmp_path):
    (tmp_path / "file").touch()
    checkpoint = Checkpoint(tmp_path / "file" / "resnet.safetensors", FINGERPRINT, "CPU, 2 threads")
    checkpoint.save(some_state())
    with pytest.raises(OSError, match="file"):
        checkpoint.save(some_state())


def test_a_state_is_gone_when_it_is_removed(saved):
    checkpoint = Checkpoint(saved, FINGERPRINT, "CPU, 2 threads")
    checkpoint.save(some_state())
    checkpoint.remove()
    assert not list(saved.parent.iterdir())
    checkpoint.remove()
