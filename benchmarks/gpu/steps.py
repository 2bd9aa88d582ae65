"""Measurements of ResNet-18's step: as it is, and with one thing changed."""

import hashlib
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.session import Session
from benchmarks.page import Row
from benchmarks.timing import WARM_UP, seconds, spread, wait

# By name, what is changed: arguments of `_replay`
VARIANTS: dict[str, dict[str, bool]] = {
    "eager": {},
    "compiled": {"compile": True},
    "cudnn.benchmark": {"benchmark": True},
    "not deterministic": {"deterministic": False},
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


def _replay(session: Session, compile: bool = False, benchmark: bool = False, deterministic: bool = True) -> Row:
    start, device = time.perf_counter(), session.device(compile)
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(deterministic)
    core = session.core(device)
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
