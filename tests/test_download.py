import json
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from stages import download
from stages.common.errors import UserError
from stages.datasets import digits
from tests.datasets.pictures import unsplit, write
from tests.pipeline import write_params


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_digits_become_the_files_of_the_contract(stage, folder):
    write_params(folder, data__image_size=32, data__validation=0.1)
    done = stage("stages.download")
    said = "808 train, 899 test, 90 validation images, 10 classes, 32×32"
    assert (done.returncode, done.stdout) == (0, f"scikit-learn's handwritten digits: {said}\n"), done.stderr
    for name, count in (("train", 808), ("validation", 90), ("test", 899)):
        with np.load(f"data/{name}.npz") as arrays:
            assert (arrays["images"].shape, arrays["images"].dtype) == ((count, 32, 32, 3), np.uint8)
            assert (arrays["labels"].shape, arrays["labels"].dtype) == ((count,), np.int64)
            assert len(set(arrays["names"].tolist())) == count
    info = json.loads(Path("data/dataset.json").read_text())
    assert info["counts"] == {"train": 808, "test": 899, "validation": 90}
    assert (info["source"], info["image_size"], info["classes"]) == ("digits", 32, list("0123456789"))


def test_image_files_in_the_home_folder(stage, folder):
    write(folder / "home", "folder", unsplit(5), "my photos")
    write_params(folder, data__source="images", data__path="~/my photos", data__image_size=8, data__test_share=0.4)
    done = stage("stages.download", HOME=str(folder / "home"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "my photos: 6 train, 4 test images, 2 classes, 8×8"
    assert json.loads(Path("data/dataset.json").read_text())["test_share"] == 0.4


def test_a_parameter_edited_meanwhile_ends_the_stage_without_results(folder, monkeypatch):
    write_params(folder)
    source = digits.read(8)
    monkeypatch.setattr(digits, "read", lambda size: write_params(folder, data__validation=0.1) or source)
    with pytest.raises(UserError, match=r"^changed while this stage ran: the parameters\."):
        download.main(Namespace())
    assert not Path("data").exists()


@pytest.mark.parametrize("path", ["~nosuchuser/x", "/dev/zero"])
def test_a_source_that_cannot_be_read_ends_in_one_line_and_leaves_earlier_data_alone(stage, folder, path):
    write_params(folder, data__source="images", data__path=path)
    Path("data").mkdir()
    Path("data/train.npz").write_bytes(b"earlier")
    done = stage("stages.download")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert re.match(r"download: .*data\.path", done.stderr)
    assert [path.read_bytes() for path in Path("data").iterdir()] == [b"earlier"]
