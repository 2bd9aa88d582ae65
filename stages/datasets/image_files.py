"""Image files in a folder, a tar or a zip as a data set: {train,test}/<class>/<image file>, or <class>/<image file>."""

import hashlib
import os
import re
from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from unicodedata import category, normalize

import numpy as np
from tqdm import tqdm

from stages.common.dataset import Split
from stages.common.errors import UserError, listed, printable, shown
from stages.common.image import decode
from stages.datasets.archive import DAMAGED, Openers, Parts, opened
from stages.datasets.source import Source, check_memory, drawn

LAYOUT = "{train,test}/<class>/<image file>, or <class>/<image file>"
SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}  # best name first
# What systems and editors leave behind, hidden files, and `..` and `/`, which lead out of an archive
RUBBISH = re.compile(
    r"\..*|/|.*~|~\$.*|#.*#|(eh)?thumbs\.db|desktop\.ini|icon\r|__macosx|@eadir|\$recycle\.bin|lost\+found"
    "|system volume information",
    re.IGNORECASE | re.DOTALL,
)
# Control characters, separators of lines, overrides of the direction of writing, and bytes that are no UTF-8
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MAX_BYTES = 2**30  # of an image file


class Place(NamedTuple):
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
    where = f"data.path: {printable(path)}"
    if not (path.is_dir() or path.is_file()):
        raise UserError(f"{where}: no such file or folder; it must hold {LAYOUT}")
    try:
        with opened(path) as openers:
            places, notes = _places(openers)
            for note in notes:
                print(f"note: {printable(path)}: {note}", flush=True)
            classes = _classes(places.values())
            divided = not next(iter(places.values())).split
            if divided:
                places = _divided(places, test_share)
            source = _decoded(openers, places, classes, image_size)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {printable(error)}") from error
    except DAMAGED as error:
        reason = printable(str(error).partition(":")[0])  # without the reasons of each format that tarfile tries
        raise UserError(
            f"{where}: no whole .tar, .tar.gz, .tar.xz or .zip ({reason}); unpack or export it to {LAYOUT}"
        ) from error
    name = re.sub(r"\.(zip|tar|tar\.\w+|t[gx]z|tbz2?)$", "", os.path.basename(os.path.abspath(path)), flags=re.I)
    return source._replace(name=printable(name or "images"), test_share=test_share if divided else None)


def _places(openers: Openers) -> tuple[dict[Parts, Place], list[str]]:
    """Return the place of each image, in the order of `openers`, and notes on what is passed over or taken for a split.

    Raises:
        UserError: a split is missing, or something in one is out of place.
    """
    odd = {parts: next((i for i, part in enumerate(parts, 1) if RUBBISH.fullmatch(part)), 0) for parts in openers}
    # Of what is passed over, a folder is worth a note where it holds more than such files
    aside = {"/".join(parts[:i]) for parts, i in odd.items() if i and not RUBBISH.fullmatch(parts[-1])}
    kept = [parts for parts in openers if parts and not odd[parts]]
    tops = {parts[0] for parts in kept if len(parts) > 1}
    enclosed = (
        len(tops) == 1 and not {top.lower() for top in tops} & {*chain(*SPLITS.values())} and max(map(len, kept)) > 2
    )
    splits = _splits({parts[enclosed] for parts in kept if len(parts) > enclosed + 2})
    depth = enclosed + (3 if splits else 2)
    places: dict[Parts, Place] = {}
    taken, problems = set(), []
    for parts in kept:
        if len(parts) <= enclosed + 1 or (splits and parts[enclosed] not in splits):
            aside.add("/".join(parts[: enclosed + 1]))
            continue
        place = Place(splits.get(parts[enclosed], ""), normalize("NFC", parts[-2]), parts[-1])
        if len(parts) == depth and openers[parts] and place not in taken:
            places[parts] = place
            taken.add(place)
        else:
            why = "out of place" if len(parts) != depth else "in it twice" if place in taken else "no plain file"
            problems.append(f"{printable('/'.join(parts))}: {why}")
    if problems or not places:
        raise UserError(f"{listed(problems) or 'no images in folders of classes'}; it must hold {LAYOUT}")
    notes = [f"{printable(name)}/ is taken for {split}/" for name, split in splits.items() if name != split]
    return places, notes + ([f"not read: {listed(sorted({printable(name) for name in aside}))}"] if aside else [])


