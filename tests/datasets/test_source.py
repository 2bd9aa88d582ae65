import numpy as np
import pytest

from stages.common.dataset import Split
from stages.common.errors import UserError
from stages.datasets.source import Source, channel_statistics, describe


def source(images: np.ndarray, classes: tuple[str, ...] = ("a", "b")) -> Source:
    split = Split(images, np.arange(len(images)) % 2)
    return Source("toys", "ab" * 32, list(classes), split, Split(images[:2], np.array([0, 1])))


def test_mean_and_deviation_are_those_of_numpy_over_all_training_pixels():
    images = np.random.default_rng(0).integers(0, 256, (50, 9, 9, 3), dtype=np.uint8)
    mean, std = channel_statistics(images)
    pixels = images.reshape(-1, 3) / 255
    assert mean == pytest.approx(pixels.mean(0), abs=5.1e-5)
    assert std == pytest.approx(pixels.std(0), abs=5.1e-5)
    assert mean == [round(value, 4) for value in mean]


def test_the_description_counts_both_splits():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    info = describe(source(images), "images")
    assert (info.counts.train, info.counts.test, info.image_size, info.source) == (6, 2, 8, "images")


def test_a_channel_of_one_value_cannot_be_normalised():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    images[..., 1] = 7
    with pytest.raises(UserError, match="toys: green is the same in every pixel of every training image"):
        describe(source(images), "images")
