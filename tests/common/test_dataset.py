from pathlib import Path

import numpy as np
import pytest

from stages.common.dataset import Counts, DatasetInfo, Split, read_dataset, read_info, read_split, write_dataset
from stages.common.errors import UserError

INFO = DatasetInfo(
    name="toys", source="images", sha256="ab" * 32, classes=["a", "b", "c"], image_size=8,
    counts=Counts(train=7, test=5, validation=3), mean=[0.5] * 3, std=[0.3] * 3,
)  # fmt: skip


def split(count: int) -> Split:
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return Split(images, random.integers(0, 3, count), np.array([f"a/kätzchen {i}.jpg" for i in range(count)]))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


SPLITS = {"train": split(7), "test": split(5), "validation": split(3)}


def test_a_data_set_comes_back_as_it_was_written_with_the_same_bytes_each_time():
    written = []
    for _ in range(2):
        write_dataset(INFO, SPLITS)
        written.append({path: path.read_bytes() for path in Path("data").iterdir()})
    assert written[0] == written[1]
    assert read_info() == INFO
    for name, expected in SPLITS.items():
        for one, two in zip(read_split(name, INFO), expected, strict=True):
            np.testing.assert_array_equal(one, two, strict=True)
    assert [len(split.labels) for split in read_dataset()[1:]] == [7, 3]
    write_dataset(INFO.model_copy(update={"counts": Counts(train=7, test=5, validation=0)}), SPLITS)
    assert [len(split.labels) for split in read_dataset()[1:]] == [7, 5]


CHANGES = {b"objects": {"names": np.array([None] * 7)}, b"fewer": {"labels": np.zeros(5, int)}}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"flipped", b"other", *CHANGES])
def test_a_split_that_is_damaged_or_foreign_is_named(content):
    write_dataset(INFO, SPLITS)
    path, test = Path("data/train.npz"), Path("data/test.npz").read_bytes()
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes({b"flipped": flipped, b"other": test}.get(content, content))
    if content in CHANGES:
        np.savez(path, **SPLITS["train"]._asdict() | CHANGES[content])
    with pytest.raises(UserError, match=r"^data/train\.npz: .*`dvc repro"):
        read_split("train", INFO)
