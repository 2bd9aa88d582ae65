import io
import sys
from argparse import Namespace
from unittest.mock import Mock

import pytest
import torch

from stages import train
from stages.training import progress as module
from stages.training.checkpoint import State
from stages.training.device import Device
from stages.training.progress import Progress
from tests.training.toys import CPU, recipe

ROW = {"train_loss": 0.51239, "train_accuracy": 0.9, "learning_rate": 0.0005}


def state(*accuracies: float) -> State:
    return State({}, [ROW | {"epoch": i, "test_accuracy": a} for i, a in enumerate(accuracies, 1)], seconds=1234.56)


def test_without_a_terminal_a_line_an_epoch_tells_speed_and_time_left(monkeypatch, capsys):
    """A stand-in clock: 80 s for the first epoch after eight that an earlier process trained, 50 s for the second."""
    monkeypatch.setattr(module.time, "perf_counter", iter((0, 80, 130)).__next__)
    shown = Progress(recipe(epochs=12), images=200, finished=8, device=CPU)
    for epoch in (9, 10):
        shown.epoch(state(*[0.875] * epoch))
    same = "/12  loss 0.5124  train 90.00%  test 87.50%  lr 0.0005  "
    expected = f"toy  9{same}2 images/s  04:00 left\ntoy 10{same}4 images/s  01:40 left\n"
    assert capsys.readouterr().out == expected


def test_on_a_terminal_a_bar_counts_images_by_the_batch_and_on_a_gpu_by_the_epoch(monkeypatch, capsys):
    """A stand-in terminal; the second epoch of four, of 2 × 100 images."""
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * 2**29)
    cases = ("cpu", [200, 200, 300, 400, 400], ""), ("cuda", [200] * 4 + [400], "  1.5 GiB")
    for kind, places, memory in cases:
        monkeypatch.setattr(sys, "stderr", terminal := io.StringIO())
        terminal.isatty = lambda: True
        shown = Progress(recipe(epochs=4), 200, 1, Device(torch.device(kind), "fp32", False))
        seen = [shown.bar.n, *(shown.bar.n for _ in shown.batches([torch.zeros(100, 6)] * 2)), shown.bar.n]
        shown.epoch(state(0.5, 0.75))
        assert ([*seen, shown.bar.n], shown.bar.total) == (places, 800)
        assert capsys.readouterr().out.endswith(f"test 75.00%  lr 0.0005{memory}\n")


def test_a_resumed_training_tells_with_how_many_epochs_it_began(workspace, monkeypatch):
    """Both are interrupted when their first epoch is told."""
    shown = Mock(return_value=Mock(batches=iter, epoch=Mock(side_effect=KeyboardInterrupt)))
    monkeypatch.setattr(train, "Progress", shown)
    for finished in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            train.main(Namespace(run="cnn"))
        assert shown.call_args.args[1:3] == (40, finished)


def test_the_closing_line_has_the_first_best_epoch(capsys):
    Progress(recipe(epochs=4), 100, 0, CPU).finish(state(0.5, 0.75, 0.75, 0.625))
    assert capsys.readouterr().out == "toy: 4 epochs in 1,234.6 s, best test accuracy 75.00% in epoch 2\n"
