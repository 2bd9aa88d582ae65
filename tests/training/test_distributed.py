import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from stages.core.errors import UserError
from stages.core.processes import Processes, join_processes

ROOT = Path(__file__).parents[2]


class Outcome(NamedTuple):
    history: list[dict]
    batches: list[int]
    weights: dict[str, torch.Tensor]


def train_together(folder: Path, count: int, *arguments: str) -> list[Outcome]:
    """What each of so many processes has in the end."""
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    command = [sys.executable, *launcher, str(ROOT / "tests/core/train_together.py"), str(folder), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [
        Outcome(**json.loads((folder / f"{rank}.json").read_text()), weights=torch.load(folder / f"weights{rank}.pt"))
        for rank in range(count)
    ]


def losses(outcome: Outcome) -> list[float]:
    return [epoch[f"{split}_loss"] for epoch in outcome.history for split in ("train", "test")]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 7, 128])
def test_the_shares_of_a_batch_are_the_batch_and_their_weighted_mean_is_its_mean(count, rows):
    values = torch.arange(rows, dtype=torch.float64)
    shares = [Processes(rank, count).share(values) for rank in range(count)]
    assert torch.cat([share for share, weight in shares if weight]).equal(values)
    assert sum(share.mean() * weight for share, weight in shares) / count == pytest.approx(values.mean())
    assert all(len(share) for share, _ in shares)


def test_without_batch_normalisation_two_processes_learn_what_one_does(tmp_path):
    """65 images in batches of 32: the last batch is one image, which leaves nothing to the second process."""
    (one,) = train_together(tmp_path / "one", 1, "plain", "65", "32")
    two = train_together(tmp_path / "two", 2, "plain", "65", "32")
    for outcome in two:
        assert outcome.batches == one.batches == [32, 32, 1] * 3
        assert losses(outcome) == pytest.approx(losses(one), abs=1e-5)
        for name, weight in one.weights.items():
            torch.testing.assert_close(outcome.weights[name], weight, rtol=0, atol=1e-5)


def test_with_batch_normalisation_all_processes_end_with_the_same_bytes(tmp_path):
    first, second = train_together(tmp_path / "two", 2, "simple_cnn", "200", "32")
    assert first.history == second.history
    assert first.weights.keys() == second.weights.keys()
    assert all(first.weights[name].equal(second.weights[name]) for name in first.weights)
    assert first.history[-1]["train_loss"] < 0.7 * first.history[0]["train_loss"]


@pytest.mark.slow
def test_compiled_processes_end_with_the_same_bytes_too(tmp_path):
    first, second = train_together(tmp_path / "two", 2, "simple_cnn", "200", "32", "--compile")
    assert first.history == second.history
    assert all(first.weights[name].equal(second.weights[name]) for name in first.weights)


def test_alone_nothing_is_shared_or_changed():
    alone, tensor, model = Processes(), torch.tensor([1.0, 2.0]), torch.nn.Linear(2, 2)
    rows, weight = alone.share(tensor)
    assert rows.equal(tensor)
    assert weight == 1
    alone.sum(tensor)
    alone.average([tensor])
    assert tensor.tolist() == [1, 2]
    assert alone.replicate(model) is model
    assert alone.from_first(tensor) is tensor


def test_more_processes_than_gpus_are_refused(monkeypatch):
    environment = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "3", "RANK": "3"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="launcher: starts 4 processes on this machine, which has 2 GPUs"):
        join_processes()
