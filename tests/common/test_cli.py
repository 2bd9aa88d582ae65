import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGE = """
import os, sys, time
from stages.common import cli, files
from stages.common.errors import UserError

def main(args):
    {}

cli.run(main, cli.parser("stage", __doc__))
"""


def start(body: str) -> subprocess.Popen:
    """Start a stage with this body."""
    command, pipe = [sys.executable, "-c", STAGE.format(body.replace("\n", "\n    "))], subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def run(body: str) -> tuple[int, str, str]:
    with start(body) as stage:
        out, err = stage.communicate()
        return stage.returncode, out, err


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("raise UserError('a\\x1b[31m\\nb = 1: must be 2')", 1, r"a\\x1b\[31m b = 1: must be 2"),
        ("open('/nowhere/file')", 1, r"/nowhere/file: No such file or directory"),
        ("bytearray(2**62)", 1, r"out of memory \(.*\); make the images, the batch or the model smaller"),
        ("os.kill(os.getpid(), 15)", 143, r"stopped \(SIGTERM\); run the same command again to go on"),
        ("raise RuntimeError('a bug')", 1, None),
    ],
)
def test_what_a_user_can_mend_and_a_signal_end_in_one_line_and_a_bug_in_a_traceback(body, status, line):
    code, out, err = run(body)
    assert (code, out) == (status, "")
    assert re.fullmatch(f"stage: {line}\n" if line else r"(?s)Traceback .*\nRuntimeError: a bug\n", err)


def test_a_full_disk_is_told_with_what_is_free(small_disk):
    folder = small_disk(20 * 1024)  # 21 million bytes
    said = "stage: x: the disk is full: 20 MiB are free; make room and run this again\n"
    assert run(f"os.chdir('{folder}'); files.write_bytes(files.Path('x'), bytes(30 << 20))") == (1, "", said)
    assert list(folder.iterdir()) == []


def test_a_second_signal_does_not_disturb_how_the_first_one_ends():
    tidy = "print('ending', flush=True); sys.stdin.readline(); print('tidied up', flush=True)"
    with start(f"try:\n    print('ready', flush=True); time.sleep(600)\nfinally:\n    {tidy}") as stage:
        for line, by in (("ready\n", signal.SIGINT), ("ending\n", signal.SIGTERM)):
            assert stage.stdout.readline() == line
            stage.send_signal(by)
        out, err = stage.communicate("go on\n")
    said = "stage: stopped (SIGINT); run the same command again to go on\n"
    assert (stage.returncode, out, err) == (130, "tidied up\n", said)
