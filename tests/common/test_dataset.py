import random

import numpy as np
import pytest

from stages.common.dataset import Counts, DatasetInfo, Split, read_dataset, read_info, read_split, write_dataset
from stages.common.errors import UserError

INFO = DatasetInfo(
    name="toys",
    source="images",
    sha256="ab" * 32,
    classes=["a", "b", "c"],
    image_size=8,
    counts=Counts(train=7, test=5),
    mean=[0.5] * 3,
    std=[0.3] * 3,
)


def split(count: int) -> Split:
    random = np.random.default_rng(count)
    return Split(random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), random.integers(0, 3, count))


def test_a_data_set_comes_back_as_it_was_written_with_the_same_bytes_each_time(tmp_path):
    contents = []
    for name in ("one", "two"):
        write_dataset(INFO, split(7), split(5), tmp_path / name)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert sorted(contents[0]) == ["dataset.json", "test.npz", "train.npz"]
    assert contents[0] == contents[1]
    info, train, test = read_dataset(tmp_path / "one")
    assert info == INFO
    for ours, other in ((train, split(7)), (test, split(5))):
        assert (ours.images.dtype, ours.labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(ours.images, other.images)
        np.testing.assert_array_equal(ours.labels, other.labels)


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 cut off", b"\x93NUMPY"])
def test_a_split_that_is_missing_or_foreign_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "train.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.npz: .*dvc repro (-f )?download"):
        read_split("train", INFO, tmp_path)


IMAGES, LABELS = split(7)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES[..., :1], LABELS),
        (IMAGES[:, :5], LABELS),
        (IMAGES[0], LABELS),
        (IMAGES.astype(float), LABELS),
        (IMAGES[:6], LABELS),
        (IMAGES[:6], LABELS[:6]),
        (IMAGES[:0], LABELS[:0]),
        (IMAGES, LABELS.astype(float)),
        (IMAGES, LABELS[:, None]),
        (IMAGES, LABELS + 1),
        (IMAGES, LABELS - 1),
    ],
)
def test_arrays_that_are_not_the_described_ones_are_refused(tmp_path, images, labels):
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    with pytest.raises(UserError, match=r"train\.npz: not what dataset\.json describes"):
        read_split("train", INFO, tmp_path)


def test_no_flipped_bit_changes_an_array_unseen(tmp_path, tried):
    write_dataset(INFO, split(7), split(5), tmp_path)
    path = tmp_path / "train.npz"
    content, draw = path.read_bytes(), random.Random(1)
    for _ in range(300):
        damaged, bit = bytearray(content), draw.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read = read_split("train", INFO, tmp_path)
        except UserError:
            tried("a flipped bit of data/train.npz", "named in one line")
            continue
        tried("a flipped bit of data/train.npz", "read as it is")
        np.testing.assert_array_equal(read.images, split(7).images)  # a bit that means nothing, such as a date
        np.testing.assert_array_equal(read.labels, split(7).labels)


@pytest.mark.parametrize("content", [None, "", "[]", '{"name": "toys"}'])
def test_a_description_that_is_missing_or_foreign_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json: .*`dvc repro`"):
        read_info(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"classes": ["a", "a"]}, {"classes": ["a"]}, {"image_size": 0}, {"mean": [0.5]}, {"std": [0.0, 1.0, 1.0]}],
)
def test_a_description_of_no_data_set_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes)) + "|a name twice"):
        DatasetInfo.model_validate(INFO.model_dump() | changes)
