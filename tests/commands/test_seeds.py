from argparse import Namespace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from stages.commands import seeds
from stages.common.errors import UserError


def collect() -> pd.DataFrame:
    seeds.main(Namespace(missing=None))
    return pd.read_csv("plots/seeds.csv")


def missing(capsys, count: int) -> str:
    capsys.readouterr()
    seeds.main(Namespace(missing=count))
    return capsys.readouterr().out.strip()


def edit_lock(key: str, value: object, run: str = "cnn") -> None:
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    lock["stages"][f"train@{run}"][key] = value
    Path("dvc.lock").write_text(yaml.safe_dump(lock))


def test_the_seeds_of_an_experiment_are_one_table(project, capsys):
    project.finish(seed=7, accuracy=0.8)
    project.keep("earlier")
    project.finish(seed=43, accuracy=0.95)
    project.keep("later")
    table = collect()
    assert list(table) == ["seed", "run", "accuracy", "last_accuracy"]
    assert table[["seed", "run"]].values.tolist() == [[seed, run] for seed in (7, 42, 43) for run in ("resnet", "cnn")]
    assert table["accuracy"].tolist() == [0.8, 0.7, 0.9, 0.8, 0.95, 0.85]
    assert table["last_accuracy"].tolist() == pytest.approx([0.79, 0.69, 0.89, 0.79, 0.94, 0.84])
    assert "43    95.00%  85.00%" in capsys.readouterr().out


def test_the_same_seed_twice_counts_once_and_that_of_the_workspace_first(project):
    project.finish(accuracy=0.5)
    project.keep("again")
    for name in ("one", "two"):
        project.finish(seed=43)
        project.keep(name)
    assert collect()["accuracy"].tolist() == [0.9, 0.8] * 2


def test_experiments_that_do_not_belong_are_passed_over_and_named(project, capsys):
    project.finish(seed=43)
    edit_lock("cmd", "python -m stages.train cnn --epochs 3")
    project.keep("other-command")
    project.finish(seed=43, cnn={"epochs": 3})
    project.keep("other-parameter")
    project.finish(seed=43)
    edit_lock("params", {"params.yaml": {"train": {"seed": 43}}})
    project.keep("other-layout")
    project.finish(seed=43)
    Path("dvc.lock").unlink()
    project.keep("no-lock")
    project.finish(seed=43)
    project.write("metrics/train/cnn.json", {"accuracy": 0.99})
    project.keep("edited")
    table = collect()
    assert table["seed"].tolist() == [42, 42]
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("Passed over (5): ")
    for reason in (
        "other-command (differs in more than the seed)",
        "other-parameter (differs in more than the seed)",
        "other-layout (dvc.lock has another layout)",
        "no-lock (has no dvc.lock)",
        "edited (metrics/train/cnn.json: not what dvc.lock records",
    ):
        assert reason in line


def test_metrics_of_another_layout_under_the_same_recipe_are_passed_over(project, capsys):
    project.finish(seed=43)
    project.write("metrics/train/cnn.json", {"final_test_accuracy": 0.99})
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    lock["stages"]["train@cnn"] = project.training("cnn", yaml.safe_load(Path("params.yaml").read_text()))
    project.write("dvc.lock", lock)
    project.keep("old-metrics")
    assert collect()["seed"].tolist() == [42, 42]
    assert "old-metrics (metrics/train/cnn.json: has another layout)" in capsys.readouterr().out


def test_only_the_missing_seeds_are_printed(project, capsys):
    assert missing(capsys, 4) == "43,44,45"
    project.finish(seed=44)
    project.keep("done")
    assert missing(capsys, 4) == "43,45"
    assert missing(capsys, 1) == ""
    assert not Path("plots").exists()


@pytest.mark.parametrize(("written", "expected"), [("0x10", "17,18"), ("-2", "-1,0"), ("+5", "6,7")])
def test_the_seed_is_read_as_yaml_reads_it(project, capsys, written, expected):
    project.finish(seed=int(written, 0))
    params = Path("params.yaml")
    params.write_text(
        "\n".join(f"seed: {written}" if "seed:" in line else line for line in params.read_text().splitlines())
    )
    assert missing(capsys, 3) == expected


def no_metrics(project) -> None:
    Path("metrics/train/cnn.json").unlink()


def edited_metrics(project) -> None:
    project.write("metrics/train/cnn.json", {"accuracy": 1.0})


def other_seed(project) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    project.write("params.yaml", params | {"seed": 1})


def two_seeds(project) -> None:
    edit_lock("params", {"params.yaml": {"seed": 1}})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda project: Path("dvc.lock").unlink(), r"dvc\.lock: no such file; run `dvc repro` first"),
        (lambda project: Path("dvc.lock").write_text("stages: {}"), r"dvc\.lock: no trainings; run"),
        (lambda project: Path("dvc.lock").write_text("<<<<<<< HEAD\nx: ["), r"dvc\.lock: not valid YAML"),
        (no_metrics, r"metrics/train/cnn\.json: no such file; run `dvc repro` first"),
        (edited_metrics, r"metrics/train/cnn\.json: not what dvc\.lock records; run `dvc repro` first"),
        (other_seed, r"dvc\.lock: results of seed 42, and params\.yaml has 1; run `dvc repro` first"),
        (two_seeds, r"dvc\.lock: trainings of different seeds"),
    ],
)
def test_a_workspace_without_results_is_told_to_make_them(project, spoil, message):
    spoil(project)
    with pytest.raises(UserError, match=f"^{message}"):
        collect()
    assert not Path("plots").exists()


def test_outside_of_a_repository_it_ends_in_one_line(project, tmp_path):
    (tmp_path / ".git").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"^experiments cannot be listed: "):
        collect()


def test_a_repository_without_a_commit_ends_in_one_line(project, tmp_path):
    (tmp_path / ".git/refs/heads/main").unlink()
    with pytest.raises(UserError, match=r"^experiments cannot be listed: Empty git repo"):
        seeds.experiments()


def test_the_command_line(project, stage):
    done = stage("stages.commands.seeds", "--missing", "3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "43,44\n", "")
    done = stage("stages.commands.seeds", "--missing", "0")
    assert (done.returncode, done.stderr) == (1, "seeds: --missing 0: choose from 1 to 1,000 seeds\n")
