"""dvc.yaml under the real dvc: what a change re-runs, what a run writes, and who may import what."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages.common.params import load_params
from tests.pipeline import ROOT, RUNS, STAGES, TRAININGS, Clone, append, stages_run

DEFINITIONS = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
BELOW = {  # the folders that the modules of a folder may import
    "common": set(),
    "datasets": {"common"},
    "models": {"common"},
    "training": {"common"},
    "evaluation": {"common"},
    "reporting": {"common", "evaluation"},
    "commands": {"common", "datasets", "models", "training", "evaluation", "reporting"},
}
RESNETS = ["train@resnet", "train@resnet_ablation"]
CODE = {  # and the stages that depend on it
    "stages/training/loop.py": [*TRAININGS, "evaluate"],  # and `report` on what they write
    "stages/models/resnet.py": [*RESNETS, "evaluate"],
    "stages/models/cnn.py": ["train@cnn", "evaluate"],
    "stages/train.py": TRAININGS,
    "stages/datasets/cifar.py": ["download"],
    "stages/evaluation/significance.py": ["evaluate", "report"],
    "stages/reporting/wording.py": ["report"],
    "stages/report.py": ["report"],
    "stages/common/params.py": STAGES,
    "stages/__init__.py": STAGES,
    "stages/commands/predict.py": [],
    "metrics/README.md": [],
    "plots/README.md": [],
    ".dvc/plots/runs.json": [],
}


@pytest.mark.parametrize("name", CODE)
def test_changed_code_makes_the_stages_stale_that_use_it_and_no_others(clone, name):
    append(clone, name)
    assert clone.stale() == set(CODE[name])
    clone.run("git", "restore", ".")


def test_files_left_beside_code_and_results_are_none_and_a_changed_result_is_one(finished, tmp_path):
    clone = finished.copy(tmp_path / "clone")
    for left in ("common/.DS_Store", "training/loop.py~", "datasets/Thumbs.db", "common/.ipynb_checkpoints/x.py"):
        (clone.folder / "stages" / left).parent.mkdir(exist_ok=True)
        (clone.folder / "stages" / left).write_text("x")
    for results in ("metrics", "plots", "models"):
        (clone.folder / results / ".x.json.1234abcd.tmp").touch()  # of a stage that was killed while it wrote
    clone.run("python", "-m", "compileall", "-q", "stages")
    assert list((clone.folder / "stages/common/__pycache__").glob("*.pyc"))
    assert clone.stale() == set()
    append(clone, "data/dataset.json")  # which every stage reads
    assert clone.stale() == set(STAGES)


def test_a_run_writes_the_files_of_the_contract_and_leaves_large_ones_to_dvc_and_small_ones_to_git(finished):
    tables = ("calibration", "curves", "per_class", "suspects", *(f"history/{run}" for run in RUNS))
    small = {"metrics/accuracy.json", "metrics/compare.json", *(f"plots/{name}.csv" for name in tables)}
    each = ("metrics/timing/{}.json", "models/{}.safetensors", "plots/predictions/{}.csv")
    large = {"data/dataset.json", "data/test.npz", "data/train.npz", "metrics/evaluation.json"}
    large |= {"report/index.html", "report/report.md", *(name.format(run) for name in each for run in RUNS)}
    assert {name for name in finished.outputs() if not name.startswith("report/figures/")} == small | large
    tracked = {name for name in finished.run("git", "ls-files").split("\n") if name in finished.outputs()}
    assert tracked == small
    assert sum((finished.folder / name).stat().st_size for name in tracked) < 100_000


@pytest.mark.parametrize("stage", DEFINITIONS)
def test_the_code_that_a_stage_depends_on_is_the_code_that_it_imports(stage):
    deps = DEFINITIONS[stage].get("do", DEFINITIONS[stage])["deps"]
    listed = {file for dep in deps if dep.startswith("stages/") for file in [ROOT / dep, *(ROOT / dep).rglob("*.py")]}
    ours = "(m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] == 'stages' and m.__file__)"
    code = f"import sys, stages.{stage}; print(*{ours}, sep='\\n')"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # What a person sees of a training is no part of testing, nor the reading of images of a report
    unused = {"evaluate": {ROOT / "stages/training/progress.py"}, "report": {ROOT / "stages/common/image.py"}}
    # A model's file is imported by the name that params.yaml gives
    by_name = {file for file in listed if "models" in file.parts or "${item.model}" in file.name}
    imported = set(map(Path, shown.splitlines())) | unused.get(stage, set())
    assert {file for file in listed - by_name if file.suffix == ".py"} == imported
    assert bool(by_name) == (stage in ("train", "evaluate"))


@pytest.mark.parametrize("folder", BELOW)
def test_folders_import_one_way(folder):
    for file in (ROOT / "stages" / folder).rglob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) stages\.(\w+)", file.read_text(), re.MULTILINE)
        assert set(imported) <= BELOW[folder] | {folder}, file


def test_the_tour_of_the_house_has_a_line_for_every_module():
    tour = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[1]
    named = re.findall(r"^ +(\w+\.py)[ ,]", tour, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (ROOT / "stages").rglob("*.py"))


def test_the_house_keeps_its_size():
    modules = list((ROOT / "stages").rglob("*.py"))
    assert len(modules) <= 43
    assert {path.name for path in (ROOT / "stages").iterdir() if path.is_dir()} - {"__pycache__"} == set(BELOW)
    assert max(len(path.read_text().splitlines()) for path in modules) <= 200


def test_a_training_depends_on_every_parameter_of_its_section(tmp_path):
    listed = {param for param in DEFINITIONS["train"]["do"]["params"] if param.startswith("train.")}
    sections = load_params(ROOT / "params.yaml").train.model_dump()
    assert listed | {"train.weight_decay"} == {f"train.{name}" for name in sections}


def test_the_pipeline_file_is_read_in_a_minute_and_describes_every_stage(finished):
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 75
    listed = finished.dvc("stage", "list")
    assert [line.split()[0] for line in listed.splitlines()] == STAGES
    assert "Outputs" not in listed  # what dvc says of a stage without a description


def test_no_value_of_a_parameter_reaches_the_shell(finished, tmp_path):
    clone = finished.copy(tmp_path / "clone")
    value = "1e-4; touch reached"
    done = clone.attempt("dvc", "exp", "run", f'-Sablation.weight_decay="{value}"', "train@resnet_ablation")
    assert done.returncode != 0
    assert "ablation.weight_decay" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone.folder / "reached").exists()
    assert stages_run(done.stdout) == ["train@resnet_ablation"]


def test_with_the_line_ends_of_windows_nothing_is_stale(finished, tmp_path):
    finished.run("git", "clone", "--quiet", "-c", "core.autocrlf=true", str(finished.folder), str(tmp_path / "other"))
    other = Clone(tmp_path / "other")
    other.dvc("cache", "dir", "--local", str(finished.folder / ".dvc/cache"))
    other.dvc("checkout", "--quiet")
    assert other.stale() == set()
