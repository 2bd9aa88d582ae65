"""dvc and its trainings, disturbed: results belong to their parameters, and no work is lost."""

import shutil
import subprocess
from collections.abc import Callable

import pytest

from tests.pipeline import ROOT, Clone, write_params
from tests.warm import until

EPOCHS, BATCHES = 10, 4
AGAIN = f"mine: resumed after epoch {EPOCHS} of {EPOCHS}"
MODEL, HISTORY = "models/mine.safetensors", "plots/history/mine.csv"
CHECKPOINT = ".cache/training/mine.safetensors"


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Clone:
    """A clone with one run, of a model of its own, and with data."""
    clone = Clone.of_work_tree(tmp_path_factory.mktemp("start") / "clone")
    shutil.copy(ROOT / "tests/mine.py", clone.folder / "stages/models")
    runs = {"mine": {"model": "mine", "weight_decay": "train.weight_decay"}}
    write_params(clone.folder, runs=runs, compare={}, mine={"epochs": EPOCHS, "outputs": 10})
    clone.run("dvc", "repro", "download")
    return clone


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory) -> Clone:
    """The same after a training that nothing disturbed."""
    clone = start.copy(tmp_path_factory.mktemp("trained") / "clone")
    assert "mine  1/10  loss" in clone.run("dvc", "repro", "train@mine")
    return clone


@pytest.fixture
def clone(start, tmp_path) -> Clone:
    """The same, to be disturbed."""
    return start.copy(tmp_path / "clone")


def same_results(clone: Clone, other: Clone) -> bool:
    return all((clone.folder / name).read_bytes() == (other.folder / name).read_bytes() for name in (MODEL, HISTORY))


def wait_for(process: subprocess.Popen, condition: Callable[[], object]) -> None:
    until(lambda: condition() or process.poll() is not None)
    assert process.poll() is None, process.communicate()


def held_in_epoch_2(clone: Clone) -> subprocess.Popen:
    """Start dvc, as in a terminal of its own, and wait until its training has finished an epoch and waits."""
    (clone.folder / "hold").write_text(str(BATCHES + 1))
    pipe = subprocess.PIPE
    command = ("dvc", "repro", "train@mine")
    process = subprocess.Popen(
        command, cwd=clone.folder, env=clone.env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    wait_for(process, (clone.folder / "held").exists)
    assert (clone.folder / CHECKPOINT).exists()
    return process


def test_a_training_that_outlives_its_dvc_is_not_run_again_even_after_evaluate_by_hand(clone, trained):
    process = held_in_epoch_2(clone)
    process.kill()
    (clone.folder / "hold").unlink()
    process.communicate()  # until the training, which has its streams, ends too
    assert (clone.folder / MODEL).exists()
    assert "train@mine" not in clone.read("dvc.lock")

    assert "test images are right" in clone.run("python", "-m", "stages.evaluate")
    assert AGAIN in clone.run("dvc", "repro", "train@mine")
    assert same_results(clone, trained)


def test_parameters_edited_between_two_stages_are_refused_by_the_next_and_force_trains_again(clone, trained):
    """The edit comes after the last look of the training at its parameters, and before DVC writes them down."""
    process = clone.start("dvc", "repro", "evaluate")
    wait_for(process, (clone.folder / MODEL).exists)
    clone.replace("params.yaml", "seed: 42", "seed: 43")
    out, err = process.communicate()
    assert process.returncode != 0, out
    (line,) = [line for line in err.splitlines() if line.startswith("evaluate: ")]
    assert line.startswith(
        f"evaluate: {MODEL}: trained with seed 42, params.yaml has 43; run `dvc repro`, with --force"
    )
    assert "Traceback" not in err
    assert not (clone.folder / "metrics/accuracy.json").exists()

    clone.replace("params.yaml", "seed: 43", "seed: 42")
    forced = clone.run("dvc", "repro", "--force", "--single-item", "train@mine")
    assert "mine  1/10  loss" in forced
    assert "resumed" not in forced
    assert same_results(clone, trained)
