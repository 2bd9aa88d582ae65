"""data/: the arrays of each split (train.npz, test.npz, validation.npz) and their description (dataset.json)."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from stages.common.errors import UserError, printable
from stages.common.files import DATA, Record, parse_json, read_bytes, replacing, write_json
from stages.common.params import PositiveInt, SourceName

DATASET = DATA / "dataset.json"
Read = Callable[[Path], bytes]  # of a file; `Inputs.read` in a stage


class Split(NamedTuple):
    images: np.ndarray  # uint8, N×H×W×3
    labels: np.ndarray  # int64, N; an index into DatasetInfo.classes
    names: np.ndarray  # str, N; the file of each image, such as cat/0001.jpg, or its number


class Counts(Record):
    train: PositiveInt
    test: PositiveInt
    validation: Annotated[int, Field(ge=0)]


class DatasetInfo(Record):
    """dataset.json."""

    name: str
    source: SourceName
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # of what was read
    classes: Annotated[list[str], Field(min_length=2)]
    image_size: Annotated[int, Field(ge=8, le=512)]  # pixels
    test_share: float | None = None  # of each class that was drawn as test images; None where they came with a split
    validation: float = 0  # share of each class of the training images that was set aside
    counts: Counts  # images
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]  # of the training images, pixels in [0, 1]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]


class Dataset(NamedTuple):
    """What a training reads."""

    info: DatasetInfo
    train: Split
    held_out: Split  # the validation images if there are any, else the test images


def write_dataset(info: DatasetInfo, splits: dict[str, Split]) -> None:
    """Write a file for each split, then dataset.json. Their bytes depend on the arguments alone."""
    for name, split in splits.items():
        with replacing(DATA / f"{name}.npz") as file:
            np.savez(file, **split._asdict())
    write_json(DATASET, info)


def read_info(read: Read = read_bytes) -> DatasetInfo:
    """Read dataset.json.

    Raises:
        UserError: the file is missing, or is not what the download stage writes.
    """
    return parse_json(read(DATASET), DatasetInfo, DATASET)


def read_split(name: str, info: DatasetInfo, read: Read = read_bytes) -> Split:
    """Read the images, labels and names of `train`, `test` or `validation` from the bytes that `read` returns.

    Raises:
        UserError: the file is missing, damaged, or not what the download stage wrote together with `info`.
    """
    content = read(path := DATA / f"{name}.npz")
    shape = (getattr(info.counts, name), info.image_size, info.image_size, 3)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            split = Split(*(arrays[field] for field in Split._fields))  # zipfile verifies their checksums
    except Exception as error:  # damaged bytes bring exceptions of any kind out of the readers
        raise UserError(f"{path}: cannot be read ({printable(error)}); make it with `dvc repro -f download`") from error
    if [(array.dtype.kind, array.shape) for array in split] != [("u", shape), ("i", shape[:1]), ("U", shape[:1])]:
        raise UserError(f"{path}: not what dataset.json describes; make both with `dvc repro -f download`")
    return split


def read_dataset(read: Read = read_bytes) -> Dataset:
    """Read what a training needs: the test images only where there are no validation images."""
    info = read_info(read)
    return Dataset(info, read_split("train", info, read), read_split(held_out_name(info), info, read))


def held_out_name(info: DatasetInfo) -> str:
    """Return the name of the split on which epochs are compared."""
    return "validation" if info.counts.validation else "test"
