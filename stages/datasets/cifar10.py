"""CIFAR-10 (Krizhevsky 2009) from the official archive, downloaded once for all clones and experiments of a user.

Nothing is unpickled before the archive's sha256 is known to be the official one's. The bytes that were hashed are
written to a private folder and unpacked there, so that no one can replace them in between.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.common.dataset import Split
from stages.common.errors import UserError, printable
from stages.common.files import locked, read_bytes, write_bytes
from stages.datasets.source import Source, resized
from stages.datasets.transfer import fetch

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ARCHIVE = "cifar-10-python.tar.gz"
WAYS_OUT = "without network, set data.path to a copy of the archive, or data.source to images or digits (make demo)"


def read(path: Path | None, image_size: int) -> Source:
    """CIFAR-10 from `path`, a copy of the archive, or from the cache, downloading it there first if missing.

    Raises:
        UserError: the archive cannot be downloaded or read, or has another digest.
    """
    from torchvision.datasets import CIFAR10  # here, because torch and torchvision take seconds to import
    from torchvision.datasets.utils import extract_archive

    cache = _cache()
    with _private_folder(cache) as folder:
        content = _local(path) if path else _cached(cache / ARCHIVE, folder / "transfer")
        write_bytes(folder / ARCHIVE, content, synced=False)
        extract_archive(str(folder / ARCHIVE), str(folder), remove_finished=True)
        train, test = (CIFAR10(folder, train=train) for train in (True, False))  # compares the md5 of each file first
    return Source("CIFAR-10", SHA256, train.classes, _split(train, image_size), _split(test, image_size))


def _split(data: "CIFAR10", size: int) -> Split:
    return Split(resized(np.ascontiguousarray(data.data), size), np.array(data.targets, dtype=np.int64))


def _cache() -> Path:
    """A cache folder shared by all experiments of a user, next to torch.hub's."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(os.environ.get("TORCH_HOME") or f"{caches}/torch")
    try:
        return home.expanduser().absolute() / "cifar10-pipeline"
    except RuntimeError as error:  # no such home
        raise UserError(f"{printable(home)}: {error}; set TORCH_HOME to a folder that can be written") from error


@contextlib.contextmanager
def _private_folder(cache: Path) -> Iterator[Path]:
    """A fresh folder in `cache` that no other user can enter. One process at a time has one; others wait for it."""
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        waiting = f"waiting for another process that uses {printable(cache)}"
        with locked(cache / ".lock", lambda: print(waiting, flush=True)):
            for leftover in cache.glob("reading-*"):  # of a killed process
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(prefix="reading-", dir=cache) as folder:
                yield Path(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename, error.filename2 = str(cache / ARCHIVE), "about 600 MiB are needed"
            raise
        where = printable(error.filename or cache)
        raise UserError(
            f"{where}: {error.strerror or error}; set TORCH_HOME to a folder that can be written"
        ) from error


def _local(path: Path) -> bytes:
    try:
        content = read_bytes(path, missing="no such file")
    except UserError as error:
        raise UserError(f"data.path: {error}; it must be a copy of {ADDRESS}") from error
    wrong = _difference(content)
    if wrong:
        raise UserError(f"data.path: {printable(path)} is not CIFAR-10's archive: {wrong}; get it from {ADDRESS}")
    return content


def _cached(archive: Path, transfer: Path) -> bytes:
    """The verified content of `archive`; if it is missing, download it to `transfer` first."""
    if archive.exists():
        content = read_bytes(archive)
        wrong = _difference(content)
        if not wrong:
            print(f"CIFAR-10 from {printable(archive)}", flush=True)
            return content
        print(f"{printable(archive)} is damaged: {wrong}")
    print(f"downloading {ADDRESS} to {printable(archive)}", flush=True)
    try:
        fetch(ADDRESS, transfer, MD5)
        content = read_bytes(transfer)
        wrong = _difference(content)
        if wrong:
            raise UserError(wrong)
    except UserError as error:
        raise UserError(f"{ADDRESS} cannot be downloaded: {error}; {WAYS_OUT}") from error
    write_bytes(archive, content)
    return content


def _difference(content: bytes) -> str:
    """The difference from the official archive in words; empty if there is none."""
    found = hashlib.sha256(content).hexdigest()
    if found == SHA256:
        return ""
    digests = f"sha256 {found}, expected {SHA256}"
    if b"<html" in content[:4096].lower() or content.lstrip()[:9].lower() == b"<!doctype":
        return f"it is a web page, perhaps the login page of a network ({digests})"
    return f"{len(content):,} bytes with {digests}"
