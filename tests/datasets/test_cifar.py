"""Real servers on the loopback address; only the address and the digests are replaced."""

import hashlib
import io
import os
import pickle
import socket
import struct
import tarfile
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from stages.common.errors import UserError
from stages.common.params import Data
from stages.datasets import cifar
from stages.datasets.source import Source
from stages.download import read_source
from tests.datasets.pictures import member

EACH = 40  # images in a file
NAMES = {"cifar10": [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], "cifar100": ["train", "test"]}


def python2(value: object) -> bytes:
    """Pickle as Python 2 did, in which the real files were written: texts are bytes, and so is what arrays hold."""
    short, file = (lambda self, text: self.write(b"T" + struct.pack("<i", len(text)) + text)), io.BytesIO()
    table = {**pickle._Pickler.dispatch, bytes: short, str: lambda self, text: short(self, text.encode())}
    type("Pickler", (pickle._Pickler,), {"dispatch": table})(file, 2).dump(value)
    return file.getvalue()


def packed(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        tar.addfile(member("cifar-10-batches-py", kind=tarfile.DIRTYPE))  # as the official archive begins
        for name, content in files.items():
            tar.addfile(member(f"cifar-10-batches-py/{name}", content), io.BytesIO(content))
    return file.getvalue()


def build(kind: str) -> tuple[bytes, list[dict]]:
    """A small archive of the real one's layout, and its files with images, the last of which is the test set."""
    fine, meta = ("", "batches.meta") if kind == "cifar10" else ("fine_", "meta")
    random = np.random.default_rng(0)
    files = {meta: {f"{fine}label_names": [f"class {i}" for i in range(10)], "coarse_label_names": "x"}}
    for name in NAMES[kind][::-1]:
        pixels, labels = random.integers(0, 256, (EACH, 3072), dtype=np.uint8), random.integers(0, 10, EACH).tolist()
        files[name] = {"data": pixels, f"{fine}labels": labels, "coarse_labels": [0] * EACH}
    archive = packed({"readme.html": b"no pickle"} | {name: python2(value) for name, value in files.items()})
    return archive, [files[name] for name in NAMES[kind]]


BUILT = {kind: build(kind) for kind in NAMES}
DIGESTS = {kind: hashlib.sha256(archive).hexdigest() for kind, (archive, _) in BUILT.items()}
ARCHIVE, PART = BUILT["cifar10"][0], BUILT["cifar10"][0][:100_000]


def send(handler, content: bytes = ARCHIVE, status: int = 200):
    handler.send_response(status)
    handler.end_headers()
    handler.wfile.write(content)


@pytest.fixture
def serve(monkeypatch):
    """Start a server at which CIFAR is downloaded, and return its address and the list of requests."""
    with ExitStack() as servers:

        def start(answer=send) -> tuple[str, list[str]]:
            requests: list[str] = []
            handler = type("Handler", (BaseHTTPRequestHandler,), {"log_message": lambda *args: None})
            handler.do_GET = lambda handler: (requests.append(handler.path), answer(handler))
            server = servers.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            servers.callback(server.shutdown)
            monkeypatch.setattr(cifar, "ADDRESS", f"http://127.0.0.1:{server.server_port}/")
            return cifar.ADDRESS, requests

        yield start


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The folder of torch.hub."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(cifar, "SHA256", DIGESTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "torch/hub"


def check(kind: str, source: Source) -> None:
    """Raise if it is not what the archive holds."""
    *train, test = BUILT[kind][1]
    for split, files in ((source.train, train), (source.test, [test])):
        key = "labels" if kind == "cifar10" else "fine_labels"
        assert split.labels.tolist() == [label for file in files for label in file[key]]
        planes = np.concatenate([file["data"] for file in files]).reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(split.images, planes.transpose(0, 2, 3, 1))
        assert split.names.tolist() == [str(i) for i in range(len(split.labels))]
    expected = f"CIFAR-{kind[5:]}", DIGESTS[kind], [f"class {i}" for i in range(10)]
    assert (source.name, source.sha256, source.classes) == expected


def test_an_archive_is_downloaded_once_for_all_experiments_and_kept_for_the_user(hub, serve, capsys):
    address, requests = serve()
    data = Data(source="cifar10", path=None, image_size=32, test_share=0.2, validation=0)
    for _ in range(2):
        check("cifar10", read_source(data))
    said = f"downloading {address}cifar-10-python.tar.gz to {hub}/cifar-10-python.tar.gz\n"
    assert (capsys.readouterr().out, requests) == (said, ["/cifar-10-python.tar.gz"])
    (hub / "cifar-10-python.tar.gz").unlink()
    check("cifar10", read_source(data))  # into the folder that is there now
    assert [path.name for path in hub.iterdir()] == ["cifar-10-python.tar.gz"]


def test_cifar_100_has_its_fine_classes_and_the_addresses_are_torchvisions(hub, tmp_path):
    for title, source in (("cifar-10", CIFAR10), ("cifar-100", CIFAR100)):
        assert source.url == f"{cifar.ADDRESS}{title}-python.tar.gz"
    (tmp_path / "copy").write_bytes(BUILT["cifar100"][0])
    check("cifar100", cifar.read("cifar100", tmp_path / "copy", 32))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda handler: send(handler, PART), "invalid hash value"),
        (lambda handler: send(handler, b"", 403), "HTTP Error 403: Forbidden"),
        (lambda handler: (send(handler, PART), time.sleep(5)), "timed out"),
    ],
)
def test_a_failed_transfer_is_told_with_its_reason_and_leaves_nothing(hub, serve, monkeypatch, answer, reason):
    address, _ = serve(answer)
    monkeypatch.setattr(cifar, "TIMEOUT", 1)
    with pytest.raises(UserError, match=rf"^cannot download {address}cifar-10-python\.tar\.gz .*({reason}).*data\.pat"):
        cifar.read("cifar10", None, 32)
    socket.setdefaulttimeout(None)
    assert list(hub.iterdir()) == []


