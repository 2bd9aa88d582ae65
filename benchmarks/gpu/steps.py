"""Measurements of ResNet-18's step and of the test after each epoch: as they are, and with one thing changed."""

import copy
import hashlib
import os
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.profiler import ProfilerActivity, profile

from benchmarks.core import Core
from benchmarks.gpu.session import Session
from benchmarks.page import Row
from benchmarks.timing import WARM_UP, seconds, spread, wait
from stages.common.dataset import read_dataset
from stages.training.loop import forward_test, predict
from stages.training.step import Step


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


def stem_of_8(model: nn.Module) -> nn.Module:
    model.conv1 = PaddedStem(model.conv1, 8)
    return model


class LeavesStep(Step):
    """A step whose model holds its large weights in bf16 where that is the precision, beside fp32 masters.

    Autocast casts each weight, and each gradient back, by a kernel of its own; here one `_foreach_copy_` does all. The
    values are the same.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        with self.autocast():
            bf16 = torch.is_autocast_enabled(self.sums.device.type)
        modules = [module for module in self.bare.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        self.masters = [module.weight for module in modules]  # `parameters` and `momentum` are of these
        for module in modules:
            leaf = module.weight.detach().to(torch.bfloat16 if bf16 else torch.float32, copy=True)
            module.weight = nn.Parameter(leaf)
        self.leaves = [module.weight for module in modules]

    @torch.no_grad()
    def update(self) -> None:
        for master in self.masters:
            master.grad = torch.empty_like(master)
        torch._foreach_copy_([master.grad for master in self.masters], [leaf.grad for leaf in self.leaves])
        super().update()
        torch._foreach_copy_(self.leaves, self.masters)
        for leaf in self.leaves:
            leaf.grad = None

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {f"master.{number}": master for number, master in enumerate(self.masters)}


# By name, what is changed: arguments of `_replay`
VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compile": True},
    "compiled, PDL": {"compile": True, "dependent_launch": True},
    "cuDNN's heuristic mode B": {"mode_b": "1"},
    "cuDNN's heuristic mode B, again": {"mode_b": "1"},
    "bf16 leaves": {"step": LeavesStep},
    "stem of 8 channels": {"change": stem_of_8},
    "cudnn.benchmark": {"benchmark": True},
    "not deterministic": {"deterministic": False},
    "cudnn.benchmark, not deterministic": {"benchmark": True, "deterministic": False},
}


def replay(session: Session) -> None:
    """The captured step, as it is and with one thing changed, each in a process of its own.

    Where the last column is the same, so are the bytes.
    """
    failed = []
    for name, changes in VARIANTS.items():
        try:
            with ProcessPoolExecutor(1, get_context("fork")) as process:  # since this one has not used the GPU
                row = process.submit(_replay, session, **changes).result()
        except Exception as error:
            row = {"failed": " ".join(str(error).split())[:1000]}
            failed.append(name)
        session.page.row({"step": name, **row})
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}")


def _replay(session: Session, compile=False, benchmark=False, deterministic=True, **changes: Any) -> Row:
    os.environ["TORCH_CUDNN_USE_HEURISTIC_MODE_B"] = changes.pop("mode_b", "0")
    if changes.pop("dependent_launch", False):
        from torch._inductor import config  # which read TORCHINDUCTOR_ENABLE_PDL when it was imported

        config.triton.enable_pdl = True
    start, device = time.perf_counter(), session.device(compile)
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(deterministic)
    core = session.core(device, **changes)
    core.update(core.rows)
    wait(device.torch)
    first = time.perf_counter() - start
    times = seconds(lambda: core.update(core.rows), device.torch, session.size(200, 3))
    weights = core.step.parameters["fc.weight"].detach().cpu().numpy()
    return {
        "until the first one is done, s": first,
        **spread(times),
        "images/s": len(core.rows) / statistics.median(times),
        "device memory, GiB": torch.cuda.max_memory_reserved() / 2**30 if device.torch.type == "cuda" else "none",
        "weights afterwards": hashlib.sha256(weights).hexdigest()[:8],
    }


def profiled(session: Session) -> None:
    """One step that is not captured, by operation and by kernel."""
    core = session.core(session.device())
    device, on_gpu = core.device.torch, core.device.torch.type == "cuda"
    for _ in range(WARM_UP):
        core.step(core.rows)
    wait(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + on_gpu], acc_events=True) as profiler:
        core.step(core.rows)
        wait(device)
    averages = [entry for entry in profiler.key_averages() if not entry.is_user_annotation]
    # Operations are named aten::add and the like, the calls of CUDA that launch kernels are not.
    for column, unit, name in (("operation", DeviceType.CPU, r"\w+::"), ("kernel", DeviceType.CUDA, "")):
        found = [
            (entry.self_device_time_total if on_gpu else entry.self_cpu_time_total, entry.count, entry.key)
            for entry in averages
            if entry.device_type == unit and re.match(name, entry.key)
        ]
        total = sum(spent for spent, _, _ in found)  # microseconds
        for spent, count, key in [(total, "", "all"), *sorted(found, reverse=True)[:15]]:
            session.page.row({column: key[:110], "ms": spent / 1000, "share": spent / (total or 1), "calls": count})


def folded(model: nn.Module) -> nn.Module:
    """Return a copy for evaluation in which each batch normalisation is part of the convolution before it."""
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return model


def evaluation(session: Session) -> None:
    """The test after an epoch: as the product does it, and with batch normalisation folded into the weights."""
    compiling, core = session.device(compile=True), session.core(session.device())
    for _ in range(session.size(50, 2)):  # so that statistics and weights are those of a training
        core.update(core.rows)
    images = torch.from_numpy(read_dataset().held_out.images).to(core.device.torch)
    variants = {"product": core.model, "batch norm folded": folded(core.model)}
    variants["folded and compiled"] = compiling.compiled(folded(core.model))
    expected: Tensor | None = None
    for name, model in variants.items():
        forward = core.device.graphed(partial(_logits, core, model), [])
        times = seconds(partial(predict, forward, images), core.device.torch, session.size(20, 2))
        logits = predict(forward, images)
        expected = logits if expected is None else expected
        differences = {
            "largest difference of a logit": (logits - expected).abs().max().item(),
            "other predictions": (logits.argmax(1) != expected.argmax(1)).sum().item(),
        }
        session.page.row({f"test of {len(images):,} images": name, **spread(times), **differences})


def _logits(core: Core, model: nn.Module, batch: Tensor) -> Tensor:
    return forward_test(model, core.normalise(batch), core.device)
