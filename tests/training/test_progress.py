import io

import pytest
import torch

from stages.training import progress as module
from stages.training.checkpoint import State
from stages.training.device import Device
from stages.training.progress import Progress
from tests.training.toys import CPU, recipe

GPU = Device(torch.device("cuda"), "bf16", compile=False)


def state(*accuracies: float, held_out: str = "test", seconds: float = 1234.56) -> State:
    history = [
        {"epoch": number, "train_loss": 0.51239, "train_accuracy": 0.9, f"{held_out}_accuracy": accuracy, "learning_rate": 0.05}
        for number, accuracy in enumerate(accuracies, start=1)
    ]  # fmt: skip
    return State({}, history, seconds=seconds)


@pytest.fixture
def clock(monkeypatch):
    """A stand-in clock, which stands until it is set."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_without_a_terminal_an_epochs_line_tells_figures_speed_and_time_left(clock, capsys, held_out):
    shown = Progress(recipe(epochs=12), images=200, finished=0, device=CPU)
    for number, second in enumerate((50, 80), start=1):
        list(shown.batches([torch.zeros(100, 6)] * 2))
        clock(second)
        shown.epoch(state(*[0.875] * number, held_out=held_out))
    start = f"loss 0.5124  train 90.00%  {held_out} 87.50%  lr 0.05"
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"toy  1/12  {start}  4 images/s  09:10 left"  # 50 s an epoch, 11 to go
    assert second == f"toy  2/12  {start}  5 images/s  06:40 left"  # 40 s an epoch, 10 to go


def test_a_resumed_training_counts_its_own_epochs(clock, capsys):
    shown = Progress(recipe(epochs=10), images=100, finished=8, device=CPU)
    clock(20)
    shown.epoch(state(*[0.5] * 9))
    assert capsys.readouterr().out.endswith("  5 images/s  00:20 left\n")


@pytest.mark.parametrize(("device", "after_batches"), [(CPU, [30, 60]), (GPU, [0, 0])])
def test_the_bar_of_a_terminal_moves_by_batches_on_a_cpu_and_by_epochs_on_a_gpu(
    monkeypatch, capsys, device, after_batches
):
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * 2**29)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(module.sys, "stderr", terminal := Terminal())
    shown, places = Progress(recipe(epochs=3), images=60, finished=1, device=device), []
    for batch in shown.batches([torch.zeros(30, 6), torch.zeros(30, 6)]):
        assert len(batch) == 30
        places.append(shown.bar.n - 60)
    places.append(shown.bar.n - 60)
    assert places[1:] == after_batches
    shown.epoch(state(0.5, 0.5))
    assert (shown.bar.n, shown.bar.total) == (120, 180)
    line = capsys.readouterr().out
    assert line.startswith("toy 2/3  loss")
    assert line.endswith("  1.5 GiB\n" if device is GPU else "lr 0.05\n")  # the bar has speed and time
    shown.finish(state(0.5, 0.5, 0.5))
    assert "toy:  33%" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_the_closing_line_has_the_first_best_epoch(capsys, held_out):
    Progress(recipe(epochs=3), 100, 0, CPU).finish(state(0.5, 0.75, 0.75, held_out=held_out))
    assert capsys.readouterr().out == f"toy: 3 epochs in 1,234.6 s, best {held_out} accuracy 75.00% in epoch 2\n"
