import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.datasets.pictures import encoded, picture, write
from tests.pipeline import write_params


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("data").glob("[!.]*")}


def test_the_digits_become_the_files_of_the_contract(stage, folder):
    write_params(folder, data__image_size=32, data__validation=0.1)
    done = stage("stages.download")
    said = "808 training, 90 validation and 899 test images, 10 classes, 32×32"
    assert (done.returncode, done.stdout) == (0, f"scikit-learn's handwritten digits: {said}\n"), done.stderr
    for name, count in (("train", 808), ("validation", 90), ("test", 899)):
        with np.load(f"data/{name}.npz") as arrays:
            assert (arrays["images"].shape, arrays["images"].dtype) == ((count, 32, 32, 3), np.uint8)
            assert (arrays["labels"].shape, arrays["labels"].dtype) == ((count,), np.int64)
            assert len(set(arrays["names"].tolist())) == count
    info = json.loads(Path("data/dataset.json").read_text())
    assert info["counts"] == {"train": 808, "test": 899, "validation": 90}
    assert (info["source"], info["image_size"], info["classes"]) == ("digits", 32, list("0123456789"))


def test_image_files_of_another_size_in_the_home_folder(stage, folder):
    pictures = {f"{label}/{n}.png": picture(n, (20, 12)) for label in ("cat", "dog") for n in range(5)}
    write(folder / "home", "folder", {name: encoded(image) for name, image in pictures.items()}, "my photos")
    write_params(folder, data__source="images", data__path="~/my photos", data__image_size=8, data__test_share=0.4)
    done = stage("stages.download", HOME=str(folder / "home"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "my photos: 6 training and 4 test images, 2 classes, 8×8\n"
    images = {}
    for split in ("train", "test"):
        with np.load(f"data/{split}.npz") as arrays:
            images[split] = arrays["images"]
            for name, image, label in zip(arrays["names"], arrays["images"], arrays["labels"], strict=True):
                assert name.startswith(("cat", "dog")[label])
                expected = ImageOps.fit(pictures[name], (8, 8), Image.Resampling.BICUBIC)
                np.testing.assert_array_equal(image, np.asarray(expected))
    info = json.loads(Path("data/dataset.json").read_text())
    assert info["mean"] == pytest.approx(images["train"].mean((0, 1, 2)) / 255, abs=5.1e-5)
    assert info["std"] == pytest.approx(images["train"].std((0, 1, 2)) / 255, abs=5.1e-5)


@pytest.mark.parametrize("path", ["nowhere", "~nosuchuser/x", "/dev/zero", "a\0b"])
def test_a_source_that_cannot_be_read_ends_in_one_line_and_leaves_earlier_data_alone(stage, folder, path):
    write_params(folder, data__source="images", data__path=path)
    Path("data").mkdir()
    Path("data/train.npz").write_bytes(b"earlier")
    done = stage("stages.download")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("download: ")
    assert "data.path" in done.stderr
    assert files() == {"train.npz": b"earlier"}


def test_a_download_killed_at_any_moment_leaves_whole_files_and_succeeds_again(stage, folder):
    write_params(folder)
    began = time.perf_counter()
    assert stage("stages.download").returncode == 0
    seconds, expected = time.perf_counter() - began, files()
    for trial in range(2):
        for path in Path("data").iterdir():
            path.unlink()
        end = time.perf_counter() + seconds * random.Random(trial).uniform(0.5, 1.1)
        stage("stages.download", kill_when=lambda end=end: time.perf_counter() > end)
        assert files().items() <= expected.items()
    stage("stages.download", kill_when=lambda: any(Path("data").glob(".train.npz.*.tmp")))
    assert files().items() <= expected.items()
    assert stage("stages.download").returncode == 0
    assert files() == expected
