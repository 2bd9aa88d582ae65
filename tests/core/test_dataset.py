import dataclasses
import io
import json

import numpy as np
import pytest

from stages.core.dataset import (
    DatasetInfo,
    Source,
    Split,
    channel_statistics,
    describe,
    read_info,
    read_split,
    write_split,
)
from stages.core.errors import UserError


def random_split(count: int) -> Split:
    random = np.random.default_rng(count)
    return Split(random.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8), random.integers(0, 3, count))


def test_a_split_comes_back_as_it_was_written(tmp_path):
    split = random_split(7)
    with open(tmp_path / "train.npz", "wb") as file:
        write_split(file, split)
    back = read_split(tmp_path, "train")
    assert back.images.dtype == np.uint8
    assert back.labels.dtype == np.int64
    np.testing.assert_array_equal(back.images, split.images)
    np.testing.assert_array_equal(back.labels, split.labels)


def test_the_bytes_written_depend_on_the_split_alone():
    first, second = io.BytesIO(), io.BytesIO()
    write_split(first, random_split(7))
    write_split(second, random_split(7))
    assert first.getvalue() == second.getvalue()


def test_channel_statistics_are_numpys_over_all_pixels():
    images = random_split(50).images
    images[..., 1] //= 3
    mean, std = channel_statistics(images)
    pixels = images.reshape(-1, 3).astype(np.float64) / 255
    assert mean == pytest.approx(pixels.mean(0), abs=5.1e-5)
    assert std == pytest.approx(pixels.std(0), abs=5.1e-5)
    assert all(value == round(value, 4) for value in mean + std)


def test_a_description_counts_and_measures_and_comes_back_from_json(tmp_path):
    images = np.full((4, 6, 6, 3), [0, 51, 255], dtype=np.uint8)
    images[:2] = 0
    source = Source("toys", "ab12", ["a", "b"], Split(images, np.zeros(4, np.int64)), random_split(2))
    info = describe(source, "images")
    assert info == DatasetInfo(
        "toys", "images", "ab12", ["a", "b"], 6, {"train": 4, "test": 2}, [0.0, 0.1, 0.5], [0.0, 0.1, 0.5]
    )
    (tmp_path / "dataset.json").write_text(json.dumps(dataclasses.asdict(info)))
    assert read_info(tmp_path) == info


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_split_that_is_missing_or_foreign_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "train.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.npz: cannot be read .*dvc repro download"):
        read_split(tmp_path, "train")


def test_arrays_of_another_kind_are_refused(tmp_path):
    np.savez(tmp_path / "train.npz", images=np.zeros((2, 3)), labels=np.zeros(2, np.int64))
    with pytest.raises(UserError, match=r"train\.npz: not a split of a data set"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize("content", [None, "", "[]", '{"name": "toys"}'])
def test_a_description_that_is_missing_or_foreign_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json: cannot be read .*dvc repro download"):
        read_info(tmp_path)
