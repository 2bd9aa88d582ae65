"""A tar of image files as a stream: never unpacked to disk, within bounds of memory, and hashed as it is read."""

import bz2
import gzip
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tqdm import tqdm

from stages.common.errors import UserError, printable
from stages.datasets.image import MAX_FILE_BYTES

MAX_HEADER = 2**18  # bytes in front of a member's content, which tarfile holds in memory
MAX_NAME = 1024  # characters
MAX_RATIO = 100  # of the bytes unpacked, beyond the first 256 MiB, to those of the file
OPENERS: dict[bytes, Callable] = {b"\x1f\x8b": gzip.open, b"\xfd7z": lzma.open, b"BZh": bz2.open}


class Member(tarfile.TarInfo):
    content: Callable[[], bytes]  # to be called before the next member is asked for


class Tar:
    """A .tar, .tar.gz, .tar.xz or .tar.bz2.

    Attributes:
        sha256: of the whole file, once `members` has been read to its end.
    """

    def __init__(self, path: Path):
        self.path, self.sha256 = path, ""

    def members(self) -> Iterator[Member]:
        """Everything in the tar, in its order; can be read again.

        Raises:
            UserError: the file is no tar, damaged, beyond a limit, or not the one that was read before.
        """
        try:
            with open(self.path, "rb") as file, tqdm(unit="B", unit_scale=True, disable=None, leave=False) as bar:
                bar.total = size = self.path.stat().st_size
                hashed = _Hashed(file, bar)
                yield from _members(hashed, file.peek(3), size)
        except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError, RecursionError) as error:
            raise UserError(f"not a whole .tar, .tar.gz or .tar.xz: {printable(error)}") from error
        if self.sha256 not in ("", hashed.digest.hexdigest()):
            raise UserError("changed while it was read; run this again")
        self.sha256 = hashed.digest.hexdigest()


def _members(file: "_Hashed", start: bytes, size: int) -> Iterator[Member]:
    unpack = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
    stream = _Bounded(unpack(file) if unpack else file, 2**28 + MAX_RATIO * size)
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=Member) as tar:  # type: ignore[call-overload]
        while member := tar.next():
            if len(member.name) > MAX_NAME:
                raise UserError(f"{printable(member.name, 80)}: a name of more than {MAX_NAME:,} characters")
            if not 0 <= member.size <= MAX_FILE_BYTES:
                raise UserError(f"{printable(member.name)}: {member.size:,} bytes are more than an image file may have")
            if sum(map(len, [*tar.pax_headers, *tar.pax_headers.values()])) > MAX_HEADER:
                raise UserError(f"its global headers are larger than {MAX_HEADER:,} bytes")
            stream.left = member.size + MAX_HEADER
            member.content = lambda member=member: tar.extractfile(member).read()
            yield member
            tar.members.clear()  # which tarfile would keep, with their headers
    stream.left = stream.total
    while stream.read(2**20):  # to the checksum of the compression
        pass
    while file.read(2**20):
        pass


class _Hashed:
    """A file that hashes every byte read."""

    def __init__(self, file: IO[bytes], bar: tqdm):
        self.file, self.bar, self.digest = file, bar, hashlib.sha256()

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        self.digest.update(content)
        self.bar.update(len(content))
        return content


class _Bounded:
    """Unpacked bytes with two limits: `total` for the whole file, `left` up to the end of the next header."""

    def __init__(self, file: "IO[bytes] | _Hashed", total: int):
        self.file, self.total, self.left = file, total, MAX_HEADER

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        self.total -= len(content)
        self.left -= len(content)
        if self.total < 0:
            raise UserError(f"unpacks to more than {MAX_RATIO} times its size")
        if self.left < 0:
            raise UserError(f"a header of more than {MAX_HEADER:,} bytes")
        return content
