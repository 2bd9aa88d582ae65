"""dvc and its trainings, disturbed: results are whole and belong to their parameters, and no work is lost."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.pipeline import Clone

TRAIN = ("dvc", "repro", "--single-item", "train@cnn")
EPOCHS = 20  # seconds of training, so that there is time to disturb it


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory) -> Clone:
    """A clone in which the longer training has run undisturbed."""
    clone = finished.copy(tmp_path_factory.mktemp("undisturbed") / "clone")
    lengthen(clone)
    clone.run(*TRAIN)
    return clone


@pytest.fixture
def clone(finished, tmp_path) -> Clone:
    """A clone in which the longer training is to run."""
    clone = finished.copy(tmp_path / "clone")
    lengthen(clone)
    return clone


def lengthen(clone: Clone) -> None:
    clone.replace("params.yaml", "cnn:\n  epochs: 1", f"cnn:\n  epochs: {EPOCHS}")


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def has_epochs(clone: Clone) -> bool:
    history = clone.folder / "plots/history/cnn.csv"
    return history.exists() and len(history.read_text().splitlines()) > 2  # grows by a row after each epoch


def training_of(clone: Clone) -> psutil.Process | None:
    """The running training."""
    for process in psutil.process_iter():
        try:
            if "stages.train" in process.cmdline() and Path(process.cwd()) == clone.folder.resolve():
                return process
        except psutil.Error:  # ended meanwhile
            continue
    return None


def same_results(clone: Clone, other: Clone) -> bool:
    names = ("models/cnn.safetensors", "metrics/train/cnn.json", "plots/history/cnn.csv")
    return all((clone.folder / name).read_bytes() == (other.folder / name).read_bytes() for name in names)


def test_parameters_edited_while_a_training_runs_are_not_credited_with_its_results(clone, trained):
    lock, params = clone.read("dvc.lock"), clone.read("params.yaml")
    process = clone.start(*TRAIN)
    wait_for(lambda: has_epochs(clone), process)
    clone.replace("params.yaml", "seed: 42", "seed: 43")
    out, err = process.communicate()
    assert process.returncode != 0, out
    lines = [line for line in err.splitlines() if line.startswith("train: ")]
    assert len(lines) == 1
    assert "changed while this stage ran: the parameters" in lines[0]
    assert "Traceback" not in err
    assert not (clone.folder / "models/cnn.safetensors").exists()
    assert clone.read("dvc.lock") == lock

    (clone.folder / "params.yaml").write_text(params)
    assert f"resumed after epoch {EPOCHS} of {EPOCHS}" in clone.run(*TRAIN)
    assert same_results(clone, trained)


def test_a_finished_training_that_dvc_could_not_store_is_not_run_again(clone, trained):
    cache = clone.folder / ".dvc/cache"
    (cache / "files").rename(cache / "aside")
    (cache / "files").write_text("no folder, so that nothing can be stored in it")
    failed = clone.attempt(*TRAIN)
    assert failed.returncode != 0
    assert "best test accuracy" in failed.stdout

    (cache / "files").unlink()
    (cache / "aside").rename(cache / "files")
    assert f"resumed after epoch {EPOCHS} of {EPOCHS}" in clone.run(*TRAIN)
    assert same_results(clone, trained)


def test_a_finished_training_is_not_run_again_when_dvc_is_killed_before_it_stored_it(clone, trained):
    lock = clone.read("dvc.lock")
    process = clone.start(*TRAIN)
    wait_for(lambda: has_epochs(clone), process)
    training = training_of(clone)
    wait_for(lambda: not training.is_running() or training.status() == psutil.STATUS_ZOMBIE, process)
    process.kill()
    process.communicate()
    assert clone.read("dvc.lock") == lock

    assert f"resumed after epoch {EPOCHS} of {EPOCHS}" in clone.run(*TRAIN)
    assert same_results(clone, trained)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_ends_with_the_dvc_that_started_it_and_is_resumed(clone, trained, by):
    process = clone.start(*TRAIN)
    wait_for(lambda: has_epochs(clone), process)
    training = training_of(clone)
    os.kill(process.pid, by)
    process.communicate()
    training.wait(timeout=10)  # raises TimeoutExpired where it goes on

    again = clone.run(*TRAIN)
    assert "resumed after epoch" in again
    assert same_results(clone, trained)
