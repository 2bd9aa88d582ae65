import re
import shutil
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


def run(body: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-c", STAGE.format(body)], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("raise UserError('a\\x1b[31m\\nb = 1: must be 2')", 1, r"a\\x1b\[31m b = 1: must be 2"),
        ("open('/nowhere/file')", 1, r"/nowhere/file: No such file or directory"),
        ("raise OSError(122, 'a quota', 'x')", 1, r"x: the disk is full: [\d,]+ MiB are free; make room .*"),
        ("bytearray(2**62)", 1, r"out of memory \(.*\); make the images, the batch or the model smaller"),
        ("os.kill(os.getpid(), 15)", 143, r"stopped \(SIGTERM\); run the same command again to go on"),
        ("raise RuntimeError('a bug')", 1, None),
    ],
)
def test_what_a_user_can_mend_and_a_signal_end_in_one_line_and_a_bug_in_a_traceback(body, status, line):
    code, out, err = run(body)
    assert (code, out) == (status, "")
    assert re.fullmatch(f"stage: {line}\n" if line else r"(?s)Traceback .*\nRuntimeError: a bug\n", err)


def test_a_full_disk_is_told_with_what_is_free(tmp_path):
    """A real one of 20 MiB, 21 million bytes; root alone may mount it."""
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    said = "stage: x: the disk is full: 20 MiB are free; make room and run this again\n"
    try:
        assert run(f"os.chdir('{tmp_path}'); files.write_bytes(files.Path('x'), bytes(30 << 20))") == (1, "", said)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
