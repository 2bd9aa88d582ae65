"""Several processes that train one model together, as torchrun starts them: shards, all-reduce, a rank that dies."""

import contextlib
import inspect
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stages.common.errors import UserError
from stages.common.params import Train

TIMEOUT = timedelta(minutes=5)  # for a collective whose other ranks do not come


@dataclass(frozen=True)
class Processes:
    """One of `world_size` processes that train together; alone, each method does nothing or returns its argument."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among those on this machine

    def shard(self, batch: Tensor) -> tuple[Tensor, float]:
        """Return this process's rows of the batch that a single process would use, and the weight of their mean loss.

        The mean over the processes of these losses, weighted, is the mean over the batch. A process without a row takes
        the first one with weight 0, so that all take part in each all-reduce.
        """
        rows = batch.tensor_split(self.world_size)[self.rank]
        return (rows, len(rows) * self.world_size / len(batch)) if len(rows) else (batch[:1], 0.0)

    def replicate(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients that, after a backward pass, are the mean over the processes."""
        if self.world_size == 1:
            return model
        # Statistics of batch normalisation are averaged once an epoch instead of being copied from rank 0 each step.
        # The argument has another name since torch 2.14.
        known = inspect.signature(DistributedDataParallel).parameters
        options: dict = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **options)

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace the tensor with its sum over the processes."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each floating-point tensor with its mean over the processes."""
        for tensor in tensors:
            if self.world_size > 1 and tensor.is_floating_point():
                self.all_reduce(tensor)
                tensor /= self.world_size

    def broadcast(self, value: Any) -> Any:
        """Return the value that rank 0 passed."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def differing(self, values: dict[str, str]) -> list[str]:
        """Return the names of the values that are not the same in all processes; each must pass the same names."""
        gathered = [values] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(gathered, values)
        return [name for name in values if len({of_one[name] for of_one in gathered}) > 1]


def check_processes(train: Train, world_size: int) -> None:
    """Raise a UserError if this many processes cannot train with these parameters."""
    if train.batch_size < 2 * world_size:
        least = f"two images for each of the {world_size} processes; raise it or start fewer"
        raise UserError(f"train.batch_size = {train.batch_size} is less than {least}")
    if train.sync_batchnorm and world_size > 1 and not torch.cuda.is_available():
        raise UserError("train.sync_batchnorm needs GPUs when several processes train; set it to false")


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """Meet the other processes that torchrun started, over NCCL on GPUs and gloo on CPUs, and leave them at the end.

    Without torchrun the process is alone, also where Slurm or Kubernetes set WORLD_SIZE for purposes of their own.

    Raises:
        UserError: there are more processes on this machine than it has GPUs, or another process ended.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield Processes()
        return
    local_rank, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = torch.cuda.device_count()
    if 0 < gpus < here:
        raise UserError(f"launcher: starts {here} processes on this machine, which has {gpus} GPUs; each needs its own")
    device = torch.device("cuda", local_rank) if gpus else None
    if device:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus else "gloo", timeout=TIMEOUT, device_id=device)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), local_rank)
    except RuntimeError as error:
        # gloo raises a bare one in a backward pass
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        ended = "another process ended, so this training ended too; see its message, and run this again"
        raise UserError(ended) from error
    dist.destroy_process_group()  # not after an error: NCCL would wait for what the others never begin
