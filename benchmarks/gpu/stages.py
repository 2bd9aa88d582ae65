"""Measurements of the training stage as DVC runs it, a process from start to exit, and of what it writes."""

import hashlib
import signal
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.processes import Forked, Process, start
from benchmarks.gpu.session import Changes, Session, write_params
from stages.common.files import read_json
from stages.common.formats import HISTORY, MODELS, TIMING, TRAIN_METRICS, Metrics, Timing, of_run
from stages.common.params import PARAMS
from stages.training.checkpoint import FOLDER

RUN = "resnet"
ARGUMENTS = [RUN, "--model", "resnet", "--weight-decay", "train.weight_decay"]
WHOLE = "whole"  # the folder of the stage with the default parameters


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


def train(session: Session, name: str, changes: Changes, cache: Path | None = None) -> Stage:
    """Run the stage; without `cache`, its cache of compiled kernels is empty."""
    folder, began = new_folder(name, changes), time.perf_counter()
    return finish(begin(session, folder, cache or folder / "cache"), folder, began)


def begin(session: Session, folder: Path, cache: Path) -> Process:
    # A rehearsal starts one stage as it is; for the others it need not import torch again.
    if session.rehearse and folder.name != WHOLE:
        return Forked(ARGUMENTS, folder)
    return start(ARGUMENTS, folder, cache)


def finish(process: Process, folder: Path, began: float) -> Stage:
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


def compilation(session: Session) -> None:
    """(f) The stage of a single epoch: not compiled, compiled, and compiled again by another process."""
    cache = Path("compiled")
    variants = (("not compiled", False), ("compiled, cache empty", True), ("compiled, cache kept", True))
    for name, compile in session.some(variants):
        changes: Changes = {"resnet": {"epochs": 1}, "train": {"compile": compile and session.meter.compiles}}
        stage = train(session, name.replace(", ", "-").replace(" ", "-"), changes, cache)
        session.page.row(
            {"stage of one epoch": name, "start to exit, s": stage.seconds, "training, s": stage.timing.train_seconds}
        )


def whole_stage(session: Session) -> None:
    """The stage with the default parameters, its cache of compiled kernels empty."""
    epochs = session.size(100, 2)
    stage = train(session, WHOLE, {"resnet": {"epochs": epochs}})
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
    """The digest of model, metrics and history: trained once, again, and killed and resumed, compiled."""
    changes: Changes = {"resnet": {"epochs": 4}, "train": {"compile": session.meter.compiles}}
    cache, digests = Path("bytes"), set()  # kernels are compiled once, and found in the cache afterwards
    for name, trained in (("once", train), ("again", train), ("killed and resumed", _resumed)):
        stage = trained(session, name.replace(" ", "-"), changes, cache)
        session.page.row({"trained": name, "sha256": stage.digest[:16], "start to exit, s": stage.seconds})
        digests.add(stage.digest)
    if len(digests) > 1:
        raise AssertionError("the same training gave different bytes")


def _resumed(session: Session, name: str, changes: Changes, cache: Path) -> Stage:
    """A stage that is sent SIGKILL as soon as its first checkpoint is there, and run again."""
    folder, began = new_folder(name, changes), time.perf_counter()
    process, checkpoint = begin(session, folder, cache), folder / FOLDER / f"{RUN}.safetensors"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    stage = finish(begin(session, folder, cache), folder, began)
    if not killed or f"{RUN}: resumed after epoch" not in stage.log:
        raise AssertionError(f"the stage was not killed and resumed:\n{stage.log[-2000:]}")
    return stage


def precisions(session: Session) -> None:
    """Test accuracy in both precisions with several seeds, as many of them as time allows."""
    epochs, longest, differences = session.size(5, 1), 0.0, []
    for seed in session.some((42, 43, 44)):
        began = time.monotonic()
        if began + longest > session.deadline:
            session.page.write(f"No time was left for seed {seed} and those after it.")
            break
        accuracies = []
        for precision in session.meter.precisions:
            changed = {"precision": precision, "keep": "last"}
            changes: Changes = {"seed": seed, "resnet": {"epochs": epochs}, "train": changed}
            stage = train(session, f"{precision}-{seed}", changes)
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
    session.page.write(f"First precision minus second, mean over {len(differences)} seeds: {100 * mean:+.2f} points.")
