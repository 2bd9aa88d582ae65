import pytest
import torch

from stages.training import progress as module
from stages.training.checkpoint import State
from stages.training.progress import Progress
from tests.training.toys import CPU, recipe


def state(*accuracies: float, held_out: str = "test") -> State:
    row = {"train_loss": 0.51239, "train_accuracy": 0.9, "learning_rate": 0.05}
    history = [row | {"epoch": i, f"{held_out}_accuracy": value} for i, value in enumerate(accuracies, start=1)]
    return State({}, history, seconds=1234.56)


@pytest.mark.parametrize(
    ("held_out", "finished", "left"), [("test", 0, ("09:10", "06:40")), ("validation", 8, ("02:30", "01:20"))]
)
def test_without_a_terminal_a_line_an_epoch_tells_speed_and_time_left(monkeypatch, capsys, held_out, finished, left):
    """A stand-in clock: 50 s for the first epoch and 30 for the second; a resumed training counts its own ones."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    shown = Progress(recipe(epochs=12), images=200, finished=finished, device=CPU)
    for epoch, now[0] in ((finished + 1, 50), (finished + 2, 80)):
        list(shown.batches([torch.zeros(100, 6)] * 2))
        shown.epoch(state(*[0.875] * epoch, held_out=held_out))
    figures = f"/12  loss 0.5124  train 90.00%  {held_out} 87.50%  lr 0.05"
    rest = f"  4 images/s  {left[0]} left", f"  5 images/s  {left[1]} left"
    expected = [f"toy {finished + number:>2}{figures}{speed}" for number, speed in enumerate(rest, start=1)]
    assert capsys.readouterr().out.splitlines() == expected


def test_the_closing_line_has_the_first_best_epoch(capsys):
    Progress(recipe(epochs=4), 100, 0, CPU).finish(state(0.5, 0.75, 0.75, 0.625))
    assert capsys.readouterr().out == "toy: 4 epochs in 1,234.6 s, best test accuracy 75.00% in epoch 2\n"
