import pytest
import torch

from stages.common.formats import Epoch
from stages.training import progress as module
from stages.training.device import Backend
from stages.training.progress import Progress
from stages.training.state import State
from tests.training.toys import CPU, recipe


def epoch(number: int, test_accuracy: float = 0.875) -> Epoch:
    return Epoch(
        epoch=number,
        train_loss=0.51239,
        train_accuracy=0.9,
        test_loss=0.6,
        test_accuracy=test_accuracy,
        generalization_gap=0.025,
        learning_rate=0.05,
    )


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set: a stand-in for waiting."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_an_epochs_line_tells_speed_and_time_left_without_the_first_batch(clock, capsys):
    shown = Progress(recipe(epochs=3), images=200, finished=0, backend=CPU)
    clock(100)
    shown.batch(50)  # began at 100 s, after compilation and the like
    clock(150)
    for _ in range(3):
        shown.batch(50)
    shown.epoch(epoch(1))
    line = "toy 1/3  loss 0.5124  train 90.00%  test 87.50%  lr 0.05  3 images/s  02:13 left\n"
    assert capsys.readouterr().out == line  # 150 images in 50 s, 400 to go


def test_when_all_is_done_nothing_is_left_however_large_the_batches(clock, capsys):
    shown = Progress(recipe(epochs=2), images=100, finished=0, backend=CPU)
    for number in (1, 2):
        clock(10 * number)
        shown.batch(100)
        shown.epoch(epoch(number))
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("  0 images/s  00:00 left")  # nothing is known yet
    assert second.endswith("  10 images/s  00:00 left")


def test_a_resumed_training_counts_its_own_epochs(clock, capsys):
    shown = Progress(recipe(epochs=10), images=100, finished=8, backend=CPU)
    for seconds in (0, 10):
        clock(seconds)
        shown.batch(50)
    shown.epoch(epoch(9))
    line = capsys.readouterr().out
    assert line.startswith("toy  9/10  ")
    assert line.endswith("  5 images/s  00:20 left\n")  # the 100 images of epoch 10


@pytest.mark.parametrize(("epochs", "announced"), [(2, 0), (40, 1)])
def test_hours_on_a_cpu_are_announced_once_and_early(clock, capsys, epochs, announced):
    shown = Progress(recipe(epochs=epochs), images=1000, finished=0, backend=CPU)
    for number in range(20):
        clock(6 * number)  # a batch of 50 images takes six seconds
        shown.batch(50)
    shown.close()
    said = capsys.readouterr().err
    assert said.count("toy: about 1 h to go on this CPU; `make demo` takes minutes") == announced
    assert said.count("\n") == announced


def test_on_a_gpu_the_line_tells_its_memory_and_no_word_of_patience(clock, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * 2**29)
    shown = Progress(recipe(epochs=1000), 1000, 0, Backend(torch.device("cuda"), "bf16", compile=False))
    for number in range(20):
        clock(6 * number)
        shown.batch(50)
    shown.epoch(epoch(1))
    out, err = capsys.readouterr()
    assert out.endswith(" left, 1.5 GiB\n")
    assert err == ""


def test_the_closing_line_has_the_first_best_epoch(capsys):
    shown = Progress(recipe(epochs=3), images=100, finished=0, backend=CPU)
    history = [epoch(1, 0.5), epoch(2, 0.75), epoch(3, 0.75)]
    shown.finish(State({}, history, seconds=1234.56))
    assert capsys.readouterr().out == "toy: 3 epochs in 1,234.6 s, best test accuracy 75.00% in epoch 2\n"
