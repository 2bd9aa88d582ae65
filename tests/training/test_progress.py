import torch

from stages.training import progress as module
from stages.training.checkpoint import State
from stages.training.progress import Progress
from tests.training.toys import CPU, recipe

ROW = {"train_loss": 0.51239, "train_accuracy": 0.9, "learning_rate": 0.05}


def state(*accuracies: float) -> State:
    return State({}, [ROW | {"epoch": i, "test_accuracy": a} for i, a in enumerate(accuracies, 1)], seconds=1234.56)


def test_without_a_terminal_a_line_an_epoch_tells_speed_and_time_left(monkeypatch, capsys):
    """A stand-in clock: 50 s for an epoch, the first after eight that an earlier process trained."""
    monkeypatch.setattr(module.time, "perf_counter", iter((0, 50)).__next__)
    shown = Progress(recipe(epochs=12), images=200, finished=8, device=CPU)
    list(shown.batches([torch.zeros(100, 6)] * 2))
    shown.epoch(state(*[0.875] * 9))
    expected = "toy  9/12  loss 0.5124  train 90.00%  test 87.50%  lr 0.05  4 images/s  02:30 left\n"
    assert capsys.readouterr().out == expected


def test_the_closing_line_has_the_first_best_epoch(capsys):
    Progress(recipe(epochs=4), 100, 0, CPU).finish(state(0.5, 0.75, 0.75, 0.625))
    assert capsys.readouterr().out == "toy: 4 epochs in 1,234.6 s, best test accuracy 75.00% in epoch 2\n"
