"""Measurements of the training stage as DVC runs it, a process from start to exit, and of what it writes."""

import hashlib
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.session import ROOT, Changes, Session, write_params
from stages.common.files import read_json
from stages.common.formats import HISTORY, MODELS, TIMING, TRAIN_METRICS, Metrics, Timing, of_run
from stages.common.params import PARAMS
from stages.training.checkpoint import FOLDER

RUN = "resnet"
COMMAND = ("-m", "stages.train", RUN, "--model", "resnet", "--weight-decay", "train.weight_decay")


@dataclass(frozen=True)
class Stage:
    """A finished training stage."""

    folder: Path
    seconds: float  # from start to exit
    log: str

    @property
    def timing(self) -> Timing:
        return read_json(self.folder / of_run(TIMING, RUN), Timing)

    @property
    def metrics(self) -> Metrics:
        return read_json(self.folder / of_run(TRAIN_METRICS, RUN), Metrics)

    @property
    def digest(self) -> str:
        """Of all that must be the same: model, metrics and history."""
        digest = hashlib.sha256()
        for path in (of_run(MODELS, RUN), of_run(TRAIN_METRICS, RUN), of_run(HISTORY, RUN)):
            digest.update((self.folder / path).read_bytes())
        return digest.hexdigest()


def new_folder(name: str, changes: Changes) -> Path:
    """A folder in which the stage can run: the images of this one, and its parameters with these changes."""
    folder = Path(name)
    folder.mkdir()
    (folder / "data").symlink_to(Path("data").absolute())
    write_params(folder, PARAMS, changes)
    return folder


def start(folder: Path, cache: Path | None = None) -> subprocess.Popen:
    """Start the stage, with an empty cache of compiled kernels unless one is given; what it prints goes to `log`."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "TORCHINDUCTOR_CACHE_DIR": str((cache or folder / "cache").absolute()),
    }
    with open(folder / "log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, *COMMAND], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def finish(process: subprocess.Popen, folder: Path, began: float) -> Stage:
    """Wait for the stage.

    Raises:
        RuntimeError: it failed; the message ends with the last lines of its output.
    """
    status = process.wait()
    seconds = time.perf_counter() - began
    log = (folder / "log").read_text(encoding="utf-8")
    if status:
        raise RuntimeError(f"the training stage ended with status {status}:\n{log[-2000:]}")
    return Stage(folder, seconds, log)


def train(name: str, changes: Changes, cache: Path | None = None) -> Stage:
    folder, began = new_folder(name, changes), time.perf_counter()
    return finish(start(folder, cache), folder, began)


def compilation(session: Session) -> None:
    """(f) The stage of a single epoch: not compiled, compiled, and compiled again by another process."""
    cache = Path("compiled")
    for name, compile in (("not compiled", False), ("compiled, cache empty", True), ("compiled, cache kept", True)):
        changes: Changes = {"resnet": {"epochs": 1}, "train": {"compile": compile}}
        stage = train(name.replace(", ", "-").replace(" ", "-"), changes, cache)
        session.page.row(
            {"stage of one epoch": name, "start to exit, s": stage.seconds, "training, s": stage.timing.train_seconds}
        )


def whole_stage(session: Session) -> None:
    """The stage with the default parameters, its cache of compiled kernels empty."""
    epochs = session.size(100, 2)
    stage = train("whole", {"resnet": {"epochs": epochs}})
    timing, metrics = stage.timing, stage.metrics
    session.page.row(
        {
            "epochs": epochs,
            "start to exit, s": stage.seconds,
            "training, s": timing.train_seconds,
            "images/s": timing.images_per_second,
            "device memory, GiB": session.meter.memory_in(stage.log),
            "precision": timing.precision,
            "compiled": timing.compiled,
            "best test accuracy": f"{metrics.accuracy:.2%}",
            "last test accuracy": f"{metrics.last_accuracy:.2%}",
        }
    )


def same_bytes(session: Session) -> None:
    """The digest of model, metrics and history: trained once, again, and killed and resumed."""
    for compile in (False, True):
        kind = "compiled" if compile else "eager"
        changes: Changes = {"resnet": {"epochs": 6}, "train": {"compile": compile}}
        cache = Path(f"bytes-{kind}")
        stages = {
            "once": train(f"once-{kind}", changes, cache),
            "again": train(f"again-{kind}", changes, cache),
            "killed and resumed": _resumed(f"resumed-{kind}", changes, cache),
        }
        for name, stage in stages.items():
            session.page.row({"trained": f"{kind}, {name}", "sha256": stage.digest[:16]})
        if len({stage.digest for stage in stages.values()}) > 1:
            raise AssertionError(f"{kind}: the same training gave different bytes")


def _resumed(name: str, changes: Changes, cache: Path) -> Stage:
    """A stage that is sent SIGKILL as soon as its first checkpoint is there, and run again."""
    folder, began = new_folder(name, changes), time.perf_counter()
    process, checkpoint = start(folder, cache), folder / FOLDER / f"{RUN}.safetensors"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    stage = finish(start(folder, cache), folder, began)
    if not killed or f"{RUN}: resumed after epoch" not in stage.log:
        raise AssertionError(f"the stage was not killed and resumed:\n{stage.log[-2000:]}")
    return stage


def precisions(session: Session) -> None:
    """Test accuracy in both precisions with several seeds, as many of them as time allows."""
    epochs, longest, differences = session.size(5, 1), 0.0, []
    for seed in range(42, 45):
        began = time.monotonic()
        if began + longest > session.deadline:
            session.page.write(f"No time was left for seed {seed} and those after it.")
            break
        accuracies = []
        for precision in session.meter.precisions:
            train_section = {"precision": precision, "keep": "last"}
            stage = train(f"{precision}-{seed}", {"seed": seed, "resnet": {"epochs": epochs}, "train": train_section})
            accuracies.append(stage.metrics.accuracy)
            session.page.row(
                {
                    "seed": seed,
                    "precision": stage.timing.precision,
                    "epochs": epochs,
                    "images/s": stage.timing.images_per_second,
                    "device memory, GiB": session.meter.memory_in(stage.log),
                    "last test accuracy": f"{accuracies[-1]:.2%}",
                }
            )
        differences.append(accuracies[0] - accuracies[1])
        longest = max(longest, time.monotonic() - began)
    mean = statistics.mean(differences)
    session.page.write(f"First precision less second, mean over {len(differences)} seeds: {100 * mean:+.2f} points.")
