"""The processes that train one model together, as torchrun starts them: who takes what, and how they stay alike."""

import inspect
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stages.core.errors import UserError

LOST = ("Connection closed by peer", "Connection reset by peer", "Socket closed", "Broken pipe")  # in gloo's messages


@dataclass(frozen=True)
class Processes:
    """One of `count` processes that train together; alone, every method does nothing or hands back what it got."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # among those on this machine

    def share(self, batch: Tensor) -> tuple[Tensor, float]:
        """This process's rows of a batch, and what their mean loss counts in the mean over the processes, so that this
        is the mean over the batch: 1 where all shares are as large. A process for which there is no row takes the
        first, counting nothing, so that all take part in each step."""
        rows = batch.tensor_split(self.count)[self.rank]
        return (rows, len(rows) * self.count / len(batch)) if len(rows) else (batch[:1], 0.0)

    def replicate(self, model: nn.Module) -> nn.Module:
        """The model, whose gradients after a backward pass are the mean over the processes."""
        if self.count == 1:
            return model
        # Statistics of batch normalisation are averaged once an epoch instead of being copied from rank 0 each step.
        # The argument has another name since torch 2.14.
        known = inspect.signature(DistributedDataParallel).parameters
        copied = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **{copied: False})

    def sum(self, tensor: Tensor) -> None:
        """Replace the tensor with its sum over the processes."""
        if self.count > 1:
            dist.all_reduce(tensor)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each floating-point tensor with its mean over the processes."""
        if self.count > 1:
            for tensor in tensors:
                if tensor.is_floating_point():
                    dist.all_reduce(tensor)
                    tensor /= self.count

    def from_first(self, value: Any) -> Any:
        """What the process of rank 0 passed."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def check_alike(self, digest: str) -> None:
        """Raise a RuntimeError if another process passed something else."""
        if self.count > 1:
            digests: list[str | None] = [None] * self.count
            dist.all_gather_object(digests, digest)
            if len(set(digests)) > 1:
                raise RuntimeError(f"the {self.count} processes ended with different weights: {digests}")


def join_processes() -> Processes:
    """Meet the other processes that torchrun started, over NCCL on GPUs and gloo on CPUs.

    Raises:
        UserError: there are more processes on this machine than it has GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return Processes()
    local_rank, on_gpu = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available()
    if on_gpu and int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
        raise UserError(
            f"launcher: starts {os.environ['LOCAL_WORLD_SIZE']} processes on this machine, which has "
            f"{torch.cuda.device_count()} GPUs; each needs its own"
        )
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    return Processes(int(os.environ["RANK"]), count, local_rank)


def leave_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether the error says that another process is gone."""
    return isinstance(error, dist.DistError) or any(words in str(error) for words in LOST)
