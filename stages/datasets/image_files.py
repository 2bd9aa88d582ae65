"""Image files in a folder, a tar or a zip as a data set: {train,test}/<class>/<image file>, or <class>/<image file>.

Nothing is unpacked to disk.
"""

import hashlib
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from unicodedata import category, normalize

import numpy as np
from tqdm import tqdm

from stages.common.dataset import Split
from stages.common.errors import UserError, listed, printable, shown
from stages.common.image import decode
from stages.datasets.source import Source, check_memory, drawn

LAYOUT = "a folder, tar or zip of {train,test}/<class>/<image file>, or <class>/<image file>"
SPLITS = dict.fromkeys(("train", "training"), "train")
SPLITS |= dict.fromkeys(("test", "testing", "val", "valid", "validation"), "test")  # best name first
# What systems and editors leave behind, hidden files, and `..` and `/`, which lead out of an archive
RUBBISH = re.compile(r"\..*|/|.*~|(eh)?thumbs\.db|desktop\.ini|icon\r|__macosx|@eadir|lost\+found", re.I | re.S)
# Control characters, separators of lines, overrides of the direction of writing, and bytes that are no UTF-8
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What the readers of archives raise where one is damaged
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)

Parts = tuple[str, ...]  # of a path below data.path
Openers = dict[Parts, Any]  # what opens each file, without arguments; None for links and special files


class Entry(NamedTuple):
    split: str  # train, test, or nothing where there are no splits
    label: str  # in NFC: a Mac's copy of a folder spells accented letters otherwise
    name: str


def read(path: Path, image_size: int, test_share: float) -> Source:
    """Return the images below `path`, a folder, a tar or a zip, classes and files in the order of their names.

    All may lie in one enclosing folder. val/, valid/ or validation/ is taken for test/ where there is no test/; where
    there are no splits, `test_share` of each class is. What is taken so or passed over is printed. Links are followed
    in a folder alone. A folder and its archives give the same data set.

    Raises:
        UserError: something in it is out of place or no image, a class is missing or has too few images, or all do not
            fit into memory; the message names the first few such files and their number.
    """
    try:
        with _opened(path) as openers:
            places, notes = _places(openers)
            for note in notes:
                print(f"note: {printable(path)}: {note}", flush=True)
            divided = not next(iter(places)).split
            if divided:
                places = _divided(places, test_share)
            _check_classes(places)
            source = _decoded(openers, places, image_size)
    except (UserError, OSError, *DAMAGED) as error:
        reason = error if isinstance(error, UserError) else f"cannot be read ({printable(error)}); it must be {LAYOUT}"
        raise UserError(f"data.path: {printable(path)}: {reason}") from error
    name = re.sub(r"\.(zip|tar|tar\.\w+|t[gx]z|tbz2?)$", "", os.path.basename(os.path.abspath(path)), flags=re.I)
    return source._replace(name=printable(name or "images"), test_share=test_share if divided else None)


@contextmanager
def _opened(path: Path) -> Iterator[Openers]:
    """Yield what opens each file, in the order in which they are best read; of files of one name the last one."""
    if not path.is_file():  # a device, which may have no end, is refused as no folder
        yield dict(_walk(path))
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            members = [member for member in tar if not member.isdir()]
            yield {PurePosixPath(m.name).parts: partial(tar.extractfile, m) if m.isfile() else None for m in members}
    else:
        with zipfile.ZipFile(path) as archive:
            # Some programs of Windows separate folders by backslashes
            names = {entry: entry.filename.replace("\\", "/") for entry in archive.infolist()}
            yield {PurePosixPath(n).parts: partial(archive.open, e) for e, n in names.items() if not n.endswith("/")}


def _walk(folder: Path, parts: Parts = ()) -> Iterator[tuple[Parts, Callable[[], Any] | None]]:
    for child in sorted(folder.iterdir()):
        below = (*parts, child.name)
        if child.is_dir() and len(below) < 4:  # an enclosing folder, split, class, file
            yield from _walk(child, below)
        else:
            yield below, partial(open, child, "rb") if child.is_file() else None


