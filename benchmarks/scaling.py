"""What several processes can gain: the time of a step on their share of a batch, and the size of its gradients.

    python -m benchmarks.scaling --bandwidth 100

One process measures, on the device that it has, the step that each of n processes would take on its share of the batch.
To this comes the exchange of gradients, a ring in which each process sends and receives 2 (n - 1) / n of their bytes at
the given bandwidth, none of it hidden behind the backward pass. Under torchrun it measures the step of that many
processes, exchange included:

    torchrun --standalone --nproc-per-node 2 -m benchmarks.scaling
"""

import statistics
from argparse import ArgumentParser, Namespace

from benchmarks.core import Core, read_images, recipe_for
from benchmarks.page import Page
from benchmarks.timing import seconds
from stages.training.device import Device, choose_device
from stages.training.distributed import joined_processes


def step_seconds(model: str, batch_size: int, steps: int, device: Device) -> tuple[float, int]:
    """Return the median time of a step on a batch of that size, and the bytes of its gradients, which are fp32."""
    core = Core(recipe_for(model, batch_size=batch_size), read_images(batch_size), device)

    def step() -> None:
        core.update(core.rows)
        core.step.sums.tolist()  # waits for the device

    median = statistics.median(seconds(step, device.torch, steps))
    return median, sum(parameter.nbytes for parameter in core.model.parameters())


def main(args: Namespace) -> None:
    page = Page()
    with joined_processes() as processes:
        train = recipe_for(args.model, compile=False).train
        device, alone = choose_device(train, 0, processes), None
        if processes.rank == 0:
            page.write(f"{args.model} on {device}, batches of {train.batch_size}, gradients at {args.bandwidth:g} GB/s")
        if processes.world_size > 1:
            step, _ = step_seconds(args.model, train.batch_size, args.steps, device)
            if processes.rank == 0:
                page.row({"processes": processes.world_size, "step and exchange, ms": 1000 * step})
            return
        for count in (1, 2, 8, 64):
            share = max(2, -(-train.batch_size // count))  # batch normalisation needs two images
            step, gradients = step_seconds(args.model, share, args.steps, device)
            exchange = 2 * (count - 1) / count * gradients / (args.bandwidth * 1e9)
            alone = alone or step
            row = {"processes": count, "share": share, "step, ms": 1000 * step, "exchange, ms": 1000 * exchange}
            page.row({**row, "speed-up": alone / (step + exchange)})


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet", help="a section of params.yaml; default: %(default)s")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bandwidth", type=float, default=100, help="between processes, GB/s; default: %(default)s")
    main(parser.parse_args())
