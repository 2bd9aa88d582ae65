import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
STAGE = """
import os, sys, time
from argparse import ArgumentParser
from stages.common import cli
from stages.common.errors import UserError

def main(args):
    {}

cli.run(main, ArgumentParser(prog="stage"))
"""


def environment(**changes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "DVC_STAGE"} | {
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        **changes,
    }


def run(body: str, *arguments: str, shell: str = "", **changes: str) -> subprocess.CompletedProcess:
    """Run a stage with this body; `shell` is what a shell adds to the command line."""
    code = STAGE.format(body.replace("\n", "\n    "))
    command = ["sh", "-c", f'"$@" {shell}', "sh", sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment(**changes), capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def started(*command: str, **changes: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        command, env=environment(**changes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("raise UserError('x = 1: must be 2')", 1, r"x = 1: must be 2"),
        ("raise UserError('a\\x1b[31m\\nb')", 1, r"a\\x1b\[31m b"),
        ("raise UserError('long ' * 10_000)", 1, r"(long )+lon?g?\.\.\."),
        ("open('/nowhere/file')", 1, r"/nowhere/file: No such file or directory"),
        ("bytearray(2**62)", 1, r"out of memory; use smaller images, or a larger machine"),
        ("os.write(os.open('/dev/full', os.O_WRONLY), b'x')", 1, r"\[Errno 28\] No space left on device"),
        ("os.kill(os.getpid(), 15)", 143, r"stopped \(SIGTERM\); run the same command again"),
        ("os.kill(os.getpid(), 2)", 130, r"stopped \(SIGINT\); run the same command again"),
    ],
)
def test_what_a_user_can_mend_and_a_signal_end_in_one_line_under_the_stages_name(body, status, line):
    done = run(body)
    assert done.returncode == status
    assert re.fullmatch(f"stage: {line}\n", done.stderr)
    assert len(done.stderr) < 2100
    assert done.stdout == ""


def test_a_full_disk_is_told_with_what_is_free_and_what_is_needed(small_disk):
    folder = small_disk(5 * 1024)
    done = run(
        "from pathlib import Path; from stages.common.files import write_bytes\nwrite_bytes(Path('x'), bytes(9 << 20))"
    )
    said = f"x: the disk is full: 5 MiB are free in {folder}, 9 MiB are needed; make room and run this again"
    assert (done.returncode, done.stderr) == (1, f"stage: {said}\n")
    assert list(folder.iterdir()) == []


def test_the_first_note_of_an_interrupt_is_its_advice():
    done = run("try: os.kill(os.getpid(), 15); time.sleep(9)\nexcept KeyboardInterrupt as e: e.add_note('rest'); raise")
    assert (done.returncode, done.stderr) == (143, "stage: stopped (SIGTERM); rest\n")


def test_an_error_with_debug_and_a_bug_of_ours_show_their_traceback():
    done = run("raise UserError('must be 2')", "--debug")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("UserError: must be 2\n")
    bug = run("1 / 0")
    assert bug.returncode == 1
    assert bug.stderr.startswith("Traceback")
    assert bug.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("shell", [">&- 2>&- <&-", "2>&-", ">&-"])
def test_a_closed_stream_disturbs_nothing_but_what_is_printed_to_it(shell):
    body = "print('out'); print('err', file=sys.stderr); sys.stdin.read(); open({!r}, 'x')"
    done = run(body.format("/dev/null"), shell=shell)
    assert done.returncode == 1  # the file exists, which no closed stream hides
    assert done.stdout == ("" if ">&- " in f"{shell} " and not shell.startswith("2") else "out\n")
    assert done.stderr == ("" if "2>&-" in shell else "err\nstage: /dev/null: File exists\n")


def test_output_that_nobody_reads_ends_the_stage_in_one_line():
    done = run("while True: print('x' * 9999)", shell="| true; exit 0")
    assert re.fullmatch(r"stage: \[Errno 32\] Broken pipe\n", done.stderr)


def test_what_an_encoding_lacks_is_printed_in_escapes():
    done = run("print('2 × CPU'); raise UserError('Größe')", PYTHONIOENCODING="ascii")
    assert done.stdout == "2 \\xd7 CPU\n"
    assert done.stderr == "stage: Gr\\xf6\\xdfe\n"


def test_a_second_signal_does_not_disturb_how_the_first_one_ends():
    body = (
        "try:\n    print('ready', flush=True); time.sleep(30)\nfinally: time.sleep(0.5); print('tidied up', flush=True)"
    )
    with started(sys.executable, "-c", STAGE.format(body.replace("\n", "\n    "))) as stage:
        assert stage.stdout.readline() == "ready\n"
        for _ in range(2):
            stage.send_signal(signal.SIGINT)
            time.sleep(0.1)
        out, err = stage.communicate(timeout=30)
    assert (out, err) == ("tidied up\n", "stage: stopped (SIGINT); run the same command again\n")
    assert stage.returncode == 130


@pytest.mark.parametrize("seconds", [0.02, 0.06, 0.12, 0.25, 0.5, 1.0])
def test_an_interrupt_while_python_still_imports_shows_no_traceback(tmp_path, monkeypatch, seconds):
    monkeypatch.chdir(tmp_path)
    with started(sys.executable, "-m", "stages.train", "cnn", "--model", "cnn", "--weight-decay", "x") as stage:
        time.sleep(seconds)
        stage.send_signal(signal.SIGINT)
        _, err = stage.communicate(timeout=60)
    if "import signal" not in err and ("stages" in err or seconds > 0.02):  # before that it is Python's own start
        assert "Traceback" not in err
        assert err.count("\n") <= 1
    assert stage.returncode != 0


PARENT = """
import os, subprocess, sys
subprocess.run(["sh", "-c", "echo $$ >&2; " + sys.argv[1] + "; true"], env=os.environ | {"DVC_STAGE": "train"})
"""


@pytest.mark.parametrize("dvc", ["ended", "alive"])
def test_a_stage_ends_with_the_dvc_that_started_it_and_not_with_the_shell_between(tmp_path, dvc):
    """A process stands for DVC, which starts a shell with DVC_STAGE set, which starts the stage."""
    wait = (
        "open('pid', 'w').write(str(os.getpid()))\n"
        "while not os.path.exists('end'): time.sleep(0.01)\n"
        "open('whole', 'x')"
    )
    (tmp_path / "stage.py").write_text(STAGE.format(wait.replace("\n", "\n    ")))
    command = f"cd {tmp_path}; {sys.executable} stage.py 2>said"
    with started(sys.executable, "-c", PARENT, command) as parent:
        shell = psutil.Process(int(parent.stderr.readline()))
        stage = psutil.Process(int(wait_for(tmp_path / "pid")))
        if dvc == "ended":
            parent.kill()
            parent.wait()
        shell.kill()  # which is in between and tells nothing
        time.sleep(0.2)
        if dvc == "alive":
            assert stage.is_running()
            (tmp_path / "end").touch()
        psutil.wait_procs([stage], timeout=10)
        assert not stage.is_running()
    assert (tmp_path / "whole").exists() == (dvc == "alive")
    said = "stage: stopped (SIGTERM); run the same command again\n" if dvc == "ended" else ""
    assert (tmp_path / "said").read_text() == said


def wait_for(path: Path) -> str:
    end = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)
    return path.read_text()


def test_a_stage_without_parameters_exits_with_1_and_one_line_and_writes_nothing(tmp_path, monkeypatch, stage):
    monkeypatch.chdir(tmp_path)
    done = stage("stages.download")
    assert done.returncode == 1
    assert done.stderr == "download: params.yaml: no such file here; run this in the folder of the project\n"
    assert list(tmp_path.iterdir()) == []


def test_without_docstrings_a_stage_starts_and_explains_its_arguments(tmp_path, monkeypatch, stage):
    monkeypatch.chdir(tmp_path)
    done = stage("stages.download", "--help", PYTHONOPTIMIZE="2")
    assert done.returncode == 0, done.stderr
    assert "--debug" in done.stdout


def test_an_old_python_is_told_which_one_it_takes():
    code = "import sys; sys.version_info, sys.version = (3, 10, 4), '3.10.4 (main)'; import stages"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Python 3.11 or newer is needed, and this is 3.10.4")
