import os
import re
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
STAGE = """
import runpy, sys
sys.argv = ["report"]
runpy.run_module("stages.report", run_name="__main__")
sys.exit("torch was imported" if "torch" in sys.modules else 0)
"""


def run(**environment: str) -> tuple[str, dict[str, bytes]]:
    """What the stage, as DVC runs it, prints and writes."""
    settings = os.environ | {"PYTHONPATH": str(ROOT), "GIT_CEILING_DIRECTORIES": str(Path.cwd().parent)} | environment
    process = subprocess.run([sys.executable, "-c", STAGE], env=settings, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout, {str(path): path.read_bytes() for path in Path("report").rglob("*") if path.is_file()}


def test_page_text_and_figures_are_written_without_torch_and_80_columns_printed(tmp_path, writer):
    with chdir(tmp_path):
        writer.experiment(("cat", "猫"))
        printed, files = run(MPLBACKEND="x")
    charts = ["accuracies", "accuracy", "loss", "generalisation_gap", "learning_rate", "per_class"]
    charts += [f"reliability_{run}" for run in writer.runs]
    assert {*files} == {"report/index.html", "report/report.md", *(f"report/figures/{name}.png" for name in charts)}
    assert files["report/index.html"].count(b"data:image/svg+xml;base64,") == len(charts)
    assert max(map(len, printed.splitlines())) <= 80
    assert re.search(r"resnet +392,946 +12 +90.00% +\+4.56 +1 h 02 min\n", printed)
    said = " ".join(printed.split())
    assert (
        "ResNet-18, decay 5e-4 and Simple CNN. 90.00% against 80.00% of 20 test images: +10.00 points, 95% interval"
        in said
    )
    assert "Next: more test images; with these, 45.1 points stay open." in said
    assert "The font of the figures lacks '猫': boxes take their place there." in said


FILES = ["data/dataset.json", "data/test.npz", "metrics/evaluation.json", "metrics/timing/resnet.json"]
FILES += [
    f"plots/{name}.csv" for name in ("curves", "per_class", "calibration", "suspects", "seeds", "predictions/cnn")
]


@pytest.mark.parametrize("path", [*map(Path, FILES)], ids=str)
def test_a_file_that_is_missing_or_changes_meanwhile_ends_it_in_one_line_and_nothing_is_written(
    experiment, writer, monkeypatch, path
):
    experiment()
    writer.seeds({(42, "cnn"): np.ones(20, bool)})
    monkeypatch.setattr(page, "charts", lambda results: {})
    monkeypatch.setattr(page, "html", lambda content, svgs: str(path.write_bytes(path.read_bytes() + b" ")))
    with pytest.raises(UserError, match=f"^changed while this stage ran: {path}"):
        report.main(Namespace())
    path.unlink()
    monkeypatch.setattr(page, "html", lambda content, svgs: "")
    if path.stem != "seeds":  # which is missing before a study
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: [^\n]*$"):
            report.main(Namespace())
        assert not Path("report").exists()
