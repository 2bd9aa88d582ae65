import json
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
