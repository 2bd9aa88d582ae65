import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from stages.common import files
from stages.common.errors import UserError
from stages.common.files import (
    locked,
    read_bytes,
    read_csv,
    read_json,
    replacing,
    sha256,
    write_bytes,
    write_csv,
    write_json,
)
from stages.common.formats import Curve, Epoch, Metrics, Prediction, Timing

METRICS = Metrics(accuracy=1 / 3, loss=0.5, last_accuracy=0.25, gap=-0.125, best_epoch=2)
TIMING = Timing(
    train_seconds=1.5, images_per_second=100, device="CPU", precision="fp32", compiled=False, torch="2", python="3"
)
EPOCH = Epoch(
    epoch=1,
    train_loss=2.5e-5,
    train_accuracy=0.5,
    test_loss=1 / 3,
    test_accuracy=0.25,
    generalization_gap=0.25,
    learning_rate=0.1,
)


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "result.txt"
    write_bytes(path, b"first, and longer\n")
    write_bytes(path, "zweite ×\n".encode())
    assert path.read_bytes() == "zweite ×\n".encode()
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_while_writing_leaves_the_old_file_whole(tmp_path, error):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def write():
        with replacing(path) as file:
            file.write(b"half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_takes_the_place_of_the_old_one_which_keeps_its_content_under_other_names(tmp_path):
    """So that DVC's cache, of which a result may be a hard link, is not written through."""
    path, cached = tmp_path / "result.bin", tmp_path / "cached"
    path.write_bytes(b"old")
    cached.hardlink_to(path)
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"  # until the block ends
    assert path.read_bytes() == b"new"
    assert cached.read_bytes() == b"old"


def test_links_and_pipes_that_somebody_planted_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "result.txt"
    path.symlink_to(victim)
    (tmp_path / ".result.txt.tmp").symlink_to(victim)
    (tmp_path / ".result.txt.0.tmp").symlink_to(victim)
    os.mkfifo(tmp_path / ".result.txt.1.tmp")
    write_bytes(path, b"new")
    assert victim.read_text() == "precious"
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()


def test_the_leftover_of_a_killed_process_is_removed(tmp_path):
    (tmp_path / ".result.txt.ab12.tmp").write_text("half")
    (tmp_path / ".other.txt.ab12.tmp").write_text("half of another")
    write_bytes(tmp_path / "result.txt", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.txt.ab12.tmp", "result.txt"]


def test_a_full_disk_names_the_file_and_what_it_needs(small_disk):
    folder = small_disk(64)
    with pytest.raises(OSError, match="No space left on device") as error:
        write_bytes(folder / "result.bin", bytes(3 * 2**20))
    assert error.value.filename == str(folder / "result.bin")
    assert error.value.filename2 == "3 MiB are needed"
    assert list(folder.iterdir()) == []


def test_json_is_readable_utf8_with_six_places(tmp_path):
    write_json(tmp_path / "metrics.json", METRICS)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "accuracy": 0.333333, "loss": 0.5, "last_accuracy": 0.25, "gap": -0.125, "best_epoch": 2,
    }  # fmt: skip
    write_json(tmp_path / "timing.json", TIMING.model_copy(update={"device": "Straße"}))
    assert '"device": "Straße"' in (tmp_path / "timing.json").read_text(encoding="utf-8")


def test_csv_has_unix_lines_and_eight_digits_and_comes_back(tmp_path):
    path = tmp_path / "history.csv"
    write_csv(path, Epoch, [EPOCH, EPOCH.model_copy(update={"epoch": 2})])
    header = b"epoch,train_loss,train_accuracy,test_loss,test_accuracy,generalization_gap,learning_rate\n"
    assert (
        path.read_bytes()
        == header + b"1,2.5e-05,0.5,0.33333333,0.25,0.25,0.1\n2,2.5e-05,0.5,0.33333333,0.25,0.25,0.1\n"
    )
    assert [row.epoch for row in read_csv(path, Epoch)] == [1, 2]
    assert read_csv(path, Epoch)[0].test_loss == 0.33333333


def test_the_run_stands_first_in_the_table_of_all_histories(tmp_path):
    write_csv(tmp_path / "curves.csv", Curve, [Curve(run="cnn", **EPOCH.model_dump())])
    assert (tmp_path / "curves.csv").read_text().splitlines()[0].startswith("run,epoch,train_loss,")


@pytest.mark.parametrize("name", ["0", "007", "NA", "", "a,b", 'say "x"', "two\nlines", "1e5", "true", "café"])
def test_a_class_name_comes_back_as_the_text_it_was(tmp_path, name):
    rows = [Prediction(index=0, actual=name, predicted=name, confidence=0.5)]
    write_csv(tmp_path / "predictions.csv", Prediction, rows)
    assert read_csv(tmp_path / "predictions.csv", Prediction) == rows


@pytest.mark.parametrize(
    "content",
    [b"", b"epoch\n1\n", b"\xff\xfe\x00", b"a,b\n1\n", b"<<<<<<< HEAD\n", b"epoch,train_loss\n\x00,1\n"],
)
def test_a_csv_file_that_is_no_table_of_its_kind_is_named(tmp_path, content):
    (tmp_path / "history.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"history\.csv: .*make it again with `dvc repro`"):
        read_csv(tmp_path / "history.csv", Epoch)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 100_000, b'{"accuracy": NaN}', b"\xff"])