def test_a_copy_is_used_in_place_of_a_download_and_a_damaged_archive_is_to_be_renamed(hub, tmp_path):
    copy, cached = tmp_path / "copy.tar.gz", hub / "cifar-10-python.tar.gz"
    copy.write_bytes(ARCHIVE)
    assert cifar.read("cifar10", copy, 16).train.images.shape == (5 * EACH, 16, 16, 3)
    assert not hub.exists()
    hub.mkdir(parents=True)
    cached.write_bytes(ARCHIVE[:1000])
    for kind, path, said in (("cifar100", copy, copy), ("cifar10", None, cached)):
        with pytest.raises(UserError, match=rf"^{said}: not .*, or damaged; rename it, or set data\.path"):
            cifar.read(kind, path, 16)
    with pytest.raises(UserError, match=r"^nowhere: no such file; data\.path must be a copy of https://www\.cs\.tor"):
        cifar.read("cifar10", Path("nowhere"), 16)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_only_the_bytes_that_were_verified_are_unpickled(hub, monkeypatch, tmp_path):
    """Also where another user owns the folder, and replaces the archive between the two."""
    copy, harmful = tmp_path / "copy.tar.gz", packed({"batches.meta": pickle.dumps(Harmful())})
    copy.write_bytes(harmful)
    with pytest.raises(UserError, match="or damaged"):
        cifar.read("cifar10", copy, 32)
    copy.write_bytes(ARCHIVE)
    replace = lambda content: copy.write_bytes(harmful) and hashlib.sha256(content).hexdigest()  # noqa: E731
    monkeypatch.setattr(cifar, "sha256", replace)
    check("cifar10", cifar.read("cifar10", copy, 32))
    assert copy.read_bytes() == harmful
    assert not Path("harmed").exists()
