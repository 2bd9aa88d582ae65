import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import pytest
import torch

from stages import train
from stages.common.errors import UserError
from stages.training import device as module
from stages.training.device import COMPILE_FROM_IMAGES, Device, choose_device, configure, exact_device
from stages.training.distributed import Processes
from tests.training.toys import CPU, recipe

ROOT = Path(__file__).parents[2]


def choose(precision: str = "fp32", compile: bool | str = False, images: int = 0, **options: Processes) -> Device:
    return choose_device(recipe(precision=precision, compile=compile).train, images, **options)


def child(code: str, **environment: str) -> str:
    """What another Python prints, whose settings of torch are its own."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for GPUs that have bf16 only in emulation; choosing a device asks them for no more than this."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Old GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))


def test_precision_is_that_which_the_device_has_and_bf16_is_not_emulated_without_a_word(gpu, monkeypatch):
    assert [choose(wanted).precision for wanted in ("auto", "tf32")] == ["fp32", "tf32"]
    with pytest.raises(UserError, match=r"train\.precision = 'bf16': Old GPU lacks it; use auto or fp32"):
        choose("bf16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert [choose(wanted).precision for wanted in ("auto", "fp32")] == ["bf16", "fp32"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose("auto", "auto") == Device(torch.device("cpu"), "fp32", False, Processes())
    with pytest.raises(UserError, match=r"train\.precision = 'tf32': this machine has no GPU; use auto or fp32"):
        choose("tf32")


def test_a_process_computes_on_the_gpu_of_its_place_on_its_machine_and_predictions_in_fp32(gpu):
    assert choose(processes=Processes(rank=3, world_size=4, local_rank=1)).torch == torch.device("cuda", 1)
    torch.backends.cuda.matmul.allow_tf32 = True
    assert exact_device() == Device(torch.device("cuda"), "fp32", False)
    assert not torch.backends.cuda.matmul.allow_tf32


def test_auto_compiles_long_trainings_on_a_gpu_where_triton_finds_all_it_needs(gpu, monkeypatch, tmp_path):
    """On a PATH of our own. Triton is a stand-in, which finds the driver in the end."""
    triton = ModuleType("triton.backends.nvidia.driver")
    triton.libcuda_dirs = Mock(side_effect=AssertionError("libcuda.so cannot found!"))
    monkeypatch.setitem(sys.modules, triton.__name__, triton)
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for lacking, found in (("a C compiler", "clang"), ("Python's headers", "Python.h"), (r"libcuda\.so", None)):
        assert choose("auto", "auto", COMPILE_FROM_IMAGES).compile is False
        with pytest.raises(UserError, match=f"compile = True: .* needs .*{lacking}.*; else use auto or f"):
            choose("auto", True)
        if found:
            (tmp_path / found).touch(0o755)
    triton.libcuda_dirs = list
    assert [choose("auto", "auto", COMPILE_FROM_IMAGES - fewer).compile for fewer in (0, 1)] == [True, False]
    assert choose("auto", False, COMPILE_FROM_IMAGES).compile is False


def test_on_a_cpu_only_who_asks_gets_a_compiled_model_and_needs_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"compile = True: torch\.compile needs a C\+\+ compiler \(g\+\+ or clang"):
        choose("auto", True)
    (tmp_path / "clang++").touch(0o755)
    assert [choose("auto", wanted, 10**12).compile for wanted in ("auto", True)] == [False, True]
    monkeypatch.setattr(os, "getcwd", lambda: "/my photos")
    with pytest.raises(UserError, match="needs a folder without a space in its path; else use auto or false"):
        choose("auto", True)


def test_auto_compiles_by_the_images_of_all_epochs_together(workspace, prepare, monkeypatch):
    """A stand-in for the choice, which is asked once, before anything is trained."""
    prepare(cnn__epochs=7)
    monkeypatch.setattr(train, "choose_device", choice := Mock(side_effect=UserError))
    with pytest.raises(UserError):
        train.main(Namespace(run="cnn"))
    assert choice.call_args.args[1] == 7 * 40


def test_a_compiled_function_chooses_no_kernel_by_timing(monkeypatch, tmp_path):
    """What torch.compile is asked for."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(torch, "compile", lambda function, **options: (function, options))
    options = {"dynamic": False, "options": {"deterministic": True, "combo_kernels": True}}
    assert Device(CPU.torch, "fp32", True).compiled(abs) == (abs, options)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "hub/compiled")
    assert CPU.compiled(abs) is abs


def test_autocast_is_for_bf16_alone_and_has_no_cache_that_a_captured_graph_would_take_for_constants():
    for precision in ("fp32", "tf32", "bf16"):
        with Device(CPU.torch, precision, False).autocast():
            assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
            assert not torch.is_autocast_cache_enabled()


BF16 = """
from stages.training.device import Device, _survives_bf16
from stages.training.loop import forward_test
from tests.training.test_step import CPU, ROWS, fresh, recipe, stepping
bf16, seen = Device(CPU.torch, "bf16", False), []
step = stepping(recipe(), fresh(recipe()), autocast=bf16.autocast)
step.bare.features[4].register_forward_pre_hook(lambda convolution, inputs: seen.append(inputs[0].dtype))
x = step.images.normalise(step.images.crops[:8, 0, 0])
print(_survives_bf16() and [step.forward(ROWS[:8])[0].dtype, forward_test(step.bare, x, bf16).dtype, *seen])
"""


def test_in_bf16_the_inputs_of_convolutions_are_bf16_and_the_loss_and_the_logits_tested_float32():
    assert child(BF16).strip() in ("False", str([torch.float32] * 2 + [torch.bfloat16] * 2))  # False: a CPU without


def test_bf16_on_a_cpu_is_tried_in_a_child_which_may_end_by_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for convolution in (lambda x, weight: weight, lambda x, weight: 1 / 0):  # an error is for the training to tell
        monkeypatch.setattr(torch.nn.functional, "conv2d", convolution)
        assert choose("bf16").precision == "bf16"
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda x, weight: os.kill(os.getpid(), 9))
    with pytest.raises(UserError, match=r"train\.precision = 'bf16': this CPU lacks it; use auto or fp32"):
        choose("bf16")


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_only_deterministic_operations_run_and_tf32_only_where_it_was_chosen(monkeypatch, precision, tf32):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not tf32
    torch.backends.cudnn.benchmark = torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(False)
    configure(precision)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)
    assert [torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory] == [False, False]
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]), accumulate=False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_what_trainings_must_share_to_resume_holds_precision_compilation_and_the_instruction_set(monkeypatch):
    kinds = {Device(CPU.torch, *how).kind for how in (("fp32", False), ("bf16", False), ("fp32", True))}
    kinds.add(Device(CPU.torch, "fp32", False, Processes(1, 2)).kind)  # which is no other one
    kinds.add(child("from tests.training.toys import CPU; print(CPU.kind)", ATEN_CPU_CAPABILITY="default").strip())
    for limit in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR"):
        monkeypatch.setenv(limit, f"the value of {limit}")
        kinds.add(CPU.kind)
    assert len(kinds) == 7
    assert all(torch.__version__ in kind for kind in kinds)
