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


def info_of(count: int) -> DatasetInfo:
    counts = {"train": count, "test": count}
    return DatasetInfo("toys", "images", "ab12", ["a", "b", "c"], 6, counts, [0.5] * 3, [0.3] * 3)


def test_a_split_comes_back_as_it_was_written(tmp_path):
    split = random_split(7)
    with open(tmp_path / "train.npz", "wb") as file:
        write_split(file, split)
    back = read_split(tmp_path, "train", info_of(7))
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
    images = np.full((4, 6, 6, 3), [102, 51, 255], dtype=np.uint8)
    images[:2] = 0
    source = Source("toys", "ab12", ["a", "b"], Split(images, np.zeros(4, np.int64)), random_split(2))
    info = describe(source, "images")
    assert info == DatasetInfo(
        "toys", "images", "ab12", ["a", "b"], 6, {"train": 4, "test": 2}, [0.2, 0.1, 0.5], [0.2, 0.1, 0.5]
    )
    (tmp_path / "dataset.json").write_text(json.dumps(dataclasses.asdict(info)))
    assert read_info(tmp_path) == info


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_split_that_is_missing_or_foreign_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "train.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.npz: cannot be read .*dvc repro download"):
        read_split(tmp_path, "train", info_of(7))


IMAGES, LABELS = random_split(7)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES[..., :1], LABELS),
        (IMAGES[:, :5], LABELS),
        (IMAGES[0], LABELS),
        (IMAGES.astype(float), LABELS),
        (IMAGES[:6], LABELS),
        (IMAGES[:6], LABELS[:6]),
        (IMAGES, LABELS.astype(float)),
        (IMAGES, LABELS[:, None]),
        (IMAGES, LABELS + 1),
        (IMAGES, LABELS - 1),
    ],
)
def test_arrays_that_are_not_the_described_ones_are_refused(tmp_path, images, labels):
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    with pytest.raises(UserError, match=r"train\.npz: not what dataset\.json describes"):
        read_split(tmp_path, "train", info_of(7))


def test_a_channel_without_variation_is_named():
    split = random_split(7)
    split.images[..., 1] = 9
    with pytest.raises(UserError, match="toys: green is the same in every pixel"):
        describe(Source("toys", "ab12", ["a", "b", "c"], split, split), "images")


@pytest.mark.parametrize("content", [None, "", "[]", '{"name": "toys"}'])
def test_a_description_that_is_missing_or_foreign_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json: cannot be read .*dvc repro download"):
        read_info(tmp_path)
