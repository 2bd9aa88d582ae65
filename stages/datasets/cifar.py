"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the official archives, downloaded once per user.

Their files are pickles, so nothing is unpickled but the very bytes whose sha256 is known to be the official one's.
"""

import io
import pickle
import re
import socket
import sys
import tarfile
from http.client import HTTPException
from pathlib import Path

import numpy as np

from stages.common.dataset import Split
from stages.common.errors import UserError, printable
from stages.common.files import locked, sha256
from stages.datasets.source import Source, check_memory, resized

TIMEOUT = 30  # seconds without an answer or a byte


ADDRESS = "https://www.cs.toronto.edu/~kriz/"
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
SHA256 = {
    "cifar10": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "cifar100": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",  # as in Keras and torchvision
}


def read(kind: str, path: Path | None, image_size: int) -> Source:
    """Return CIFAR-10 or CIFAR-100 (with its 100 fine classes), whose images have their numbers for names.

    Args:
        kind: `cifar10` or `cifar100`.
        path: a copy of the archive; None for the one in the user's cache, which is downloaded if it is missing.

    Raises:
        UserError: the archive cannot be downloaded, or is another file.
    """
    batches = _unpickled(_verified(kind, path))
    fine = "fine_" if kind == "cifar100" else ""
    check_memory(sum(len(batch.get("data", ())) for batch in batches.values()), image_size)

    def split(names: tuple[str, str]) -> Split:
        parts = [batch for name, batch in sorted(batches.items()) if name.startswith(names)]
        planes = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([part[f"{fine}labels"] for part in parts]).astype(np.int64)
        images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))  # N×H×W×3
        return Split(resized(images, image_size), labels, np.arange(len(labels)).astype(str))

    (meta,) = (batch for batch in batches.values() if f"{fine}label_names" in batch)
    classes = list(meta[f"{fine}label_names"])
    return Source(TITLES[kind], SHA256[kind], classes, split(("data_batch", "train")), split(("test_batch", "test")))


def _unpickled(archive: bytes) -> dict[str, dict]:
    """Return the content of each pickle in an archive whose sha256 has been verified, by the name of its file."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {member.name.rpartition("/")[2]: member for member in tar}
        names = [
            name for name in found if re.fullmatch(r"data_batch_\d|test_batch|batches\.meta|train|test|meta", name)
        ]
        return {name: pickle.load(tar.extractfile(found[name]), encoding="latin1") for name in names}  # type: ignore


def _verified(kind: str, path: Path | None) -> bytes:
    """Return the content of the archive: of `path`, or of the user's cache, where it is downloaded if it is missing."""
    address = f"{ADDRESS}{TITLES[kind].lower()}-python.tar.gz"
    archive = path or _downloaded(address, SHA256[kind])
    if not archive.is_file():
        raise UserError(f"data.path: {printable(archive)}: no such file; it must be a copy of {address}")
    content = archive.read_bytes()
    if sha256(content) != SHA256[kind]:
        raise UserError(
            f"{printable(archive)}: damaged, or another file than {address} (the sha256 differs): delete it"
        )
    return content


def _downloaded(address: str, digest: str) -> Path:
    """Return the archive in torch.hub's folder, downloaded by one process at a time if it is missing."""
    from torch.hub import download_url_to_file, get_dir  # here, because torch takes seconds to import

    archive = Path(get_dir(), address.rpartition("/")[2])
    what = f"{address} to {printable(archive)}"
    with locked(archive.with_suffix(".lock"), lambda: print(f"waiting for another download of {what}", flush=True)):
        if archive.exists():
            return archive
        print(f"downloading {what}", flush=True)
        socket.setdefaulttimeout(TIMEOUT)
        try:  # under another name first, which is removed unless the sha256 is right
            download_url_to_file(address, str(archive), hash_prefix=digest, progress=sys.stderr.isatty())
        except (OSError, HTTPException, RuntimeError) as error:
            ways_out = "without network, set data.path to a copy, or data.source to images or digits (make demo)"
            raise UserError(f"cannot download {what}: {printable(error)}; {ways_out}") from error
    return archive
