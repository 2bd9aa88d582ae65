"""Training speed of the core beside loops that people write by hand, in turns on one machine.

    python -m benchmarks.training_speed --images 2560 --epochs 4

Every variant trains the same model with the same recipe in a process of its own, an epoch each in turn. Figures are
medians over the epochs after the first; what the first took beyond that is its overhead (compiling, capturing, warming
up). Memory is what a variant adds to a process that has imported torch. The floor is the larger of two times: the
floating-point operations of forward and backward passes over the rate of a large matrix product or convolution, and
the bytes that convolutions must read and write over the rate of a large copy, all measured here as well.
"""

import os
import re
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.core import Core, read_images, recipe_for
from benchmarks.floor import floor
from benchmarks.loops import Epoch, plain_loop, tuned_loop
from benchmarks.page import Page
from stages.common.dataset import DatasetInfo, Split
from stages.training.device import choose_device
from stages.training.recipe import Recipe, build_model

FULL_EPOCH = 50_000  # images


def core(compile: bool, recipe: Recipe, info: DatasetInfo, split: Split, device: torch.device) -> Epoch:
    """The project's own epoch, the step captured as a CUDA graph where there is a GPU."""
    train = recipe.train.model_copy(update={"compile": compile})
    return Core(recipe, (info, split), choose_device(train, images=0)).epoch


VARIANTS: dict[str, Callable[..., Epoch]] = {
    "plain loop": plain_loop,
    "by hand": tuned_loop,
    "core, eager": partial(core, False),
    "core, compiled": partial(core, True),
}


class Worker:
    """What a process of its own trains; its state is that of the class, since each process has one."""

    epoch: Epoch
    torch_alone: int

    @classmethod
    def begin(cls, variant: str, model: str, images: int, device: torch.device) -> None:
        torch.zeros(1, device=device)
        cls.torch_alone = host_memory()
        cls.epoch = staticmethod(VARIANTS[variant](recipe_for(model), *read_images(images), device))

    @classmethod
    def train(cls, number: int) -> tuple[float, int, int]:
        """Train the epoch of this number; return its seconds, and the most bytes of the host and of the GPU so far."""
        start = time.perf_counter()
        cls.epoch(number)
        on_device = torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else 0
        return time.perf_counter() - start, host_memory() - cls.torch_alone, on_device


def host_memory() -> int:
    """Return the most bytes that this process has held; getrusage would count what its parent held before."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def compare(model: str, images: int, epochs: int, variants: list[str], page: Page) -> None:
    """Let the variants train in turn; write what their speed depends on, and a row for each."""
    recipe, (info, split) = recipe_for(model), read_images(images)
    device, images = choose_device(recipe.train, FULL_EPOCH * recipe.epochs), len(split.labels)
    with ExitStack() as stack:
        spawn = get_context("spawn")  # works with a GPU, and keeps memory apart
        processes = {
            variant: stack.enter_context(
                ProcessPoolExecutor(1, spawn, Worker.begin, (variant, model, images, device.torch))
            )
            for variant in variants
        }
        turns = [
            [process.submit(Worker.train, number).result() for process in processes.values()]
            for number in range(1, epochs + 1)
        ]
    least, rates = floor(build_model(recipe, len(info.classes)), info.image_size, images, device)
    page.write(
        f"{recipe.title}, {images:,} images an epoch, {device}, PyTorch {torch.__version__}, "
        f"floor {least:.2f} s an epoch; {rates}"
    )
    default = "core, compiled" if device.compile else "core, eager"
    slowest = statistics.median(turn[0][0] for turn in turns[1:])
    for variant, measured in zip(variants, zip(*turns, strict=True), strict=True):
        seconds, host, on_device = zip(*measured, strict=True)
        median = statistics.median(seconds[1:])
        page.row(
            {
                "variant": variant + " (default)" * (variant == default),
                "images/s": images / median,
                "ratio": f"{slowest / median:.2f}",
                "s an epoch of 50,000": FULL_EPOCH / images * median,
                "first epoch's overhead, s": f"{seconds[0] - median:.1f}",
                "share of the floor": f"{least / median:.0%}",
                "host memory, GiB": f"{max(host) / 2**30:.2f}",
                "device memory, GiB": f"{max(on_device) / 2**30:.2f}",
            }
        )


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=FULL_EPOCH, help="of data/train.npz in an epoch")
    parser.add_argument("--epochs", type=int, default=4, help="of each variant, the first not counted")
    parser.add_argument("--models", nargs="+", default=["cnn", "resnet"], help="sections of params.yaml")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one, else the CPU")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA starts, which is later
    for name in args.models:
        compare(name, args.images, args.epochs, args.variants, Page())
