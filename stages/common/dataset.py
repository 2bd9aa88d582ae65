"""data/: the arrays of both splits (train.npz, test.npz) and their description (dataset.json)."""

import zipfile
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from stages.common.errors import UserError, printable
from stages.common.files import read_json, replacing, write_json
from stages.common.formats import DATA, Text
from stages.common.params import Section, SourceName

PerChannel = Annotated[list[float], Field(min_length=3, max_length=3)]


class Split(NamedTuple):
    images: np.ndarray  # uint8, N×H×W×3
    labels: np.ndarray  # int64, N; an index into DatasetInfo.classes


class Counts(Section):
    train: Annotated[int, Field(ge=1)]
    test: Annotated[int, Field(ge=1)]


class DatasetInfo(Section):
    """dataset.json."""

    name: Text
    source: SourceName
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # of what was read
    classes: Annotated[list[Text], Field(min_length=2, max_length=10_000)]
    image_size: Annotated[int, Field(ge=8, le=512)]  # pixels
    counts: Counts  # images
    mean: PerChannel  # of the training images, pixels in [0, 1]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]

    @model_validator(mode="after")
    def classes_differ(self) -> "DatasetInfo":
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes has a name twice")
        return self

    def fits(self, other: "DatasetInfo") -> bool:
        """True if a model trained on one data set can be tested on the other."""
        return (self.classes, self.image_size) == (other.classes, other.image_size)


class Dataset(NamedTuple):
    info: DatasetInfo
    train: Split
    test: Split


def write_dataset(info: DatasetInfo, train: Split, test: Split, folder: Path = DATA) -> None:
    """Write the three files, whose bytes depend on the arguments alone; dataset.json comes last."""
    for name, split in (("train", train), ("test", test)):
        with replacing(folder / f"{name}.npz") as file:
            np.savez(file, images=split.images, labels=split.labels)
    write_json(folder / "dataset.json", info)


def read_info(folder: Path = DATA) -> DatasetInfo:
    """The content of dataset.json.

    Raises:
        UserError: the file is missing, or is not what the download stage writes.
    """
    return read_json(folder / "dataset.json", DatasetInfo)


def read_split(name: str, info: DatasetInfo, folder: Path = DATA) -> Split:
    """The images and labels of `train` or `test`.

    Raises:
        UserError: the file is missing, damaged, or not what the download stage wrote together with `info`.
    """
    path, count, size = folder / f"{name}.npz", getattr(info.counts, name), info.image_size
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file; make it with `dvc repro download`")
        with np.load(path, allow_pickle=False) as arrays:
            split = Split(arrays["images"], arrays["labels"])  # zipfile verifies their checksums
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read ({printable(error)}); make it with `dvc repro -f download`") from error
    if (
        (split.images.shape, split.images.dtype) != ((count, size, size, 3), np.uint8)
        or (split.labels.shape, split.labels.dtype) != ((count,), np.int64)
        or not 0 <= split.labels.min() <= split.labels.max() < len(info.classes)
    ):
        raise UserError(f"{path}: not what dataset.json describes; make both with `dvc repro -f download`")
    return split


def read_dataset(folder: Path = DATA) -> Dataset:
    """All of data/; see `read_info` and `read_split` for the errors."""
    info = read_info(folder)
    return Dataset(info, read_split("train", info, folder), read_split("test", info, folder))
