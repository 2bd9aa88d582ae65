"""Parameters changed under the real dvc: what runs again, and what a new run or model shows up in."""

import re
from collections.abc import Callable
from functools import cache

import pytest

from tests.pipeline import RUNS, TRAININGS, Clone

EDITS = {  # of params.yaml, and the stages that depend on the parameter; others follow from what these write
    ("  weight_decay: 0.0001", "  weight_decay: 0.0003"): ["train@resnet_ablation"],
    ("  weight_decay: 0.0005", "  weight_decay: 0.0003"): ["train@cnn", "train@resnet"],
    ("cnn:\n  epochs: 1", "cnn:\n  epochs: 2"): ["train@cnn"],
    ("base_channels: 16", "base_channels: 17"): ["train@resnet", "train@resnet_ablation"],
    ("  name: mobilenet_v2", "  name: resnet18"): [],  # a model of no run
    ("  model:\n  - resnet", "  depth:\n  - cnn\n  - resnet_ablation\n  model:\n  - resnet"): ["evaluate"],
    ("  margin: 0.003", "  margin: 0.004"): ["evaluate"],
    ("image_size: 8", "image_size: 9"): ["download", "evaluate"],
    ("seed: 43", "seed: 44"): TRAININGS,
    ("keep: best", "keep: last"): TRAININGS,
    ("nesterov: false", "nesterov: true"): TRAININGS,
    ("cutout: 0", "cutout: 2"): TRAININGS,
    ("launcher: python", "launcher: python -X dev"): TRAININGS,
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit[1].split()[-1])
def test_a_parameter_makes_the_stages_stale_that_depend_on_it_and_no_others(clone, edit):
    clone.replace("params.yaml", *edit)
    assert clone.stale() == set(EDITS[edit])
    clone.run("git", "restore", ".")


def another_weight_decay(clone: Clone) -> list[str]:
    return clone.experiment("train.weight_decay=1e-5")


def another_run(clone: Clone) -> list[str]:
    return clone.experiment("+runs.wide={model: cnn, weight_decay: ablation.weight_decay}")


def another_model(clone: Clone) -> list[str]:
    """As CONTRIBUTING says: a file, a section, a line."""
    page = clone.read("CONTRIBUTING.md")
    (program,) = re.findall(r'```python\n("""stages/models/mobilenet.py.*?)```', page, re.DOTALL)
    (clone.folder / "stages/models/mobilenet.py").write_text(program)
    clone.replace("params.yaml", "ablation:\n", "mobilenet: {epochs: 1}\n\nablation:\n")
    run = "  mobilenet: {model: mobilenet, weight_decay: train.weight_decay}\n"
    clone.replace("params.yaml", "runs:\n", f"runs:\n{run}")
    return clone.repro()


def edited_data_code(clone: Clone) -> list[str]:
    clone.replace("stages/datasets/digits.py", '"""', '"""Changed. ')
    return clone.repro()


CHANGES = {  # and the stages that run after each
    another_weight_decay: ["train@cnn", "train@resnet", "evaluate", "report"],
    another_run: ["train@wide", "evaluate", "report"],
    another_model: ["train@mobilenet", "evaluate", "report"],
    edited_data_code: ["download"],  # which writes the same data
}


@pytest.fixture(scope="module")
def changed(finished, tmp_path_factory) -> Callable[[Callable], tuple[Clone, list[str]]]:
    """A clone in which one of CHANGES was made after the small experiment, and the stages that ran then."""

    @cache
    def make(change: Callable[[Clone], list[str]]) -> tuple[Clone, list[str]]:
        clone = finished.copy(tmp_path_factory.mktemp("changed") / "clone")
        return clone, change(clone)

    return make


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_runs_the_stages_it_concerns_and_no_others(changed, change):
    clone, ran = changed(change)
    assert sorted(ran) == sorted(CHANGES[change])
    assert clone.stale() == set()


def test_a_change_and_its_return_train_nothing_twice(changed):
    clone, _ = changed(another_weight_decay)
    assert clone.experiment("train.weight_decay=0.0005") == []
    assert clone.experiment("train.weight_decay=1e-5") == []
    assert clone.json("metrics/evaluation.json")["runs"]["cnn"]["recipe"]["train"]["weight_decay"] == 1e-5


def test_differences_and_experiments_fit_in_80_columns(changed):
    clone, _ = changed(another_weight_decay)
    compared = clone.run("make", "--no-print-directory", "compare")
    assert ("train.weight_decay" in compared, "cnn" in compared) == (True, True)
    assert max(map(len, (compared + clone.dvc("metrics", "diff")).splitlines())) <= 80


@pytest.mark.parametrize(("change", "run"), [(another_run, "wide"), (another_model, "mobilenet")])
def test_another_run_shows_up_everywhere(changed, change, run):
    clone, _ = changed(change)
    assert clone.json("metrics/accuracy.json").keys() == {*RUNS, run}
    charts = clone.charts()
    assert f"plots/predictions/{run}.csv" in charts
    assert {row["run"] for row in charts["Training accuracy"]["data"]["values"]} == {*RUNS, run}
    assert re.search(rf"\b{run}\b", clone.read("report/report.md"))
    assert re.search(rf"\b{run}\b", clone.read("report/index.html"))
    assert clone.run("python", "-m", "stages.commands.predict", "--examples=1", f"--model=models/{run}.safetensors")


def test_a_run_is_dropped_with_its_line(changed, tmp_path):
    clone = changed(another_model)[0].copy(tmp_path / "clone")
    clone.replace("params.yaml", "  mobilenet: {model: mobilenet, weight_decay: train.weight_decay}\n", "")
    assert clone.repro() == ["evaluate", "report"]
    assert clone.json("metrics/accuracy.json").keys() == {*RUNS}
    assert {row["run"] for row in clone.charts()["Training accuracy"]["data"]["values"]} == {*RUNS}
    (clone.folder / "models/mobilenet.safetensors").unlink()
    assert clone.repro() == ["evaluate"]  # which depends on the folder of models, and writes the same
