"""Measurements of the training step of ResNet-18: replayed, by kind of operation, and with one thing changed."""

import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import profile

from benchmarks.gpu.meter import Meter, milliseconds
from benchmarks.gpu.session import Session, Training
from benchmarks.page import Row
from stages.training.loop import batches, train_epoch

REPLAYS = 200
SHOWN = 15  # kernels

# The kind of an operation by its name in the profiler, the first that matches
FAMILIES = {
    "convolutions": r"conv",
    "batch norm": r"batch_norm",
    "ReLU": r"relu|threshold|clamp",
    "pooling": r"pool",
    "linear layer": r"addmm|linear|::mm$|::t$",
    "fused SGD": r"sgd",
    "loss, correct predictions": r"softmax|nll_loss|cross_entropy|argmax|::eq$|::sum$|::stack$|::cat$",
    "augmentation": r"index|flip|where|::sub$|::div|permute|unbind",
    "casts and copies": r"::copy_$|_to_copy|::to$",
    "sums of residuals, counters": r"::add_?$",
}


def replay(session: Session) -> None:
    """(a) The recorded step, eager and compiled, and an epoch of them by the clock."""
    for compile in (False, True):
        session.page.row(_replay(session, compile))


def _replay(session: Session, compile: bool) -> Row:
    meter = session.meter
    meter.reset_peak()
    start = time.perf_counter()
    training = Training(compile and meter.compiles)
    training.update(training.batch)
    meter.synchronize()
    first = time.perf_counter() - start
    times = milliseconds(meter, training.update, training.batch, session.size(REPLAYS, 3))
    epochs = [_epoch_seconds(training, epoch) for epoch in range(1, session.size(4, 2) + 1)]
    return {
        "step": "compiled" if compile else "eager",
        "until the first step is done, s": first,
        **_spread(times),
        "images/s": len(training.batch) / statistics.median(times) * 1000,
        f"epoch of {len(training.images):,} images, s": statistics.median(epochs[1:]),
        "device memory, GiB": meter.peak_memory(),
    }


def _spread(times: list[float]) -> Row:
    low, _, high = statistics.quantiles(times, n=4)
    return {"ms a step, median": statistics.median(times), "quartiles": f"{low:.4g} to {high:.4g}"}


def _epoch_seconds(training: Training, epoch: int) -> float:
    start = time.perf_counter()
    parts = batches(training.draws(epoch), training.recipe, training.backend)
    rate = training.recipe.train.learning_rate
    train_epoch(training.step, training.update, parts, rate, on_batch=lambda images: None)
    training.step.sums.tolist()  # waits for the device
    return time.perf_counter() - start


def profiled(session: Session) -> None:
    """(b) One step that is not recorded, by kind of operation, and its longest kernels."""
    meter, training = session.meter, Training()
    for _ in range(3):
        training.step(training.batch)
    meter.synchronize()
    with profile(activities=meter.activities) as profiler:
        training.step(training.batch)
        meter.synchronize()
    averages = profiler.key_averages()
    spent, calls = _families(averages, meter)
    total = sum(spent.values())
    for family, microseconds in spent.most_common():
        session.page.row(
            {
                "operations": family,
                "ms": microseconds / 1000,
                "share": f"{microseconds / total:.0%}",
                "calls": calls[family],
            }
        )
    session.page.row({"operations": "all", "ms": total / 1000, "share": "", "calls": calls.total()})
    kernels = [entry for entry in averages if entry.device_type == meter.unit and not entry.is_user_annotation]
    session.page.row({"kernel": "all", "ms": sum(map(meter.spent, kernels)) / 1000, "launches": _count(kernels)})
    for entry in sorted(kernels, key=meter.spent, reverse=True)[:SHOWN]:
        session.page.row({"kernel": entry.key[:110], "ms": meter.spent(entry) / 1000, "launches": entry.count})


def _count(entries: list[Any]) -> int:
    return sum(entry.count for entry in entries)


def _families(averages: Any, meter: Meter) -> tuple[Counter, Counter]:
    """Microseconds of the kernels that operations of each kind launched, and the number of those operations."""
    spent, calls = Counter(), Counter()
    for entry in averages:
        # Operations are named aten::add and the like, the calls of CUDA that launch kernels are not.
        if re.match(r"\w+::", entry.key) and entry.device_type == DeviceType.CPU and meter.spent(entry) > 0:
            matching = (family for family, names in FAMILIES.items() if re.search(names, entry.key))
            family = next(matching, "others")
            spent[family] += meter.spent(entry)
            calls[family] += entry.count
    return spent, calls


def determinism(session: Session) -> None:
    """(c) The eager step with and without deterministic operations and cuDNN's choice by the clock."""
    for deterministic, benchmark in ((True, False), (True, True), (False, False), (False, True)):
        session.meter.reset_peak()
        training = Training()  # which sets up torch; what follows is changed before anything is recorded
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark
        times = milliseconds(session.meter, training.update, training.batch, session.size(REPLAYS, 3))
        yes = {True: "yes", False: "no"}
        session.page.row({"deterministic": yes[deterministic], "cudnn.benchmark": yes[benchmark], **_spread(times)})


class PaddedStem(nn.Module):
    """A convolution whose input gets further channels of zeros, with weights of zero: the same values.

    Here the zeros cost a copy, which the product could save by normalising into a tensor of that many channels.
    """

    def __init__(self, conv: nn.Conv2d, channels: int):
        super().__init__()
        self.more = (0, 0, 0, 0, 0, channels - conv.in_channels)
        self.stride, self.padding = conv.stride, conv.padding
        self.weight = nn.Parameter(F.pad(conv.weight.detach(), self.more))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self.more), self.weight, None, self.stride, self.padding)


def padded_stem(channels: int) -> Callable[[nn.Module], nn.Module]:
    def change(model: nn.Module) -> nn.Module:
        model.conv1 = PaddedStem(model.conv1, channels)
        return model

    return change


def stem(session: Session) -> None:
    """(d) The eager step with its first convolution over three, four or eight channels."""
    for channels in (3, 4, 8):
        session.meter.reset_peak()
        training = Training(change=padded_stem(channels) if channels > 3 else lambda model: model)
        times = milliseconds(session.meter, training.update, training.batch, session.size(REPLAYS, 3))
        session.page.row({"input channels": channels, **_spread(times)})
