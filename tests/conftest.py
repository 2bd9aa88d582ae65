import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from stages.common.dataset import Counts, DatasetInfo, Split, write_dataset
from tests.pipeline import Clone, write_params

settings.register_profile("any machine", deadline=None, print_blob=True)  # a busy machine is no fault
settings.load_profile("any machine")

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that need a GPU where there is none."""
    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("cuda")])
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]


@pytest.fixture(scope="session")
def stage() -> Callable[..., subprocess.CompletedProcess]:
    """Run a stage as DVC does, in a process of its own in the current folder, on the CPU; of PYTHONPATH's project."""

    def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
        # A GPU would change what the tests of processes compare, and is not shared among several
        settings = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | environment
        return subprocess.run(
            [sys.executable, "-m", *command], env=os.environ | settings, capture_output=True, text=True
        )

    return run


@pytest.fixture(scope="session")
def prepare() -> Callable[..., None]:
    """Write small random data of two classes, and parameters for small models, into the current folder."""

    def write(size: int = 8, train: int = 40, test: int = 20, **changes: object) -> None:
        random = np.random.default_rng(0)

        def noise(count: int) -> Split:
            images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
            return Split(images, random.integers(0, 2, count), np.arange(count).astype(str))

        info = DatasetInfo(
            name="noise",
            source="images",
            sha256="ab" * 32,
            classes=["cat", "dog"],
            image_size=size,
            counts=Counts(train=train, test=test, validation=0),
            mean=[0.5, 0.5, 0.5],
            std=[0.29, 0.29, 0.29],
        )
        write_dataset(info, {"train": noise(train), "test": noise(test)})
        small = {"train__batch_size": 16, "train__learning_rate": 0.01, "cnn__epochs": 2, "resnet__epochs": 2}
        small |= {"data__source": "images", "data__path": "images", "data__image_size": size}
        write_params(Path.cwd(), **small | changes)

    return write


@pytest.fixture
def workspace(tmp_path, monkeypatch, prepare) -> Path:
    """An empty project: a folder with small data and parameters, and the current one."""
    monkeypatch.chdir(tmp_path)
    prepare()
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id) -> Clone:
    """A clone in which `make demo` has run with the small experiment, for reading and copying; `said` is its output."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent  # pytest-xdist's workers share one
    said = shared / "finished.txt"
    with FileLock(shared / "finished.lock"):
        if said.exists():
            clone = Clone(shared / "finished")
        else:
            clone = Clone.of_work_tree(shared / "finished")
            theirs = clone.run("git", "commit-tree", "HEAD^{tree}", "-m", "the branch demo of somebody else").strip()
            clone.run("git", "remote", "add", "upstream", ".")
            clone.run("git", "update-ref", "refs/remotes/upstream/demo", theirs)
            done = clone.attempt("make", "--no-print-directory", "demo", "DEMO=seed=43")
            assert done.returncode == 0, done.stdout + done.stderr
            said.write_text(done.stdout + done.stderr)
    clone.said = said.read_text()
    return clone


@pytest.fixture(scope="module")
def clone(finished, tmp_path_factory) -> Clone:
    """A copy of the small experiment for tests that leave it as it was."""
    return finished.copy(tmp_path_factory.mktemp("pipeline") / "clone")
