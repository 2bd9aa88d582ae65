import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from stages.datasets import digits


def test_half_of_each_digit_is_the_test_set_and_every_image_is_in_one_half():
    source = digits.read(8)
    assert source.classes == list("0123456789")
    assert (len(source.train.labels), len(source.test.labels)) == (898, 899)
    halves = [np.bincount(split.labels) for split in (source.train, source.test)]
    assert (np.abs(halves[0] - halves[1]) <= 1).all()
    larger = digits.read(32)
    assert larger.test.names.tolist() == source.test.names.tolist()  # drawn once for all
    expected = Image.fromarray(source.train.images[0]).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(larger.train.images[0], expected)
    data, target = load_digits(return_X_y=True)
    images, labels, names = (np.concatenate(both) for both in zip(source.train, source.test, strict=True))
    assert sorted(names.astype(int)) == list(range(1797))
    np.testing.assert_array_equal(labels, target[names.astype(int)])
    grey = np.round(data * 255 / 16).reshape(-1, 8, 8, 1)[names.astype(int)]
    np.testing.assert_array_equal(images, np.repeat(grey, 3, axis=3))
