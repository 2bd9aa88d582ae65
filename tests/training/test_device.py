import os
import platform
import resource
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from stages import train
from stages.common.errors import UserError
from stages.training import device as module
from stages.training.device import COMPILE_FROM_IMAGES, Device, choose_device, configure, exact_device, memory_errors
from stages.training.distributed import Processes
from tests.training.toys import CPU, recipe

ROOT = Path(__file__).parents[2]


def choose(precision: str = "fp32", compile: bool | str = False, images: int = 0, **options: Processes) -> Device:
    return choose_device(recipe(precision=precision, compile=compile).train, images, **options)


def child(code: str, **environment: str) -> str:
    """What another Python prints, whose settings of torch and the environment are its own."""
    changed = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, "-c", code], env=changed, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for a machine with GPUs that emulate bf16; choosing a device asks for no more than this."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Old GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))


@pytest.fixture
def new_gpu(gpu, monkeypatch):
    """A stand-in for GPUs that have bf16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


@pytest.fixture
def path(monkeypatch, tmp_path):
    """A PATH on which programs of these names are, and no others."""

    def only(*names: str) -> None:
        for name in names:
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        for variable in ("CXX", "CC"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))

    return only


def test_without_a_gpu_auto_is_fp32_on_the_cpu_and_tf32_is_refused(no_gpu):
    assert choose("auto", "auto") == Device(torch.device("cpu"), "fp32", False, Processes())
    assert choose("bf16").precision == "bf16"
    with pytest.raises(UserError, match=r"train\.precision = 'tf32': this machine has no GPU; use auto or fp32"):
        choose("tf32")


def test_bf16_is_not_emulated_without_a_word(gpu):
    assert choose("auto").precision == "fp32"
    assert choose("tf32").precision == "tf32"
    with pytest.raises(UserError, match=r"train\.precision = 'bf16': Old GPU lacks it; use auto, tf32 or fp32"):
        choose("bf16")


def test_a_gpu_with_bf16_uses_it_and_is_that_of_the_processs_place_on_its_machine(new_gpu):
    assert choose("auto").precision == "bf16"
    assert choose("fp32").precision == "fp32"
    assert choose().torch == torch.device("cuda", 0)
    assert choose(processes=Processes(rank=3, world_size=4, local_rank=1)).torch == torch.device("cuda", 1)
    assert exact_device() == Device(torch.device("cuda"), "fp32", False)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_auto_compiles_long_trainings_on_a_gpu_where_triton_finds_compiler_and_headers(
    gpu, monkeypatch, path, tmp_path, compiler
):
    """Triton is a stand-in, which finds the driver until it is told otherwise."""
    path(compiler)
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    triton = ModuleType("triton.backends.nvidia.driver")
    triton.libcuda_dirs = list
    monkeypatch.setitem(sys.modules, triton.__name__, triton)
    assert not choose("auto", "auto", COMPILE_FROM_IMAGES).compile
    with pytest.raises(UserError, match=r"train\.compile = True: torch\.compile needs Python's headers \(.*Python\.h"):
        choose("auto", True)
    (tmp_path / "Python.h").touch()
    assert choose("auto", "auto", COMPILE_FROM_IMAGES).compile is True
    assert choose("auto", "auto", COMPILE_FROM_IMAGES - 1).compile is False
    assert choose("auto", False, COMPILE_FROM_IMAGES).compile is False
    triton.libcuda_dirs = lambda: (_ for _ in ()).throw(AssertionError("libcuda.so cannot found!"))
    assert not choose("auto", "auto", COMPILE_FROM_IMAGES).compile
    with pytest.raises(UserError, match=r"torch\.compile needs .*libcuda\.so"):
        choose("auto", True)
    (tmp_path / compiler).unlink()
    assert not choose("auto", "auto", COMPILE_FROM_IMAGES).compile
    with pytest.raises(UserError, match=r"torch\.compile needs a C compiler \(gcc or clang\); install it"):
        choose("auto", True)


@pytest.mark.parametrize("compiler", ["g++", "clang++", "mine"])
def test_on_a_cpu_only_who_asks_gets_a_compiled_model_and_needs_a_compiler(no_gpu, monkeypatch, path, compiler):
    path()
    with pytest.raises(UserError, match=r"train\.compile = True.*a C\+\+ compiler \(g\+\+ or clang\+\+\)"):
        choose("auto", True)
    path(compiler)
    if compiler == "mine":
        monkeypatch.setenv("CXX", "mine")
    assert choose("auto", "auto", 10**12).compile is False
    assert choose("auto", True).compile is True


def test_auto_compiles_by_the_images_of_all_epochs_together(workspace, prepare, monkeypatch):
    """A stand-in for the choice, which is asked once, before anything is trained."""

    class AskedError(Exception):
        pass

    def asked(train, images, processes):
        raise AskedError(images)

    prepare(cnn__epochs=7)
    monkeypatch.setattr(train, "choose_device", asked)
    with pytest.raises(AskedError, match=f"^{7 * 40}$"):
        train.main(Namespace(run="cnn"))


@pytest.mark.parametrize(("world_size", "whole"), [(1, True), (2, False)])
def test_a_compiled_function_chooses_no_kernel_by_timing_and_keeps_its_cache_in_the_project(
    monkeypatch, tmp_path, world_size, whole
):
    """What torch.compile is asked for; a slow test asks Inductor. DistributedDataParallel breaks a graph."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(torch, "compile", lambda function, **options: (function, options))
    options = {"dynamic": False, "fullgraph": whole, "options": {"deterministic": True}}
    compiling = Device(torch.device("cpu"), "fp32", compile=True, processes=Processes(0, world_size))
    assert compiling.compiled(abs) == (abs, options)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / ".cache/compiled")
    assert CPU.compiled(abs) is abs


