import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.errors import UserError
from stages.common.files import Record, csv_bytes, locked, parse_csv, parse_json, replacing, write_bytes, write_json

ROOT = Path(__file__).parents[2]


class Pet(Record):
    name: str
    weight: float


def test_an_interruption_while_writing_leaves_the_old_file_whole(tmp_path):
    write_bytes(tmp_path / "new/x", b"old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "new/x") as file:  # noqa: PT012
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert [path.read_text() for path in (tmp_path / "new").iterdir()] == ["old"]


def test_a_new_file_takes_the_place_of_the_old_one_which_keeps_its_content_under_other_names(tmp_path):
    """So that DVC's cache, of which a result may be a hard link, is not written through, nor where a link leads."""
    path, other = tmp_path / "result.bin", tmp_path / "other"
    for link in (path.hardlink_to, path.symlink_to):
        path.unlink(missing_ok=True)
        other.write_bytes(b"old")
        link(other)
        with replacing(path) as file:
            file.write(b"new")
            file.flush()
            assert path.read_bytes() == b"old"  # until the block ends
        assert (path.is_symlink(), path.read_bytes(), other.read_bytes()) == (False, b"new", b"old")


def test_a_file_is_on_the_disk_before_it_has_its_name_and_git_and_dvc_ignore_the_first_one(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda file: seen.extend([*tmp_path.iterdir(), os.fstat(file).st_size]))
    write_bytes(tmp_path / "x.csv", b"content")
    assert re.fullmatch(r"\.x\.csv\.[0-9a-f]{8}\.tmp", seen[0].name)
    assert seen[1:] == [7]
    assert all(".*.tmp" in (ROOT / ignored).read_text().splitlines() for ignored in (".gitignore", ".dvcignore"))


def test_json_is_readable_utf8_and_comes_back_and_a_table_has_unix_lines_and_eight_digits(tmp_path):
    path, pet = tmp_path / "pet.json", Pet(name="Kätzchen", weight=1 / 3)
    write_json(path, pet)
    assert path.read_text("utf-8") == '{\n  "name": "Kätzchen",\n  "weight": 0.3333333333333333\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"weight": float("nan")})
    assert parse_json(path.read_bytes(), Pet, path) == pet
    table = pd.DataFrame({"run": ["a", "b"], "loss": [2.5e-5, 1 / 3], "epoch": [1, 20]})
    assert csv_bytes(table) == b"run,loss,epoch\na,2.5e-05,1\nb,0.33333333,20\n"


@pytest.mark.parametrize(
    ("parse", "content", "reason"),
    [
        ("json", b"", "Invalid JSON"), ("json", b"{}", "name is missing; weight is missing"),
        ("json", b"[" * 10**5, "JSON"), ("json", b'{"name": "a", "weight": NaN}', "weight = nan: must be a finite"),
        ("csv", b"", "no table"), ("csv", b"\xff\xfe\x00", "no table"), ("csv", b"a,b\n1,2,3\n1,2,3,4\n", "no table"),
    ],
)  # fmt: skip
def test_content_of_something_else_is_named_in_one_line(parse, content, reason):
    with pytest.raises(UserError, match=rf"^plots/x: .*{reason}.{{,400}}; make it again with `dvc repro`$"):
        parse_csv(content, Path("plots/x")) if parse == "csv" else parse_json(content, Pet, Path("plots/x"))


ODD = ["0", "007", "NA", "", "null", "nan", "a,b", 'say "x"', "two\nlines", "1e5", "True", " a ", "\u200d", "猫"]
NAMES = st.sampled_from(ODD) | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8)
TEXTS = ["run", "class", "image", "label", "actual", "predicted", "recipe"]


@given(st.lists(st.tuples(NAMES, *[NAMES] * 6, st.floats(0, 1, width=16)), min_size=1, max_size=5))
def test_any_name_of_a_class_comes_back_as_the_text_it_was(rows):
    table = pd.DataFrame(rows, columns=[*TEXTS, "confidence"])
    found = parse_csv(csv_bytes(table), Path("x.csv"))
    assert found[TEXTS].to_numpy().tolist() == table[TEXTS].to_numpy().tolist()
    assert found["confidence"].to_numpy() == pytest.approx(table["confidence"].to_numpy(), rel=1e-7)


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    code = "from pathlib import Path; from stages.common.files import locked\n"
    code += "with locked(Path('folder/lock'), 'held'): print('held', flush=True); input()"
    command, pipe, environment = [sys.executable, "-c", code], subprocess.PIPE, os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=tmp_path, env=environment) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"^held by another$"), locked(tmp_path / "folder/lock", "held by another"):
            pass
        first.kill()
    with locked(tmp_path / "folder/lock", "held by another"):
        pass


def test_where_the_file_system_has_no_locks_a_line_says_so_and_the_work_goes_on(tmp_path, monkeypatch, capsys):
    """A stand-in for flock on NFS or Lustre."""
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    with locked(tmp_path / "lock", "held"):
        said = capsys.readouterr().out
    assert said.endswith("lock: no lock (No locks available); start nothing twice in this folder\n")
