import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from stages import report
from stages.common.errors import UserError
from stages.reporting import page

ROOT = Path(__file__).parents[2]
STAGE = """import runpy, sys; sys.argv = ["report"]; runpy.run_module("stages.report", run_name="__main__")
sys.exit("torch was imported" if "torch" in sys.modules else 0)"""


def test_page_text_and_figures_are_written_without_torch_and_80_columns_printed(tmp_path, writer):
    # A copy of the code: a stage refuses to write where the code has changed since it began, as in an editor
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    with chdir(tmp_path):
        writer.experiment(("cat", "猫"))
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent), "MPLBACKEND": "x", "PYTHONPATH": "."}
    command = [sys.executable, "-c", STAGE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "missing from font" in done.stderr  # matplotlib names the letter
    charts = ["accuracies", "accuracy", "loss", "generalisation_gap", "per_class"]
    charts += [f"reliability_{run}" for run in writer.runs]
    written = {str(path.relative_to(tmp_path / "report")) for path in (tmp_path / "report").rglob("*.*")}
    assert written == {"index.html", "report.md", *(f"figures/{name}.png" for name in charts)}
    assert (tmp_path / "report/index.html").read_bytes().count(b"data:image/svg+xml;base64,") == len(charts)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert re.search(r"resnet +392,946 +12 +90.00% +\+4.56 +1 h 02 min\n", done.stdout)
    said = " ".join(done.stdout.split())
    assert "20 test images: +10.00 points, 95% interval −12.41 to +32.64, p = 0.32 (p = 0.63 adjusted for 2 qu" in said
    assert "Next: more test images; these leave 45.1 points open." in said


FILES = ["data/dataset.json", "data/test.npz", "metrics/evaluation.json", "metrics/timing/resnet.json"]
FILES += ["plots/seeds.csv"]
TABLES = [f"plots/{name}.csv" for name in ("curves", "per_class", "calibration", "suspects", "predictions/cnn")]


@pytest.mark.parametrize("path", [*map(Path, FILES + TABLES)], ids=str)
def test_a_file_that_is_missing_not_evaluates_or_changes_meanwhile_ends_it_in_one_line_and_nothing_is_written(
    experiment, writer, monkeypatch, path
):
    experiment()
    writer.seeds({(42, "cnn"): np.ones(20, bool)})
    monkeypatch.setattr(page, "charts", lambda results: {})
    monkeypatch.setattr(page, "render", lambda *args: path.write_bytes(path.read_bytes() + b" "))
    with pytest.raises(UserError, match=f"^changed while this stage ran: {path}"):
        report.main(Namespace())
    if str(path) in TABLES:
        with pytest.raises(UserError, match=rf"^{path}: not the one that evaluate wrote .*; run `dvc repro`$"):
            report.main(Namespace())
    path.unlink()
    if path.stem != "seeds":  # which is missing before a study
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: [^\n]*$"):
            report.main(Namespace())
    assert not Path("report").exists()
