import torch

from benchmarks.timing import WARM_UP, seconds, spread


def test_each_call_after_the_warm_up_is_timed_alone(monkeypatch):
    clock, waits = [0.0], iter([9.0] * WARM_UP + [1.0, 2.0, 4.0] + [9.0] * WARM_UP + [1.0])
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: clock[0])

    def work() -> None:
        clock[0] += next(waits)

    assert seconds(work, torch.device("cpu"), times=3) == [1, 2, 4]
    assert seconds(work, torch.device("cpu"), times=3, limit=1) == [1]
    assert spread([0.001, 0.002, 0.003, 0.004, 0.005]) == {"ms, median": 3, "quartiles": "2 to 4"}
