import platform
import resource

import pytest
import torch
from torch import nn

from stages.core import device
from stages.core.device import COMPILE_ABOVE_FLOPS, choose_backend, training_flops
from stages.core.errors import UserError


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU; choosing does not touch it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


@pytest.fixture
def compiler(monkeypatch):
    """Pretend that the named C++ compilers are there, or none."""

    def there(*names: str) -> None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}" if name in names else None)

    return there


def test_an_old_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1+cpu"))
    with pytest.raises(UserError, match=r"PyTorch 2\.11 or newer is needed, and this is 2\.9\.1"):
        choose_backend("auto", compile=False, flops=0)


def test_without_a_gpu_auto_is_fp32_on_the_cpu(no_gpu):
    backend = choose_backend("auto", compile=False, flops=0)
    assert (backend.device.type, backend.precision, backend.compile) == ("cpu", "fp32", False)


def test_tf32_without_a_gpu_is_refused(no_gpu):
    with pytest.raises(UserError, match=r"train\.precision = 'tf32'.*auto or fp32"):
        choose_backend("tf32", compile=False, flops=0)


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_auto_compiles_long_runs_on_a_gpu_where_a_compiler_is_there(gpu, compiler, name):
    compiler(name)
    assert choose_backend("auto", "auto", flops=COMPILE_ABOVE_FLOPS * 1.01).compile
    assert not choose_backend("auto", "auto", flops=COMPILE_ABOVE_FLOPS * 0.99).compile
    compiler()
    assert not choose_backend("auto", "auto", flops=COMPILE_ABOVE_FLOPS * 1.01).compile


def test_on_a_cpu_only_who_asks_gets_a_compiled_model(no_gpu, compiler):
    compiler("g++")
    assert not choose_backend("auto", "auto", flops=1e20).compile
    assert choose_backend("auto", True, flops=0).compile


def test_a_gpu_with_bf16_uses_it(gpu):
    backend = choose_backend("auto", compile=False, flops=0)
    assert (backend.device.type, backend.precision) == ("cuda", "bf16")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="concerns glibc's allocator")
def test_large_tensors_are_allocated_from_memory_freed_before(no_gpu):
    choose_backend("fp32", compile=False, flops=0)
    for _ in range(10):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert pages * resource.getpagesize() < 3 * 2**24 * 4  # of ten tensors


def test_compiling_without_a_compiler_is_refused(no_gpu, compiler):
    compiler()
    with pytest.raises(UserError, match=r"train\.compile = True.*C\+\+ compiler"):
        choose_backend("auto", True, flops=0)


def test_the_choice_turns_determinism_on_and_tf32_off(no_gpu):
    choose_backend("fp32", compile=False, flops=0)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_the_operations_of_a_training_are_three_forward_passes_of_two_a_multiplication():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 8 * 8, 7))
    multiplications = 8 * 8 * 5 * 3 * 3 * 3 + 5 * 8 * 8 * 7
    assert training_flops(model, image_size=8, images=11) == 3 * 2 * multiplications * 11


def test_placing_a_model_lays_its_convolutions_out_channels_last(no_gpu):
    model = choose_backend("fp32", compile=False, flops=0).place(nn.Conv2d(16, 16, 3))
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
