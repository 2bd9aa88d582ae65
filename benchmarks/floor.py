"""The least time that training can take on a device, from rates measured there."""

import statistics
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import seconds
from stages.training.device import Device


def compute_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a large matrix product or convolution, whichever is faster."""
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 3072
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    product = 2 * size**3 / _median(lambda: a @ b, device)

    batch, channels, pixels = (2048 if on_gpu else 128), 512, 8
    x = torch.randn(batch, channels, pixels, pixels, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    operations = 2 * batch * pixels**2 * channels**2 * 9
    return max(product, operations / _median(lambda: F.conv2d(x, weight, padding=1), device))


def copy_rate(device: torch.device) -> float:
    """Return the bytes read and written a second by a large copy."""
    source = torch.randn(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median(lambda: target.copy_(source), device)


def _median(function: Callable[[], object], device: torch.device) -> float:
    return statistics.median(seconds(function, device, times=7, limit=2))


def training_cost(model: nn.Module, size: int) -> tuple[float, int]:
    """Return the floating-point operations, and the elements that convolutions move, for one size×size image.

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


def floor(model: nn.Module, size: int, images: int, device: Device) -> tuple[float, str]:
    """Return the least seconds that training on so many images can take, and the measured rates in words."""
    operations, elements = training_cost(model, size)
    dtype = torch.bfloat16 if device.precision == "bf16" else torch.float32
    compute, copy = compute_rate(device.torch, dtype), copy_rate(device.torch)
    least = images * max(operations / compute, elements * dtype.itemsize / copy)
    return least, f"ceilings: {compute / 1e12:.3g} TFLOP/s in {dtype}, {copy / 1e9:.3g} GB/s"
