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
from argparse import ArgumentParser, Namespace
from pathlib import Path

from benchmarks.loops import PARAMS, RECIPES, new_model
from benchmarks.page import table
from benchmarks.training_speed import read_images
from stages.common.dataset import DatasetInfo, Split
from stages.training.augmentation import Normalise, TrainingImages, draw_epoch
from stages.training.device import Backend, choose_backend
from stages.training.distributed import joined_processes
from stages.training.loop import build_update
from stages.training.step import Step

PROCESSES = [1, 2, 8, 64]
BATCH_SIZE = PARAMS.train.batch_size


def step_seconds(name: str, data: tuple[DatasetInfo, Split], batch_size: int, steps: int, backend: Backend) -> float:
    """The median time of a step on a batch of that size, after three to warm up."""
    (info, split), recipe, augment = data, RECIPES[name], PARAMS.augment
    normalise = Normalise(info.mean, info.std, backend.device)
    images = TrainingImages(split, augment.crop_padding, normalise, backend.device)
    model = backend.processes.replicate(backend.place(new_model(name, info)))
    step = Step(model, images, recipe.train, backend.autocast)
    update = build_update(step, batch_size, backend)
    draws = draw_epoch(recipe.seed, 1, len(images), augment.crop_padding, augment.flip)[:batch_size]
    batch, seconds = backend.to_device(draws), []
    for _ in range(steps + 3):
        start = time.perf_counter()
        update(batch)
        step.sums.tolist()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def shares(name: str, data: tuple[DatasetInfo, Split], args: Namespace, backend: Backend) -> list[dict[str, object]]:
    """The step on the share of a batch that each of n processes would take, and the exchange worked out from bytes."""
    rows = []
    for count in PROCESSES:
        share = -(-BATCH_SIZE // count)
        step = 1000 * step_seconds(name, data, share, args.steps, backend)
        exchange = 1000 * 2 * (count - 1) / count * gradient_bytes(name, data[0]) / (args.bandwidth * 1e9)
        alone = rows[0]["step, ms"] if rows else step
        speed_up = alone / (step + exchange)
        rows.append(
            {"processes": count, "share": share, "step, ms": step, "exchange, ms": exchange, "speed-up": speed_up}
        )
    return rows


def gradient_bytes(name: str, info: DatasetInfo) -> int:
    """Bytes of the gradients, which are fp32 in any precision."""
    return sum(parameter.nbytes for parameter in new_model(name, info).parameters())


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default="data/train.npz")
    parser.add_argument("--models", choices=RECIPES, nargs="+", default=["resnet"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bandwidth", type=float, default=100, help="between processes, GB/s; default: %(default)s")
    args = parser.parse_args()
    with joined_processes() as processes:
        backend = choose_backend(PARAMS.train.model_copy(update={"compile": False}), 0, processes)
        data = read_images(args.data, 2 * BATCH_SIZE)
        for name in args.models:
            if processes.world_size > 1:
                seconds = step_seconds(name, data, BATCH_SIZE, args.steps, backend)
                if processes.rank == 0:
                    print(f"{name} on {backend}: {1000 * seconds:.2f} ms a step of {BATCH_SIZE} images")
                continue
            megabytes = gradient_bytes(name, data[0]) / 1e6
            print(f"{name} on {backend}, {megabytes:.1f} MB of gradients, {args.bandwidth:g} GB/s")
            print(f"\n{table(shares(name, data, args, backend))}\n")


if __name__ == "__main__":
    main()
