"""The least time that training can take on a device, from rates measured there."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stages.training.device import Backend


def compute_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product or a large convolution, whichever is faster."""
    size = 8192 if device.type == "cuda" else 3072
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    product = 2 * size**3 / median_seconds(lambda: a @ b, device)

    batch, channels, pixels = (2048 if device.type == "cuda" else 128), 512, 8
    x = torch.randn(batch, channels, pixels, pixels, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    convolution = (
        2 * batch * pixels**2 * channels**2 * 9 / median_seconds(lambda: F.conv2d(x, weight, padding=1), device)
    )
    return max(product, convolution)


def copy_rate(device: torch.device) -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.randn(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), device)


def median_seconds(function: Callable[[], object], device: torch.device, runs: int = 7, limit: float = 2) -> float:
    """The median of so many runs after a first one, fewer where all take longer than `limit` seconds."""
    times: list[float] = []
    while len(times) < 2 or (len(times) <= runs and sum(times) < limit):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def training_cost(model: nn.Module, size: int) -> tuple[float, int]:
    """Floating-point operations, and elements that convolutions read and write, of training on one size×size image.

    The backward pass counts twice the forward pass: gradient of the input, gradient of the weights.
    """
    elements = []  # of the input and output of each convolution

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        elements.append(inputs[0].numel() + output.numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    return 3.0 * counter.get_total_flops(), 3 * sum(elements)


def floor(model: nn.Module, size: int, images: int, backend: Backend) -> tuple[float, str]:
    """The least seconds that forward and backward passes over so many images can take, and the rates in words."""
    operations, elements = training_cost(model, size)
    dtype = torch.bfloat16 if backend.precision == "bf16" else torch.float32
    compute, copy = compute_rate(backend.device, dtype), copy_rate(backend.device)
    seconds = images * max(operations / compute, elements * dtype.itemsize / copy)
    return seconds, f"ceilings: {compute / 1e12:.3g} TFLOP/s in {dtype}, {copy / 1e9:.3g} GB/s"
