import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from stages.common.errors import UserError
from stages.training import device
from stages.training.device import COMPILE_FROM_IMAGES, Backend, choose_backend
from stages.training.distributed import Processes
from tests.training.toys import recipe

ROOT = Path(__file__).parents[2]


def choose(precision: str = "fp32", compile: bool | str = False, images: int = 0) -> Backend:
    return choose_backend(recipe(precision=precision, compile=compile).train, images)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for a GPU that has bf16 only in emulation; choosing does not touch it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Old GPU")


@pytest.fixture
def path(monkeypatch, tmp_path):
    """A PATH on which the programs of these names are, and no others."""

    def only(*names: str) -> None:
        for name in names:
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))

    return only


def test_an_old_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1+cpu"))
    with pytest.raises(UserError, match=r"PyTorch 2\.11 or newer is needed, and this is 2\.9\.1"):
        choose()


def test_without_a_gpu_auto_is_fp32_on_the_cpu(no_gpu):
    backend = choose("auto")
    assert (backend.device.type, backend.precision, backend.compile) == ("cpu", "fp32", False)


def test_tf32_without_a_gpu_is_refused(no_gpu):
    with pytest.raises(UserError, match=r"train\.precision = 'tf32'.*auto or fp32"):
        choose("tf32")


def test_bf16_is_not_emulated_without_a_word(gpu):
    assert choose("auto").precision == "fp32"
    with pytest.raises(UserError, match=r"train\.precision = 'bf16': Old GPU lacks it"):
        choose("bf16")


def test_a_gpu_with_bf16_uses_it(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    backend = choose("auto")
    assert (backend.device.type, backend.precision) == ("cuda", "bf16")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_auto_compiles_long_trainings_on_a_gpu_where_triton_can_build(gpu, path, monkeypatch, tmp_path, compiler):
    monkeypatch.setattr(device.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    path(compiler)
    assert not choose("auto", "auto", COMPILE_FROM_IMAGES).compile  # no Python.h
    (tmp_path / "Python.h").touch()
    assert choose("auto", "auto", COMPILE_FROM_IMAGES).compile
    assert not choose("auto", "auto", COMPILE_FROM_IMAGES - 1).compile
    (tmp_path / compiler).unlink()
    assert not choose("auto", "auto", COMPILE_FROM_IMAGES).compile


def test_on_a_cpu_only_who_asks_gets_a_compiled_model(no_gpu, path):
    path("g++")
    assert not choose("auto", "auto", 10**12).compile
    assert choose("auto", True).compile


def test_compiling_without_a_compiler_is_refused(no_gpu, path):
    path()
    with pytest.raises(UserError, match=r"train\.compile = True.*C\+\+ compiler"):
        choose("auto", True)


def test_a_setting_under_which_cublas_is_not_deterministic_is_refused(no_gpu, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match=r"CUBLAS_WORKSPACE_CONFIG = :0:0: .*unset it"):
        choose()


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


def test_an_operation_that_is_not_deterministic_raises_and_tf32_is_off(no_gpu):
    choose()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]), accumulate=False)
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.slow
def test_deterministic_mode_reaches_the_compilation_of_the_backward_pass_and_its_cache_is_private(tmp_path):
    """Inductor's own switch, read where it lowers the backward graph, in a thread of the autograd engine."""
    code = """
import torch
from stages.training.device import Backend
backend = Backend(torch.device("cpu"), "fp32", compile=True)
f = backend.compiled(lambda x: (x * 2).sin().sum())
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.cache_dir_utils import cache_dir
seen = []
original = GraphLowering.run
def run(graph, *args):
    seen.append((graph.is_backward, torch._inductor.config.deterministic))
    return original(graph, *args)
GraphLowering.run = run
f(torch.ones(4, requires_grad=True)).backward()
print(seen)
print(cache_dir())
"""
    environment = os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"[(False, True), (True, True)]\n{tmp_path}/.cache/compiled\n"


def test_one_process_compiles_a_whole_graph_and_several_may_break_it():
    """DistributedDataParallel breaks the graph; alone, a break would cost speed without a word."""

    def broken(x: int) -> int:
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(torch._dynamo.exc.Unsupported):
        Backend(torch.device("cpu"), "fp32", compile=True).compiled(broken)(1)
    together = Backend(torch.device("cpu"), "fp32", compile=True, processes=Processes(0, 2))
    assert together.compiled(broken)(1) == 2
    assert Backend(torch.device("cpu"), "fp32", compile=False).compiled(broken) is broken


def test_placing_a_model_lays_its_convolutions_out_channels_last(no_gpu):
    model = choose().place(nn.Conv2d(16, 16, 3))
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
