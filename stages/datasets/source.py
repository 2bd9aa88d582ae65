"""A data set as every source returns it, and what the sources share: resizing, describing."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from stages.common.dataset import DatasetInfo, Split
from stages.common.errors import UserError
from stages.common.params import check


class Source(NamedTuple):
    name: str
    sha256: str  # of what was read
    classes: list[str]
    train: Split
    test: Split


def describe(source: Source, kind: str) -> DatasetInfo:
    """The content of dataset.json; `kind` is the value of data.source.

    Raises:
        UserError: a channel of the training images has one value throughout, and so cannot be normalised; or there
            are more classes than a data set may have.
    """
    mean, std = channel_statistics(source.train.images)
    for channel, deviation in zip(("red", "green", "blue"), std, strict=True):
        if deviation == 0:
            raise UserError(f"{source.name}: {channel} is the same in every pixel of every training image")
    values = {
        "name": source.name,
        "source": kind,
        "sha256": source.sha256,
        "classes": source.classes,
        "image_size": source.train.images.shape[1],
        "counts": {"train": len(source.train.labels), "test": len(source.test.labels)},
        "mean": mean,
        "std": std,
    }
    return check(DatasetInfo, values, source.name)


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels in [0, 1], rounded to four places.

    Taken from the 256-bin histograms of the uint8 N×H×W×3 images, which spares a floating-point copy of them.
    """
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[3]):
        pixels = images[..., channel].ravel()
        share = np.bincount(pixels, minlength=256) / pixels.size
        average = share @ levels
        mean.append(round(float(average), 4))
        std.append(round(float(np.sqrt(share @ (levels - average) ** 2)), 4))
    return mean, std


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """N×H×W or N×H×W×3 uint8 images, resized to size×size (bicubic) where they have another size."""
    if pixels.shape[1:3] == (size, size):
        return pixels
    return np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in pixels])
