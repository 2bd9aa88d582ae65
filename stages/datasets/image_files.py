"""Image files in a folder or a tar as a data set: {train,test}/<class>/<image file>."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from stages.common.dataset import Split
from stages.common.errors import UserError, listed, printable
from stages.datasets.image import MAX_FILE_BYTES, decode
from stages.datasets.source import Source, read_file
from stages.datasets.tar import Tar

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


def read(path: Path | None, image_size: int) -> Source:
    """The images below `path`, a folder or a tar, classes and files in the order of their names.

    The layout may lie in one enclosing folder. Names and sizes are checked before anything is decoded. `decode` says
    what becomes of each image. Links are followed in a folder, and refused in a tar.

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


def _places(entries: Iterable[Entry]) -> dict[tuple[str, ...], Place]:
    """The place of each image, by the parts of its path.

    Raises:
        UserError: something is out of place.
    """
    found = [entry for entry in entries if not any(map(_is_passed_over, entry.parts))]
    tops = {entry.parts[0] for entry in found}
    depth = 0 if tops & {*SPLITS} or len(tops) != 1 else 1  # one enclosing folder
    places: dict[tuple[str, ...], Place] = {}
    folders: set[tuple[str, ...]] = set()
    taken: set[Place] = set()
    problems = []
    for entry in found:
        parts = entry.parts[depth:]
        problem = _problem(entry, parts)
        if problem:
            problems.append(f"{printable('/'.join(entry.parts))}: {problem}")
        elif entry.kind == "folder":
            folders.add(tuple(unicodedata.normalize("NFC", part) for part in parts))
        else:
            place = Place(parts[0], unicodedata.normalize("NFC", parts[1]), parts[2])
            if place in taken:
                problems.append(f"{printable('/'.join(entry.parts))}: stands in it twice")
            taken.add(place)
            places[entry.parts] = place
    _check_splits({entry.parts[depth] for entry in found if len(entry.parts) > depth})
    if problems:
        raise UserError(f"{listed(problems)}; data.path must hold {LAYOUT}")
    _check_classes({*places.values()}, folders)
    return places


def _problem(entry: Entry, parts: tuple[str, ...]) -> str:
    """The reason why this entry, `parts` below the layout's root, does not belong there; empty if it does."""
    if entry.kind not in ("file", "folder"):
        return f"a {entry.kind}; only files and folders are read"
    if parts and (parts[0] not in SPLITS or len(parts) > 3 or (len(parts) == 3) != (entry.kind == "file")):
        return "out of place"
    if not parts and entry.kind == "file":
        return "out of place"
    if (
        len(parts) > 1 and not parts[1].isprintable()
    ):  # nor can it be written as UTF-8 where it holds bytes that are none
        return "the name of this class cannot be printed; rename it"
    if entry.size > MAX_FILE_BYTES:
        return f"{entry.size:,} bytes are more than an image file may have"
    return ""


def _check_splits(names: set[str]) -> None:
    for split in SPLITS:
        if split not in names:
            other = [name for name in sorted(names) if name.lower() in (split, *MEANT[split])]
            advice = f"{printable(other[0])}/ is there: rename it to {split}" if other else f"it must hold {LAYOUT}"
            raise UserError(f"no {split}/ in it; {advice}")


def _check_classes(places: set[Place], folders: set[tuple[str, ...]]) -> None:
    classes = {split: {place.label for place in places if place.split == split} for split in SPLITS}
    empty = sorted("/".join(parts) for parts in folders if len(parts) == 2 and parts[1] not in classes[parts[0]])
    if empty:
        raise UserError(f"classes without an image: {listed([printable(name) for name in empty])}")
    for one, other in (SPLITS, SPLITS[::-1]):
        alone = sorted(classes[one] - classes[other])
        if alone:
            raise UserError(f"classes in {one}/ that {other}/ lacks: {listed([printable(name) for name in alone])}")
    if len(classes["train"]) < 2:
        raise UserError(f"one class, {', '.join(map(printable, classes['train']))}; a classifier needs two or more")


def _is_passed_over(name: str) -> bool:
    return name != ".." and any(fnmatchcase(name.lower(), pattern) for pattern in PASSED_OVER)


class _Folder:
    def __init__(self, path: Path):
        self.path, self.contents_digest = path, hashlib.sha256()

    def entries(self, parts: tuple[str, ...] = ()) -> Iterator[Entry]:
        """The files and folders as deep as the layout reaches, and no deeper: `path` may be the root of a machine."""
        children = sorted(child for child in self.path.joinpath(*parts).iterdir() if not _is_passed_over(child.name))
        for child in children:
            below = (*parts, child.name)
            folder = child.is_dir()
            kind = "folder" if folder else "file" if child.is_file() else "special file or a broken link"
            yield Entry(below, kind, 0 if folder or kind != "file" else child.stat().st_size)
            levels = next((len(below) - level for level, name in enumerate(below, 1) if name in SPLITS), None)
            enclosing = levels is None and len(children) == 1 and not parts
            if folder and (enclosing or levels in (0, 1)):
                yield from self.entries(below)

    def contents(self, places: dict[tuple[str, ...], Place]) -> Iterator[tuple[Place, bytes]]:
        for parts, place in tqdm(sorted(places.items(), key=lambda item: item[1]), unit=" files", disable=None):
            content = read_file(self.path.joinpath(*parts), MAX_FILE_BYTES)
            self.contents_digest.update("/".join(place).encode("utf-8", "surrogateescape") + b"\0")
            self.contents_digest.update(hashlib.sha256(content).digest())
            yield place, content

    def digest(self) -> str:
        return self.contents_digest.hexdigest()


class _Tar:
    def __init__(self, path: Path):
        self.tar = Tar(path)

    def entries(self) -> Iterator[Entry]:
        for member in self.tar.members():
            kind = "file" if member.isfile() else "folder" if member.isdir() else "link or special file"
            if parts := PurePosixPath(member.name).parts:
                yield Entry(parts, kind, member.size)

    def contents(self, places: dict[tuple[str, ...], Place]) -> Iterator[tuple[Place, bytes]]:
        for member in self.tar.members():
            place = places.get(PurePosixPath(member.name).parts)
            if place and member.isfile():
                yield place, member.content()

    def digest(self) -> str:
        return self.tar.sha256
