"""Stages as processes that start in a hundredth of a second: forked from one that has imported torch and waits.

    python -P tests/warm.py MODULE

Each is a process like any other, with a folder, files as streams, signals and an end of its own.
"""

import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait for an event that is sure to come; the limit is for a test that has an error."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Server:
    """The process that waits, with the `stages` in `code` imported; others run `module` and print into `folder`."""

    def __init__(self, code: Path, folder: Path, module: str):
        self.code, self.folder, self.started = code, folder, 0
        environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command, pipe = [sys.executable, "-P", __file__, module], subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def ask(self, request: object) -> int | None:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, *arguments: str, cwd: Path | None = None, **env: str) -> "Process":
        """Start the module with these arguments."""
        self.started += 1
        streams = [str(self.folder / f"{self.started}.{name}") for name in ("out", "err")]
        return Process(self, self.ask([arguments, str(cwd or Path.cwd()), env, streams]), streams)

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.start(*arguments).wait()


class Process:
    """A stage that runs; `pid` is its number."""

    def __init__(self, server: Server, pid: int, streams: list[str]):
        self.server, self.pid, self.streams = server, pid, streams
        self.status: int | None = None  # negative for a signal

    def ended(self) -> bool:
        if self.status is None:
            self.status = self.server.ask(self.pid)
        return self.status is not None

    def runs_until(self, condition: Callable[[], object]) -> None:
        """Wait for an event before which the process must not end."""
        until(lambda: condition() or self.ended())
        assert condition(), self.wait()

    def end(self, number: int) -> subprocess.CompletedProcess:
        """Send it a signal, unless it has ended, and wait."""
        if not self.ended():
            os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> subprocess.CompletedProcess:
        until(self.ended)
        return subprocess.CompletedProcess(self.pid, self.status, *(Path(name).read_text() for name in self.streams))


def serve(module: str) -> None:
    """Start processes and tell how they ended; return in each of those started."""
    importlib.import_module(module)
    del sys.modules[module]  # to be run
    gc.freeze()  # what no collection touches is not copied in each process
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            pid, status = os.waitpid(request, os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            sys.argv[1:], folder, env, streams = request
            os.chdir(folder)
            os.environ |= env
            for number, name in enumerate((os.devnull, *streams)):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
            return
    sys.exit()


if __name__ == "__main__":
    serve(module := sys.argv[1])
    status = 0
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
