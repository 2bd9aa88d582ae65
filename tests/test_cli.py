import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

from stages import cli
from stages.core.errors import UserError

ROOT = Path(__file__).parents[1]


def run_raising(monkeypatch, error: BaseException, *arguments: str) -> None:
    def main(args):
        raise error

    monkeypatch.setattr(sys, "argv", ["stage", *arguments])
    cli.run(main, ArgumentParser(prog="stage"))


@pytest.mark.parametrize("error", [UserError("x = 1: must be 2"), PermissionError(13, "x = 1: must be 2")])
def test_what_a_user_can_mend_ends_in_one_line_under_the_stages_name(monkeypatch, error):
    with pytest.raises(SystemExit) as exit:
        run_raising(monkeypatch, error)
    assert exit.value.code.startswith("stage: ")
    assert exit.value.code.endswith("x = 1: must be 2")


def test_with_debug_the_error_itself_comes_out(monkeypatch):
    with pytest.raises(UserError, match="must be 2"):
        run_raising(monkeypatch, UserError("must be 2"), "--debug")


def test_a_bug_of_ours_is_not_hidden(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        run_raising(monkeypatch, ZeroDivisionError())


def test_an_interrupted_stage_exits_as_the_shell_expects(monkeypatch):
    with pytest.raises(SystemExit) as exit:
        run_raising(monkeypatch, KeyboardInterrupt())
    assert exit.value.code == 130


def test_a_stage_without_parameters_exits_with_1_and_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "stages.download"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("download: params.yaml: cannot be read")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_old_python_is_told_which_one_it_takes():
    code = "import sys; sys.version_info, sys.version = (3, 10, 4), '3.10.4 (main)'; import stages"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Python 3.11 or newer is needed, and this is 3.10.4")
