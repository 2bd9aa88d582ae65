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
from pathlib import Path
from stages.common import cli
from stages.common.errors import UserError
from stages.common.files import write_bytes

def main(args):
    {}

cli.run(main, cli.parser("stage", __doc__))
'''
OUT, ERR = "out\n", "err\nstage: /dev/null: File exists\n"


def start(body: str, *arguments: str, shell: str = "", **changes: str) -> subprocess.Popen:
    """Start a stage with this body; `shell` is what a shell adds to the command line."""
    code, pipe = STAGE.format(body.replace("\n", "\n    ")), subprocess.PIPE
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | changes
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def run(*arguments: str, **options: str) -> tuple[int, str, str]:
    with start(*arguments, **options) as stage:
        out, err = stage.communicate()
        return stage.returncode, out, err


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("raise UserError('a\\x1b[31m\\nb = 1: must be 2')", 1, r"a\\x1b\[31m b = 1: must be 2"),
        ("raise UserError('long ' * 10_000)", 1, r"(long ){390,400}lon?g?\.\.\."),
        ("open('/nowhere/file')", 1, r"/nowhere/file: No such file or directory"),
        ("bytearray(2**62)", 1, r"out of memory \(.*\); make the images, the batch or the model smaller"),
        ("os.write(os.open('/dev/full', os.O_WRONLY), b'x')", 1, r"\[Errno 28\] No space left on device"),
        (
            "raise OSError(errno.EDQUOT, 'x', '/dev/null')",
            1,
            r"/dev/null: the disk is full: [\d,]+ MiB are free; make .*",
        ),
        ("os.kill(os.getpid(), 15)", 143, r"stopped \(SIGTERM\); run the same command again to go on"),
        ("os.kill(os.getpid(), 2)", 130, r"stopped \(SIGINT\); run the same command again to go on"),
    ],
)
def test_what_a_user_can_mend_and_a_signal_end_in_one_line_under_the_stages_name(body, status, line):
    code, out, err = run(body)
    assert (code, out) == (status, "")
    assert re.fullmatch(f"stage: {line}\n", err)


def test_a_full_disk_is_told_with_what_is_free(small_disk):
    folder = small_disk(20 * 1024)  # 21 million bytes
    said = "stage: x: the disk is full: 20 MiB are free; make room and run this again\n"
    assert run("write_bytes(Path('x'), bytes(30 << 20))") == (1, "", said)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("body", "last"), [("1 / 0", "division by zero\n"), ("raise RuntimeError('x')", "Error: x\n")])
def test_a_bug_of_ours_shows_its_traceback(body, last):
    code, _, err = run(body)
    assert (code, err.startswith("Traceback"), err.endswith(last)) == (1, True, True)


@pytest.mark.parametrize(("optimize", "line"), [("0", "First line."), ("2", "options:")])
def test_the_help_has_the_first_line_of_the_docstring_and_there_may_be_none(optimize, line):
    code, out, _ = run("pass", "--help", PYTHONOPTIMIZE=optimize)
    assert (code, out.splitlines()[2]) == (0, line)


@pytest.mark.parametrize(
    ("shell", "out", "err"), [("", OUT, ERR), (">&- 2>&- <&-", "", ""), ("2>&-", OUT + ERR, ""), (">&-", "", ERR)]
)
def test_a_closed_stream_disturbs_nothing(shell, out, err):
    body = "print('out'); print('err', file=sys.stderr); open('/dev/null', 'x')"
    assert run(body, shell=shell) == (1, out, err)  # the file exists, which no closed stream hides


def test_what_an_encoding_lacks_is_printed_in_escapes():
    body = "print('2 × CPU'); raise UserError('Größe')"
    assert run(body, PYTHONIOENCODING="ascii") == (1, "2 \\xd7 CPU\n", "stage: Gr\\xf6\\xdfe\n")


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_disturb_how_the_first_one_ends(second):
    tidy = "print('ending', flush=True); sys.stdin.readline(); print('tidied up', flush=True)"
    with start(f"try:\n    print('ready', flush=True); time.sleep(600)\nfinally:\n    {tidy}") as stage:
        assert stage.stdout.readline() == "ready\n"
        stage.send_signal(signal.SIGINT)
        assert stage.stdout.readline() == "ending\n"
        stage.send_signal(second)
        out, err = stage.communicate("go on\n")
    said = "stage: stopped (SIGINT); run the same command again to go on\n"
    assert (stage.returncode, out, err) == (130, "tidied up\n", said)
