"""The same experiment in other places: same bytes, and a second clone that pulls in place of training."""

import subprocess

from tests.pipeline import STAGES, Clone


def test_another_folder_locale_and_hash_seed_give_the_same_bytes(finished, tmp_path):
    other = Clone.of_work_tree(tmp_path / "ein anderer Ordner", LC_ALL="C", PYTHONHASHSEED="7", TZ="Asia/Tokyo")
    assert other.experiment("seed=43") == STAGES
    expected = finished.results()
    assert other.results() == expected
    assert len(expected) > 20


def test_a_second_clone_pulls_everything_and_trains_nothing(finished, tmp_path):
    first = finished.copy(tmp_path / "first")
    first.dvc("remote", "add", "--default", "storage", str(tmp_path / "storage"))
    first.commit("storage")
    first.dvc("push")
    first.run("git", "clone", "--quiet", str(first.folder), str(tmp_path / "second"))
    second = Clone(tmp_path / "second")
    assert not (second.folder / "models").exists()
    second.dvc("pull")
    assert second.results() == first.results()
    assert second.repro() == []


def test_the_state_of_dvc_is_closed_to_other_users(finished):
    private = finished.folder / ".dvc/tmp/site"
    environment = {name: value for name, value in finished.env.items() if name != "DVC_SITE_CACHE_DIR"}
    subprocess.run(["make", "repro"], cwd=finished.folder, env=environment, check=True, capture_output=True)
    assert list(private.glob("repo/*"))
    assert private.stat().st_mode & 0o777 == 0o700
