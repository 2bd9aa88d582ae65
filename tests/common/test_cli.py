import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGE = '''"""First line.

More."""
import errno, os, sys, time
from stages.common import cli
from stages.common.errors import UserError

def main(args):
    {}

cli.run(main, cli.parser("stage", __doc__))
'''


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | changes


def run(body: str, *arguments: str, shell: str = "", **changes: str) -> subprocess.CompletedProcess:
    """Run a stage with this body; `shell` is what a shell adds to the command line."""
    code = STAGE.format(body.replace("\n", "\n    "))
    command = ["sh", "-c", f'"$@" {shell}', "sh", sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment(**changes), capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("raise UserError('x = 1: must be 2')", 1, r"x = 1: must be 2"),
        ("raise UserError('a\\x1b[31m\\nb')", 1, r"a\\x1b\[31m b"),
        ("raise UserError('long ' * 10_000)", 1, r"(long ){390,}lon?g?\.\.\."),
        ("open('/nowhere/file')", 1, r"/nowhere/file: No such file or directory"),
        ("bytearray(2**62)", 1, r"out of memory \(.*\); use fewer or smaller images, or a larger machine"),
        ("os.write(os.open('/dev/full', os.O_WRONLY), b'x')", 1, r"\[Errno 28\] No space left on device"),
        (
            "raise OSError(errno.EDQUOT, 'x', '/dev/null')",
            1,
            r"/dev/null: the disk is full: \d[\d,]* MiB are free; make .*",
        ),
        ("os.kill(os.getpid(), 15)", 143, r"stopped \(SIGTERM\); run the same command again to go on"),
        ("os.kill(os.getpid(), 2)", 130, r"stopped \(SIGINT\); run the same command again to go on"),
        ("raise KeyboardInterrupt", 130, r"stopped \(SIGINT\); run the same command again to go on"),
    ],
)
def test_what_a_user_can_mend_and_a_signal_end_in_one_line_under_the_stages_name(body, status, line):
    done = run(body)
    assert done.returncode == status
    assert re.fullmatch(f"stage: {line}\n", done.stderr)
    assert len(done.stderr) < 2100
    assert done.stdout == ""


def test_a_full_disk_is_told_with_what_is_free(small_disk):
    folder = small_disk(5 * 1024)
    done = run(
        "from pathlib import Path; from stages.common.files import write_bytes\nwrite_bytes(Path('x'), bytes(9 << 20))"
    )
    said = "x: the disk is full: 5 MiB are free; make room and run this again"
    assert (done.returncode, done.stderr) == (1, f"stage: {said}\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "arguments", "last"),
    [
        ("raise UserError('must be 2')", ["--debug"], "UserError: must be 2\n"),
        ("1 / 0", [], "ZeroDivisionError: division by zero\n"),
    ],
)
def test_an_error_with_debug_and_a_bug_of_ours_show_their_traceback(body, arguments, last):
    done = run(body, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith(last)


def test_the_help_has_the_first_line_of_the_docstring_and_there_may_be_none():
    done = run("pass", "--help")
    assert (done.returncode, done.stdout.splitlines()[2]) == (0, "First line.")
    done = run("pass", "--help", PYTHONOPTIMIZE="2")
    assert done.returncode == 0
    assert "--debug" in done.stdout


OUT, ERR = "out\n", "err\nstage: /dev/null: File exists\n"


@pytest.mark.parametrize(
    ("shell", "out", "err"), [("", OUT, ERR), (">&- 2>&- <&-", "", ""), ("2>&-", OUT + ERR, ""), (">&-", "", ERR)]
)
def test_a_closed_stream_disturbs_nothing(shell, out, err):
    done = run("print('out'); print('err', file=sys.stderr); open('/dev/null', 'x')", shell=shell)
    assert (done.returncode, done.stdout, done.stderr) == (1, out, err)  # the file exists, which no closed stream hides


def test_output_that_nobody_reads_ends_the_stage_in_one_line():
    done = run("while True: print('x' * 9999)", shell="| true; exit 0")
    assert done.stderr == "stage: [Errno 32] Broken pipe\n"


def test_what_an_encoding_lacks_is_printed_in_escapes():
    done = run("print('2 × CPU'); raise UserError('Größe')", PYTHONIOENCODING="ascii")
    assert (done.stdout, done.stderr) == ("2 \\xd7 CPU\n", "stage: Gr\\xf6\\xdfe\n")


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_disturb_how_the_first_one_ends(second):
    body = (
        "try:\n    print('ready', flush=True); time.sleep(60)\n"
        "finally:\n    print('ending', flush=True); sys.stdin.readline(); print('tidied up', flush=True)"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", STAGE.format(body.replace("\n", "\n    "))]
    with subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe, text=True) as stage:
        assert stage.stdout.readline() == "ready\n"
        stage.send_signal(signal.SIGINT)
        assert stage.stdout.readline() == "ending\n"
        stage.send_signal(second)
        out, err = stage.communicate("go on\n")
    assert (out, err) == ("tidied up\n", "stage: stopped (SIGINT); run the same command again to go on\n")
    assert stage.returncode == 130
