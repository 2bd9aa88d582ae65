"""Training speed of the core beside loops that people write by hand, in turns on one machine.

    python -m benchmarks.training_speed --data data/train.npz --images 2560 --epochs 4

Every variant trains the same model with the same recipe in a process of its own, an epoch each in turn. Figures are
medians over the epochs after the first; what the first took beyond that is its overhead (compiling, recording, warming
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
from dataclasses import dataclass
from multiprocessing import get_context, get_start_method, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.floor import floor
from benchmarks.loops import RECIPES, VARIANTS, new_model
from benchmarks.page import table
from stages.common.dataset import DatasetInfo, Split, read_info, read_split
from stages.training.device import Backend, choose_backend

FULL_EPOCH = 50_000  # images


@dataclass(frozen=True)
class Workload:
    """What the variants train.

    Attributes:
        data: a split as the download stage writes it, data/train.npz.
        images: how many of them an epoch has, from the first on.
        start_method: of the processes; only `spawn` works with a GPU, and keeps memory apart.
    """

    model: str
    data: Path
    images: int
    epochs: int  # the first is not counted
    variants: list[str]
    start_method: str = "spawn"


def read_images(data: Path, images: int) -> tuple[DatasetInfo, Split]:
    """The first images of a split, data/train.npz for example, and what dataset.json beside it says."""
    info = read_info(data.parent)
    whole = read_split(data.stem, info, data.parent)
    return info, Split(whole.images[:images], whole.labels[:images])


def work(load: Workload, variant: str, device: torch.device, start_method: str, turns: Connection) -> None:
    """Train the epochs whose numbers come in, until 0; send back the seconds and, in bytes, what memory peaked at."""
    set_start_method(start_method, force=True)  # for the DataLoader's workers; this process would hand down its own
    torch.zeros(1, device=device)
    torch_alone = host_memory()
    epoch = VARIANTS[variant](load.model, *read_images(load.data, load.images), device)
    while number := turns.recv():
        start = time.perf_counter()
        epoch(number)
        seconds = time.perf_counter() - start
        on_device = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
        turns.send((seconds, host_memory() - torch_alone, on_device))


def host_memory() -> int:
    """The most that this process has held, in bytes; getrusage would count what its parent held before."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def measure(load: Workload, device: torch.device) -> dict[str, list[tuple]]:
    """What `work` sends back for each epoch of each variant, the variants taking turns."""
    context = get_context(load.start_method)
    turns, processes = {}, []
    for variant in load.variants:
        turns[variant], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(load, variant, device, get_start_method(), theirs)))
        processes[-1].start()
        theirs.close()
    measured: dict[str, list[tuple]] = {variant: [] for variant in load.variants}
    try:
        for number in range(1, load.epochs + 1):
            for variant, connection in turns.items():
                connection.send(number)
                measured[variant].append(connection.recv())
        for connection in turns.values():
            connection.send(0)
    finally:
        for connection in turns.values():
            connection.close()  # where one has failed, the others would wait for ever
        for process in processes:
            process.join()
    return measured


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, default=Path("data/train.npz"), help="images, as the download stage writes"
    )
    parser.add_argument("--images", type=int, default=FULL_EPOCH, help="how many of them an epoch has")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each variant, the first not counted")
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the GPU where there is one, else the CPU")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA starts, which is later

    for name in args.models:
        rows = compare(Workload(name, args.data, args.images, args.epochs, args.variants))
        print("\n" + table(rows), flush=True)


def compare(load: Workload, say: Callable[[str], None] = print) -> list[dict[str, str]]:
    """Measure the variants, say what their speed depends on, and return the table's rows."""
    info, split = read_images(load.data, load.images)
    recipe, images = RECIPES[load.model], len(split.labels)
    backend = choose_backend(recipe.train, FULL_EPOCH * recipe.settings.epochs)
    measured = measure(load, backend.device)
    least, rates = floor(new_model(load.model, info), info.image_size, images, backend)
    say(
        f"{load.model}, {images:,} images an epoch, {backend}, PyTorch {torch.__version__}, "
        f"floor {least:.2f} s an epoch; {rates}"
    )
    return speeds(images, backend, measured, least)


def speeds(images: int, backend: Backend, measured: dict[str, list[tuple]], floor: float) -> list[dict[str, str]]:
    """A row for each variant: medians over the epochs after the first."""
    rows, slowest = [], None
    for variant, of_epochs in measured.items():
        seconds, host, on_device = zip(*of_epochs, strict=True)
        median = statistics.median(seconds[1:])
        slowest = slowest or median
        default = variant == ("core, compiled" if backend.compile else "core, eager")
        rows.append(
            {
                "": variant + " (default)" * default,
                "images/s": f"{images / median:,.0f}",
                "ratio": f"{slowest / median:.2f}",
                "s an epoch of 50,000": f"{FULL_EPOCH / images * median:.2f}",
                "first epoch's overhead, s": f"{seconds[0] - median:.1f}",
                "share of the floor": f"{floor / median:.0%}",
                "host memory, GiB": f"{max(host) / 2**30:.2f}",
                "device memory, GiB": f"{max(on_device) / 2**30:.2f}" if any(on_device) else "",
            }
        )
    return rows


if __name__ == "__main__":
    main()
