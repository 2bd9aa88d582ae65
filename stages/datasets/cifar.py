"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the official archives, downloaded once per user.

Their files are pickles, so nothing is unpickled but the very bytes whose sha256 is known to be the official one's.
"""

import io
import pickle
import socket
import sys
import tarfile
from http.client import HTTPException
from pathlib import Path

import numpy as np

from stages.common.dataset import Split
from stages.common.errors import UserError, printable
from stages.common.files import read_bytes, sha256
from stages.datasets.source import Source, check_memory, resized

TIMEOUT = 30  # seconds without an answer or a byte
ADDRESS = "https://www.cs.toronto.edu/~kriz/"
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
    check_memory(60_000, image_size)
    batches = _unpickled(_verified(kind, path))
    fine = "fine_" if kind == "cifar100" else ""

    def split(*prefixes: str) -> Split:
        parts = [batch for name, batch in sorted(batches.items()) if name.startswith(prefixes)]
        images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.concatenate([part[f"{fine}labels"] for part in parts]).astype(np.int64)
        return Split(resized(np.ascontiguousarray(images), image_size), labels, np.arange(len(labels)).astype(str))

    (classes,) = (batch[f"{fine}label_names"] for name, batch in batches.items() if name.endswith("meta"))
    return Source(kind.replace("cifar", "CIFAR-"), SHA256[kind], classes, split("data_batch", "train"), split("test"))


def _unpickled(archive: bytes) -> dict[str, dict]:
    """Return the content of each pickle in an archive whose sha256 has been verified, by the name of its file."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {member.name.rpartition("/")[2]: tar.extractfile(member) for member in tar if member.isfile()}
        wanted = [name for name in files if "batch" in name or name in ("train", "test", "meta")]
        return {name: pickle.load(files[name], encoding="latin1") for name in wanted}  # type: ignore


def _verified(kind: str, path: Path | None) -> bytes:
    """Return the content of the archive: of `path`, or of the user's cache, where it is downloaded if it is missing."""
    address = f"{ADDRESS}{kind.replace('cifar', 'cifar-')}-python.tar.gz"
    archive = path or _downloaded(address, SHA256[kind])
    content = read_bytes(archive, f"data.path must be a copy of {address}")
    if sha256(content) != SHA256[kind]:
        raise UserError(f"{printable(archive)}: not {address}, or damaged; rename it, or set data.path or data.source")
    return content


def _downloaded(address: str, digest: str) -> Path:
    """Return the archive in torch.hub's folder, where it is downloaded if it is missing."""
    from torch.hub import download_url_to_file, get_dir  # here, because torch takes seconds to import

    archive = Path(get_dir(), address.rpartition("/")[2])
    if not archive.exists():
        what = f"{address} to {printable(archive)}"
        print(f"downloading {what}", flush=True)
        socket.setdefaulttimeout(TIMEOUT)
        try:  # under a name of its own first, which is removed unless the sha256 is right
            archive.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(address, str(archive), hash_prefix=digest, progress=sys.stderr.isatty())
        except (OSError, HTTPException, RuntimeError) as error:
            raise UserError(f"cannot download {what}: {printable(error)}; set data.path to a copy") from error
    return archive
