"""Real experiments of the real dvc, collected; and what is taken for the same experiment."""

import base64
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.commands.seeds import check_workspace, equal_but, read_trainings
from stages.common.errors import UserError
from stages.common.params import load_params
from stages.evaluation.metrics import Evaluation
from stages.evaluation.significance import compare_recipes
from stages.reporting.results import recipe_digest
from tests.commands.trainings import INPUTS, training, trainings
from tests.pipeline import RUNS, Clone, write_params


@pytest.fixture(scope="module")
def study(finished, tmp_path_factory) -> Clone:
    """The workspace has seed 43. Experiments add 44 and 45 for all runs, 46 for two, and what does not belong."""
    clone = finished.copy(tmp_path_factory.mktemp("study") / "clone")

    def run(name: str, *changes: str) -> None:
        clone.dvc("exp", "run", "--quiet", "--temp", "--name", name, *(f"-S{change}" for change in changes), "evaluate")

    run("other-seed", "seed=44")
    run("third-seed", "seed=45")
    run("lacks-a-run", "seed=46", "ablation.weight_decay=0.01")
    run("other-epochs", "cnn.epochs=2")
    clone.replace("params.yaml", "seed: 43", "seed: 47")
    clone.dvc("exp", "save", "--name", "saved-without-a-run")
    clone.run("git", "checkout", "params.yaml", "dvc.lock")
    return clone


def shown(clone: Clone, experiment: str, path: str) -> str:
    """A file of an experiment, as git has it."""
    head = clone.run("git", "rev-parse", "HEAD").strip()
    return clone.run("git", "show", f"refs/exps/{head[:2]}/{head[2:]}/{experiment}:{path}")


def test_a_study_of_real_experiments(study):
    assert study.run("python", "-m", "stages.commands.seeds", "--missing") == "46,47\n"
    assert not (study.folder / "plots/seeds.csv").exists()
    said = study.run("python", "-m", "stages.commands.seeds").splitlines()
    table = pd.read_csv(study.folder / "plots/seeds.csv")
    assert [*table] == ["seed", "run", "accuracy", "images", "correct", "recipe"]
    assert table[["seed", "run"]].values.tolist() == [[seed, run] for seed in (43, 44, 45) for run in RUNS]

    evaluation = Evaluation.model_validate_json(study.read("metrics/evaluation.json"))
    answers: dict[str, list[np.ndarray]] = {run: [] for run in RUNS}
    for row in table.itertuples():
        correct = np.unpackbits(np.frombuffer(base64.b64decode(row.correct), np.uint8), count=row.images)
        assert correct.mean() == pytest.approx(row.accuracy)
        assert row.recipe == recipe_digest(evaluation, row.run)
        answers[row.run].append(correct.astype(bool))
    predictions = pd.read_csv(study.folder / "plots/predictions/cnn.csv")
    assert (answers["cnn"][0] == (predictions.actual == predictions.predicted)).all()
    assert table.accuracy[0] == pytest.approx(evaluation.runs["cnn"].accuracy)
    other = shown(study, "other-seed", "metrics/accuracy.json")
    assert table.accuracy[3:6].round(6).tolist() == [json.loads(other)[run] for run in RUNS]

    compared = compare_recipes(np.array(answers["resnet"]), np.array(answers["cnn"]))
    low, high = (f"{100 * limit:+.2f}".replace("-", "−") for limit in compared.interval)
    assert said[0] == "Seed 46 lacks resnet_ablation, and is left out."
    assert said[1].split() == RUNS
    assert said[2].split() == ["43", *(f"{share:.2%}" for share in table.accuracy[:3])]
    assert f"interval {low} to {high}, p = {compared.p:.2g}" in " ".join(said)
    assert said[-1] == "plots/seeds.csv: 3 seeds; study.seeds in params.yaml is 5; missing, for `make seeds`: 46,47"


def test_a_study_whose_results_are_gone_names_them(study, tmp_path):
    clone = study.copy(tmp_path / "clone")
    lock = shown(clone, "other-seed", "dvc.lock")
    digest = lock.partition("path: metrics/evaluation.json")[2].split("md5: ")[1].split()[0]
    (clone.folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    done = clone.attempt("python", "-m", "stages.commands.seeds", "--missing")
    assert done.stdout == "44,46,47\n"  # which make reads
    assert done.stderr == (
        "Passed over, since DVC's cache lacks their results, or these have another layout: other-seed\n"
    )


def test_a_curve_of_real_experiments(study):
    said = study.run("python", "-m", "stages.commands.curve", "cnn.epochs", "--to", "curve.svg").splitlines()
    assert said[0].split() == ["run", "cnn.epochs", "seed", "accuracy", "95%", "interval"]
    assert [line.split()[:3] for line in said[1:-3]] == [["cnn", "1", str(seed)] for seed in (43, 44, 45, 46)] + [
        ["cnn", "2", "43"]
    ]
    evaluated = study.json("metrics/evaluation.json")["runs"]["cnn"]
    low, high = evaluated["interval"]
    assert said[1].split()[3:] == [f"{evaluated['accuracy']:.2%}", f"{100 * low:.2f}–{100 * high:.2f}%"]
    assert "The best of these 2 values is chosen on the test set" in said[-2]
    assert study.read("curve.svg").startswith("<?xml")


def test_equal_is_what_differs_in_the_named_parameters_alone():
    own = trainings()
    others = [
        *trainings(seed=7),
        *trainings(seed=8, train__momentum=0.5),
        *trainings(seed=9, inputs=INPUTS | {"data": "d2"}),
        *trainings(seed=10, inputs=INPUTS | {"stages/training": "c2"}),
        training("other", 0.7, seed=11),
        training("cnn", 0.6, seed=12),
    ]
    found = {(of.run, of.parameters["seed"]) for of in equal_but(own, others, "seed")}
    assert found == {("cnn", 42), ("resnet", 42), ("cnn", 7), ("resnet", 7), ("cnn", 12)}
    momenta = {(of.run, of.parameters["seed"]) for of in equal_but(own, others, "seed", "train.momentum")}
    assert momenta == found | {("cnn", 8), ("resnet", 8)}


def test_of_equal_ones_that_of_the_workspace_counts_and_then_the_first():
    others = [training("cnn", 0.1), training("cnn", 0.2, seed=7), training("cnn", 0.3, seed=7)]
    found = {of.parameters["seed"]: of.tested.accuracy for of in equal_but(trainings()[:1], others, "seed")}
    assert found == {42: 0.9, 7: 0.2}


def test_parameters_that_were_edited_since_the_results_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, seed=42, cnn__epochs=5, resnet__epochs=5, compare={})
    own = [training(run, 0.5) for run in RUNS[:2]]
    with pytest.raises(UserError, match=r"^params\.yaml: runs changed since the results"):
        check_workspace(own, load_params())
    runs = {run: {"model": run, "weight_decay": "train.weight_decay"} for run in RUNS[:2]}
    write_params(tmp_path, seed=42, cnn__epochs=5, resnet__epochs=5, compare={}, runs=runs)
    check_workspace(own, load_params())
    write_params(tmp_path, seed=6, cnn__epochs=5, resnet__epochs=7, compare={}, runs=runs)
    with pytest.raises(UserError, match=r"^params\.yaml: resnet\.epochs; seed changed since .* run `dvc repro`"):
        check_workspace(own, load_params())


def test_a_folder_without_results_is_told_to_make_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^no results here \(.*\); run `dvc repro`$"):
        read_trainings()
    assert not Path("plots").exists()
