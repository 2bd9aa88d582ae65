"""A real study of three seeds, collected."""

import base64
import io
import json
import re

import numpy as np
import pandas as pd
import pytest

from stages.evaluation.metrics import Evaluation
from stages.evaluation.significance import compare_recipes
from stages.reporting.results import recipe_digest
from tests.pipeline import RUNS, Clone


@pytest.fixture(scope="module")
def study(finished, tmp_path_factory) -> Clone:
    """The workspace has seed 43. `make seeds` adds 44 (`said`), experiments 45 for two runs and 47 without a run."""
    clone = finished.copy(tmp_path_factory.mktemp("study") / "clone")
    clone.said = clone.run("make", "seeds")
    clone.dvc("exp", "rename", clone.dvc("exp", "list", "--name-only").strip(), "whole")
    clone.replace("metrics/evaluation.json", '"study.seeds": 2', '"study.seeds": 5')
    clone.dvc("exp", "run", "-q", "--temp", "--name=lacking", "-Sseed=45", "-Sablation.weight_decay=0.01", "evaluate")
    clone.replace("params.yaml", "seed: 43", "seed: 47")
    clone.dvc("exp", "save", "--name", "saved-without-a-run")
    clone.run("git", "checkout", "params.yaml", "dvc.lock")
    return clone


def shown(clone: Clone, experiment: str, path: str) -> str:
    """A file of an experiment, as git has it."""
    head = clone.run("git", "rev-parse", "HEAD").strip()
    return clone.run("git", "show", f"refs/exps/{head[:2]}/{head[2:]}/{experiment}:{path}")


def test_a_study_of_real_experiments(study):
    assert "Seeds to train: 44\n" in study.said
    assert study.run("python", "-m", "stages.commands.seeds", "--missing") == "45,46,47\n"
    assert pd.read_csv(study.folder / "plots/seeds.csv").seed.tolist() == [43] * 3 + [44] * 3  # as make left it
    said = study.run("python", "-m", "stages.commands.seeds")
    table = pd.read_csv(study.folder / "plots/seeds.csv")
    assert [*table] == ["seed", "run", "accuracy", "images", "correct", "recipe"]
    expected = [[43, run] for run in RUNS] + [[44, run] for run in RUNS] + [[45, run] for run in RUNS[:2]]
    assert table[["seed", "run"]].values.tolist() == expected
    evaluation = Evaluation.model_validate_json(study.read("metrics/evaluation.json"))
    assert table.recipe.tolist() == [recipe_digest(evaluation, run) for run in table.run]
    bits = [np.frombuffer(base64.b64decode(text), np.uint8) for text in table.correct]
    correct = np.array([np.unpackbits(of, count=table.images[0]).astype(bool) for of in bits])
    np.testing.assert_allclose(correct.mean(1), table.accuracy)
    predictions = pd.read_csv(study.folder / "plots/predictions/cnn.csv")
    assert (correct[0] == (predictions.actual == predictions.predicted)).all()
    study.run("python", "-c", "from benchmarks.study import collect; collect()")
    answers = np.load(study.folder / "docs/results/study/seed-43/answers.npz")
    assert ((answers["cnn"] == answers["labels"]) == correct[0]).all()
    other = json.loads(shown(study, "whole", "metrics/accuracy.json"))
    assert table.accuracy[3:6].round(6).tolist() == [*other.values()]
    compared = compare_recipes(correct[1::3], correct[0::3])
    low, high = (f"{100 * limit:+.2f}".replace("-", "−") for limit in compared.interval)
    assert said.splitlines()[2].split() == ["43", *(f"{share:.2%}" for share in table.accuracy[:3])]
    words = rf"interval {re.escape(low)} to {re.escape(high)}, p = {compared.p:.2g}.* Seed 45 lacks resnet_ablation\."
    assert re.search(f"{words}.*; missing, for `make seeds`: 45,46,47$", " ".join(said.split()))


def test_a_curve_of_real_experiments(study):
    said = study.run("python", "-m", "stages.commands.curve", "ablation.weight_decay")
    dots = pd.read_csv(io.StringIO(said), sep=r"\s+", nrows=3)
    expected = [["resnet_ablation", 1e-4, 43], ["resnet_ablation", 1e-4, 44], ["resnet_ablation", 0.01, 45]]
    assert dots[["run", "value", "seed"]].values.tolist() == expected
    tested = study.json("metrics/evaluation.json")["runs"]["resnet_ablation"]
    assert [*dots.iloc[0, 3:]] == [f"{share:.2%}" for share in (tested["accuracy"], *tested["interval"])]


def test_an_experiment_whose_results_are_gone_is_named(study):
    lock = shown(study, "whole", "dvc.lock")
    digest = lock.partition("path: metrics/evaluation.json")[2].split("md5: ")[1].split()[0]
    (study.folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()  # after which no test reads it
    command = "python", "-m", "stages.commands.seeds", "--missing"
    done = study.attempt(*command)
    assert done.stdout == "44,45,46,47\n"  # which make reads
    assert done.stderr == "No model here has the parameters of: saved-without-a-run; whole\n"
    study.replace("plots/predictions/cnn.csv", "\n", " \n")
    assert "plots/predictions/cnn.csv: not the one that evaluate wrote" in study.attempt(*command).stderr
