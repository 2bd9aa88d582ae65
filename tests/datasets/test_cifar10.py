"""The real stage against real servers on the loopback address; only address and digests are replaced."""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline import DEFAULTS

ROOT = Path(__file__).parents[2]
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
EACH = 40  # images in a batch

# Replaces what tells the official archive, and then runs the stage as `python -m stages.download` does
LAUNCH = """
import json, runpy, sys
given = json.loads(sys.argv.pop(1))
import torchvision
from stages.datasets import cifar10, transfer
transfer.TIMEOUT = given["timeout"]
cifar10.ADDRESS, cifar10.MD5, cifar10.SHA256 = given["address"], given["md5"], given["sha256"]
data = torchvision.datasets.CIFAR10
data.train_list, data.test_list = given["files"][:5], given["files"][5:6]
data.meta = {"filename": "batches.meta", "key": "label_names", "md5": given["files"][6][1]}
runpy.run_module("stages.download", run_name="__main__")
"""


def build() -> tuple[bytes, list[list[str]], dict[str, dict]]:
    """A small archive of the real one's shape, the md5 of its files, and its batches."""
    random, batches, files, file = np.random.default_rng(0), {}, [], io.BytesIO()
    contents = {}
    for name in NAMES:
        batches[name] = {
            "data": random.integers(0, 256, (EACH, 3072), dtype=np.uint8),
            "labels": [int(label) for label in random.integers(0, 10, EACH)],
        }
        contents[name] = pickle.dumps(batches[name])
    contents["batches.meta"] = pickle.dumps({"label_names": CLASSES})
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            files.append([name, hashlib.md5(content).hexdigest()])
    return file.getvalue(), files, batches


ARCHIVE, FILES, BATCHES = build()


class Server(ThreadingHTTPServer):
    """Answers every request by `answer`, and counts them."""

    daemon_threads = True

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None], certificate: Path | None = None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:
                self.requests.append(handler.path)
                answer(handler)

            def log_message(handler, *args) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        scheme = "https" if certificate else "http"
        self.address = f"{scheme}://127.0.0.1:{self.server_port}/cifar-10-python.tar.gz"
        threading.Thread(target=self.serve_forever, daemon=True).start()


def send(handler: BaseHTTPRequestHandler, content: bytes = ARCHIVE, length: int | None = -1, status: int = 200) -> None:
    handler.send_response(status)
    if length is not None:
        handler.send_header("Content-Length", str(len(content) if length == -1 else length))
    handler.end_headers()
    handler.wfile.write(content)


def redirect(handler: BaseHTTPRequestHandler) -> None:
    if handler.path.startswith("/elsewhere"):
        return send(handler)
    handler.send_response(302)
    handler.send_header("Location", "/elsewhere/archive")
    handler.end_headers()
    return None


def close_at_once(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def slow(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(ARCHIVE)))
    handler.end_headers()
    for start in range(0, len(ARCHIVE), 4096):
        handler.wfile.write(ARCHIVE[start : start + 4096])
        time.sleep(0.05)


@pytest.fixture
def serve():
    """Start a server with an answer; it ends with the test."""
    servers = []

    def start(answer: Callable[[BaseHTTPRequestHandler], None], certificate: Path | None = None) -> Server:
        servers.append(Server(answer, certificate))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Experiment:
    """A folder with params.yaml, and the download stage in it."""

    def __init__(self, folder: Path, cache: Path, image_size: int = 32, path: Path | None = None):
        folder.mkdir(parents=True)
        self.folder, self.cache = folder, cache / "cifar10-pipeline"
        text = (DEFAULTS).read_text().replace("image_size: 32", f"image_size: {image_size}")
        (folder / "params.yaml").write_text(text.replace("path: null", f"path: {path or 'null'}"))
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.env = {**kept, "PYTHONPATH": str(ROOT), "TORCH_HOME": str(cache), "OMP_NUM_THREADS": "1"}

    def start(self, address: str, timeout: int = 30, **env: str) -> subprocess.Popen:
        digests = {"md5": hashlib.md5(ARCHIVE).hexdigest(), "sha256": hashlib.sha256(ARCHIVE).hexdigest()}
        given = json.dumps({"address": address, "timeout": timeout, "files": FILES, **digests})
        command = [sys.executable, "-c", LAUNCH, given]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self.env | env, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, text=True
        )

    def run(self, address: str, timeout: int = 30, **env: str) -> subprocess.CompletedProcess:
        process = self.start(address, timeout, **env)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def check(self, size: int = 32) -> None:
        """Raise if data/ does not hold the images of the archive."""
        for split, names in (("train", NAMES[:5]), ("test", NAMES[5:])):
            with np.load(self.folder / f"data/{split}.npz") as arrays:
                images, labels = arrays["images"], arrays["labels"]
            assert labels.tolist() == [label for name in names for label in BATCHES[name]["labels"]]
            assert images.shape == (EACH * len(names), size, size, 3)
            if size == 32:
                planes = np.concatenate([BATCHES[name]["data"] for name in names]).reshape(-1, 3, 32, 32)
                np.testing.assert_array_equal(images, planes.transpose(0, 2, 3, 1))
        info = json.loads((self.folder / "data/dataset.json").read_text())
        assert info["classes"] == CLASSES
        assert info["sha256"] == hashlib.sha256(ARCHIVE).hexdigest()

    def left(self) -> list[str]:
        """The names of what lies in the cache."""
        return sorted(path.name for path in self.cache.glob("[!.]*"))


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    return Experiment(tmp_path / "one", tmp_path / "cache")


