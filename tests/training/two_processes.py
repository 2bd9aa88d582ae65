"""One of two processes of tests/training/test_distributed.py, as torchrun starts them.

torchrun --standalone --nproc-per-node 2 tests/training/two_processes.py FOLDER

Writes what came out of it to FOLDER/RANK.pt; FOLDER has small data and parameters.
"""

import os
import sys
from argparse import Namespace
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from stages import train as stage
from stages.common.errors import UserError
from stages.training.device import Device
from stages.training.distributed import Processes, joined_processes
from stages.training.step import Step
from tests.training.test_step import ROWS, stepping
from tests.training.toys import CPU, dataset, fresh, recipe, states

PLAIN = recipe(epochs=2, keep="last")


class Plain(nn.Module):
    """A network without batch normalisation, for which it makes no difference how a batch is sharded."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def gradients(processes: Processes, rows: int) -> dict[str, Tensor]:
    """The gradients of the mean loss of a batch of so many rows, of which this process computes its shard."""
    step = stepping(PLAIN, Plain())
    step.model = processes.replicate(step.model)
    shard, weight = processes.shard(ROWS[:rows])
    (step.forward(shard)[0] * weight).backward()
    return {name: p.grad.clone() for name, p in step.bare.named_parameters()}


def statistics(processes: Processes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The buffers after two steps, before and after the processes average them."""
    step = stepping(recipe(learning_rate=1e-9), fresh(recipe()))
    step = Step(processes.replicate(step.model), step.images, recipe(learning_rate=1e-9).train, CPU.autocast)
    for batch in ROWS[:64].split(32):
        step(*processes.shard(batch))
    own = {name: buffer.clone() for name, buffer in step.bare.named_buffers()}
    processes.average(step.bare.buffers())
    return own, dict(step.bare.named_buffers())


def message_of(run: str) -> str:
    try:
        stage.main(Namespace(run=run))
    except (RuntimeError, UserError) as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def stages_messages(processes: Processes) -> dict[str, str]:
    """What the training stage says when one of its processes, which are joined already, goes wrong."""
    stage.joined_processes = lambda: nullcontext(processes)
    said, original = {}, stage.to_model_file
    if processes.rank == 1:
        stage.to_model_file = lambda *args: original(*args) + b"another"
    said["weights"] = message_of("cnn")
    stage.to_model_file, settings = original, stage.recipe_of
    if processes.rank == 1:
        stage.recipe_of = lambda params, run: settings(params, run).model_copy(update={"seed": 43})
    said["parameters"] = message_of("cnn")
    return said


def main(folder: str) -> None:
    os.chdir(folder)
    found: dict[str, Any] = {}
    try:
        with joined_processes() as processes:
            device = Device(torch.device("cpu"), "fp32", compile=False, processes=processes)
            found["processes"] = (processes.rank, processes.world_size, processes.local_rank)
            found["gradients"] = {rows: gradients(processes, rows) for rows in (1, 5, 32)}
            found["statistics"] = statistics(processes)
            found["plain"] = states(Plain(), dataset(), PLAIN, device)[-1]
            found["cnn"] = states(fresh(recipe()), dataset(), recipe(), device)[-1]
            found["broadcast"] = processes.broadcast({"from": processes.rank})
            found["differing"] = processes.differing({"a": "one", "b": str(processes.rank), "c": "two"})
            found["said"] = stages_messages(processes)
            if processes.rank == 1:
                torch.save(found, "1.pt")
                os._exit(0)  # it dies without a word
            for _ in range(3):
                processes.all_reduce(torch.zeros(1))
    except UserError as error:
        found["left alone"] = str(error)
    torch.save(found, "0.pt")


if __name__ == "__main__":
    main(sys.argv[1])