def test_a_json_file_of_something_else_is_named(tmp_path, content):
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.json: .*make it again with `dvc repro`") as error:
        read_json(tmp_path / "metrics.json", Metrics)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "large"])
def test_only_regular_files_of_bounded_size_are_read(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(200 * 2**30)
    with pytest.raises(UserError, match=r"no such file|not a regular file|Is a directory|larger than"):
        read_bytes(path)


def test_a_file_of_the_limit_is_read_and_one_of_a_byte_more_is_not(tmp_path):
    (tmp_path / "x").write_bytes(bytes(10))
    assert read_bytes(tmp_path / "x", 10) == bytes(10)
    (tmp_path / "x").write_bytes(bytes(11))
    with pytest.raises(UserError, match="larger than 10 bytes"):
        read_bytes(tmp_path / "x", 10)


@pytest.mark.parametrize(("path", "reason"), [("/dev/zero", "not a regular file"), ("/nowhere", "no such file")])
def test_a_device_is_not_read_and_a_missing_file_is_named(path, reason):
    with pytest.raises(UserError, match=f"{path}: {reason}"):
        read_bytes(Path(path), 100)


@pytest.mark.parametrize("synced", [True, False])
def test_a_file_is_on_the_disk_before_it_has_its_name_unless_it_need_not(tmp_path, monkeypatch, synced):
    seen, sync = [], os.fsync

    def watched(number: int) -> None:
        seen.append((tmp_path / "x").exists())
        sync(number)

    monkeypatch.setattr(os, "fsync", watched)
    write_bytes(tmp_path / "x", b"content", synced)
    assert seen == ([False] if synced else [])


def test_the_digest_of_a_file_is_sha256sums(tmp_path):
    (tmp_path / "x").write_bytes(random.Random(0).randbytes(100_000))
    said = subprocess.run(["sha256sum", tmp_path / "x"], capture_output=True, text=True, check=True).stdout
    assert sha256(tmp_path / "x") == said.split()[0]


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    class HeldError(Exception):
        pass

    def refuse() -> None:
        raise HeldError

    code = "from pathlib import Path; from stages.common.files import locked\n"
    code += "with locked(Path('folder/lock'), lambda: print('waiting', flush=True)): print('held', flush=True); input()"
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    options = {
        "stdin": pipe,
        "stdout": pipe,
        "text": True,
        "cwd": tmp_path,
        "env": os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])},
    }
    first = subprocess.Popen(command, **options)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(HeldError), locked(tmp_path / "folder/lock", refuse):
        pass
    second = subprocess.Popen(command, **options)
    assert second.stdout.readline() == "waiting\n"
    first.kill()
    assert second.stdout.readline() == "held\n"
    second.communicate("\n")
    first.communicate()
    with locked(tmp_path / "folder/lock", refuse):
        pass
