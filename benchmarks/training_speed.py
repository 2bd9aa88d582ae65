"""Training speed of the core beside loops that people write by hand, interleaved in one process.

    python -m benchmarks.training_speed --data data/train.npz --images 2560 --epochs 4

Every variant trains the same model with the same recipe, an epoch each in turn. Figures are medians over the epochs
after the first; what the first took beyond that is its overhead (compiling, recording, warming up). The floor is the
larger of two times: the floating-point operations of forward and backward passes over the rate of a large matrix
product, and the bytes that convolutions must read and write over the rate of a large copy, both measured here as well.
"""

import os
import resource
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.floor import floor_seconds
from stages.core.dataset import Split, channel_statistics, read_split
from stages.core.device import Backend, choose_backend, training_flops
from stages.core.images import Normalise, TrainingImages, draw_epoch
from stages.core.models import MODELS, build_model
from stages.core.training import Step
from stages.params import load_params
from stages.train import read_recipe

PARAMS = load_params()
RECIPE = read_recipe(PARAMS, Namespace(epochs=PARAMS.resnet.epochs, weight_decay=PARAMS.train.weight_decay))
FULL_EPOCH = 50_000  # images

Epoch = Callable[[int], None]  # trains the given epoch


class PilImages(Dataset):
    """Images as torchvision's CIFAR10 hands them out: one at a time, through PIL."""

    def __init__(self, split: Split, transform):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.split.images[index])), int(self.split.labels[index])


def new_model(name: str, device: torch.device) -> nn.Module:
    return build_model(name, classes=10, base_channels=64, blocks=[2, 2, 2, 2], seed=42).to(device).train()


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), RECIPE.learning_rate, RECIPE.momentum, weight_decay=RECIPE.weight_decay)


def library_defaults(benchmark: bool) -> None:
    """What a loop finds that sets nothing, or cudnn.benchmark alone."""
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = True


def notebook_loop(name: str, split: Split, statistics: tuple, device: torch.device) -> Epoch:
    """PIL transforms in two workers, default memory format and precision, sums that wait for the device each step."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(split.images.shape[1], padding=RECIPE.crop_padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(*statistics),
        ]
    )
    loader = DataLoader(PilImages(split, transform), RECIPE.batch_size, shuffle=True, num_workers=2)
    model = new_model(name, device)
    optimizer = sgd(model)

    def epoch(number: int) -> None:
        library_defaults(benchmark=False)
        loss_sum, right = 0.0, 0
        for x, labels in loader:
            x, labels = x.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = model(x)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            right += (logits.argmax(1) == labels).sum().item()

    return epoch


def hand_written_loop(name: str, split: Split, statistics: tuple, backend: Backend) -> Epoch:
    """The usual advice taken: data on the device, augmented an epoch at a time, channels_last, autocast and
    cudnn.benchmark."""
    device, padding, size = backend.device, RECIPE.crop_padding, split.images.shape[1]
    images = Normalise(*statistics, device)(torch.from_numpy(split.images).to(device))
    labels = torch.from_numpy(split.labels).to(device)
    padded = F.pad(images, [padding] * 4)
    model = new_model(name, device).to(memory_format=torch.channels_last)
    optimizer = sgd(model)

    def crop_and_flip(batch: torch.Tensor) -> torch.Tensor:
        tops = torch.randint(0, 2 * padding + 1, (len(batch),), device=device)
        lefts = torch.randint(0, 2 * padding + 1, (len(batch),), device=device)
        out = torch.empty((len(batch), 3, size, size), device=device)
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                chosen = (tops == top) & (lefts == left)
                out[chosen] = batch[chosen, :, top : top + size, left : left + size]
        mirrored = torch.rand(len(batch), device=device) < 0.5
        return torch.where(mirrored[:, None, None, None], out.flip(3), out)

    def epoch(number: int) -> None:
        library_defaults(benchmark=True)
        augmented = torch.cat([crop_and_flip(chunk) for chunk in padded.split(5000)])
        loss_sum = torch.zeros((), device=device)
        for index in torch.randperm(len(labels), device=device).split(RECIPE.batch_size):
            x = augmented[index].contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=backend.precision == "bf16"):
                loss = F.cross_entropy(model(x), labels[index])
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(index)
        loss_sum.item()

    return epoch


def core(name: str, split: Split, statistics: tuple, compile: bool | str) -> tuple[Backend, Epoch]:
    """The project's own step."""
    model = new_model(name, torch.device("cpu"))
    flops = training_flops(model, split.images.shape[1], FULL_EPOCH * RECIPE.epochs)
    backend = choose_backend(PARAMS.train.precision, compile, flops)
    model = backend.place(model).train()
    normalise = Normalise(*statistics, backend.device)
    images = TrainingImages(split, RECIPE.crop_padding, normalise, backend.device)
    step = Step(model, images, RECIPE, backend)

    def epoch(number: int) -> None:
        choose_backend(PARAMS.train.precision, False, 0)  # the flags, which the other loops change
        step.sums.zero_()
        draws = draw_epoch(RECIPE.seed, number, len(images), RECIPE.crop_padding, RECIPE.flip)
        for batch in backend.to_device(draws).split(RECIPE.batch_size):
            step.update(batch)
        step.sums.tolist()

    return backend, epoch


