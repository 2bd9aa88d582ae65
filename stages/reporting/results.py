"""The results of the earlier stages, joined by run; parameters are those of the models, never of params.yaml."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.common import files
from stages.common.dataset import DatasetInfo, Read, Split, held_out_name
from stages.common.errors import UserError, printable
from stages.common.files import parse_csv, parse_json
from stages.evaluation import significance
from stages.evaluation.metrics import Comparison, Evaluation, TestedRun
from stages.reporting.wording import scientific


@dataclass(frozen=True)
class Run:
    """Everything that was measured of one run."""

    name: str
    label: str  # the run in a few words, another for each run
    tested: TestedRun
    timing: dict  # keys of metrics/timing/RUN.json
    history: pd.DataFrame  # a row for each epoch: columns of plots/curves.csv
    predictions: pd.DataFrame  # a row for each test image: columns of plots/predictions/RUN.csv
    per_class: pd.DataFrame  # a row for each class: columns of plots/per_class.csv
    calibration: pd.DataFrame  # a row for each bin: columns of plots/calibration.csv


@dataclass(frozen=True)
class Pair:
    """Two runs, what sets them apart, and how they compare."""

    first: Run
    second: Run
    comparison: Comparison  # of these two models on the test images
    recipes: significance.RecipeComparison | None  # where there are enough seeds
    p: float  # of recipes, else of these two models, adjusted for the number of pairs
    verdict: significance.Verdict  # on the recipes, else on these two models

    @property
    def labels(self) -> tuple[str, str]:
        return self.first.label, self.second.label


@dataclass(frozen=True)
class Results:
    """All that a report is made of; runs and pairs in the order of metrics/evaluation.json.

    Attributes:
        study: a row for each seed, a column for each run: which test images are classified rightly, bool N; NaN where a
            seed lacks a run.
        foreign: plots/seeds.csv also holds trainings of other recipes or data, which are left out.
        suspects: columns of plots/suspects.csv.
        parameters: by dotted names.
    """

    info: DatasetInfo
    runs: list[Run]
    pairs: list[Pair]
    study: pd.DataFrame
    foreign: bool
    suspects: pd.DataFrame
    parameters: dict[str, Any]

    @property
    def held_out(self) -> str:
        """The images on which each epoch was tested: `validation` or `test`."""
        return held_out_name(self.info)

    @property
    def best(self) -> Run:
        return max(self.runs, key=lambda run: run.tested.accuracy)

    @property
    def seed_accuracies(self) -> pd.DataFrame:
        """As `study`, but fractions."""
        return self.study.map(np.mean).astype(float)


def read_results(info: DatasetInfo, test: Split, read: Read) -> Results:
    """Read the results of the earlier stages on these test images.

    Raises:
        UserError: a file is missing, or is not the one that evaluate wrote with metrics/evaluation.json.
    """
    evaluation = parse_json(read(files.EVALUATION), Evaluation, files.EVALUATION)

    def table(path: Path) -> pd.DataFrame:
        content = read(path)
        if files.sha256(content) != evaluation.files.get(str(path)):
            raise UserError(f"{path}: not the one that evaluate wrote with {files.EVALUATION}; run `dvc repro`")
        return parse_csv(content, path)

    tables, runs = [table(path) for path in (files.CURVES, files.PER_CLASS, files.CALIBRATION)], {}
    for name, label in labels(evaluation.runs).items():
        predictions = table(files.PREDICTIONS / f"{name}.csv")
        if evaluation.data != info.sha256 or predictions.image.tolist() != test.names.tolist():
            raise UserError(f"{files.EVALUATION}: of other images than those in {files.DATA}/; run `dvc repro`")
        timing = json.loads(read(files.TIMING / f"{name}.json"))
        history, *others = (rows[rows.run == name].reset_index(drop=True) for rows in tables)
        runs[name] = Run(name, label, evaluation.runs[name], timing, history, predictions, *others)
    study, foreign = read_study(evaluation, read)
    pairs = judged([*evaluation.comparisons.values()], runs, study, evaluation.parameters["study.margin"])
    return Results(info, [*runs.values()], pairs, study, foreign, table(files.SUSPECTS), evaluation.parameters)


def recipe_digest(evaluation: Evaluation, run: str) -> str:
    """Return the sha256 of all that a run was trained with but its seed: its recipe and the images."""
    images = {k: v for k, v in evaluation.parameters.items() if k.startswith("data.")}
    parts = [{**evaluation.runs[run].recipe, "seed": None}, images, evaluation.data]
    return files.sha256(json.dumps(parts, sort_keys=True).encode())


def read_study(evaluation: Evaluation, read: Read) -> tuple[pd.DataFrame, bool]:
    """Read the trainings in plots/seeds.csv that have the recipes of these runs, and whether there are others."""
    table = parse_csv(read(files.SEEDS), files.SEEDS) if files.SEEDS.exists() else pd.DataFrame()
    # Without what a merge of git may leave
    table = table.reindex(columns=["seed", "run", "images", "correct", "recipe"]).drop_duplicates(["seed", "run"])
    ours = table[table.recipe == table.run.map({run: recipe_digest(evaluation, run) for run in evaluation.runs})]
    try:
        bits = (np.frombuffer(base64.b64decode(text), np.uint8) for text in ours.correct)
        right = [np.unpackbits(of, count=images).astype(bool) for of, images in zip(bits, ours.images, strict=True)]
        study = ours.assign(right=right).pivot(index="seed", columns="run", values="right")
    except (ValueError, TypeError) as error:
        raise UserError(f"{files.SEEDS}: damaged ({printable(error)}); make it again with `make seeds`") from error
    return study.reindex(columns=[*evaluation.runs]), len(ours) < len(table)


def judged(comparisons: list[Comparison], runs: dict[str, Run], study: pd.DataFrame, margin: float) -> list[Pair]:
    """Judge pairs, by their recipes where there are enough seeds, by p values that hold for all pairs together."""
    images, tests, equal = len(next(iter(runs.values())).predictions), [], []
    for of in comparisons:
        over = over_seeds(study[of.runs])
        tests.append((of, over, over or of))
        equal.append(over.p_equal(margin) if over else significance.equal_on_images(of.only_right, images, margin))
    adjusted = significance.holm([test.p for *_, test in tests]), significance.holm(equal)
    pairs = []
    for (of, over, test), p, p_equal in zip(tests, *adjusted, strict=True):
        verdict = significance.verdict_of(test.difference, p, p_equal)
        pairs.append(Pair(runs[of.runs[0]], runs[of.runs[1]], of, over, p, verdict))
    return pairs


def over_seeds(answers: pd.DataFrame) -> significance.RecipeComparison | None:
    """Compare two recipes, a column each, by their answers with the seeds that both have, if these are enough."""
    both = answers.dropna().to_numpy().T
    return significance.compare_recipes(*map(np.stack, both)) if both.shape[1] >= significance.ENOUGH_SEEDS else None


def labels(runs: dict[str, TestedRun]) -> dict[str, str]:
    """Return a text for each run that no other has: its model, with its weight decay where needed, or its name."""
    models = {name: run.title.partition(",")[0] for name, run in runs.items()}  # without the width
    texts = {name: f"{model}, decay {decay(runs[name])}" for name, model in models.items()}
    for name, model in models.items():
        texts[name] = model if [*models.values()].count(model) == 1 else texts[name]
    return {name: text if [*texts.values()].count(text) == 1 else name for name, text in texts.items()}


def decay(run: TestedRun) -> str:
    """Return the weight decay as params.yaml has it."""
    recipe: dict[str, Any] = run.recipe
    return scientific(recipe["train"]["weight_decay"])
