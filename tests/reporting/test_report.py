import os
import re
import subprocess
import sys
from argparse import Namespace
from contextlib import chdir
from pathlib import Path

import pytest

from stages import report
from stages.common.errors import UserError
from stages.reporting import drawing, page

ROOT = Path(__file__).parents[2]
LETTER = "𒀀"  # which few machines have a font for
# The stage as DVC runs it, which also fails if it has imported torch
STAGE = """
import runpy, sys
sys.argv = ["report"]
runpy.run_module("stages.report", run_name="__main__")
sys.exit("torch was imported" if "torch" in sys.modules else 0)
"""


def run(**environment: str) -> subprocess.CompletedProcess:
    settings = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", STAGE], env=settings, capture_output=True, text=True)


def written() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path("report").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, writer) -> Path:
    """A folder with results of a small experiment."""
    path = tmp_path_factory.mktemp("experiment")
    runs = {
        "cnn": ("Simple CNN", 391_946, 5e-4, 5, 0.02, 59.94, [0, 11, 3, 4]),
        "resnet": ("ResNet-18", 11_173_962, 5e-4, 10, 0.0456, 3720, [7, 0]),
    }
    with chdir(path):
        writer(
            ("cat", LETTER), runs=runs, comparisons={"model": (["resnet", "cnn"], 0.1, [0.05, 0.25], 0.0123, [3, 1])}
        )
    return path


@pytest.fixture(scope="module")
def ran(folder) -> tuple[subprocess.CompletedProcess, dict[str, bytes]]:
    with chdir(folder):
        return run(GIT_CEILING_DIRECTORIES=str(folder.parent)), written()


def test_the_report_is_a_page_a_text_and_figures_written_without_torch(ran):
    process, files = ran
    assert (process.returncode, process.stderr) == (0, "")
    charts = ["accuracies", "accuracy", "loss", "generalisation_gap", "learning_rate", "per_class", "per_class_narrow"]
    charts += ["reliability_cnn", "reliability_resnet"]
    names = {f"report/figures/{name}.png" for name in charts}
    assert set(files) == {"report/index.html", "report/report.md", *names}
    assert files["report/index.html"].count(b"data:image/svg+xml;base64,") == 2 * len(charts)


def test_the_comparison_is_printed_in_80_columns_with_a_sentence_for_each_question(ran):
    printed = ran[0].stdout
    assert max(map(len, printed.splitlines())) <= 80
    assert re.search(r"resnet +11,173,962 +10 +90.00% +\+4.56 +1 h 02 min\n", printed)
    sentence = "ResNet-18 is better than Simple CNN. 90.00% against 80.00% of 20 test images: +10.00 points"
    assert sentence in " ".join(printed.split())


def test_letters_that_no_font_has_end_in_one_line(ran):
    lacking = drawing.find_fonts([LETTER])[1]
    assert ran[0].stdout.count(f"No installed font has '{LETTER}'") == len(lacking)


def test_the_users_settings_of_matplotlib_and_python_change_no_byte(ran, folder, tmp_path, monkeypatch):
    settings = tmp_path / "matplotlib" / "matplotlibrc"
    settings.parent.mkdir()
    settings.write_text("text.usetex: True\naxes.facecolor: red\nfont.family: serif\nsavefig.dpi: 30\n")
    monkeypatch.chdir(folder)
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # where matplotlib lists the fonts
    environment = {
        "XDG_CONFIG_HOME": str(tmp_path),
        "XDG_CACHE_HOME": cache,
        "HOME": str(tmp_path),
        "MPLBACKEND": "x",
        "PYTHONOPTIMIZE": "2",
    }
    process = run(GIT_CEILING_DIRECTORIES=str(folder.parent), **environment)
    assert (process.returncode, process.stderr) == (0, "")
    assert written() == ran[1]


CONTENTS = [
    None,
    "",
    "[]",
    '{"cnn": 1, "resnet": 2}',
    "a,b\n1,2\n",
    "<<<<<<< HEAD\n1,2\n=======\n3\n>>>>>>> x\n",
    "\udcff",
]


@pytest.mark.parametrize(
    "path",
    [
        "params.yaml",
        "data/dataset.json",
        "data/test.npz",
        "metrics/evaluation.json",
        "metrics/train/cnn.json",
        "metrics/timing/resnet.json",
        "plots/history/cnn.csv",
        "plots/predictions/resnet.csv",
        "plots/per_class.csv",
        "plots/calibration.csv",
        "plots/seeds.csv",
    ],
)
@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_that_is_missing_or_foreign_is_named_in_one_line_and_nothing_written(experiment, path, content):
    experiment()
    Path("plots/seeds.csv").write_text("seed,run,accuracy,last_accuracy\n")
    if content is not None:
        Path(path).write_bytes(content.encode(errors="surrogateescape"))
    else:
        Path(path).unlink()
    if not Path("plots/seeds.csv").exists():  # as before a study
        report.main(Namespace())
        assert Path("report/index.html").exists()
        return
    with pytest.raises(UserError, match=f"^{re.escape(path)}: [^\n]*$"):
        report.main(Namespace())
    assert not Path("report").exists()


def test_parameters_that_changed_while_the_report_was_made_end_it_and_nothing_is_written(experiment, monkeypatch):
    experiment(runs={"cnn": ("Simple CNN", 10, 5e-4, 2, 0.02, 5, [0])}, comparisons={})
    galleries = page.galleries

    def edit(*args):
        Path("params.yaml").write_text(Path("params.yaml").read_text().replace("seed: 42", "seed: 43"))
        return galleries(*args)

    monkeypatch.setattr(page, "galleries", edit)
    with pytest.raises(UserError, match="changed while this stage ran: the parameters"):
        report.main(Namespace())
    assert not Path("report").exists()
