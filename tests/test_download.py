import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline import DEFAULTS


def set_params(source: str, path: object = "null") -> None:
    text = DEFAULTS.read_text().replace("source: cifar10", f"source: {source}")
    Path("params.yaml").write_text(text.replace("path: null", f"path: {path}"))


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("data").glob("[!.]*")}


@pytest.fixture(scope="module")
def undisturbed(stage, tmp_path_factory) -> tuple[dict[str, bytes], float, str]:
    """The files of a download that nothing disturbs, how many seconds it takes, and what it prints."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("undisturbed"))
    try:
        set_params("digits")
        began = time.perf_counter()
        done = stage("stages.download")
        assert done.returncode == 0, done.stderr
        return files(), time.perf_counter() - began, done.stdout
    finally:
        os.chdir(here)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_digits_become_the_three_files_of_the_contract(undisturbed):
    contents, _, said = undisturbed
    assert said == "scikit-learn's handwritten digits: 898 training and 899 test images, 10 classes, 32×32\n"
    for name, content in contents.items():
        Path(name).write_bytes(content)
    for name, count in (("train", 898), ("test", 899)):
        with np.load(f"{name}.npz") as arrays:
            assert (arrays["images"].shape, arrays["images"].dtype) == ((count, 32, 32, 3), np.uint8)
            assert (arrays["labels"].shape, arrays["labels"].dtype) == ((count,), np.int64)
    info = json.loads(contents["dataset.json"])
    assert info["source"] == "digits"
    assert info["counts"] == {"train": 898, "test": 899}
    assert info["classes"] == list("0123456789")
    assert list(info) == ["name", "source", "sha256", "classes", "image_size", "counts", "mean", "std"]


@pytest.mark.parametrize("path", ["nowhere", "~nosuchuser/x", "/dev/zero"])
def test_a_source_that_cannot_be_read_ends_in_one_line_and_leaves_earlier_data_alone(stage, path):
    set_params("images", path)
    Path("data").mkdir()
    Path("data/train.npz").write_bytes(b"earlier")
    done = stage("stages.download")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"download: data.path: {path} ")
    assert files() == {"train.npz": b"earlier"}


@pytest.mark.parametrize("trial", [*range(2), *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 24))])
def test_a_download_killed_at_any_moment_leaves_whole_files_and_succeeds_again(stage, undisturbed, trial):
    expected, seconds, _ = undisturbed
    set_params("digits")
    end = time.perf_counter() + seconds * random.Random(trial).uniform(0.5, 1.1)
    stage("stages.download", kill_when=lambda: time.perf_counter() > end)
    assert files().items() <= expected.items()
    assert stage("stages.download").returncode == 0
    assert files() == expected


def test_a_download_killed_while_it_writes_a_file_leaves_no_half_of_it_and_the_next_clears_up(stage, undisturbed):
    expected, _, _ = undisturbed
    set_params("digits")
    stage("stages.download", kill_when=lambda: any(Path("data").glob(".train.npz.*.tmp")))
    assert files().items() <= expected.items()
    assert stage("stages.download").returncode == 0
    assert {path.name: path.read_bytes() for path in Path("data").iterdir()} == expected
