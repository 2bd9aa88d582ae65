"""Two processes over gloo, started once by torchrun (two_processes.py), beside what one process computes by hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from stages.common.errors import UserError
from stages.training import distributed as module
from stages.training.distributed import Processes, check_processes, joined_processes
from tests.training.test_step import ROWS, stepping
from tests.training.toys import dataset, fresh, recipe, states
from tests.training.two_processes import PLAIN, Plain

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def both(tmp_path_factory, prepare) -> list[dict]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(train__precision="fp32")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, str(ROOT / "tests/training/two_processes.py"), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_each_process_knows_its_place(both):
    assert [found["processes"] for found in both] == [(0, 2, 0), (1, 2, 1)]


@pytest.mark.parametrize("rows", [1, 5, 32])
def test_gradients_of_the_shards_are_those_of_the_mean_loss_of_the_batch(both, rows):
    """Also where the shards are of three and two images, and where the second process has none."""
    step = stepping(PLAIN, Plain())
    step.forward(ROWS[:rows])[0].backward()
    for found in both:
        for name, p in step.bare.named_parameters():
            torch.testing.assert_close(found["gradients"][rows][name], p.grad, rtol=1e-5, atol=1e-7)


def test_running_statistics_are_each_processs_own_until_they_are_averaged(both):
    (first, averaged), (second, same) = (found["statistics"] for found in both)
    for shard, own in ((slice(0, 16), first), (slice(16, 32), second)):
        step = stepping(recipe(), fresh(recipe()))
        with torch.no_grad():
            for batch in ROWS[:64].split(32):
                step.forward(batch[shard])
        for name, buffer in step.bare.named_buffers():
            torch.testing.assert_close(own[name], buffer, rtol=1e-4, atol=1e-6)
    for name, buffer in averaged.items():
        mean = (first[name] + second[name]) / 2 if buffer.is_floating_point() else torch.tensor(2)
        torch.testing.assert_close(buffer, mean)
        assert buffer.equal(same[name])
    assert not first["features.1.running_mean"].equal(second["features.1.running_mean"])


def test_without_batch_normalisation_two_processes_learn_what_one_does(both):
    """70 images in batches of 32: the last batch is of six."""
    (*_, one) = states(Plain(), dataset(), PLAIN)
    for found in both:
        for row, expected in zip(found["plain"].history, one.history, strict=True):
            assert row == pytest.approx(expected, abs=1e-5)
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(found["plain"].tensors[name], tensor, rtol=0, atol=1e-5)


def test_with_batch_normalisation_all_processes_end_with_the_same_bytes(both):
    first, second = (found["cnn"] for found in both)
    assert first.history == second.history
    assert all(first.tensors[f"model.{name}"].equal(second.tensors[f"model.{name}"]) for name in first.weights)
    assert first.history[-1]["train_loss"] < 0.9 * first.history[0]["train_loss"]


def test_values_are_rank_0s_and_differences_are_named_in_all_processes(both):
    assert [found["broadcast"] for found in both] == [{"from": 0}] * 2
    assert [found["differing"] for found in both] == [["b"]] * 2


def test_a_rank_with_other_weights_or_other_inputs_ends_all(both):
    for found in both:
        assert found["said"]["weights"] == "RuntimeError: the 2 processes ended with different weights"
        assert found["said"]["parameters"].startswith(
            "UserError: the 2 processes began with different parameters; give"
        )


def test_a_process_whose_neighbour_ended_says_so(both):
    assert both[0]["left alone"].startswith("another process ended, so this training ended too")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 7, 128])
def test_the_shards_of_a_batch_are_the_batch_and_their_weighted_mean_is_its_mean(count, rows):
    values = torch.arange(rows, dtype=torch.float64)
    shares = [Processes(rank, count).shard(values) for rank in range(count)]
    assert torch.cat([share for share, weight in shares if weight]).equal(values)
    assert sum(share.mean() * weight for share, weight in shares) / count == pytest.approx(values.mean())
    assert [Processes(rank, count).share(rows) for rank in range(count)] == [len(s) if w else 0 for s, w in shares]
    assert all(len(share) for share, _ in shares)


def test_alone_nothing_is_shared_or_changed():
    alone, tensor, network = Processes(), torch.tensor([1.0, 2.0]), nn.Linear(2, 2)
    alone.all_reduce(tensor)
    alone.average([tensor])
    assert tensor.tolist() == [1, 2]
    assert alone.replicate(network) is network
    assert alone.broadcast(tensor) is tensor
    assert alone.differing({"a": "one"}) == []


@pytest.fixture
def launched(monkeypatch):
    """A stand-in for torchrun on a machine with two GPUs: its variables, NCCL's group, and the GPU that was set."""
    calls: list = []

    def start(rank: int, local_rank: int, on_this_machine: int) -> list:
        environment = {"WORLD_SIZE": 4, "RANK": rank, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": on_this_machine}
        for name, value in {**environment, "TORCHELASTIC_RUN_ID": "x"}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(device))
        monkeypatch.setattr(dist, "init_process_group", lambda *args, **options: calls.append((*args, options)))
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: 4)
        monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("left"))
        return calls

    return start


def test_a_process_takes_the_gpu_of_its_place_on_its_machine(launched):
    calls, gpu = launched(rank=3, local_rank=1, on_this_machine=2), torch.device("cuda", 1)
    with joined_processes() as processes:
        assert processes == Processes(3, 4, 1)
        assert calls == [gpu, ("nccl", {"timeout": module.TIMEOUT, "device_id": gpu})]
    assert calls[2:] == ["left"]


def test_after_an_error_no_process_waits_for_the_others_to_leave(launched):
    calls = launched(rank=0, local_rank=0, on_this_machine=2)
    with pytest.raises(UserError, match="another process ended"), joined_processes():
        raise dist.DistBackendError("NCCL communicator was aborted")
    with pytest.raises(RuntimeError, match="^a bug$"), joined_processes():
        raise RuntimeError("a bug")
    assert "left" not in calls


def test_more_processes_than_gpus_are_refused(launched):
    calls = launched(rank=3, local_rank=3, on_this_machine=4)
    refused = pytest.raises(UserError, match="launcher: starts 4 processes on this machine, which has 2 GPUs")
    with refused, joined_processes():
        pass
    assert calls == []


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "8"}, {"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}])
def test_variables_of_slurm_or_kubernetes_and_a_single_process_of_torchrun_join_nobody(monkeypatch, environment):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with joined_processes() as processes:
        assert processes == Processes()


def test_parameters_that_several_processes_cannot_train_with_are_refused(monkeypatch):
    check_processes(recipe(batch_size=4).train, 2)
    with pytest.raises(UserError, match=r"train\.batch_size = 3 is less than two images for each of the 2 processes"):
        check_processes(recipe(batch_size=3).train, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_processes(recipe(sync_batchnorm=True).train, 1)
    with pytest.raises(UserError, match=r"train\.sync_batchnorm needs GPUs when several processes train"):
        check_processes(recipe(sync_batchnorm=True).train, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_processes(recipe(sync_batchnorm=True).train, 2)
