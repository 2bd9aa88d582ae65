"""The layout of a folder or a tar of images, checked by names and sizes before anything is decoded."""

import unicodedata
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from stages.common.errors import UserError, listed, printable
from stages.datasets.image import MAX_FILE_BYTES

SPLITS = ("train", "test")
LAYOUT = "{train,test}/<class>/<image file>"
# What Windows, macOS, file servers and editors leave behind, in lower case; files that begin with a dot are hidden
PASSED_OVER = (
    *(".*", "*~", "~$*", "#*#", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"),
    *("$recycle.bin", "system volume information", "lost+found"),
)
MEANT = {"train": ("training",), "test": ("val", "valid", "validation", "testing", "dev")}  # other names of a split

Parts = tuple[str, ...]  # of a path below data.path


class Entry(NamedTuple):
    """A file or folder below data.path."""

    parts: Parts
    kind: str  # file, folder, or what else it is
    size: int  # bytes


class Place(NamedTuple):
    split: str
    label: str  # in NFC: a Mac's copy of a folder spells accented letters otherwise
    name: str


def find_images(entries: Iterable[Entry]) -> tuple[dict[Parts, Place], list[str]]:
    """The place of each image by its path, and the names of what lies beside train/ and test/ and is not read.

    Raises:
        UserError: a split is missing, something in one is out of place, or a class has no image in one of them.
    """
    found = [entry for entry in entries if not any(map(is_passed_over, entry.parts))]
    depth = _depth(found)
    inside = [entry for entry in found if len(entry.parts) > depth]
    beside = {entry.parts[0] for entry in found if len(entry.parts) <= depth and entry.kind != "folder"}
    beside |= {entry.parts[depth] for entry in inside if entry.parts[depth] not in SPLITS}
    _check_splits({entry.parts[depth] for entry in inside if len(entry.parts) > depth + 1 or entry.kind == "folder"})
    places: dict[Parts, Place] = {}
    folders: set[Parts] = set()
    taken: set[Place] = set()
    problems = []
    for entry in inside:
        parts = entry.parts[depth:]
        problem = _problem(entry, parts)
        if not problem and parts[0] in SPLITS:
            if entry.kind == "folder":
                folders.add(tuple(unicodedata.normalize("NFC", part) for part in parts))
                continue
            place = places[entry.parts] = Place(parts[0], unicodedata.normalize("NFC", parts[1]), parts[2])
            problem = "is in it twice" if place in taken else ""
            taken.add(place)
        if problem:
            problems.append(f"{printable('/'.join(entry.parts))}: {problem}")
    if problems:
        raise UserError(f"{listed(problems)}; data.path must hold {LAYOUT}")
    _check_classes(taken, folders)
    return places, sorted(beside)


def is_passed_over(name: str) -> bool:
    return name != ".." and any(fnmatchcase(name.lower(), pattern) for pattern in PASSED_OVER)


def _depth(entries: list[Entry]) -> int:
    """1 where the layout lies in one enclosing folder, else 0."""
    tops = {entry.parts[0] for entry in entries if len(entry.parts) > 1 or entry.kind == "folder"}
    return 1 if len(tops) == 1 and not tops & {*SPLITS, "/", ".."} else 0


def _problem(entry: Entry, parts: Parts) -> str:
    """The reason why this entry, `parts` below the layout's root, cannot be there; empty if it can."""
    if {"/", ".."} & {*entry.parts}:
        return "out of place"
    if parts[0] not in SPLITS:
        return ""
    if entry.kind not in ("file", "folder"):
        return f"a {entry.kind}; only files and folders are read"
    if len(parts) > 3 or (len(parts) == 3) != (entry.kind == "file"):
        return "out of place"
    if len(parts) > 1 and not parts[1].isprintable():  # nor can bytes that are no UTF-8 be written as such
        return "the name of this class cannot be printed; rename it"
    if entry.size > MAX_FILE_BYTES:
        return f"{entry.size:,} bytes are more than an image file may have"
    return ""


def _check_splits(folders: set[str]) -> None:
    for split in SPLITS:
        if split not in folders:
            other = [name for name in sorted(folders) if name.lower() in (split, *MEANT[split])]
            if other:
                raise UserError(f"no {split}/ in it; {printable(other[0])}/ is there: rename it to {split}")
            there = f" but {listed([f'{printable(name, 80)}/' for name in sorted(folders)])}" if folders else ""
            raise UserError(f"no {split}/ in it{there}; it must hold {LAYOUT}")


def _check_classes(places: set[Place], folders: set[Parts]) -> None:
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
