import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from stages.common.errors import UserError
from stages.training.distributed import Processes, check_processes, joined_processes
from tests.training.toys import recipe

ROOT = Path(__file__).parents[2]


class Outcome(NamedTuple):
    history: list[dict]
    batches: list[int]
    weights: dict[str, torch.Tensor]


def train_together(folder: Path, count: int, *arguments: str) -> list[Outcome]:
    """The outcome of each of so many processes."""
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    command = [sys.executable, *launcher, str(ROOT / "tests/training/train_together.py"), str(folder), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
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
def test_the_shards_of_a_batch_are_the_batch_and_their_weighted_mean_is_its_mean(count, rows):
    values = torch.arange(rows, dtype=torch.float64)
    shares = [Processes(rank, count).shard(values) for rank in range(count)]
    assert torch.cat([share for share, weight in shares if weight]).equal(values)
    assert sum(share.mean() * weight for share, weight in shares) / count == pytest.approx(values.mean())
    assert all(len(share) for share, _ in shares)


def test_without_batch_normalisation_two_processes_learn_what_one_does(tmp_path):
    """69 images in batches of 32: the last batch is of five, three for the first process and two for the second."""
    (one,) = train_together(tmp_path / "one", 1, "plain", "69", "32")
    two = train_together(tmp_path / "two", 2, "plain", "69", "32")
    for outcome in two:
        assert outcome.batches == one.batches == [32, 32, 5] * 3
        assert losses(outcome) == pytest.approx(losses(one), abs=1e-5)
        for name, weight in one.weights.items():
            torch.testing.assert_close(outcome.weights[name], weight, rtol=0, atol=1e-5)


def test_with_batch_normalisation_all_processes_end_with_the_same_bytes(tmp_path):
    first, second = train_together(tmp_path / "two", 2, "cnn", "200", "32")
    assert first.history == second.history
    assert first.weights.keys() == second.weights.keys()
    assert all(first.weights[name].equal(second.weights[name]) for name in first.weights)
    assert first.history[-1]["train_loss"] < 0.7 * first.history[0]["train_loss"]


@pytest.mark.slow
def test_compiled_processes_end_with_the_same_bytes_too(tmp_path):
    first, second = train_together(tmp_path / "two", 2, "cnn", "200", "32", "--compile")
    assert first.history == second.history
    assert all(first.weights[name].equal(second.weights[name]) for name in first.weights)


def test_alone_nothing_is_shared_or_changed():
    alone, tensor, model = Processes(), torch.tensor([1.0, 2.0]), torch.nn.Linear(2, 2)
    rows, weight = alone.shard(tensor)
    assert rows.equal(tensor)
    assert weight == 1
    alone.all_reduce(tensor)
    alone.average([tensor])
    assert tensor.tolist() == [1, 2]
    assert alone.replicate(model) is model
    assert alone.broadcast(tensor) is tensor
    assert alone.differing({"a": "one"}) == []


def test_more_processes_than_gpus_are_refused(monkeypatch):
    """A stand-in for a machine with two GPUs, which is nowhere asked for more than their number."""
    environment = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "3", "RANK": "3"}
    for name, value in {**environment, "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UserError, match="launcher: starts 4 processes on this machine, which has 2 GPUs"),
        joined_processes(),
    ):
        pass


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "8"}, {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}])
def test_variables_of_slurm_or_kubernetes_alone_start_nothing(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with joined_processes() as processes:
        assert processes == Processes()


def test_a_batch_that_leaves_a_process_a_single_image_is_refused():
    check_processes(recipe(batch_size=4).train, 2)
    with pytest.raises(UserError, match=r"train\.batch_size = 3 is less than two images for each of the 2 processes"):
        check_processes(recipe(batch_size=3).train, 2)


def test_what_is_not_the_same_in_all_processes_is_found(tmp_path):
    code = """
from stages.training.distributed import joined_processes
with joined_processes() as processes:
    print(processes.differing({"a": "one", "b": str(processes.rank)}))
"""
    (tmp_path / "differ.py").write_text(code)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        tmp_path / "differ.py",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace("\n", "") == "['b']['b']"
