"""Two processes over gloo, which torchrun starts once, beside what one process computes."""

import contextlib
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from stages import train
from stages.common.errors import UserError
from stages.training import distributed
from stages.training.device import Device
from stages.training.distributed import Processes, check_processes, joined_processes
from tests.training.test_step import ROWS, stepping
from tests.training.toys import CPU, dataset, fresh, recipe, states

PLAIN = recipe(epochs=2, keep="last")


def plain() -> nn.Module:
    """A network without batch normalisation, for which it makes no difference how a batch is sharded."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))


def gradients(rows: int, processes: Processes) -> dict[str, Tensor]:
    """The gradients of the mean loss of a batch of so many rows, of which this process computes its shard."""
    step = stepping(PLAIN, plain())
    step.model = processes.replicate(step.model)
    shard, weight = processes.shard(ROWS[:rows])
    (step.forward(shard)[0] * weight).backward()
    return {name: p.grad.clone() for name, p in step.bare.named_parameters()}


def statistics(shard: slice, processes: Processes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The buffers after the forward pass of a shard of two batches, before and after the processes average them."""
    step = stepping(PLAIN, fresh(PLAIN))
    step.model = processes.replicate(step.model)
    for batch in ROWS[:64].split(32):
        step.forward(batch[shard])[0].backward()
    own = {name: buffer.clone() for name, buffer in step.bare.named_buffers()}
    processes.average(step.bare.buffers())
    return own, dict(step.bare.named_buffers())


def main(folder: Path) -> None:
    """One of the two processes: writes what it found to FOLDER/RANK.pt."""
    found: dict[str, Any] = {}
    try:
        with joined_processes() as processes:
            device = Device(CPU.torch, "fp32", compile=False, processes=processes)
            found["processes"] = (processes.rank, processes.world_size, processes.local_rank)
            found["gradients"] = {rows: gradients(rows, processes) for rows in (1, 5, 32)}
            found["statistics"] = statistics(slice(16 * processes.rank, 16 * processes.rank + 16), processes)
            found["plain"] = states(plain(), dataset(), PLAIN, device)[-1]
            found["cnn"] = states(fresh(recipe()), dataset(), recipe(), device)[-1]
            found["broadcast"] = processes.broadcast({"from": processes.rank})
            found["differing"] = processes.differing({"a": "one", "b": str(processes.rank), "c": "two"})
            if processes.rank == 1:
                torch.save(found, folder / "1.pt")
                os._exit(0)  # it dies without a word
            for _ in range(3):
                processes.all_reduce(torch.zeros(1))
    except UserError as error:
        found["said"] = str(error)
    torch.save(found, folder / "0.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("both")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, folder]
    settings = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, env=os.environ | settings, check=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_values_are_rank_0s_differences_are_named_in_all_and_an_end_is_told(both):
    assert [found["processes"] for found in both] == [(0, 2, 0), (1, 2, 1)]
    assert [found["broadcast"] for found in both] == [{"from": 0}] * 2
    assert [found["differing"] for found in both] == [["b"]] * 2
    assert both[0]["said"].startswith("another process ended, so this training ended too")


@pytest.mark.parametrize("rows", [1, 5, 32])
def test_gradients_of_the_shards_are_those_of_the_mean_loss_of_the_batch(both, rows):
    """Also where the shards are of three and two images, and where the second process has none."""
    for name, gradient in gradients(rows, Processes()).items():
        for found in both:
            torch.testing.assert_close(found["gradients"][rows][name], gradient, rtol=1e-5, atol=1e-7)


def test_running_statistics_are_each_processs_own_until_they_are_averaged(both):
    (first, averaged), (second, same) = (found["statistics"] for found in both)
    for shard, own in ((slice(0, 16), first), (slice(16, 32), second)):
        torch.testing.assert_close(own, statistics(shard, Processes())[0], rtol=1e-4, atol=1e-6)
    for name, buffer in averaged.items():
        mean = (first[name] + second[name]) / 2 if buffer.is_floating_point() else torch.tensor(2)
        torch.testing.assert_close(buffer, mean)
        assert buffer.equal(same[name])
    assert not first["features.1.running_mean"].equal(second["features.1.running_mean"])


def test_two_processes_end_with_the_same_bytes_and_without_batch_normalisation_learn_what_one_does(both):
    """70 images in batches of 32: the last batch is of six."""
    assert both[0]["cnn"].history == both[1]["cnn"].history
    assert all(tensor.equal(both[1]["cnn"].weights[name]) for name, tensor in both[0]["cnn"].weights.items())
    (*_, one) = states(plain(), dataset(), PLAIN)
    for found in both:
        torch.testing.assert_close(found["plain"].tensors, one.tensors, rtol=0, atol=1e-5)
        for row, expected in zip(found["plain"].history, one.history, strict=True):
            assert row == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 7, 128])
def test_the_shards_of_a_batch_are_the_batch_and_their_weighted_mean_is_its_mean(count, rows):
    values = torch.arange(rows, dtype=torch.float64)
    shares = [Processes(rank, count).shard(values) for rank in range(count)]
    assert torch.cat([share for share, weight in shares if weight]).equal(values)
    assert sum(share.mean() * weight for share, weight in shares) / count == pytest.approx(values.mean())


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "8"}, {"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}])
def test_variables_of_slurm_or_kubernetes_and_a_single_process_of_torchrun_join_nobody(monkeypatch, environment):
    monkeypatch.setattr(os, "environ", os.environ | environment)
    with joined_processes() as processes:
        assert processes == Processes()


def test_on_gpus_each_process_takes_that_of_its_place_on_its_machine_and_they_meet_over_nccl(monkeypatch):
    """The second of two processes on the second machine; stand-ins for its GPUs and for the meeting."""
    started, gpu = {"WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, torch.device("cuda", 1)
    monkeypatch.setattr(os, "environ", os.environ | started)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen := Mock())
    monkeypatch.setattr(distributed, "dist", meeting := Mock())
    meeting.get_rank.return_value, meeting.get_world_size.return_value = 3, 4
    with joined_processes() as processes:
        assert processes == Processes(3, 4, 1)
    (name,), options = meeting.init_process_group.call_args
    assert (name, options["device_id"], chosen.call_args.args) == ("nccl", gpu, (gpu,))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"^launcher: starts 2 .* this machine, which has 1 GPUs"), joined_processes():
        pass


def test_nothing_is_written_where_processes_end_with_different_weights(workspace, monkeypatch):
    other = Mock(wraps=Processes(), rank=0, world_size=1, differing=lambda values: values.keys() & {"weights"})
    monkeypatch.setattr(train, "joined_processes", lambda: contextlib.nullcontext(other))
    with pytest.raises(RuntimeError, match=r"ended with different weights$"):
        train.main(Namespace(run="cnn"))
    assert not Path("models").exists()


def test_parameters_that_several_processes_cannot_train_with_are_refused(workspace, monkeypatch):
    monkeypatch.setattr(train, "joined_processes", lambda: contextlib.nullcontext(Processes(0, 9)))
    with pytest.raises(UserError, match=r"^train\.batch_size = 16 is less than two images for each of the 9 proc"):
        train.main(Namespace(run="cnn"))
    check_processes(recipe(batch_size=4).train, 2)
    with pytest.raises(UserError, match=r"train\.batch_size = 3 is less than two images for each of the 2 processes"):
        check_processes(recipe(batch_size=3).train, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_processes(recipe(sync_batchnorm=True).train, 1)
    with pytest.raises(UserError, match=r"train\.sync_batchnorm needs GPUs when several processes"):
        check_processes(recipe(sync_batchnorm=True).train, 2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
