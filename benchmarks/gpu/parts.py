"""The parts of a run in their order, each in a process of its own, since an error of CUDA spoils the process."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context, get_start_method, set_start_method
from typing import NamedTuple

from benchmarks.gpu import checks, evaluation, stages, steps
from benchmarks.gpu.session import Session


class Part(NamedTuple):
    run: Callable[[Session], None]
    seconds: int  # that it may take at most

    @property
    def title(self) -> str:
        return self.run.__doc__.partition("\n")[0].rstrip(".")


PARTS = {
    "tests": Part(checks.cuda_tests, 150),
    "replay": Part(steps.replay, 60),
    "profile": Part(steps.profiled, 60),
    "determinism": Part(steps.determinism, 60),
    "stem": Part(steps.stem, 60),
    "evaluation": Part(evaluation.evaluation, 60),
    "compilation": Part(stages.compilation, 90),
    "speed": Part(checks.speed, 150),
    "stage": Part(stages.whole_stage, 200),
    "bytes": Part(stages.same_bytes, 150),
    "precision": Part(stages.precisions, 150),
}
# A server from which each process is forked with all of this imported, and without CUDA
context = get_context("forkserver")
context.set_forkserver_preload([__name__, "torch._dynamo"])  # which torch.compile and torch.optim import


def run(name: str, session: Session) -> str:
    """Run a part, and write under its title what it finds or how it failed; returns its outcome in a word or two."""
    part = PARTS[name]
    session.page.write(f"## {part.title}")
    process = context.Process(target=_work, args=(name, session, get_start_method()))
    process.start()
    try:
        process.join(session.deadline - time.monotonic())
        late = process.is_alive()
    finally:
        with contextlib.suppress(ProcessLookupError):  # its group is gone, or it has none yet
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    if late:
        session.page.write("Stopped: no time was left.")
        return "stopped"
    if process.exitcode:
        if process.exitcode != 1:  # which `_work` has explained
            session.page.write(f"Ended with status {process.exitcode}.")
        return "failed"
    return "done"


def _work(name: str, session: Session, start_method: str) -> None:
    os.setsid()  # so that what it starts can be ended with it
    os.chdir(session.folder)
    set_start_method(start_method, force=True)  # for a DataLoader's workers; it would be that of this process
    try:
        PARTS[name].run(session)
    except Exception:
        session.page.write(f"Failed:\n\n```\n{traceback.format_exc().strip()}\n```")
        sys.exit(1)
