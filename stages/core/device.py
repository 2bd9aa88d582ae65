"""Where and how to compute, decided in one place: device, precision, memory format, compilation, determinism."""

import ctypes
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stages.core.errors import UserError
from stages.core.graph import Graphed
from stages.core.processes import Processes

OLDEST_TORCH = "2.11"

ALONE = Processes()

# GPU runs of more floating-point operations than this are compiled: a guess. On a CPU no model gains by it
# (docs/performance.md).
COMPILE_ABOVE_FLOPS = 5e15


@dataclass(frozen=True)
class Backend:
    device: torch.device
    precision: str  # fp32, tf32 or bf16
    compile: bool
    processes: Processes = ALONE

    def place(self, model: nn.Module) -> nn.Module:
        """Move the model to the device, in the memory format in which its convolutions are fastest."""
        return model.to(self.device, memory_format=torch.channels_last)

    def autocast(self) -> AbstractContextManager:
        # Without the cache of cast weights, which a captured CUDA graph would take for constants.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copy a host tensor over without waiting for the device."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def graphed(self, function: Callable[[Tensor], Tensor | None], state: Iterable[Tensor]) -> Callable:
        """The function itself on a CPU, or where several processes talk to each other in it; on a single GPU, its
        recording as a CUDA graph (see `Graphed`)."""
        return Graphed(function, state) if self.device.type == "cuda" and self.processes.count == 1 else function

    @property
    def device_name(self) -> str:
        """For people: how many of what."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            threads = torch.get_num_threads()
            name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        return name if self.processes.count == 1 else f"{self.processes.count} × {name}"

    @property
    def kind(self) -> str:
        """What a training must have in common with an interrupted one to go on with it."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{name}, {self.precision}, {'compiled' if self.compile else 'not compiled'}"

    def __str__(self) -> str:
        return f"{self.device_name}, {self.precision}, {'compiled' if self.compile else 'not compiled'}"


def choose_backend(precision: str, compile: bool | str, flops: float, processes: Processes = ALONE) -> Backend:
    """The first GPU if there is one, of several processes each its own, else the CPU, set up so that the same inputs
    give the same bytes.

    Args:
        precision: `auto` (bf16 on a GPU that has it, else fp32), `fp32`, `tf32` or `bf16`.
        compile: whether to use torch.compile, or `auto`: on a GPU, where a compiler is there and the run long enough.
        flops: floating-point operations of the whole run, which `auto` goes by (and not by a clock, since compiled and
            eager kernels round differently and the same inputs must choose the same ones).

    Raises:
        UserError: the device lacks what was asked for, or PyTorch is too old.
    """
    if torch.__version__ < OLDEST_TORCH:
        raise UserError(f"PyTorch {OLDEST_TORCH} or newer is needed, and this is {torch.__version__}; upgrade torch")
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", processes.local_rank) if on_gpu else torch.device("cpu")
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        precision = "bf16" if has_bf16 else "fp32"
    if precision == "tf32" and not on_gpu:
        raise UserError("train.precision = 'tf32': this machine has no GPU; use auto or fp32")
    if precision == "bf16" and on_gpu and not has_bf16:
        raise UserError(f"train.precision = 'bf16': {torch.cuda.get_device_name()} lacks it; use auto, tf32 or fp32")

    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compile == "auto":
        compile = on_gpu and compiler is not None and flops > COMPILE_ABOVE_FLOPS
    elif compile and compiler is None:
        raise UserError("train.compile = True: torch.compile needs a C++ compiler (g++ or clang++); use auto or false")
    _configure(precision)
    return Backend(device, precision, compile, processes)


def _configure(precision: str) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with it alone
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would write every new tensor twice
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc reuse what is freed. By default it unmaps large tensors, and each step waits for new, zeroed pages."""
    if platform.libc_ver()[0] == "glibc":
        libc, m_trim_threshold, m_mmap_max = ctypes.CDLL(None), -1, -4  # as in malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


def training_flops(model: nn.Module, image_size: int, images: int) -> float:
    """Floating-point operations of forward and backward passes over so many images; backward counts twice forward."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size))
    return 3.0 * counter.get_total_flops() * images
