import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.errors import UserError
from stages.common.files import (
    TEXTS,
    Record,
    csv_bytes,
    locked,
    parse_csv,
    parse_json,
    replacing,
    sha256,
    write_bytes,
    write_csv,
    write_json,
)  # fmt: skip

ROOT = Path(__file__).parents[2]


class Pet(Record):
    name: str
    weight: float


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "result.txt"
    write_bytes(path, b"first, and longer\n")
    write_bytes(path, "zweite ×\n".encode())
    assert path.read_bytes() == "zweite ×\n".encode()
    assert list(path.parent.iterdir()) == [path]
    os.umask(mask := os.umask(0))
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_error_while_writing_leaves_the_old_file_whole(tmp_path, error):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as file:
            file.write(b"half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_takes_the_place_of_the_old_one_which_keeps_its_content_under_other_names(tmp_path):
    """So that DVC's cache, of which a result may be a hard link, is not written through, nor where a link leads."""
    path, cached, victim = tmp_path / "result.bin", tmp_path / "cached", tmp_path / "victim"
    for link in (lambda: path.hardlink_to(cached), lambda: path.symlink_to(victim)):
        path.unlink(missing_ok=True)
        cached.write_bytes(b"old")
        victim.write_bytes(b"old")
        link()
        with replacing(path) as file:
            file.write(b"new")
            file.flush()
            assert path.read_bytes() == b"old"  # until the block ends
        assert not path.is_symlink()
        assert [path.read_bytes(), cached.read_bytes(), victim.read_bytes()] == [b"new", b"old", b"old"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen, sync = [], os.fsync

    def watched(number: int) -> None:
        seen.append(((tmp_path / "x").exists(), os.fstat(number).st_size))
        sync(number)

    monkeypatch.setattr(os, "fsync", watched)
    write_bytes(tmp_path / "x", b"content")
    assert seen == [(False, 7)]


def test_a_full_disk_names_the_file_and_leaves_nothing(small_disk):
    folder = small_disk(64)
    with pytest.raises(OSError, match="No space left on device") as error:
        write_bytes(folder / "result.bin", bytes(3 * 2**20))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(folder / "result.bin"))
    assert list(folder.iterdir()) == []


def test_three_writers_of_a_file_at_once_do_not_disturb_each_other(tmp_path):
    path, contents = tmp_path / "result", [letter * 100_000 for letter in (b"a", b"b", b"c")]

    def write(content: bytes) -> None:
        for _ in range(50):
            write_bytes(path, content)
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, contents))
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_of_an_unfinished_file_is_one_that_git_and_dvc_ignore(tmp_path):
    with replacing(tmp_path / "x.csv"):
        (name,) = (path.name for path in tmp_path.iterdir())
    command = ["git", "check-ignore", "--no-index", f"plots/history/{name}"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert ".*.tmp" in (ROOT / ".dvcignore").read_text().splitlines()
    assert re.fullmatch(r"\.x\.csv\.[0-9a-f]{8}\.tmp", name)


def test_json_is_readable_utf8_one_key_a_line_and_comes_back(tmp_path):
    pet = Pet(name="Kätzchen", weight=1 / 3)
    for content in (pet, pet.model_dump()):
        write_json(tmp_path / "pet.json", content)
        text = (tmp_path / "pet.json").read_text("utf-8")
        assert text == '{\n  "name": "Kätzchen",\n  "weight": 0.3333333333333333\n}\n'
    assert parse_json(text.encode(), Pet, Path("pet.json")) == pet
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "pet.json", {"weight": float("nan")})
    assert json.loads((tmp_path / "pet.json").read_text("utf-8")) == pet.model_dump()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Invalid JSON"), (b"[]", "object"), (b"{}", "name is missing; weight is missing"), (b"\xff", "JSON"),
        (b'{"name": "a", "weight": NaN}', "weight = nan: must be a finite number"), (b"[" * 100_000, "JSON"),
        (b'{"name": 1, "weight": 1}', "name = 1: must be a valid string"),
        (b'{"name": "a", "weight": 1, "age": 2}', "age is unknown; known here: name, weight"),
    ],
)  # fmt: skip
def test_json_of_something_else_is_named_in_one_line(content, reason):
    with pytest.raises(UserError, match=r"^pet\.json: .*; make it again with `dvc repro`$") as error:
        parse_json(content, Pet, Path("pet.json"))
    assert reason in str(error.value)
    assert len(str(error.value)) < 500


