"""The results of the earlier stages, joined by run; parameters are those of the models, never of params.yaml."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.common import files
from stages.common.dataset import DatasetInfo, Read, Split
from stages.common.errors import UserError
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
    recipes: significance.RecipeComparison | None = None  # where there are enough seeds
    p: float = 1.0  # of recipes, else of these two models, adjusted for the number of pairs
    verdict: significance.Verdict = "undecided"  # on the recipes, else on these two models

    @property
    def labels(self) -> tuple[str, str]:
        return self.first.label, self.second.label


@dataclass(frozen=True)
class Results:
    """All that a report is made of; runs and pairs in the order of metrics/evaluation.json.

    Attributes:
        study: of each run, by seed, which test images are classified rightly, bool N; empty without plots/seeds.csv.
        foreign: plots/seeds.csv also holds trainings of other recipes or data, which are left out.
        suspects: columns of plots/suspects.csv.
        parameters: by dotted names.
    """

    info: DatasetInfo
    runs: list[Run]
    pairs: list[Pair]
    study: dict[str, dict[int, np.ndarray]]
    foreign: bool
    suspects: pd.DataFrame
    parameters: dict[str, Any]

    @property
    def held_out(self) -> str:
        """The images on which each epoch was tested: `validation` or `test`."""
        return "validation" if "validation_loss" in self.runs[0].history else "test"

    @property
    def best(self) -> Run:
        return max(self.runs, key=lambda run: run.tested.accuracy)

    @property
    def chosen_on_test(self) -> bool:
        """True where the epoch with the best test accuracy was kept."""
        recipe: dict[str, Any] = self.runs[0].tested.recipe
        return self.held_out == "test" and recipe["train"]["keep"] == "best"

    @property
    def seed_accuracies(self) -> pd.DataFrame:
        """A row for each seed, a column for each run, fractions; NaN where a seed lacks a run."""
        means = {run: {seed: right.mean() for seed, right in seeds.items()} for run, seeds in self.study.items()}
        return pd.DataFrame(means, dtype=float).sort_index()


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
    parameters: dict[str, Any] = evaluation.parameters
    pairs = [Pair(runs[of.runs[0]], runs[of.runs[1]], of) for of in evaluation.comparisons.values()]
    pairs = [*judged(pairs, study, parameters["study.margin"])]
    return Results(info, [*runs.values()], pairs, study, foreign, table(files.SUSPECTS), parameters)


def recipe_digest(evaluation: Evaluation, run: str) -> str:
    """Return the sha256 of all that a run was trained with but its seed: its recipe and the images."""
    images = {k: v for k, v in evaluation.parameters.items() if k.startswith("data.") and k != "data.path"}
    parts = [{**evaluation.runs[run].recipe, "seed": None}, images, evaluation.data]
    return files.sha256(json.dumps(parts, sort_keys=True).encode())


def read_study(evaluation: Evaluation, read: Read) -> tuple[dict[str, dict[int, np.ndarray]], bool]:
    """Read the trainings in plots/seeds.csv that have the recipes of these runs, and whether there are others."""
    table = parse_csv(read(files.SEEDS), files.SEEDS) if files.SEEDS.exists() else pd.DataFrame()
    digests = {run: recipe_digest(evaluation, run) for run in evaluation.runs}
    ours = [row for row in table.itertuples() if digests.get(row.run) == row.recipe]
    study: dict[str, dict[int, np.ndarray]] = {run: {} for run in digests}
    for row in ours:
        bits = np.frombuffer(base64.b64decode(row.correct), np.uint8)
        study[row.run][row.seed] = np.unpackbits(bits, count=row.images).astype(bool)
    return study, len(ours) < len(table)


def judged(pairs: list[Pair], study: dict[str, dict[int, np.ndarray]], margin: float) -> Iterator[Pair]:
    """Add verdicts, on the recipes where there are enough seeds, by p values that hold for all pairs together."""
    recipes = [over_seeds(study[pair.first.name], study[pair.second.name]) for pair in pairs]
    tests = [
        significance.equal_on_images(pair.comparison.only_right, len(pair.first.predictions), margin) for pair in pairs
    ]
    equal, studied = significance.holm(tests), [compared for compared in recipes if compared]
    adjusted = significance.holm([compared.p for compared in studied])
    over = zip(adjusted, significance.holm([compared.p_equal(margin) for compared in studied]), strict=True)
    for pair, compared, p_equal in zip(pairs, recipes, equal, strict=True):
        test, p = compared or pair.comparison, pair.comparison.adjusted_p
        if compared:
            p, p_equal = next(over)
        yield replace(pair, recipes=compared, p=p, verdict=significance.verdict_of(test.difference, p, p_equal))


def over_seeds(first: dict[int, np.ndarray], second: dict[int, np.ndarray]) -> significance.RecipeComparison | None:
    """Compare two recipes by the answers with the seeds that both have, if these are enough."""
    seeds = sorted(first.keys() & second.keys())
    answers = (np.stack([of[seed] for seed in seeds]) for of in (first, second))
    return significance.compare_recipes(*answers) if len(seeds) >= significance.ENOUGH_SEEDS else None


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
