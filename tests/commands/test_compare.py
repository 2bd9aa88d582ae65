from argparse import Namespace

import pytest
from rich.console import Console

from stages.commands import compare
from stages.common.errors import UserError

METRICS = {"accuracy": 0.9012, "loss": 0.3, "last_accuracy": 0.9, "gap": 0.1, "best_epoch": 1}


def revision(name: str | None, seed: int, metrics: dict[str, dict] | None = None) -> dict:
    """A revision as `dvc exp show --json` has it (DVC 3.67.1), less what is not read."""
    data = {
        "rev": "f0d971ad55395a493c8d3e7ed9954672b47aaed8",
        "params": {"params.yaml": {"data": {"seed": seed, "train": {"weight_decay": 0.0005}}}},
        "metrics": {path: {"data": content} for path, content in (metrics or {}).items()},
    }
    return {"rev": data["rev"], "name": name, "data": data, "error": None}


def attempt(state: str | None, of: dict) -> dict:
    """An experiment as `dvc exp show --json` has it: an executor only where it has not ended well."""
    return {"revs": [of], "executor": state and {"state": state, "name": "dvc-task", "local": None}}


def rendered(experiments: list[compare.Experiment], width: int) -> str:
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        for table in compare.tables(experiments, width):
            console.print(table)
    return capture.get()


def test_an_experiment_that_failed_or_waits_has_no_figures_though_its_commits_files_are_there():
    files = {"metrics/train/cnn.json": METRICS}
    base = revision("main", 42, files)
    experiments = [
        attempt("failed", revision("bad", 43, files)),
        attempt("queued", revision("waits", 44)),
        attempt(None, revision("good", 45, files)),
    ]
    found, passed_over, unsaved = compare.read_experiments([base, base | {"experiments": experiments}])
    assert [(experiment.name, experiment.changes, experiment.figures) for experiment in found] == [
        ("main", "", {"metrics/train/cnn.json": "90.12"}),
        ("bad (failed)", "seed 43", {}),
        ("waits (queued)", "seed 44", {}),
        ("good", "seed 45", {"metrics/train/cnn.json": "90.12"}),
    ]
    assert (passed_over, unsaved) == ([], False)


def test_results_in_the_workspace_alone_are_spoken_of():
    base = revision("main", 42) | {"experiments": None}
    assert compare.read_experiments([revision("workspace", 42), base])[2] is False
    workspace = revision("workspace", 42, {"metrics/train/cnn.json": METRICS})
    assert compare.read_experiments([workspace, base])[2] is True


def test_changes_are_against_the_commit_that_an_experiment_started_from():
    before = {"seed": "42", "train.weight_decay": "0.0005", "cnn.epochs": "50"}
    after = {"seed": "42", "train.weight_decay": "0.001", "ablation.more": "1e-05"}
    assert compare.changes(before, after) == "train.weight_decay 0.001, ablation.more 1e-05, cnn.epochs removed"


def test_parameters_are_written_as_a_person_writes_them():
    data = {"train": {"learning_rate": 1e9, "compile": True}, "resnet": {"blocks": [1, 2]}, "path": None, "name": "a b"}
    found = compare.parameters({"data": {"params": {"params.yaml": {"data": data}}}})
    assert found == {
        "train.learning_rate": "1e+09",
        "train.compile": "true",
        "resnet.blocks": "[1, 2]",
        "path": "null",
        "name": "a b",
    }


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_the_terminal_and_cut_no_figure_off(width):
    """Of twelve runs with long names, the lowest accuracies of each are found, and every word of a long change."""
    runs = [f"a_rather_long_name_for_run_{number}" for number in range(12)]
    figures = {f"metrics/train/{run}.json": f"{10 + number}.{number:02}" for number, run in enumerate(runs)}
    changes = ", ".join(f"train.parameter_{number} {number}.5" for number in range(15))
    experiments = [
        compare.Experiment("main", "", figures),
        compare.Experiment(
            "an-experiment-of-a-name-longer-than-most", changes, figures | {"metrics/compare/x.json": "-100.00"}
        ),
        compare.Experiment("[bold]", "resnet.blocks [1, 1]", {}),
    ]
    text = rendered(experiments, width)
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    assert [words.count(figure) for figure in figures.values()] == [2] * 12
    assert words.count("-100.00") == 1
    assert {"[bold]", "0.5,", "14.5"} <= set(words)


def test_the_ordinary_comparison_fits_one_table_of_80_columns():
    figures = dict.fromkeys(("metrics/train/cnn.json", "metrics/train/resnet.json"), "95.10")
    figures |= {"metrics/train/resnet_ablation.json": "94.95", "metrics/compare/model.json": "+3.11"}
    figures |= {"metrics/compare/weight_decay.json": "-0.22"}
    assert len(compare.tables([compare.Experiment("gifted-vast", "seed 43", figures)], 80)) == 1


def test_the_real_dvc_is_asked_and_another_layout_passed_over_and_counted(project, stage, monkeypatch):
    project.finish(accuracy=0.93, seed=43)
    project.keep("better")
    project.finish(seed=44)
    project.write("metrics/train/cnn.json", {"final_test_accuracy": 0.5})
    project.keep("old")
    monkeypatch.setenv("COLUMNS", "80")
    done = stage("stages.commands.compare")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["experiment", "changes", "cnn", "resnet", "model"]
    assert lines[1:3] == [
        ["main", "80.00", "90.00", "+10.00"],
        ["better", "seed", "43", "83.00", "93.00", "+10.00"],
    ]
    assert done.stdout.splitlines()[-1] == "Passed over, because their results have another layout (1): old"


def test_what_dvc_complains_of_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UserError, match=r"^dvc exp show: .*not inside of a DVC repository"):
        compare.main(Namespace(commits=1, width=80))
