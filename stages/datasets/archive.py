"""The files of a folder, a tar or a zip, alike. Nothing is unpacked to disk."""

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

DEEPEST = 4  # levels of a folder that are looked at: an enclosing folder, split, class, file
# What the readers of archives raise where one is damaged
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)

Parts = tuple[str, ...]  # of a path below data.path
Openers = dict[Parts, Any]  # what opens each file, without arguments; None for links and special files


@contextmanager
def opened(path: Path) -> Iterator[Openers]:
    """Yield what opens each file, in the order in which they are best read.

    Links are followed in a folder alone. Of files of one name in an archive the last one counts.

    Raises:
        OSError, or one of DAMAGED: it cannot be read; also when a file is opened or read.
    """
    if path.is_dir():
        yield dict(_walk(path))
        return
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:
        with zipfile.ZipFile(path) as archive:
            # Some programs of Windows separate folders by backslashes
            names = {entry: entry.filename.replace("\\", "/") for entry in archive.infolist()}
            yield {PurePosixPath(n).parts: partial(archive.open, e) for e, n in names.items() if not n.endswith("/")}
        return
    with tarfile.open(path) as tar:
        members = [member for member in tar if not member.isdir()]
        yield {PurePosixPath(m.name).parts: partial(tar.extractfile, m) if m.isfile() else None for m in members}


def _walk(folder: Path, parts: Parts = ()) -> Iterator[tuple[Parts, Callable[[], Any] | None]]:
    for child in sorted(folder.iterdir()):
        below = (*parts, child.name)
        if child.is_dir() and len(below) < DEEPEST:
            yield from _walk(child, below)
        else:
            yield below, partial(open, child, "rb") if child.is_file() else None
