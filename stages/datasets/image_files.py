"""Image files in a folder or a tar as a data set: {train,test}/<class>/<image file>."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.common.dataset import Split
from stages.common.errors import UserError, listed, printable
from stages.datasets.image import decode
from stages.datasets.source import Source

SPLITS = ("train", "test")
LAYOUT = "{train,test}/<class>/<image file>"
# What Windows, macOS, file servers and editors leave behind, in lower case; files that begin with a dot are hidden
PASSED_OVER = (
    *(".*", "*~", "~$*", "#*#", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"),
    *("$recycle.bin", "system volume information", "lost+found"),
)
MEANT = {"train": ("training",), "test": ("val", "valid", "validation", "testing", "dev")}  # other names of a split


class Entry(NamedTuple):
    """A file or folder below data.path."""

    parts: tuple[str, ...]
    kind: str  # file, folder, or what else it is
    size: int  # bytes


class Place(NamedTuple):
    split: str
    label: str  # in NFC: a Mac's copy of a folder spells accented letters otherwise
    name: str


def read(path: Path, image_size: int) -> Source:
    """The images below `path`, a folder or a tar, classes and files in the order of their names.

    The layout may lie in one enclosing folder. Names and sizes are checked before anything is decoded. `decode` says
    what becomes of each image. Links are followed in a folder, and refused in a tar.

    Raises:
        UserError: the path does not exist, or something in it is out of place or no image, or a class is missing or
            without images; the message names the first few such files and their number.
    """
    where = printable(path)
    if not (path.is_dir() or path.is_file()):
        exists = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise UserError(f"data.path: {where} {exists}; it must be a folder or a tar of {LAYOUT}")
    try:
        reader = _Folder(path) if path.is_dir() else _Tar(path)
        places = _places(reader.entries())
        classes = sorted({place.label for place in places.values()})
        splits = _decoded(reader.contents(places), places, classes, image_size)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except OSError as error:
        raise UserError(f"{printable(error.filename or path)}: cannot be read: {error.strerror}") from error
    if splits["train"].images.max() < 64:
        print(
            f"note: {where}: no training pixel is above {splits['train'].images.max()} of 255, as where 16-bit images "
            "use the lower bits alone; stretch them to the full range"
        )
    name = path.absolute().name
    return Source(printable(name.partition(".")[0] or name or "images"), reader.digest(), classes, **splits)


def _decoded(
    contents: Iterator[tuple[Place, bytes]], places: dict[tuple, Place], classes: list[str], size: int
) -> dict[str, Split]:
    ordered = {split: sorted(place for place in places.values() if place.split == split) for split in SPLITS}
    index = {place: i for of_split in ordered.values() for i, place in enumerate(of_split)}
    splits = {
        split: Split(
            np.empty((len(of_split), size, size, 3), np.uint8),
            np.array([classes.index(place.label) for place in of_split], np.int64),
        )
        for split, of_split in ordered.items()
    }
    problems = []
    for place, content in contents:
        try:
            splits[place.split].images[index[place]] = decode(content, size, printable("/".join(place)))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(listed(problems))
    return splits


class _Folder:
    def __init__(self, path: Path):
        self.path, self.contents_digest = path, hashlib.sha256()
