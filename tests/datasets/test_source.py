import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.dataset import Split
from stages.common.errors import UserError
from stages.common.params import Data
from stages.datasets.source import Source, channel_statistics, describe, drawn

DATA = Data(source="images", path="x", image_size=8, test_share=0.2, validation=0)


@pytest.fixture
def toys() -> Source:
    random = np.random.default_rng(0)

    def split(count: int, brightest: int) -> Split:
        images = random.integers(0, brightest, (count, 8, 8, 3), dtype=np.uint8)
        return Split(images, np.arange(count) % 2, np.arange(count).astype(str))

    return Source("toys", "ab" * 32, ["cat", "dog"], split(50, 100), split(20, 256), test_share=0.3)


def assert_statistics(mean: list[float], std: list[float], images: np.ndarray) -> None:
    assert mean == pytest.approx(images.mean((0, 1, 2)) / 255, abs=5.1e-5)
    assert std == pytest.approx(images.std((0, 1, 2)) / 255, abs=5.1e-5)
    assert mean == [round(value, 4) for value in mean]


def test_the_description_is_of_both_splits_and_its_statistics_are_numpys_over_the_training_images(toys):
    info, splits = describe(toys, DATA)
    assert (info.name, info.source, info.sha256, info.test_share) == ("toys", "images", "ab" * 32, 0.3)
    assert (info.image_size, info.validation) == (8, 0)
    assert info.counts.model_dump() == {"train": 50, "test": 20, "validation": 0}
    assert splits == {"train": toys.train, "test": toys.test}
    assert_statistics(info.mean, info.std, toys.train.images)
    toys.train.images[..., 1] = 7
    with pytest.raises(UserError, match="toys: a colour is the same in every pixel of every training image"):
        describe(toys, DATA)


def test_a_share_of_each_class_of_the_training_images_is_set_aside_and_does_not_count_in_the_statistics(toys):
    info, splits = describe(toys, DATA.model_copy(update={"validation": 0.2}))
    train, validation = splits["train"], splits["validation"]
    assert splits["test"] is toys.test
    assert (info.validation, info.counts.model_dump()) == (0.2, {"train": 40, "test": 20, "validation": 10})
    assert np.bincount(validation.labels).tolist() == [5, 5]
    assert sorted([*train.names, *validation.names], key=int) == toys.train.names.tolist()
    for split in (train, validation):
        rows = split.names.astype(int)
        assert rows.tolist() == sorted(rows)
        np.testing.assert_array_equal(split.images, toys.train.images[rows])
        np.testing.assert_array_equal(split.labels, toys.train.labels[rows])
    assert_statistics(info.mean, info.std, train.images)


def test_statistics_are_counted_in_little_memory_over_all_blocks():
    images = np.random.default_rng(0).integers(0, 256, (20, 512, 512, 3), dtype=np.uint8)
    images[16:] //= 4  # the last block is darker
    tracemalloc.start()
    mean, std = channel_statistics(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22 * 8 * 1.5  # a channel of a block, as int64
    assert_statistics(mean, std, images)


@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.floats(0.01, 0.99), st.randoms(use_true_random=False))
def test_the_share_drawn_is_of_each_class_and_the_same_in_any_order(labels, share, random):
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3, *labels])
    names = np.array([f"{label}/{i}" for i, label in enumerate(labels)])
    chosen = drawn(labels, names, share)
    for count, wanted in zip(np.bincount(labels), np.bincount(labels[chosen], minlength=4), strict=True):
        assert abs(wanted - min(max(share * count, 1), count - 1)) <= 0.5
    order = random.sample(range(len(labels)), len(labels))
    np.testing.assert_array_equal(drawn(labels[order], names[order], share), chosen[order])
