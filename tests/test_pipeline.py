"""dvc.yaml under the real dvc: what a change re-runs, what a new run shows up in, and who may import what."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stages.common.params import PIPELINE, load_params
from stages.common.yaml12 import read_yaml
from tests.pipeline import DEFAULTS, ROOT, RUNS, STAGES, TRAININGS, append, stages_run

DEFINITIONS = read_yaml(ROOT / PIPELINE)["stages"]
BELOW = {  # the folders that the modules of a folder may import
    "common": set(),
    "datasets": {"common"},
    "training": {"common"},
    "evaluation": {"common"},
    "reporting": {"common", "evaluation"},
    "commands": {"common", "datasets", "training", "evaluation", "reporting"},
}


CODE = {  # and the stages that depend on it
    "stages/training/loop.py": [*TRAININGS, "evaluate"],  # and `report` on what they write
    "stages/train.py": TRAININGS,
    "stages/evaluation/significance.py": ["evaluate", "report"],
    "stages/reporting/wording.py": ["report"],
    "stages/report.py": ["report"],
    "stages/common/params.py": STAGES,
    "stages/commands/compare.py": [],
    "metrics/README.md": [],
    "plots/README.md": [],
    ".dvc/plots/runs.json": [],
}


@pytest.mark.parametrize("name", CODE)
def test_changed_code_makes_the_stages_stale_that_use_it_and_no_others(clone, name):
    append(clone, name)
    assert clone.stale() == set(CODE[name])
    clone.run("git", "restore", ".")


@pytest.mark.slow
@pytest.mark.parametrize("name", CODE)
def test_changed_code_runs_the_stages_that_use_it_and_no_others(finished, tmp_path, name):
    clone = finished.copy(tmp_path / "clone")
    append(clone, name)
    indirect = ["report"] if "train" in name else []
    assert sorted(clone.repro()) == sorted({*CODE[name], *indirect, *(["evaluate"] if indirect else [])})


def test_files_that_editors_and_python_leave_beside_the_code_are_no_code(finished, tmp_path):
    clone = finished.copy(tmp_path / "clone")
    for left in ("common/.DS_Store", "training/loop.py~", "datasets/Thumbs.db", "common/.ipynb_checkpoints/x.py"):
        (clone.folder / "stages" / left).parent.mkdir(exist_ok=True)
        (clone.folder / "stages" / left).write_text("x")
    clone.run("python", "-m", "compileall", "-q", "stages")
    assert list((clone.folder / "stages/common/__pycache__").glob("*.pyc"))
    assert clone.repro() == []


def test_the_page_of_plots_has_every_chart(finished):
    charts = finished.charts()
    assert list(charts) == [
        "Test accuracy",
        "Training accuracy",
        "Test loss",
        "Training minus test accuracy",
        *RUNS,
        "Learning rate",
        "F1 of each class",
        "Calibration",
        *(f"plots/predictions/{run}.csv" for run in RUNS),
    ]
    for name in ("Learning rate", "F1 of each class", "Calibration"):
        assert {row["run"] for row in charts[name]} == set(RUNS)


@pytest.mark.parametrize("template", sorted((ROOT / ".dvc/plots").glob("*.json")), ids=lambda path: path.stem)
def test_a_chart_names_the_revisions_and_takes_its_size_from_the_viewer(template):
    text = template.read_text()
    assert json.loads(text)["data"]["values"] == "<DVC_METRIC_DATA>"
    assert '"field": "rev"' in text
    assert ('"width": "<DVC_METRIC_PLOT_WIDTH>"' in text) == (
        template.stem != "confusion"
    )  # one a revision, side by side


def test_a_confusion_matrix_has_a_row_and_a_column_for_every_class():
    layers = json.loads((ROOT / ".dvc/plots/confusion.json").read_text())["spec"]["layer"]
    assert layers[0]["transform"][0] == {"fold": ["<DVC_METRIC_Y>", "<DVC_METRIC_X>"], "as": ["role", "class"]}
    assert {axis: layers[0]["encoding"][axis]["field"] for axis in "xy"} == {"x": "class", "y": "class"}


def test_a_run_writes_the_files_of_the_contract(finished):
    each = (
        "metrics/timing/{}.json",
        "metrics/train/{}.json",
        "models/{}.safetensors",
        "plots/history/{}.csv",
        "plots/predictions/{}.csv",
    )
    written = {name for name in finished.outputs() if not name.startswith("report/figures/")}
    assert written == {
        "data/dataset.json",
        "data/test.npz",
        "data/train.npz",
        "metrics/compare/model.json",
        "metrics/compare/weight_decay.json",
        "metrics/evaluation.json",
        "plots/calibration.csv",
        "plots/curves.csv",
        "plots/per_class.csv",
        "report/index.html",
        "report/report.md",
        *(name.format(run) for name in each for run in RUNS),
    }


def test_large_outputs_are_left_to_dvc_and_small_ones_to_git(finished):
    tracked = {name for name in finished.run("git", "ls-files").split("\n") if name in finished.outputs()}
    assert tracked == {
        "metrics/compare/model.json",
        "metrics/compare/weight_decay.json",
        "plots/calibration.csv",
        "plots/curves.csv",
        "plots/per_class.csv",
        *(f"metrics/train/{run}.json" for run in RUNS),
        *(f"plots/history/{run}.csv" for run in RUNS),
    }
    assert sum((finished.folder / name).stat().st_size for name in tracked) < 100_000


@pytest.mark.parametrize("stage", DEFINITIONS)
def test_the_code_that_a_stage_depends_on_is_the_code_that_it_imports(stage):
    deps = DEFINITIONS[stage].get("do", DEFINITIONS[stage])["deps"]
    listed = {file for dep in deps if dep.startswith("stages/") for file in [ROOT / dep, *(ROOT / dep).rglob("*.py")]}
    ours = "(m.__file__ for n, m in sys.modules.items() if n.startswith('stages.') and m.__file__)"
    code = f"import sys, stages.{stage}; print(*{ours}, sep='\\n')"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {file for file in listed if file.suffix == ".py"} == set(map(Path, shown.splitlines()))


@pytest.mark.parametrize("folder", BELOW)
def test_folders_import_one_way(folder):
    for file in (ROOT / "stages" / folder).rglob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) stages\.(\w+)", file.read_text(), re.MULTILINE)
        assert set(imported) <= BELOW[folder] | {folder}, file


def test_the_tour_of_the_house_has_a_line_for_every_module():
    tour = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[1]
    named = re.findall(r"^ +(\w+\.py)[ ,]", tour, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (ROOT / "stages").rglob("*.py") if path.name != "__init__.py")


def test_every_module_lies_in_a_folder_of_the_contract():
    folders = {path.name for path in (ROOT / "stages").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(BELOW)
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == {
        "__init__",
        "download",
        "train",
        "evaluate",
        "report",
    }


def test_a_training_depends_on_every_parameter_of_its_section():
    listed = {param for param in DEFINITIONS["train"]["do"]["params"] if param.startswith("train.")}
    assert listed | {"train.weight_decay"} == {f"train.{name}" for name in load_params(DEFAULTS).train.model_dump()}


def test_the_pipeline_file_is_read_in_a_minute_and_describes_every_stage(finished):
    assert len((ROOT / PIPELINE).read_text().splitlines()) <= 75
    listed = finished.dvc("stage", "list")
    assert [line.split()[0] for line in listed.splitlines()] == STAGES
    assert "Outputs" not in listed  # what dvc says of a stage without a description


def test_no_value_of_a_parameter_reaches_the_shell(finished, tmp_path):
    clone = finished.copy(tmp_path / "clone")
    value = "1e-4; touch reached"
    done = clone.attempt(
        "dvc", "exp", "run", "--set-param", f'ablation.weight_decay="{value}"', "train@resnet_ablation"
    )
    assert done.returncode != 0
    assert "ablation.weight_decay" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone.folder / "reached").exists()
    assert stages_run(done.stdout) == ["train@resnet_ablation"]