def _splits(folders: set[str]) -> dict[str, str]:
    """Return train and test by the names of their folders; nothing where there is neither.

    Raises:
        UserError: there is one without the other.
    """
    splits = {}
    for split, names in SPLITS.items():
        found = [folder for name in names for folder in sorted(folders, reverse=True) if folder.lower() == name]
        splits.update(dict.fromkeys(found[:1], split))
    missing = SPLITS.keys() - splits.values()
    if splits and missing:
        there = listed([f"{printable(folder)}/" for folder in sorted(folders)])
        raise UserError(f"no {missing.pop()}/<class>/ in it, but {there}; it must hold {LAYOUT}")
    return splits


def _classes(places: Collection[Place]) -> list[str]:
    """Return the sorted names of the classes.

    Raises:
        UserError: a name cannot be shown, two look alike, a split lacks a class, or there is only one.
    """
    classes = sorted({place.label for place in places})
    if unsafe := [shown(name) for name in classes if UNSAFE.search(name)]:
        raise UserError(f"names of classes that cannot be printed: {listed(unsafe)}; rename their folders")
    looks: dict[str, str] = {}
    for name in classes:
        visible = "".join(letter for letter in normalize("NFKC", name) if category(letter) != "Cf")
        if (other := looks.setdefault(" ".join(visible.split()), name)) != name:
            raise UserError(f"classes {other!a} and {name!a} look alike; rename one, or put them into one folder")
    train, test = ({place.label for place in places if place.split in ("", split)} for split in SPLITS)
    for lacking, alone in (("test", train - test), ("train", test - train)):
        if alone:
            raise UserError(f"classes that {lacking}/ lacks: {listed(sorted(map(printable, alone)))}")
    if len(classes) < 2:
        raise UserError(f"one class, {printable(classes[0])}; a classifier needs two or more, each in its own folder")
    return classes


def _divided(places: dict[Parts, Place], share: float) -> dict[Parts, Place]:
    """Draw a test set from images without splits."""
    labels = np.array([place.label for place in places.values()])
    test = drawn(labels, [f"{place.label}/{place.name}" for place in places.values()], share)
    pairs = zip(places.values(), np.where(test, "test", "train").tolist(), strict=True)
    return dict(zip(places, (place._replace(split=split) for place, split in pairs), strict=True))


def _decoded(openers: Openers, places: dict[Parts, Place], classes: list[str], size: int) -> Source:
    check_memory(len(places), size)
    splits, row, index = {}, {}, {name: label for label, name in enumerate(classes)}
    for split in SPLITS:
        ordered = sorted(place for place in places.values() if place.split == split)
        row.update({place: i for i, place in enumerate(ordered)})
        names = [f"{place.label}/{place.name}".encode(errors="backslashreplace").decode() for place in ordered]
        labels = np.array([index[place.label] for place in ordered], np.int64)
        splits[split] = Split(np.empty((len(ordered), size, size, 3), np.uint8), labels, np.array(names))
    digests, problems = {}, []
    for parts, place in tqdm(places.items(), unit=" files", disable=None):
        where = printable("/".join(parts))
        with openers[parts]() as file:
            content = file.read(MAX_BYTES)
        try:
            splits[place.split].images[row[place]] = decode(content, size, where)
        except UserError as error:
            problems.append(str(error))
        digests[place] = hashlib.sha256(content).digest()
    if problems:
        raise UserError(listed(problems))
    parts = ("/".join(place).encode(errors="surrogateescape") + b"\0" + digests[place] for place in sorted(digests))
    return Source("", hashlib.sha256(b"".join(parts)).hexdigest(), classes, splits["train"], splits["test"])