@pytest.mark.slow
def test_deterministic_mode_reaches_the_compilation_of_the_backward_pass_and_its_cache_is_private(
    tmp_path, monkeypatch
):
    """Inductor's own switch, read where it lowers the backward graph, in a thread of the autograd engine."""
    code = """
import torch
from stages.training.device import Device
f = Device(torch.device("cpu"), "fp32", compile=True).compiled(lambda x: (x * 2).sin().sum())
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.cache_dir_utils import cache_dir
seen, original = [], GraphLowering.run
def run(graph, *args):
    seen.append((graph.is_backward, torch._inductor.config.deterministic))
    return original(graph, *args)
GraphLowering.run = run
f(torch.ones(4, requires_grad=True)).backward()
print(seen, cache_dir())
"""
    monkeypatch.chdir(tmp_path)
    said = child(code, TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
    assert said == f"[(False, True), (True, True)] {tmp_path}/.cache/compiled\n"


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_only_deterministic_operations_run_and_tf32_only_where_it_was_chosen(monkeypatch, precision, tf32):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not tf32
    torch.backends.cudnn.benchmark = True
    configure(precision)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)
    assert not torch.backends.cudnn.benchmark
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]), accumulate=False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    configure("fp32")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="concerns glibc's allocator")
def test_large_tensors_are_allocated_from_memory_freed_before(no_gpu):
    choose()
    for _ in range(10):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert pages * resource.getpagesize() < 3 * 2**24 * 4  # of ten tensors


def test_in_bf16_convolutions_take_bf16_and_the_loss_is_float32():
    """In another process, since some virtual machines claim bf16 and end it by an illegal instruction."""
    code = """
import torch
from tests.training.toys import *
from tests.training.test_step import ROWS, stepping
gpu = Device(torch.device("cpu"), "bf16", compile=False)
step, seen = stepping(recipe("resnet"), fresh(recipe("resnet")), gpu), []
step.model.layer1[0].conv2.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
loss, _ = step.forward(ROWS[:32])
assert seen == [(torch.bfloat16, torch.bfloat16)], seen
assert loss.dtype == torch.float32, loss.dtype
states(fresh(recipe()), dataset(), recipe(), gpu)
with gpu.autocast():
    assert not torch.is_autocast_cache_enabled()
"""
    try:
        child(code)
    except subprocess.CalledProcessError as error:
        assert error.returncode == -signal.SIGILL, error.stderr
        pytest.skip("this CPU has no bf16")


def test_in_fp32_nothing_is_cast():
    with CPU.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_placing_a_model_lays_its_convolutions_out_channels_last():
    assert CPU.place(nn.Conv2d(16, 16, 3)).weight.is_contiguous(memory_format=torch.channels_last)


def test_what_trainings_must_share_to_resume_holds_precision_compilation_and_the_instruction_set(monkeypatch):
    devices = [Device(torch.device("cpu"), *how) for how in (("fp32", False), ("bf16", False), ("fp32", True))]
    assert len({device.kind for device in devices}) == 3
    assert torch.__version__ in CPU.kind
    assert CPU.kind == Device(CPU.torch, "fp32", False, Processes(1, 2)).kind
    code = "import torch; from stages.training.device import Device; print(Device(torch.device('cpu'), 'fp32', False).kind)"
    kinds = {CPU.kind, child(code, ATEN_CPU_CAPABILITY="default").strip()}
    for limit in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.setenv(limit, f"the value of {limit}")
        kinds.add(CPU.kind)
    assert len(kinds) == 4


def test_names_and_kinds_of_gpus(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92000)
    one = Device(torch.device("cuda", 0), "bf16", True)
    assert one.kind == f"Old GPU, bf16, compiled, PyTorch {torch.__version__}, CUDA 13.0, cuDNN 92000"
    assert str(one) == "Old GPU, bf16, compiled"
    assert one.instructions == "sm_75"
    assert Device(torch.device("cuda", 0), "fp32", False, Processes(0, 4)).name == "4 × Old GPU"


def test_timing_tells_how_it_was_computed(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert CPU.description() == {
        "device": "CPU, 3 threads", "instruction_set": torch.backends.cpu.get_cpu_capability(), "threads": 3,
        "precision": "fp32", "compiled": False, "torch": torch.__version__,
    }  # fmt: skip
    assert str(CPU) == "CPU, 3 threads, fp32, not compiled"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert CPU.name == "CPU, 1 thread"


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried", "DefaultCPUAllocator: can't allocate memory: you"])
def test_too_little_memory_ends_in_a_line_with_the_bytes_of_the_images(words):
    with (
        pytest.raises(
            UserError, match=r"ran out of memory at train\.batch_size = 32 with Simple CNN, beside 192 MiB of"
        ),
        memory_errors(recipe(), CPU, np.zeros((2**18, 12, 12, 3), np.uint8)),  # 12 pixels and 2 · 2 more
    ):
        raise RuntimeError(f"{words} to allocate")


def test_another_runtime_error_is_no_matter_of_memory():
    with pytest.raises(RuntimeError, match="a bug"), memory_errors(recipe(), CPU, np.zeros((1, 8, 8, 3), np.uint8)):
        raise RuntimeError("a bug")
