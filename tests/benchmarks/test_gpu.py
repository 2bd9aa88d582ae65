import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import parts
from benchmarks.gpu.steps import VARIANTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("names", [["replay", "profile"], pytest.param(list(parts.PARTS), marks=pytest.mark.slow)])
def test_each_part_of_a_rehearsal_without_dvc_is_done_and_writes_a_table(tmp_path, names):
    (tmp_path / "without").mkdir()
    (tmp_path / "without/dvc.py").write_text("raise ModuleNotFoundError('there is no dvc here')")
    command = [sys.executable, "-m", "benchmarks.gpu", "--output", str(tmp_path / "gpu.md"), "--rehearse"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{tmp_path / 'without'}{os.pathsep}{ROOT}"}
    command += ["--minutes", "30", "--only", *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    _, *sections, outcomes = re.split(r"^## .*$", (tmp_path / "gpu.md").read_text(), flags=re.M)
    assert re.findall(r"^\| (\w+) \| done \|", outcomes, re.M) == names
    assert len(sections) == len(names)
    for text in sections:
        assert re.search(r"^\| .* \|\n\| --- .*\n\| .* \|$", text, re.M), f"no table in\n{text}"
    for name in VARIANTS:
        assert re.search(rf"^\| {name} \|.*\| [0-9a-f]{{8}} \|$", done.stdout, re.M), done.stdout
    digests = re.findall(r"^\| (?:again|killed and resumed) \|.*\| ([0-9a-f]{16}) \|$", done.stdout, re.M)
    assert (len(digests), len(set(digests))) == ((2, 1) if "bytes" in names else (0, 0))
