"""Parameters changed under the real dvc: what runs again, and what a new run shows up in."""

import io
import re
from collections.abc import Callable
from functools import cache

import pandas as pd
import pytest

from tests.pipeline import RUNS, TRAININGS, Clone, append


def given(*params: str) -> Callable[[Clone], list[str]]:
    return lambda clone: clone.experiment(*params)


def with_another_pair(clone: Clone) -> list[str]:
    clone.replace("params.yaml", "compare:", "compare:\n  depth: [cnn, resnet_ablation]\n#")
    return clone.repro()


def with_another_run(clone: Clone) -> list[str]:
    clone.replace(
        "dvc.yaml",
        "foreach: # a new run is one line here\n",
        "foreach:\n      wide: {model: cnn, weight_decay: ablation.wide}\n",
    )
    clone.replace("params.yaml", "ablation:\n", "ablation:\n  wide: 1e-05\n")
    return clone.repro()


def with_another_reader(clone: Clone) -> list[str]:
    append(clone, "stages/datasets/cifar10.py")
    return clone.repro()


CHANGES = {  # and the stages that run after each
    "train.weight_decay": (given("train.weight_decay=1e-5"), ["train@cnn", "train@resnet", "evaluate", "report"]),
    "ablation.weight_decay": (given("ablation.weight_decay=3e-5"), ["train@resnet_ablation", "evaluate", "report"]),
    "cnn": (given("cnn.epochs=2"), ["train@cnn", "evaluate", "report"]),
    "resnet": (given("resnet.base_channels=17"), ["train@resnet", "train@resnet_ablation", "evaluate", "report"]),
    "compare": (with_another_pair, ["evaluate", "report"]),
    "another run": (with_another_run, ["train@wide", "evaluate", "report"]),
    "stages/datasets": (with_another_reader, ["download"]),  # which writes the same data
}


OFTEN = ["train.weight_decay", "another run", "stages/datasets"]  # those that the ordinary tests run
EDITS = {  # of params.yaml, and the stages that depend on the parameter; others follow from what these write
    ("  weight_decay: 1.0e-4", "  weight_decay: 3.0e-4"): ["train@resnet_ablation", "report"],
    ("cnn:\n  epochs: 1", "cnn:\n  epochs: 2"): ["train@cnn", "report"],
    ("base_channels: 16", "base_channels: 17"): ["train@resnet", "train@resnet_ablation", "report"],
    ("  model:\n", "  depth: [cnn, resnet_ablation]\n  model:\n"): ["evaluate", "report"],
    ("image_size: 8", "image_size: 9"): ["download", "report"],
    ("seed: 42", "seed: 43"): [*TRAININGS, "report"],
    ("keep: best", "keep: last"): [*TRAININGS, "report"],
    ("flip: false", "flip: true"): [*TRAININGS, "report"],
    ("launcher: python", "launcher: python -X dev"): [*TRAININGS, "report"],
}


@pytest.fixture(scope="module")
def changed(finished, tmp_path_factory) -> Callable[[str], tuple[Clone, list[str]]]:
    """A clone in which one of CHANGES was made after the small experiment, and the stages that ran then."""

    @cache
    def make(name: str) -> tuple[Clone, list[str]]:
        clone = finished.copy(tmp_path_factory.mktemp("changed") / "clone")
        return clone, CHANGES[name][0](clone)

    return make


@pytest.mark.parametrize(
    "change", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in CHANGES]
)
def test_a_change_runs_the_stages_it_concerns_and_no_others(changed, change):
    clone, ran = changed(change)
    assert sorted(ran) == sorted(CHANGES[change][1])
    assert clone.dvc("status") == "Data and pipelines are up to date.\n"


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit[1].split()[0])
def test_a_parameter_makes_the_stages_stale_that_depend_on_it_and_no_others(clone, edit):
    clone.replace("params.yaml", *edit)
    assert clone.stale() == set(EDITS[edit])
    clone.run("git", "restore", ".")


def test_a_change_and_its_return_train_nothing_twice(changed):
    clone, _ = changed("train.weight_decay")
    assert clone.experiment("train.weight_decay=5e-4") == []
    assert clone.experiment("train.weight_decay=1e-5") == []
    assert clone.json("metrics/evaluation.json")["runs"]["cnn"]["weight_decay"] == 1e-5


def test_the_tables_of_metrics_fit_in_120_columns(changed):
    clone, _ = changed("train.weight_decay")
    for table in (clone.dvc("metrics", "show"), clone.dvc("metrics", "diff")):
        assert "metrics/train/resnet.json" in table
        assert max(map(len, table.splitlines())) <= 120


def test_numbers_in_the_table_of_experiments_are_numbers_in_pandas(changed):
    clone, _ = changed("train.weight_decay")
    table = pd.read_csv(io.StringIO(clone.dvc("exp", "show", "--csv")))
    columns = [
        name for name in table if name.endswith((":accuracy", ":difference", ":p")) or name == "train.weight_decay"
    ]
    assert len(columns) == len(RUNS) + 2 * 2 + 1
    assert all(table[name].dtype == float for name in columns)
    assert {1e-5, 5e-4} <= set(table["train.weight_decay"])


def test_another_run_is_one_line_and_shows_up_everywhere(changed, tmp_path):
    clone = changed("another run")[0].copy(tmp_path / "clone")
    assert "metrics/train/wide.json" in clone.dvc("metrics", "show")
    charts = clone.charts()
    assert "plots/predictions/wide.csv" in charts
    assert {row["run"] for row in charts["Test accuracy"]} == {*RUNS, "wide"}
    assert re.search(r"\bwide\b", clone.read("report/report.md"))

    clone.replace("dvc.yaml", "      wide: {model: cnn, weight_decay: ablation.wide}\n", "")
    (clone.folder / "models/wide.safetensors").unlink()
    assert clone.repro() == ["evaluate", "report"]
    assert "wide" not in clone.dvc("metrics", "show")
    assert {row["run"] for row in clone.charts()["Test accuracy"]} == set(RUNS)
    assert not re.search(r"\bwide\b", clone.read("report/report.md").partition("Git revision")[0])
