"""The parts of a run in their order, each in a process of its own, since an error of CUDA spoils the process."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context

from benchmarks.gpu import stages, steps
from benchmarks.gpu.session import Session

# What proves comes first. The first three fit in a call of ten minutes, and those after them in another.
PARTS: dict[str, tuple[Callable[[Session], None], int]] = {  # and the seconds that each may take
    "tests": (stages.cuda_tests, 150),
    "bytes": (stages.same_bytes, 170),
    "stage": (stages.whole_stage, 200),
    "replay": (steps.replay, 90),
    "profile": (steps.profiled, 30),
    "speed": (stages.speed, 90),
    "precision": (stages.precisions, 150),
}
# A server from which each process is forked with all of this imported, and without CUDA
context = get_context("forkserver")
context.set_forkserver_preload([__name__, "torch._dynamo"])  # which torch.compile imports


def run(name: str, session: Session) -> tuple[str, float]:
    """Run a part, and write under its title what it finds or how it failed; return its outcome and its seconds."""
    (part, seconds), began = PARTS[name], time.monotonic()
    if began >= session.deadline:
        return "not begun: no time was left", 0.0
    limit = seconds * session.size(1, 4)  # a rehearsal may have a slow machine
    session = replace(session, deadline=min(session.deadline, began + limit))
    session.page.write("## " + part.__doc__.partition("\n")[0].rstrip("."))
    process = context.Process(target=_work, args=(name, session))
    process.start()
    try:
        process.join(session.deadline - began)
        late = process.is_alive()
    finally:
        with contextlib.suppress(ProcessLookupError):  # its group is gone, or it has none yet
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    if process.exitcode and process.exitcode != 1:  # which `_work` has explained
        session.page.write("Stopped: no time was left." if late else f"Ended with status {process.exitcode}.")
    return "stopped" if late else "failed" if process.exitcode else "done", time.monotonic() - began


def _work(name: str, session: Session) -> None:
    os.setsid()  # so that what it starts can be ended with it
    os.chdir(session.folder)
    try:
        PARTS[name][0](session)
    except Exception:
        session.page.write(f"Failed:\n\n```\n{traceback.format_exc().strip()}\n```")
        sys.exit(1)