@pytest.mark.parametrize("answer", [send, redirect, lambda handler: send(handler, length=None)])
def test_the_archive_is_downloaded_verified_and_read_however_it_is_sent(experiment, serve, answer):
    server = serve(answer)
    done = experiment.run(server.address)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, last = done.stdout.splitlines()
    assert first == f"downloading {server.address} to {experiment.cache / 'cifar-10-python.tar.gz'}"
    assert last == "CIFAR-10: 200 training and 40 test images, 10 classes, 32×32"
    experiment.check()
    assert experiment.left() == ["cifar-10-python.tar.gz"]


PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


DIGESTS = "sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"
FAILURES = {
    "cut": (lambda handler: send(handler, ARCHIVE[:20_000], len(ARCHIVE)), f"cut after .* of {len(ARCHIVE):,} bytes"),
    "cut without length": (lambda handler: send(handler, ARCHIVE[:20_000], None), f"20,000 bytes with {DIGESTS}"),
    "closed": (close_at_once, "Remote end closed connection|Connection reset"),
    "login page": (
        lambda handler: send(handler, PAGE),
        rf"a web page, perhaps the login page of a network \({DIGESTS}",
    ),
    "403": (lambda handler: send(handler, b"", status=403), "HTTP status 403 Forbidden"),
    "404": (lambda handler: send(handler, b"", status=404), "HTTP status 404 Not Found"),
    "503": (lambda handler: send(handler, b"", status=503), "HTTP status 503 Service Unavailable"),
    "empty": (lambda handler: send(handler, b""), "the answer is empty"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_transfer_ends_in_one_line_with_its_reason_and_the_next_starts_clean(experiment, serve, failure):
    answer, reason = FAILURES[failure]
    server = serve(answer)
    done = experiment.run(server.address)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"download: {server.address} cannot be downloaded: ")
    assert re.search(reason, line), line
    assert "set data.path to a copy" in line
    assert experiment.left() == []
    assert not (experiment.folder / "data").exists()
    if failure == "cut":
        assert experiment.run(serve(send).address).returncode == 0
        experiment.check()


def stall(handler: BaseHTTPRequestHandler) -> None:
    send(handler, ARCHIVE[:200_000], len(ARCHIVE))
    time.sleep(20)


def test_a_transfer_that_stalls_is_told_from_one_that_is_cut(experiment, serve):
    done = experiment.run(serve(stall).address, timeout=2)
    assert done.returncode == 1
    assert re.search(rf"the transfer stalled for 2 seconds after [\d,]+ of {len(ARCHIVE):,} bytes", done.stderr)
    assert experiment.left() == []


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl, which makes the certificate, is installed")
def test_an_encrypted_transfer_needs_a_trusted_certificate_and_stays_encrypted(experiment, serve, tmp_path):
    certificate = tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-out", str(certificate)]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tmp_path / "key.pem")]
    subprocess.run(made, check=True, capture_output=True)
    with certificate.open("a") as file:
        file.write((tmp_path / "key.pem").read_text())

    plain = serve(send)

    def leave_encryption(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", plain.address)
        handler.end_headers()

    for answer, trusted, reason in (
        (send, {}, "certificate verify failed"),
        (
            leave_encryption,
            {"SSL_CERT_FILE": str(certificate)},
            f"redirected to {plain.address}, which is not encrypted",
        ),
    ):
        done = experiment.run(serve(answer, certificate).address, **trusted)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert reason in line
        assert experiment.left() == []
    assert plain.requests == []
    assert experiment.run(serve(send, certificate).address, SSL_CERT_FILE=str(certificate)).returncode == 0
    experiment.check()


def test_a_name_that_does_not_resolve_and_a_proxy_that_does_not_answer_are_named(experiment):
    done = experiment.run("http://no-such-host.invalid/x.tar.gz")
    assert done.returncode == 1
    assert "the name no-such-host.invalid does not resolve" in done.stderr
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://user:secret@127.0.0.1:{closed.getsockname()[1]}"
    done = experiment.run("http://somewhere.invalid/x.tar.gz", http_proxy=proxy)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Connection refused, through the proxy 127.0.0.1:" in line
    assert "secret" not in line


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_transfer_that_is_stopped_in_the_middle_leaves_nothing_and_the_next_succeeds(experiment, serve, by):
    server = serve(slow)
    process = experiment.start(server.address)
    end = time.monotonic() + 60
    while not [path for path in experiment.cache.rglob("*") if path.is_file() and path.stat().st_size > 4096]:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(by)
    _, err = process.communicate()
    if by == signal.SIGINT:
        assert process.returncode == 130
        assert err == "download: stopped (SIGINT); run the same command again\n"
        assert experiment.left() == []
    assert "cifar-10-python.tar.gz" not in experiment.left()
    assert experiment.run(serve(send).address).returncode == 0
    experiment.check()
    assert experiment.left() == ["cifar-10-python.tar.gz"]


def test_experiments_at_once_and_later_share_one_transfer(tmp_path, serve):
    server = serve(slow)
    experiments = {size: Experiment(tmp_path / f"size{size}", tmp_path / "cache", size) for size in (32, 16, 8)}
    at_once = [experiments[size].start(server.address) for size in (32, 16)]
    outputs = [process.communicate(timeout=120) for process in at_once]
    assert [process.returncode for process in at_once] == [0, 0], outputs
    later = experiments[8].run(server.address)
    assert later.returncode == 0, later.stderr
    assert f"CIFAR-10 from {tmp_path / 'cache/cifar10-pipeline/cifar-10-python.tar.gz'}" in later.stdout
    assert len(server.requests) == 2  # of one transfer: torchvision looks for redirections before it begins
    for size, experiment in experiments.items():
        experiment.check(size)


def test_a_damaged_archive_in_the_cache_is_replaced(experiment, serve):
    experiment.cache.mkdir(parents=True)
    (experiment.cache / "cifar-10-python.tar.gz").write_bytes(ARCHIVE[:1000])
    done = experiment.run(serve(send).address)
    assert done.returncode == 0, done.stderr
    assert "is damaged: 1,000 bytes with sha256" in done.stdout
    experiment.check()


def test_a_local_copy_is_used_in_place_of_a_download(tmp_path):
    (tmp_path / "copy.tar.gz").write_bytes(ARCHIVE)
    experiment = Experiment(tmp_path / "one", tmp_path / "cache", path=tmp_path / "copy.tar.gz")
    done = experiment.run("http://127.0.0.1:9/nobody-listens")
    assert done.returncode == 0, done.stderr
    experiment.check()
    (tmp_path / "copy.tar.gz").write_bytes(ARCHIVE + b"x")
    done = experiment.run("http://127.0.0.1:9/nobody-listens")
    assert done.returncode == 1
    assert "copy.tar.gz is not CIFAR-10's archive: " in done.stderr


def test_nothing_is_unpickled_before_the_digest_is_known(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        member, content = tarfile.TarInfo("cifar-10-batches-py/batches.meta"), pickle.dumps(Harmful())
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    (tmp_path / "harmful.tar.gz").write_bytes(file.getvalue())
    experiment = Experiment(tmp_path / "one", tmp_path / "cache", path=tmp_path / "harmful.tar.gz")
    assert experiment.run("http://127.0.0.1:9/").returncode == 1
    assert not (tmp_path / "harmed").exists()
