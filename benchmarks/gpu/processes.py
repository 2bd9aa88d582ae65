"""A training stage as a process of its own, and its twin for rehearsals."""

import os
import runpy
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

from benchmarks.gpu.session import ROOT

MODULE = "stages.train"


class Process(Protocol):
    """The part of `subprocess.Popen` that is needed here."""

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def send_signal(self, sig: int) -> None: ...


def start(arguments: list[str], folder: Path, cache: Path) -> Process:
    """Start the stage as DVC does; what it prints is added to `log` in its folder.

    Args:
        cache: the folder of compiled kernels.
    """
    path = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = {"PYTHONPATH": os.pathsep.join(path), "TORCHINDUCTOR_CACHE_DIR": str(cache.absolute())}
    command = [sys.executable, "-m", MODULE, *arguments]
    with open(folder / "log", "a", encoding="utf-8") as log:
        return subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)


class Forked:
    """A fork of this process, which has imported torch already, that runs the stage on a CPU."""

    def __init__(self, arguments: list[str], folder: Path):
        self.process = get_context("fork").Process(target=self._run, args=(arguments, folder))
        self.process.start()

    @staticmethod
    def _run(arguments: list[str], folder: Path) -> None:
        os.chdir(folder)
        sys.stdout.flush()
        with open("log", "ab", buffering=0) as log:
            os.dup2(log.fileno(), sys.stdout.fileno())
            os.dup2(log.fileno(), sys.stderr.fileno())
        sys.argv = [MODULE, *arguments]
        runpy.run_module(MODULE, run_name="__main__", alter_sys=True)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, sig: int) -> None:
        os.kill(self.process.pid, signal.Signals(sig))
