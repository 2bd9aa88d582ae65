"""Stages as processes that start in a hundredth of a second: forked from one that has imported torch and waits.

    python -P tests/warm.py MODULE < requests

Each is a process like any other, with a folder, streams, signals and an end of its own.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait for an event that is sure to come; the limit is for a test that has an error."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Process:
    """A stage that runs; `pid` is its number."""

    def __init__(self, folder: Path):
        self.folder = folder
        until((folder / "pid").exists)
        self.pid = int((folder / "pid").read_text())

    @property
    def status(self) -> int | None:
        """How it ended, negative for a signal; None as long as it runs."""
        path = self.folder / "status"
        return int(path.read_text()) if path.exists() else None

    def runs_until(self, condition: Callable[[], object]) -> None:
        """Wait for an event before which the process must not end."""
        until(lambda: condition() or self.status is not None)
        assert condition(), self.wait()

    def end(self, number: int) -> subprocess.CompletedProcess:
        """Send it a signal, unless it has ended, and wait."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> subprocess.CompletedProcess:
        until(lambda: self.status is not None)
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(self.pid, self.status or 0, out, err)


class Server:
    """The process that waits.

    Args:
        code: the folder of the `stages` that it imports.
        folder: for the processes' output.
        module: what the processes run, as `python -m` does.
    """

    def __init__(self, code: Path, folder: Path, module: str):
        self.folder, self.started = folder, 0
        environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-P", __file__, module]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True)

    def start(
        self, *arguments: str, cwd: Path | None = None, terminal: str = "", memory: int = 0, **env: str
    ) -> Process:
        """Start the module with these arguments, on a terminal or with files as streams.

        Args:
            memory: bytes that it may take.
        """
        folder = self.folder / str(self.started)
        folder.mkdir()
        self.started += 1
        request = {"arguments": arguments, "cwd": str(cwd or Path.cwd()), "env": env, "folder": str(folder)}
        print(json.dumps(request | {"terminal": terminal, "memory": memory}), file=self.process.stdin, flush=True)
        return Process(folder)

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess:
        return self.start(*arguments, **options).wait()

    def close(self) -> None:
        self.process.communicate()


def next_request(module: str) -> dict:
    """Wait for requests; return one in each of the processes that are to run the module."""
    importlib.import_module(module)
    del sys.modules[module]  # to be run
    gc.freeze()  # what no collection touches is not copied in each process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() > 0:
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request = json.loads(line)
        if (pid := os.fork()) == 0:
            return request
        note(Path(request["folder"], "pid"), pid)
        note(Path(request["folder"], "status"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    sys.exit()


def note(path: Path, number: int) -> None:
    """Write a file, whole."""
    path.with_suffix(".new").write_text(str(number))
    path.with_suffix(".new").replace(path)


def become(request: dict) -> None:
    os.chdir(request["cwd"])
    os.environ |= request["env"]
    folder, terminal = request["folder"], request["terminal"]
    for number, name in enumerate((os.devnull, f"{folder}/out", f"{folder}/err")):
        os.dup2(os.open(terminal or name, os.O_RDWR | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    if request["memory"]:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + request["memory"],) * 2)
    sys.argv[1:] = request["arguments"]


if __name__ == "__main__":
    module, status = sys.argv[1], 0
    become(next_request(module))
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # Python's own end would take longer than the stage
