import contextlib
import json
import random
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from stages import download
from stages.core.errors import UserError

DEFAULTS = Path(__file__).parents[1] / "params.yaml"


def set_params(folder: Path, source: str, path: Path | None = None) -> None:
    text = DEFAULTS.read_text().replace("source: cifar10", f"source: {source}")
    (folder / "params.yaml").write_text(text.replace("path: null", f"path: {path or 'null'}"))


def test_the_digits_become_the_three_files_of_the_contract(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    set_params(tmp_path, "digits")
    download.main(Namespace())
    assert sorted(path.name for path in Path("data").iterdir()) == ["dataset.json", "test.npz", "train.npz"]
    for name, count in (("train", 1437), ("test", 360)):
        with np.load(f"data/{name}.npz") as arrays:
            assert (arrays["images"].shape, arrays["images"].dtype) == ((count, 32, 32, 3), np.uint8)
            assert (arrays["labels"].shape, arrays["labels"].dtype) == ((count,), np.int64)
    info = json.loads(Path("data/dataset.json").read_text())
    assert info["source"] == "digits"
    assert info["counts"] == {"train": 1437, "test": 360}
    assert info["classes"] == list("0123456789")
    assert set(info) == {"name", "source", "sha256", "classes", "image_size", "counts", "mean", "std"}
    assert "1,437 training and 360 test images, 10 classes, 32×32" in capsys.readouterr().out


def test_downloading_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    set_params(tmp_path, "digits")
    written = []
    for _ in range(2):
        download.main(Namespace())
        written.append({path.name: path.read_bytes() for path in Path("data").iterdir()})
    assert written[0] == written[1]


def test_a_source_that_cannot_be_read_leaves_earlier_data_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    set_params(tmp_path, "images", tmp_path / "nowhere")
    Path("data").mkdir()
    Path("data/train.npz").write_bytes(b"earlier")
    with pytest.raises(UserError, match="nowhere does not exist"):
        download.main(Namespace())
    assert {path.name: path.read_bytes() for path in Path("data").iterdir()} == {"train.npz": b"earlier"}


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("data").glob("[!.]*")}


@pytest.fixture(scope="module")
def undisturbed(stage, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    """The files of a download that nothing disturbs, and how many seconds it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with contextlib.chdir(folder):
        set_params(folder, "digits")
        began = time.perf_counter()
        assert stage("stages.download").returncode == 0
        return files(), time.perf_counter() - began


@pytest.mark.parametrize("trial", [*range(3), *(pytest.param(i, marks=pytest.mark.slow) for i in range(3, 24))])
def test_a_download_killed_at_any_moment_leaves_whole_files_and_succeeds_again(
    tmp_path, monkeypatch, stage, undisturbed, trial
):
    expected, seconds = undisturbed
    monkeypatch.chdir(tmp_path)
    set_params(tmp_path, "digits")
    end = time.perf_counter() + seconds * random.Random(trial).uniform(0.5, 1.1)
    stage("stages.download", kill_when=lambda: time.perf_counter() > end)
    assert files().items() <= expected.items()
    assert stage("stages.download").returncode == 0
    assert files() == expected


@pytest.mark.parametrize("name", ["train.npz", "test.npz", "dataset.json"])
def test_a_download_killed_while_it_writes_a_file_leaves_no_half_of_it(tmp_path, monkeypatch, stage, undisturbed, name):
    expected, _ = undisturbed
    monkeypatch.chdir(tmp_path)
    set_params(tmp_path, "digits")
    stage("stages.download", kill_when=Path(f"data/.{name}.tmp").exists)
    assert files().items() <= expected.items()
    assert stage("stages.download").returncode == 0
    assert {path.name: path.read_bytes() for path in Path("data").iterdir()} == expected
