"""The device and the way to compute on it, decided in one place: precision, memory format, compilation, determinism."""

import ctypes
import importlib
import os
import platform
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from stages.common.errors import UserError, printable
from stages.common.params import Train
from stages.training.cuda_graph import GraphedFunction
from stages.training.distributed import Processes

# GPU trainings on this many images are compiled: 100 epochs of CIFAR-10. On an H100 compiling ResNet-18 takes 23 s, and
# 5 s from then on; it saves 0.27 s an epoch. On a CPU no model gains by it (docs/performance.md).
COMPILE_FROM_IMAGES = 5_000_000

ALONE = Processes()


@dataclass(frozen=True)
class Device:
    """A device set up by `choose_device`."""

    torch: torch.device
    precision: str  # fp32, tf32 or bf16
    compile: bool
    processes: Processes = ALONE

    def place(self, model: nn.Module) -> nn.Module:
        """Move the model to the device, in the memory format in which its convolutions are fastest."""
        return model.to(self.torch, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def autocast(self) -> AbstractContextManager:
        """Return the context of a forward pass in this precision."""
        # Without the cache of cast weights, which a captured CUDA graph would treat as constants
        return torch.autocast(self.torch.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def check_memory(self, needed: float, what: str) -> None:
        """Raise a UserError if so many bytes are not free, before they are asked for."""
        on_gpu = self.torch.type == "cuda"
        free = torch.cuda.mem_get_info(self.torch)[0] if on_gpu else psutil.virtual_memory().available
        if needed > free:
            amounts = f"{needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free on {self.name}"
            raise UserError(f"{what} need {amounts}; use fewer or smaller images, or stop other programs")

    def copied(self, tensor: Tensor) -> Tensor:
        """Copy a host tensor to the device without waiting for it."""
        if self.torch.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.torch, non_blocking=True)

    def compiled(self, function: Callable) -> Callable:
        """Return the function, compiled where that was chosen."""
        if not self.compile:
            return function
        # torch 2.11 advises TF32, which would give other bytes
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        # The compiler unpickles what lies there, by default in a folder of /tmp that another user may have made.
        # This one is the user's own, for all experiments: DVC gives many of them a new folder.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(torch.hub.get_dir(), "compiled"))
        # Inductor chooses kernels by timing unless told otherwise. The switch for deterministic algorithms
        # does not reach its compilation of the backward pass, which runs in another thread (torch 2.12 and later).
        # `combo_kernels` joins small kernels, such as the casts of the weights.
        return torch.compile(function, dynamic=False, options={"deterministic": True, "combo_kernels": True})

    def graphed(self, function: Callable[[Tensor], Tensor | None], state: Iterable[Tensor]) -> Callable:
        """Return the function, captured as a CUDA graph (see `GraphedFunction`) where one process trains on a GPU.

        NCCL's collectives can be captured too, but torch asks to turn off the error handling of NCCL for it, and then a
        rank that dies leaves the others in a replay that never ends.
        """
        return GraphedFunction(function, state) if self.torch.type == "cuda" and self.processes == ALONE else function

    @property
    def name(self) -> str:
        """Number and kind of the devices, for display."""
        threads = torch.get_num_threads()
        cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        name = torch.cuda.get_device_name(self.torch) if self.torch.type == "cuda" else cpu
        return name if self.processes.world_size == 1 else f"{self.processes.world_size} × {name}"

    @property
    def instructions(self) -> str:
        """The instruction set of the CPU as torch's kernels use it, or the architecture of the GPU."""
        if self.torch.type == "cuda":
            return "sm_{}{}".format(*torch.cuda.get_device_capability(self.torch))
        limits = filter(None, map(os.environ.get, ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR")))
        return " ".join(dict.fromkeys([torch.backends.cpu.get_cpu_capability(), *limits]))

    @property
    def kind(self) -> str:
        """What must be equal to resume a training, since other kernels give other bytes."""
        name = torch.cuda.get_device_name(self.torch) if self.torch.type == "cuda" else "CPU"
        versions = torch.__version__, torch.version.cuda, torch.backends.cudnn.version()
        return ", ".join(map(str, (name, self.instructions, self.precision, self.compile, *versions)))

    def __str__(self) -> str:
        return f"{self.name}, {self.precision}, {'compiled' if self.compile else 'not compiled'}"


def choose_device(train: Train, images: int, processes: Processes = ALONE) -> Device:
    """Return the GPU of this process if there is one, else the CPU, set up so that the same inputs give the same bytes.

    Args:
        train: `precision`, `auto` for bf16 on a GPU that has it, else fp32; and `compile`, `auto` for a GPU, where a
            compiler is there and the training long enough. `auto` must not depend on timing: compiled and eager kernels
            round differently.
        images: number of images to be trained on, over all epochs.

    Raises:
        UserError: the device lacks what was asked for.
    """
    on_gpu = torch.cuda.is_available()
    place = torch.device("cuda", processes.local_rank) if on_gpu else torch.device("cpu")
    compile = train.compile
    if compile == "auto":
        compile = on_gpu and images >= COMPILE_FROM_IMAGES and _lacking_compiler(on_gpu) is None
    elif compile and (lacking := _lacking_compiler(on_gpu)):
        raise UserError(f"train.compile = True: torch.compile needs {lacking}; else use auto or false")
    device = Device(place, _precision(train.precision, on_gpu), bool(compile), processes)
    configure(device.precision)
    return device


def exact_device() -> Device:
    """Return the first GPU or the CPU in fp32: for predictions, not for speed."""
    configure("fp32")
    return Device(torch.device("cuda" if torch.cuda.is_available() else "cpu"), "fp32", compile=False)


def _precision(wanted: str, on_gpu: bool) -> str:
    able = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else wanted == "bf16" and _survives_bf16()
    if wanted == "auto":
        return "bf16" if able else "fp32"
    if wanted == "tf32" and not on_gpu:
        raise UserError("train.precision = 'tf32': this machine has no GPU; use auto or fp32")
    if wanted == "bf16" and not able:
        name = torch.cuda.get_device_name() if on_gpu else "this CPU"
        raise UserError(f"train.precision = 'bf16': {name} lacks it; use auto or fp32")
    return wanted


def _survives_bf16() -> bool:
    """Try bf16 in a child: a virtual machine may announce instructions that it lacks, whose use ends a process."""
    if (child := os.fork()) == 0:
        try:
            torch.set_num_threads(1)  # those of the parent are not the child's
            x, weight = torch.ones(2, 16, 8, 8).to(memory_format=torch.channels_last), torch.ones(16, 16, 3, 3)
            with torch.autocast("cpu", torch.bfloat16):
                nn.functional.conv2d(x, weight.requires_grad_()).sum().backward()
        finally:
            os._exit(0)  # after an error too: autograd refuses a fork of a process that has used its threads
    return not os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _lacking_compiler(on_gpu: bool) -> str | None:
    """The compiler or headers that torch.compile needs and this machine lacks: Triton builds a C extension, Inductor's
    CPU kernels are C++."""
    if not on_gpu:
        has_compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
        place = "a folder without a space in its path" if " " in os.getcwd() else None  # torch does not quote it
        return place if has_compiler else "a C++ compiler (g++ or clang++)"
    if not any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang"))):
        return "a C compiler (gcc or clang)"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        return f"Python's headers ({header}, Debian's python3-dev)"
    try:
        importlib.import_module("triton.backends.nvidia.driver").libcuda_dirs()  # Triton links with it
    except (ImportError, OSError, AssertionError) as error:  # the last in containers that mount the driver
        return f"Triton and libcuda.so.1 in ldconfig's list ({printable(error)})"
    return None


def configure(precision: str) -> None:
    """Set up torch for the same bytes from the same inputs, in this precision."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # with another value torch refuses to multiply
    # The same switch as torch.use_deterministic_algorithms, which would import the compiler first, for over a second
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # it would write every new tensor twice
    torch.backends.cudnn.benchmark = False  # it chooses kernels by timing
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # glibc reuses what is freed. By default it unmaps large tensors, and each step waits for new, zeroed pages.
    if platform.libc_ver()[0] == "glibc":
        libc, m_trim_threshold, m_mmap_max = ctypes.CDLL(None), -1, -4  # as in malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)
