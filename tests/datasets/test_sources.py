import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
from PIL import Image
from sklearn.datasets import load_digits

from stages.core.errors import UserError
from stages.core.sources import CIFAR10_SHA256, cifar10, digits

CLASSES = ["airplane", "automobile"]


class Exploit:
    """Unpickling this creates the file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def batch(seed: int) -> dict:
    random = np.random.default_rng(seed)
    return {b"data": random.integers(0, 256, (3, 3072), dtype=np.uint8), b"labels": random.integers(0, 2, 3).tolist()}


def write_archive(path: Path, **replaced) -> str:
    """An archive in the layout of CIFAR-10's for Python, three images a batch; its sha256."""
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    members = {name: batch(seed) for seed, name in enumerate(names)}
    members["batches.meta"] = {b"label_names": [name.encode() for name in CLASSES]}
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (members | replaced).items():
            pickled = pickle.dumps(content)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(pickled)
            tar.addfile(info, io.BytesIO(pickled))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_cifar10_batches_are_read_in_order_with_planes_as_channels(tmp_path):
    path = tmp_path / "archive.tar.gz"
    source = cifar10(path, 32, tmp_path / "cache", sha256=write_archive(path))
    assert (source.name, source.classes) == ("CIFAR-10", CLASSES)
    assert source.train.images.shape == (15, 32, 32, 3)
    assert source.test.images.shape == (3, 32, 32, 3)
    assert source.train.labels.tolist() == [label for seed in range(5) for label in batch(seed)[b"labels"]]
    fourth_batch, row, column = batch(3)[b"data"], 5, 9
    for channel in range(3):
        expected = fourth_batch[2, channel * 1024 + row * 32 + column]
        assert source.train.images[11, row, column, channel] == expected


def test_cifar10_is_resized_when_asked(tmp_path):
    path = tmp_path / "archive.tar.gz"
    digest = write_archive(path)
    whole, small = (cifar10(path, size, tmp_path, sha256=digest).test.images for size in (32, 16))
    expected = Image.fromarray(whole[1]).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(small[1], np.asarray(expected))


def test_an_archive_with_another_digest_is_refused_before_anything_is_unpickled(tmp_path):
    path, proof = tmp_path / "archive.tar.gz", tmp_path / "executed"
    found = write_archive(path, data_batch_1=Exploit(proof))
    with pytest.raises(UserError, match=f"archive.tar.gz: not CIFAR-10's archive .*{found}.*{CIFAR10_SHA256}"):
        cifar10(path, 32, tmp_path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Exploit(proof)))
    assert proof.exists()


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_an_empty_or_truncated_copy_of_the_archive_is_refused_by_its_digest(tmp_path, kept):
    path = tmp_path / "archive.tar.gz"
    sha256 = write_archive(path, data_batch_1={})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=f"archive.tar.gz: not CIFAR-10's archive .*expected {sha256}"):
        cifar10(path, 32, tmp_path, sha256)


def test_a_missing_copy_of_the_archive_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: .*nowhere\.tar\.gz cannot be read"):
        cifar10(tmp_path / "nowhere.tar.gz", 32, tmp_path)


def test_without_network_both_ways_out_are_named(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise requests.ConnectionError

    monkeypatch.setattr(pooch, "retrieve", unreachable)
    with pytest.raises(UserError, match=r"cannot be downloaded \(ConnectionError\).*data\.path.*data\.source"):
        cifar10(None, 32, tmp_path)


def test_a_transfer_of_the_wrong_bytes_leaves_nothing_behind(tmp_path, monkeypatch):
    def transfer(self, url, output_file, pooch):
        Path(output_file).write_bytes(b"half of it")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", transfer)
    with pytest.raises(UserError, match=r"cannot be downloaded \(ValueError\)"):
        cifar10(None, 32, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_downloaded_before_is_used_and_leftovers_of_a_killed_transfer_go(tmp_path, monkeypatch):
    archive = tmp_path / "cifar-10-python.tar.gz"
    digest = write_archive(archive)
    (tmp_path / "tmpabc123").write_bytes(b"half of it")
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", None)
    assert len(cifar10(None, 32, tmp_path, sha256=digest).train.labels) == 15
    assert list(tmp_path.iterdir()) == [archive]


def test_digits_are_scikit_learns_with_a_fifth_of_each_class_for_the_test():
    source, bunch = digits(8), load_digits()
    assert (len(source.train.labels), len(source.test.labels)) == (1437, 360)
    for digit, count in enumerate(np.bincount(bunch.target)):
        assert abs((source.test.labels == digit).sum() - count / 5) < 1
    images = np.concatenate([source.train.images, source.test.images])
    labels = np.concatenate([source.train.labels, source.test.labels])
    assert (images[..., 0] == images[..., 1]).all()
    assert (images[..., 0] == images[..., 2]).all()
    ours = sorted((image[..., 0].tobytes(), label) for image, label in zip(images, labels, strict=True))
    expected = np.floor(bunch.images * 255 / 16 + 0.5).astype(np.uint8)
    assert ours == sorted((image.tobytes(), label) for image, label in zip(expected, bunch.target, strict=True))


def test_digits_are_the_same_each_time_whatever_the_random_state():
    first = digits(16)
    np.random.seed(1)
    second = digits(16)
    assert first.sha256 == second.sha256
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert first.test.images.shape == (360, 16, 16, 3)
