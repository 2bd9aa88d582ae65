"""The same experiment in other places: same bytes, and a second clone that pulls in place of training."""

import subprocess
import urllib.request

import pytest
from moto.server import ThreadedMotoServer

from tests.pipeline import STAGES, Clone


def test_another_folder_locale_and_hash_seed_give_the_same_bytes(finished, tmp_path):
    other = Clone.of_work_tree(tmp_path / "ein anderer Ordner", LC_ALL="C", PYTHONHASHSEED="7", TZ="Asia/Tokyo")
    assert other.experiment("seed=43") == STAGES
    expected = finished.results()
    assert other.results() == expected
    assert len(expected) > 20


@pytest.fixture(scope="module")
def s3_server():
    """The address of an S3 of our own with the bucket `experiments`."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    request = urllib.request.Request(f"{address}/experiments", method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
    yield address
    server.stop()


@pytest.mark.parametrize("storage", ["folder", "s3"])
def test_a_second_clone_pulls_everything_and_trains_nothing(finished, tmp_path, request, storage):
    credentials = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "NO_PROXY": "127.0.0.1"}
    first = finished.copy(tmp_path / "first", **credentials)
    if storage == "folder":
        first.dvc("remote", "add", "--default", "storage", str(tmp_path / "storage"))
    else:
        first.dvc("remote", "add", "--default", "storage", "s3://experiments/cifar10")
        first.dvc("remote", "modify", "storage", "endpointurl", request.getfixturevalue("s3_server"))
    first.commit("storage")
    first.dvc("push")

    first.run("git", "clone", "--quiet", str(first.folder), str(tmp_path / "second"))
    second = Clone(tmp_path / "second", **credentials)
    assert not (second.folder / "models").exists()
    second.dvc("pull")
    assert second.results() == first.results()
    assert second.repro() == []


def test_the_state_of_dvc_is_closed_to_other_users(finished):
    private = finished.folder / ".dvc/tmp/site"
    environment = finished.env | {"DVC_SITE_CACHE_DIR": ""}
    del environment["DVC_SITE_CACHE_DIR"]
    subprocess.run(["make", "repro"], cwd=finished.folder, env=environment, check=True, capture_output=True)
    assert list(private.glob("repo/*"))
    assert private.stat().st_mode & 0o777 == 0o700
