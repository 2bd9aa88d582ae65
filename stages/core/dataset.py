"""A data set as the three files that every later stage reads: train.npz, test.npz and dataset.json."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from stages.core.errors import UserError


class Split(NamedTuple):
    images: np.ndarray  # uint8, N×H×W×3
    labels: np.ndarray  # int64, N; an index into DatasetInfo.classes


class Source(NamedTuple):
    """A data set as it was read from where it comes from."""

    name: str
    sha256: str  # of what was read
    classes: list[str]
    train: Split
    test: Split


@dataclass(frozen=True)
class DatasetInfo:
    """What dataset.json holds."""

    name: str
    source: str  # data.source
    sha256: str  # of what was read
    classes: list[str]
    image_size: int  # pixels
    counts: dict[str, int]  # images in train and test
    mean: list[float]  # of the training images, per channel, pixels in [0, 1]
    std: list[float]


def describe(source: Source, kind: str) -> DatasetInfo:
    """What dataset.json says of a source.

    Raises:
        UserError: a channel of the training images has one value throughout, and so cannot be normalised.
    """
    mean, std = channel_statistics(source.train.images)
    for channel, deviation in zip(("red", "green", "blue"), std, strict=True):
        if deviation == 0:
            raise UserError(f"{source.name}: {channel} is the same in every pixel of every training image")
    counts = {"train": len(source.train.labels), "test": len(source.test.labels)}
    size = source.train.images.shape[1]
    return DatasetInfo(source.name, kind, source.sha256, source.classes, size, counts, mean, std)


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


def write_split(file: IO[bytes], split: Split) -> None:
    """Write an uncompressed .npz, whose bytes depend on the split alone."""
    np.savez(file, images=split.images, labels=split.labels)


def read_split(folder: Path, name: str, info: DatasetInfo) -> Split:
    """Read `folder/name.npz`.

    Raises:
        UserError: the file is missing, or is not what the download stage wrote together with `info`.
    """
    path = folder / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            split = Split(arrays["images"], arrays["labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); make it with `dvc repro download`") from error
    count, size = info.counts[name], info.image_size
    if (
        (split.images.shape, split.images.dtype) != ((count, size, size, 3), np.uint8)
        or (split.labels.shape, split.labels.dtype) != ((count,), np.int64)
        or not 0 <= split.labels.min() <= split.labels.max() < len(info.classes)
    ):
        raise UserError(f"{path}: not what dataset.json describes; make both with `dvc repro -f download`")
    return split


def read_info(folder: Path) -> DatasetInfo:
    """Read `folder/dataset.json`.

    Raises:
        UserError: the file is missing or is not what the download stage writes.
    """
    path = folder / "dataset.json"
    try:
        return DatasetInfo(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make it with `dvc repro download`") from error
