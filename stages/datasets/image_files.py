"""Image files in a folder or a tar as a data set: {train,test}/<class>/<image file>."""

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from stages.common.dataset import Split
from stages.common.errors import UserError, listed, printable
from stages.common.files import read_bytes
from stages.datasets.image import MAX_FILE_BYTES, decode
from stages.datasets.layout import LAYOUT, SPLITS, Entry, Parts, Place, find_images, is_passed_over
from stages.datasets.source import Source
from stages.datasets.tar import Tar


def read(path: Path | None, image_size: int) -> Source:
    """The images below `path`, a folder or a tar, classes and files in the order of their names.

    train/ and test/ may be in one enclosing folder; anything beside them is reported and not read. `decode` describes
    the conversion of each image. Links are followed in a folder, and refused in a tar.

    Raises:
        UserError: the path does not exist, or something in it is out of place or no image, or a class is missing or
            without images; the message names the first few such files and their number.
    """
    assert path, "params.py asks for it"
    where = printable(path)
    if not (path.is_dir() or path.is_file()):
        exists = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise UserError(f"data.path: {where} {exists}; it must be a folder or a tar of {LAYOUT}")
    try:
        reader = _Folder(path) if path.is_dir() else _Tar(path)
        places, beside = find_images(reader.entries())
        if beside:
            print(
                f"note: {where}: not read, beside train/ and test/: {listed([printable(name, 80) for name in beside])}"
            )
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
    return Source(printable(name.partition(".")[0] or name or "images"), reader.sha256, classes, **splits)


def _decoded(
    contents: Iterator[tuple[Place, bytes]], places: dict[Parts, Place], classes: list[str], size: int
) -> dict[str, Split]:
    ordered = {split: sorted(place for place in places.values() if place.split == split) for split in SPLITS}
    index = {place: i for of_split in ordered.values() for i, place in enumerate(of_split)}
    labels = {name: label for label, name in enumerate(classes)}
    splits = {
        split: Split(
            np.empty((len(of_split), size, size, 3), np.uint8),
            np.array([labels[place.label] for place in of_split], np.int64),
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

    def entries(self, parts: Parts = ()) -> Iterator[Entry]:
        """The files and folders as deep as the layout reaches, and no deeper: `path` may be the root of a machine."""
        children = sorted(child for child in self.path.joinpath(*parts).iterdir() if not is_passed_over(child.name))
        for child in children:
            below = (*parts, child.name)
            folder = child.is_dir()
            kind = "folder" if folder else "file" if child.is_file() else "special file or a broken link"
            yield Entry(below, kind, child.stat().st_size if kind == "file" else 0)
            levels = next((len(below) - level for level, name in enumerate(below, 1) if name in SPLITS), None)
            enclosing = levels is None and not parts and sum(child.is_dir() for child in children) == 1
            if folder and (enclosing or levels in (0, 1)):
                yield from self.entries(below)

    def contents(self, places: dict[Parts, Place]) -> Iterator[tuple[Place, bytes]]:
        for parts, place in tqdm(sorted(places.items(), key=lambda item: item[1]), unit=" files", disable=None):
            content = read_bytes(self.path.joinpath(*parts), MAX_FILE_BYTES, missing="no such file")
            self.contents_digest.update("/".join(place).encode("utf-8", "surrogateescape") + b"\0")
            self.contents_digest.update(hashlib.sha256(content).digest())
            yield place, content

    @property
    def sha256(self) -> str:
        return self.contents_digest.hexdigest()


class _Tar(Tar):
    def entries(self) -> Iterator[Entry]:
        for member in self.members():
            kind = "file" if member.isfile() else "folder" if member.isdir() else "link or special file"
            if parts := PurePosixPath(member.name).parts:
                yield Entry(parts, kind, member.size)

    def contents(self, places: dict[Parts, Place]) -> Iterator[tuple[Place, bytes]]:
        for member in self.members():
            place = places.get(PurePosixPath(member.name).parts)
            if place and member.isfile():
                yield place, member.content()
