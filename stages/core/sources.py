"""Two data sets by name, read into the same arrays as any other: uint8 N×H×W×3 images, int64 labels."""

import hashlib
import pickle
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from stages.core.dataset import Source, Split
from stages.core.errors import UserError
from stages.core.image_files import file_sha256

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"


def cifar10(path: Path | None, image_size: int, cache: Path, sha256: str = CIFAR10_SHA256) -> Source:
    """CIFAR-10 (Krizhevsky 2009) from the archive for Python, downloaded into `cache` unless `path` names a copy.

    Nothing in the archive is unpickled before its sha256 is known to be the right one.

    Raises:
        UserError: the archive cannot be downloaded or read, or has another digest.
    """
    archive = path or _download_cifar10(cache, sha256)
    found = file_sha256(archive)
    if found != sha256:
        raise UserError(
            f"{archive}: not CIFAR-10's archive (sha256 {found}, expected {sha256}); download {CIFAR10_URL}"
        )
    members = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.isfile():
                members[PurePosixPath(member.name).name] = tar.extractfile(member).read()

    def batch(name: str) -> dict:
        return pickle.loads(members[name], encoding="bytes")

    def split(*names: str) -> Split:
        batches = [batch(name) for name in names]
        planes = np.concatenate([b[b"data"] for b in batches]).reshape(-1, 3, 32, 32)
        images = _resized(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), image_size)
        return Split(images, np.concatenate([b[b"labels"] for b in batches]).astype(np.int64))

    classes = [name.decode() for name in batch("batches.meta")[b"label_names"]]
    train = split(*(f"data_batch_{i}" for i in range(1, 6)))
    return Source("CIFAR-10", sha256, classes, train, split("test_batch"))


def _download_cifar10(cache: Path, sha256: str) -> Path:
    """The archive's path in `cache`. A transfer that breaks leaves nothing under that name; the next starts anew."""
    import pooch  # here, because it brings the network stack along, which the other sources never need

    cache.mkdir(parents=True, exist_ok=True)
    name = CIFAR10_URL.rpartition("/")[2]
    for leftover in cache.iterdir():  # of a transfer that was killed
        if leftover.name != name:
            leftover.unlink()
    bar = tqdm(unit="B", unit_scale=True, disable=None)
    try:
        return Path(pooch.retrieve(CIFAR10_URL, f"sha256:{sha256}", fname=name, path=cache, progressbar=bar))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{CIFAR10_URL} cannot be downloaded ({type(error).__name__}); without network, set data.path to a copy "
            "of the archive, or data.source to images or digits (make demo)"
        ) from error


def digits(image_size: int) -> Source:
    """scikit-learn's 1,797 handwritten digits (UCI Optical Recognition of Handwritten Digits, 8×8, 17 grey levels).

    A fifth of each digit is the test set, the same ones whatever the experiment's seed.
    """
    from sklearn.datasets import load_digits  # here, because no other source needs it
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    pixels = np.repeat(_resized(grey, image_size)[..., None], 3, axis=3)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return Source(
        "scikit-learn's handwritten digits",
        hashlib.sha256(grey.tobytes() + labels.tobytes()).hexdigest(),
        [str(digit) for digit in range(10)],
        Split(pixels[train], labels[train]),
        Split(pixels[test], labels[test]),
    )


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """N×H×W or N×H×W×3 uint8 images, resized to size×size when they have another size."""
    if pixels.shape[1:3] == (size, size):
        return pixels
    return np.stack([Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC) for p in pixels])
