"""A data set as every source returns it, and what the sources share: memory, resizing, dividing, describing."""

import hashlib
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image

from stages.common.dataset import Counts, DatasetInfo, Split
from stages.common.errors import UserError, printable
from stages.common.params import Data

BLOCK = 2**22  # pixels counted at a time, since np.bincount makes eight bytes of each


class Source(NamedTuple):
    name: str
    sha256: str  # of what was read
    classes: list[str]
    train: Split
    test: Split
    test_share: float | None = None  # of each class that was drawn as test images


def describe(source: Source, data: Data) -> tuple[DatasetInfo, dict[str, Split]]:
    """Return the content of dataset.json, and the splits by name: train, test, and validation if `data` asks for it.

    Raises:
        UserError: a channel of the training images has one value throughout, and so cannot be normalised; or a class
            has too few images for a validation set.
    """
    splits = {"train": source.train, "test": source.test}
    if data.validation:
        check_memory(len(source.train.labels), data.image_size)  # once more: both parts are copies
        aside = drawn(np.array(source.classes)[source.train.labels], source.train.names, data.validation)
        splits["train"] = Split(*(array[~aside] for array in source.train))
        splits["validation"] = Split(*(array[aside] for array in source.train))
    mean, std = channel_statistics(splits["train"].images)
    if 0 in std:
        raise UserError(f"{source.name}: a colour is the same in every pixel of every training image")
    info = DatasetInfo(
        **data.model_dump(include={"source", "image_size", "validation"}),
        name=source.name,
        sha256=source.sha256,
        classes=source.classes,
        test_share=source.test_share,
        counts=Counts(**{"validation": 0} | {name: len(split.labels) for name, split in splits.items()}),
        mean=mean,
        std=std,
    )
    return info, splits


def drawn(labels: np.ndarray, names: np.ndarray, share: float) -> np.ndarray:
    """Draw a share of the images of each class, at least one and not all: bool N.

    The draw follows from the names alone, by their digests, so it is the same one whatever the seed.

    Args:
        labels: the class of each image, N.
        names: the name of each image, which occurs once.

    Raises:
        UserError: a class has one image.
    """
    chosen = np.zeros(len(labels), bool)
    order = np.argsort([hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest() for name in names])
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        if len(of_class) < 2:
            raise UserError(f"class {printable(label)} has one image; to set a share of it aside, it needs two or more")
        chosen[of_class[: min(max(round(share * len(of_class)), 1), len(of_class) - 1)]] = True
    return chosen


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel over all pixels in [0, 1], rounded to four places.

    Taken from the histograms of the uint8 N×H×W×3 images, which spares a floating-point copy of them.
    """
    counts, pixels = np.zeros((3, 256), np.int64), images.reshape(-1, 3)
    for start in range(0, len(pixels), BLOCK):
        for channel in range(3):
            counts[channel] += np.bincount(pixels[start : start + BLOCK, channel], minlength=256)
    shares, levels = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = shares @ levels
    std = np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(1))
    return [round(value, 4) for value in mean.tolist()], [round(value, 4) for value in std.tolist()]


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize N×H×W×3 uint8 images to size×size (bicubic) where they have another size."""
    if pixels.shape[1:3] == (size, size):
        return pixels
    images = np.empty((len(pixels), size, size, 3), np.uint8)
    for i, given in enumerate(pixels):
        images[i] = np.asarray(Image.fromarray(given).resize((size, size), Image.Resampling.BICUBIC))
    return images


def check_memory(count: int, size: int) -> None:
    """Raise a UserError if `count` images of size×size RGB pixels do not fit into the memory that is free."""
    free = psutil.virtual_memory().available
    if (needed := count * size**2 * 3) > free:
        memory = f"{needed / 2**30:,.1f} GiB of memory, {free / 2**30:,.1f} GiB are free"
        raise UserError(f"{count:,} images of {size}×{size} pixels need {memory}; set data.image_size to less")
