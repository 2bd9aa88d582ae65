"""The calls of CUDA that the measurements make, and their twins on a CPU, which rehearse them."""

import gc
import platform
import re
import subprocess
import time
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity


def said(*command: str) -> str:
    """The output of a command, or why there is none."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"not known ({error})"


class Event(Protocol):
    """A moment in the work of a device."""

    def record(self) -> None: ...

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this event to a later one."""


class Gpu:
    """The first GPU."""

    device = torch.device("cuda", 0)
    activities = (ProfilerActivity.CPU, ProfilerActivity.CUDA)
    precisions = ("bf16", "fp32")
    compiles = True  # where a measurement compares with torch.compile
    unit = DeviceType.CUDA  # that the profiler's kernels ran on

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def event(self) -> Event:
        return torch.cuda.Event(enable_timing=True)

    def reset_peak(self) -> None:
        gc.collect()  # models and graphs refer to each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak_memory(self) -> float:
        """GiB that PyTorch held on the device at most since the last `reset_peak`."""
        return torch.cuda.max_memory_reserved() / 2**30

    def spent(self, operation: Any) -> float:
        """Microseconds of the kernels that an operation launched, in the profiler's averages."""
        return operation.self_device_time_total

    def memory_in(self, log: str) -> str:
        """The last figure of device memory in what a training stage printed.

        Raises:
            ValueError: there is none.
        """
        figures = re.findall(r"([\d.]+) GiB", log)
        if not figures:
            raise ValueError("the training stage printed no figure of device memory")
        return figures[-1]

    def facts(self) -> dict[str, str]:
        """What the figures depend on."""
        return {
            "device": torch.cuda.get_device_name(0),
            "driver": said("nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader", "--id=0"),
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
        }


class CpuEvent:
    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: "CpuEvent") -> float:
        return 1000 * (end.time - self.time)


class Cpu:
    """The twin of `Gpu`: the same calls, for a rehearsal. Its figures mean nothing."""

    device = torch.device("cpu")
    activities = (ProfilerActivity.CPU,)
    precisions = ("auto", "fp32")
    compiles = False  # it would take a minute a time, and is tested elsewhere
    unit = DeviceType.CPU

    def synchronize(self) -> None: ...

    def event(self) -> Event:
        return CpuEvent()

    def reset_peak(self) -> None: ...

    def peak_memory(self) -> float:
        return 0.0

    def spent(self, operation: Any) -> float:
        return operation.self_cpu_time_total

    def memory_in(self, log: str) -> str:
        return "none"

    def facts(self) -> dict[str, str]:
        return {"device": f"CPU ({platform.machine()}), a rehearsal"}


Meter = Gpu | Cpu


def milliseconds(meter: Meter, function: Any, argument: Any, times: int) -> list[float]:
    """The time of each of so many calls, one after the other, by events on the device."""
    for _ in range(3):  # to warm up
        function(argument)
    events = [meter.event() for _ in range(times + 1)]
    meter.synchronize()
    events[0].record()
    for event in events[1:]:
        function(argument)
        event.record()
    meter.synchronize()
    return [begin.elapsed_time(end) for begin, end in pairwise(events)]