def _places(openers: Openers) -> tuple[dict[Entry, Parts], list[str]]:
    """Return the place of each image, in the order of `openers`, and notes on what is passed over or taken for a split.

    Raises:
        UserError: there are no images, a split is missing, or something in one is out of place.
    """
    odd = {parts: next((i for i, part in enumerate(parts, 1) if RUBBISH.fullmatch(part)), 0) for parts in openers}
    # Of what is passed over, a folder is worth a note where it holds more than such files
    aside = {"/".join(parts[:i]) for parts, i in odd.items() if i and not RUBBISH.fullmatch(parts[-1])}
    kept = [parts for parts in openers if parts and not odd[parts]]
    enclosed, splits = _layout(kept)
    places: dict[Entry, Parts] = {}
    problems = []
    for parts in kept:
        if len(parts) <= enclosed + 1 or (splits and parts[enclosed] not in splits):
            aside.add("/".join(parts[: enclosed + 1]))
            continue
        # DVC's page of charts breaks on a comment or an element of HTML in a name, and pandas on a carriage return
        label, name = normalize("NFC", parts[-2]).replace("<", "‹"), parts[-1].replace("<", "‹").replace("\r", "\\r")
        place = Entry(splits.get(parts[enclosed], ""), label, name)
        if len(parts) != enclosed + (3 if splits else 2) or not openers[parts] or place in places:
            problems.append(printable("/".join(parts)))
        places.setdefault(place, parts)
    if all(place.name.lower().endswith((".parquet", ".arrow", ".csv", ".json")) for place in places):
        raise UserError(f"no images in folders of classes; it must be {LAYOUT}; export tables such as .parquet")
    if problems:
        raise UserError(
            f"not directly in the folder of a class, there twice or a link: {listed(problems)}; it must be {LAYOUT}"
        )
    notes = [f"{printable(name)}/ is taken for {split}/" for name, split in splits.items() if name != split]
    return places, notes + ([f"not read: {listed(sorted({printable(name) for name in aside}))}"] if aside else [])


def _layout(kept: list[Parts]) -> tuple[bool, dict[str, str]]:
    """Tell whether one folder encloses all, and return train and test by the names of their folders, if there are any.

    Raises:
        UserError: there is one without the other.
    """
    tops = {parts[0].lower() for parts in kept if len(parts) > 1}
    enclosed = len(tops) == 1 and not tops & SPLITS.keys() and max(map(len, kept)) > 2
    spelled = {parts[enclosed].lower(): parts[enclosed] for parts in sorted(kept) if len(parts) > enclosed + 2}
    folders = {SPLITS[name]: spelled[name] for name in reversed(SPLITS) if name in spelled}
    if len(folders) == 1:
        raise UserError(f"only {printable(min(folders.values()))}/ of train/ and test/ in it; it must be {LAYOUT}")
    return enclosed, {folder: split for split, folder in folders.items()}


def _divided(places: dict[Entry, Parts], share: float) -> dict[Entry, Parts]:
    """Draw a test set from images without splits."""
    labels = np.array([place.label for place in places])
    test = drawn(labels, np.array([f"{place.label}/{place.name}" for place in places]), share)
    return {at._replace(split="test" if t else "train"): places[at] for at, t in zip(places, test, strict=True)}


def _check_classes(places: dict[Entry, Parts]) -> None:
    """Raise a UserError if a name cannot be shown, two look alike, a split lacks a class, or there is only one."""
    train, test = ({place.label for place in places if place.split == split} for split in ("train", "test"))
    looks: dict[str, str] = {}
    for name in sorted(train | test):
        if UNSAFE.search(name):
            raise UserError(f"class {shown(name)} has a name that cannot be printed; rename its folder")
        visible = "".join(letter for letter in normalize("NFKC", name) if category(letter) != "Cf")
        if (other := looks.setdefault(" ".join(visible.split()), name)) != name:
            raise UserError(f"classes {other!a} and {name!a} look alike; rename one, or put them into one folder")
    if alone := sorted(train ^ test):
        raise UserError(f"classes in one of train/ and test/ alone: {listed([printable(name) for name in alone])}")
    if len(train) < 2:
        raise UserError(f"one class, {printable(min(train))}; a classifier needs two or more, each in its own folder")


def _decoded(openers: Openers, places: dict[Entry, Parts], size: int) -> Source:
    check_memory(len(places), size)
    ordered = sorted(places)  # the test images first
    row = {place: i for i, place in enumerate(ordered)}
    images, digests, problems = np.empty((len(ordered), size, size, 3), np.uint8), {}, []
    for place, parts in tqdm(places.items(), unit=" files", disable=None):
        with openers[parts]() as file:
            content = file.read()
        digests[place] = b"\0" + hashlib.sha256(content).digest()
        try:
            images[row[place]] = decode(content, size, printable("/".join(parts)))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(listed(problems))
    digest = hashlib.sha256(b"".join("/".join(at).encode(errors="surrogateescape") + digests[at] for at in ordered))
    classes, labels = np.unique([place.label for place in ordered], return_inverse=True)
    names = [f"{place.label}/{place.name}".encode(errors="backslashreplace").decode() for place in ordered]
    tests = sum(place.split == "test" for place in ordered)
    known = {digests[place] for place in ordered[tests:]}
    if copies := sum(digests[place] in known for place in ordered[:tests]):
        print(f"note: {copies:,} of {tests:,} test images are training images too, byte for byte", flush=True)
    train, test = (Split(images[at], labels[at], np.array(names[at])) for at in (slice(tests, None), slice(tests)))
    return Source("", digest.hexdigest(), classes.tolist(), train, test)