def measure(epochs_of: dict[str, Epoch], epochs: int, device: torch.device) -> dict[str, tuple[list[float], float]]:
    """Seconds of each epoch and the peak of device memory (bytes) of each variant, the variants taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in epochs_of}
    peak = dict.fromkeys(epochs_of, 0)
    for number in range(1, epochs + 1):
        for name, epoch in epochs_of.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            epoch(number)  # which ends by reading its sums, and so waits for the device
            seconds[name].append(time.perf_counter() - start)
            if device.type == "cuda":
                peak[name] = max(peak[name], torch.cuda.max_memory_allocated() - before)
    return {name: (seconds[name], peak[name]) for name in epochs_of}


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, default=Path("data/train.npz"), help="images, as the download stage writes"
    )
    parser.add_argument("--images", type=int, default=FULL_EPOCH, help="how many of them an epoch has")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each variant, the first not counted")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the GPU where there is one, else the CPU")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA starts, which is later

    whole = read_split(args.data.parent, args.data.stem)
    split = Split(whole.images[: args.images], whole.labels[: args.images])
    statistics_of = channel_statistics(split.images)
    for name in args.models:
        backend, eager = core(name, split, statistics_of, compile=False)
        _, compiled = core(name, split, statistics_of, compile=True)
        default, _ = core(name, split, statistics_of, PARAMS.train.compile)
        variants = {
            "notebook's loop": notebook_loop(name, split, statistics_of, backend.device),
            "by hand": hand_written_loop(name, split, statistics_of, backend),
            "core, eager" + " (default)" * (not default.compile): eager,
            "core, compiled" + " (default)" * default.compile: compiled,
        }
        floor = floor_seconds(name, split.images.shape[1], len(split.labels), backend)
        print_table(name, len(split.labels), backend, measure(variants, args.epochs, backend.device), floor)
    print(f"peak host memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def print_table(name: str, images: int, backend: Backend, measured: dict, floor: float) -> None:
    rows, first = [], None
    for variant, (seconds, peak) in measured.items():
        median = statistics.median(seconds[1:])
        first = first or median
        rows.append(
            {
                "": variant,
                "images/s": f"{images / median:,.0f}",
                "ratio": f"{first / median:.2f}",
                "s an epoch of 50,000": f"{FULL_EPOCH / images * median:.2f}",
                "first epoch's overhead, s": f"{seconds[0] - median:.1f}",
                "share of the floor": f"{floor / median:.0%}",
                "device memory, GiB": f"{peak / 2**30:.2f}" if peak else "",
            }
        )
    print(f"\n{name}, {images:,} images an epoch, {backend}, PyTorch {torch.__version__}, floor {floor:.2f} s an epoch")
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True), flush=True)


if __name__ == "__main__":
    main()
