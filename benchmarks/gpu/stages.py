"""The tests that need a GPU, and the training stage as DVC runs it, a process from start to exit."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from benchmarks.gpu.session import ROOT, Changes, Session, write_params
from benchmarks.page import Page
from benchmarks.training_speed import VARIANTS, compare
from stages.common.files import HISTORY, MODELS, TIMING
from stages.common.params import PARAMS
from stages.training.checkpoint import FOLDER

RUN = "resnet"


class Rows:
    """A plugin of pytest that writes a row when a test ends, so that nothing is lost if a later one takes too long."""

    def __init__(self, page: Page):
        self.page = page

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.page.write(f"```\n{report.longreprtext[-3000:]}\n```")

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or not report.passed:
            self.page.row({"test": report.nodeid, "outcome": report.outcome, "s": report.duration})
        self.pytest_collectreport(report)


def cuda_tests(session: Session) -> None:
    """Every test marked `cuda`, in one process."""
    import pytest  # here, since what follows needs none

    # Only the files that hold such tests: others import what need not be installed here.
    files = [
        str(path) for path in sorted((ROOT / "tests/training").glob("test_*.py")) if "mark.cuda" in path.read_text()
    ]
    options = ["-m", "cuda", "-q", "--tb=short", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    options.append(f"--config-file={ROOT / 'pyproject.toml'}")
    with contextlib.redirect_stderr(io.StringIO()) as said:  # where pytest tells why it cannot begin
        status = pytest.main([*options, *files], plugins=[Rows(session.page)])
    if status == pytest.ExitCode.NO_TESTS_COLLECTED and session.rehearse:
        session.page.row({"test": "none: a rehearsal only collects them", "outcome": "", "s": ""})
    elif status:
        raise AssertionError(f"pytest ended with status {int(status)}\n{said.getvalue()[-3000:]}")


def begin(folder: Path, changes: Changes, **environment: str) -> subprocess.Popen:
    """Start the stage as DVC does, with the images and the changed parameters of this folder, in one of its own.

    What it prints is added to `log` there. A folder that is there is used again.
    """
    if not folder.exists():
        folder.mkdir()
        (folder / "data").symlink_to(Path("data").absolute())
        write_params(folder, PARAMS, changes)
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "stages.train", RUN]
    with open(folder / "log", "a", encoding="utf-8") as log:
        return subprocess.Popen(command, cwd=folder, env=os.environ | paths | environment, stdout=log, stderr=log)


def train(folder: Path, changes: Changes, **environment: str) -> dict[str, object]:
    """Run the stage to its end, and return its figures: the accuracy is the last epoch's, in the training's precision.

    Raises:
        RuntimeError: it failed; the message ends with the last lines of its output.
    """
    began = time.perf_counter()
    status = begin(folder, changes, **environment).wait()
    seconds, log = time.perf_counter() - began, (folder / "log").read_text(encoding="utf-8")
    if status:
        raise RuntimeError(f"the training stage ended with status {status}:\n{log[-2000:]}")
    timing = json.loads((folder / TIMING / f"{RUN}.json").read_bytes())
    history, model = folder / HISTORY / f"{RUN}.csv", folder / MODELS / f"{RUN}.safetensors"
    return {
        "start to exit, s": seconds,
        "training, s": timing["train_seconds"],
        "images/s": timing["images_per_second"],
        "device memory, GiB": (re.findall(r"([\d.]+) GiB", log) or ["none"])[-1],
        "precision": timing["precision"],
        "compiled": timing["compiled"],
        "test accuracy": float(pd.read_csv(history).filter(regex="^(test|validation)_accuracy$").iloc[-1, 0]),
        "sha256 of model and history": hashlib.sha256(model.read_bytes() + history.read_bytes()).hexdigest()[:16],
    }


def kill_and_resume(folder: Path, changes: Changes) -> dict[str, object]:
    """Run a stage that is sent SIGKILL as soon as its first checkpoint is there, and run it again."""
    process, checkpoint = begin(folder, changes), folder / FOLDER / f"{RUN}.safetensors"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.0005)
    process.kill()
    killed, facts = process.wait() == -signal.SIGKILL, train(folder, changes)
    log = (folder / "log").read_text(encoding="utf-8")
    if not killed or f"{RUN}: resumed after epoch" not in log:
        raise AssertionError(f"the stage was not killed and resumed:\n{log[-2000:]}")
    return facts


def same_bytes(session: Session) -> None:
    """The same training once, again, and killed and resumed; compiled once without a cache, then with one."""
    shutil.rmtree(os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
    digests = set()
    ways = [(False, "once", train), (False, "again", train), (True, "once", train), (True, "again", train)]
    ways.append((True, "killed and resumed", kill_and_resume))
    for compile, name, way in session.size(ways, ways[3:]):
        epochs = session.size(3, 12)  # enough for a rehearsal to be killed among them
        changes: Changes = {"resnet.epochs": epochs, "train.compile": session.compiles(compile)}
        facts = way(Path(f"{name}-{compile}"), changes)
        session.page.row({"trained": name, **facts})
        digests.add((compile, facts["sha256 of model and history"]))
    if len(digests) > len({compile for compile, _ in digests}):
        raise AssertionError("the same training gave different bytes")


def whole_stage(session: Session) -> None:
    """The stage with the default parameters."""
    epochs = session.size(100, 2)
    session.page.row({"epochs": epochs, **train(Path("whole"), {"resnet.epochs": epochs})})


def speed(session: Session) -> None:
    """An epoch of ResNet-18 by the core, and by loops that people write by hand."""
    variants = list(VARIANTS)[: session.size(4, 3)]  # a rehearsal compiles nothing
    compare(RUN, session.size(20_000, 40), session.size(3, 2), variants, session.page)


def precisions(session: Session) -> None:
    """Test accuracy in both precisions, with three seeds or as many as time allows."""
    longest = 0.0
    for seed in session.size((42, 43, 44), (42,)):
        began = time.monotonic()
        if began + longest > session.deadline:
            session.page.write(f"No time was left for seed {seed} and those after it.")
            break
        for precision in ("auto", "fp32"):
            changes: Changes = {"seed": seed, "resnet.epochs": session.size(5, 1), "train.precision": precision}
            session.page.row({"seed": seed, **train(Path(f"{precision}-{seed}"), changes)})
        longest = max(longest, time.monotonic() - began)