def test_a_table_has_unix_lines_and_eight_digits_and_comes_back(tmp_path):
    table = pd.DataFrame({"run": ["a", "b"], "loss": [2.5e-5, 1 / 3], "epoch": [1, 20]})
    write_csv(tmp_path / "x.csv", table)
    content = (tmp_path / "x.csv").read_bytes()
    assert content == csv_bytes(table) == b"run,loss,epoch\na,2.5e-05,1\nb,0.33333333,20\n"
    found = parse_csv(content, tmp_path / "x.csv")
    assert found.to_dict("list") == {"run": ["a", "b"], "loss": [2.5e-5, 0.33333333], "epoch": [1, 20]}
    assert found.dtypes["epoch"] == "int64"


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8)
ODD = st.sampled_from(
    ["0", "007", "NA", "", "null", "nan", "a,b", 'say "x"', "two\nlines", "1e5", "True", " a ", "\u200d", "猫"]
)


@given(st.lists(st.tuples(NAMES | ODD, NAMES | ODD, st.floats(0, 1, width=16)), min_size=1, max_size=5))
def test_any_name_of_a_class_comes_back_as_the_text_it_was(rows):
    table = pd.DataFrame(rows, columns=["actual", "predicted", "confidence"])
    found = parse_csv(csv_bytes(table), Path("x.csv"))
    assert found[["actual", "predicted"]].to_numpy().tolist() == table[["actual", "predicted"]].to_numpy().tolist()
    assert found["confidence"].to_numpy() == pytest.approx(table["confidence"].to_numpy(), rel=1e-7)


def test_every_column_that_holds_names_stays_text_also_if_all_are_numbers():
    columns = {"run", "class", "image", "label", "actual", "predicted", "recipe"}
    found = parse_csv(csv_bytes(pd.DataFrame(dict.fromkeys(columns | {"epoch"}, ["01", "2"]))), Path("x.csv"))
    assert columns <= set(TEXTS)
    assert found.to_dict("list") == dict.fromkeys(columns, ["01", "2"]) | {"epoch": [1, 2]}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a,b\n1,2,3\n1,2,3,4\n", b'a\n"1\n'])
def test_a_file_that_is_no_table_is_named_in_one_line(content):
    with pytest.raises(UserError, match=r"^plots/x\.csv: no table \(.*\); make it again with `dvc repro`$") as error:
        parse_csv(content, Path("plots/x.csv"))
    assert str(error.value).isprintable()


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    class HeldError(Exception):
        pass

    def refuse() -> None:
        raise HeldError

    code = "from pathlib import Path; from stages.common.files import locked\n"
    code += "with locked(Path('folder/lock'), lambda: print('waiting', flush=True)): print('held', flush=True); input()"

    def start() -> subprocess.Popen:
        pipe, environment = subprocess.PIPE, os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code]
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=tmp_path, env=environment)

    first = start()
    assert first.stdout.readline() == "held\n"
    with pytest.raises(HeldError), locked(tmp_path / "folder/lock", refuse):
        pass
    second = start()
    assert second.stdout.readline() == "waiting\n"
    first.kill()
    assert second.stdout.readline() == "held\n"
    second.communicate("\n")
    first.communicate()
    with locked(tmp_path / "folder/lock", refuse):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_where_the_file_system_has_no_locks_a_line_says_so_and_the_work_goes_on(tmp_path, monkeypatch, capsys, number):
    """A stand-in for flock on NFS or Lustre; an error of another kind is an error."""

    def refused(file, operation) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output"), locked(tmp_path / "lock", lambda: None):
            pass
        return
    with locked(tmp_path / "lock", lambda: pytest.fail("nobody holds it")):
        assert capsys.readouterr().out.endswith(
            "lock: no locks on this file system; start nothing twice in this folder\n"
        )


def test_the_digest_is_sha256sums():
    said = subprocess.run(["sha256sum"], input=b"content", capture_output=True, check=True).stdout.decode()
    assert sha256(b"content") == said.split()[0]
