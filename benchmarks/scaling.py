"""What several processes can gain: the time of a step on their share of a batch, and the size of its gradients.

    python -m benchmarks.scaling --data data/train.npz --bandwidth 100

One process measures, on the device that it has, the step that each of n processes would take on its share of the batch.
To this comes the exchange of gradients, a ring in which each process sends and receives 2 (n - 1) / n of their bytes at
the given bandwidth, none of it hidden behind the backward pass. Under torchrun it measures the step of that many
processes, exchange included:

    torchrun --standalone --nproc-per-node 2 -m benchmarks.scaling --data data/train.npz
"""

import statistics
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from benchmarks.loops import PARAMS, RECIPE, new_model
from benchmarks.training_speed import read_images
from stages.core.dataset import Split, channel_statistics
from stages.core.device import Backend, choose_backend
from stages.core.images import Normalise, TrainingImages, draw_epoch
from stages.core.models import MODELS
from stages.core.processes import join_processes, leave_processes
from stages.core.training import Step

PROCESSES = [1, 2, 8, 64]


def step_seconds(name: str, split: Split, batch_size: int, steps: int, backend: Backend) -> float:
    """The median time of a step on a batch of that size, after three to warm up."""
    recipe = replace(RECIPE, batch_size=batch_size)
    normalise = Normalise(*channel_statistics(split.images), backend.device)
    images = TrainingImages(split, recipe.crop_padding, normalise, backend.device)
    step = Step(backend.place(new_model(name, backend.device)), images, recipe, backend)
    draws = backend.to_device(draw_epoch(recipe.seed, 1, len(images), recipe.crop_padding, recipe.flip))[:batch_size]
    seconds = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        step.update(draws)
        step.sums.tolist()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default="data/train.npz")
    parser.add_argument("--models", choices=MODELS, nargs="+", default=["resnet18"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bandwidth", type=float, default=100, help="between processes, GB/s; default: %(default)s")
    args = parser.parse_args()
    processes = join_processes()
    backend = choose_backend(PARAMS.train.precision, False, flops=0, processes=processes)
    split = read_images(args.data, 2 * RECIPE.batch_size)
    for name in args.models:
        if processes.count > 1:
            seconds = step_seconds(name, split, RECIPE.batch_size, args.steps, backend)
            if processes.rank == 0:
                print(f"{name} on {backend}: {1000 * seconds:.2f} ms a step of {RECIPE.batch_size} images")
            continue
        model = new_model(name, torch.device("cpu"))
        gradients = sum(4 * parameter.numel() for parameter in model.parameters())  # bytes, fp32 in any precision
        rows = []
        for count in PROCESSES:
            share = -(-RECIPE.batch_size // count)
            step = step_seconds(name, split, share, args.steps, backend)
            exchange = 2 * (count - 1) / count * gradients / (args.bandwidth * 1e9)
            rows.append({"processes": count, "share": share, "step_ms": 1000 * step, "exchange_ms": 1000 * exchange})
        table = pd.DataFrame(rows)
        total = table.step_ms + table.exchange_ms
        table["speed_up"] = total[0] / total
        print(f"{name} on {backend}, {gradients / 1e6:.1f} MB of gradients, {args.bandwidth:g} GB/s")
        print(table.to_string(index=False, float_format="{:.2f}".format))
    leave_processes()


if __name__ == "__main__":
    main()
