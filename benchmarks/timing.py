"""The one way to time: calls one after the other, by the device's own clock where there is a GPU."""

import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

WARM_UP = 3  # calls that are not counted: in them kernels are loaded, compiled and captured


def seconds(function: Callable[[], object], device: torch.device, times: int, limit: float = math.inf) -> list[float]:
    """Return the time of each of so many calls; fewer, but one, where they take longer than `limit` seconds."""
    for _ in range(WARM_UP):
        function()
    wait(device)
    began = time.perf_counter()
    moments = [_moment(device)]
    while len(moments) < 2 or (len(moments) <= times and time.perf_counter() - began < limit):
        function()
        moments.append(_moment(device))
    wait(device)
    return [b - a if isinstance(a, float) else a.elapsed_time(b) / 1000 for a, b in pairwise(moments)]


def spread(times: list[float]) -> dict[str, object]:
    """Return the median and the quartiles in milliseconds, as columns of a table."""
    low, median, high = (1000 * value for value in statistics.quantiles(times, n=4, method="inclusive"))
    return {"ms, median": median, "quartiles": f"{low:.4g} to {high:.4g}"}


def wait(device: torch.device) -> None:
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _moment(device: torch.device) -> Any:
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
