import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that need a GPU where there is none."""
    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("cuda")])
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]


@pytest.fixture(scope="session")
def stage() -> Callable[..., subprocess.CompletedProcess]:
    """Run a stage as DVC does, in a process of its own in the current folder.

    With `kill_when`, it is sent a signal as soon as that returns true, unless it has ended before.
    """

    def run(
        *command: str, kill_when: Callable[[], bool] | None = None, by: signal.Signals = signal.SIGKILL
    ) -> subprocess.CompletedProcess:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while kill_when and process.poll() is None:
            if kill_when():
                process.send_signal(by)
                break
            time.sleep(0.0005)
        out, err = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run
