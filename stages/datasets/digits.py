"""scikit-learn's handwritten digits: 1,797 real images of 8×8 pixels, without network."""

import hashlib

import numpy as np

from stages.common.dataset import Split
from stages.datasets.source import Source, check_memory, resized


def read(image_size: int) -> Source:
    """Return the digits (UCI Optical Recognition of Handwritten Digits, 17 grey levels).

    Half of each digit is the test set, 899 images, so that differences between models can show in it. The halves are
    drawn once for all: they are the same ones whatever the experiment's seed. An image's name is its number in
    scikit-learn's order.
    """
    from sklearn.datasets import load_digits  # here, because no other source needs it
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    check_memory(len(labels), image_size)
    pixels = resized(np.repeat(grey[..., None], 3, axis=3), image_size)  # N×H×W×3
    halves = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=0)
    train, test = (Split(pixels[half], labels[half], half.astype(str)) for half in halves)
    digest = hashlib.sha256(grey.tobytes() + labels.tobytes()).hexdigest()
    return Source("scikit-learn's handwritten digits", digest, [str(digit) for digit in range(10)], train, test)
