"""The results of the earlier stages, read back, checked against each other and joined by run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel

from stages.common import formats
from stages.common.dataset import DatasetInfo, Split
from stages.common.errors import UserError
from stages.common.files import columns, read_csv, read_json
from stages.evaluation.significance import Comparison
from stages.reporting.wording import capitalised, scientific


@dataclass(frozen=True)
class Run:
    """Everything that was measured of one run."""

    name: str
    label: str  # the run in a few words, another for each run
    tested: formats.EvaluatedRun
    metrics: formats.Metrics
    timing: formats.Timing
    history: pd.DataFrame  # columns of Epoch
    predictions: pd.DataFrame  # columns of Prediction, a row for each test image
    per_class: pd.DataFrame  # columns of ClassScores, a row for each class
    calibration: pd.DataFrame  # columns of CalibrationBin


@dataclass(frozen=True)
class Pair:
    """Two runs, what sets them apart, and how they compare."""

    first: Run
    second: Run
    subject: str  # what `names` are values of, empty if they stand by themselves
    names: Sequence[str]  # of the first and the second
    comparison: Comparison
    only_right: Sequence[int]  # test images that one run alone has right

    @property
    def title(self) -> str:
        return self.joined("beside")

    def joined(self, word: str) -> str:
        first, second = self.names
        return capitalised(f"{self.subject} {first} {word} {second}".strip())

    @property
    def same_recipe(self) -> bool:
        return recipe(self.first.tested) == recipe(self.second.tested)


@dataclass(frozen=True)
class Results:
    """All that a report is made of; runs and pairs in the order of metrics/evaluation.json."""

    runs: list[Run]
    pairs: list[Pair]
    study: pd.DataFrame | None  # a row for each of two seeds or more; columns accuracy and last_accuracy, by run
    foreign_study: bool  # plots/seeds.csv holds a study that these runs are no part of


def read_results(info: DatasetInfo, test: Split, seed: int) -> Results:
    """Read the results of the earlier stages on these test images, with this seed.

    Raises:
        UserError: a file is missing, or holds something else than its stage writes for these images.
    """
    evaluation = read_json(formats.EVALUATION, formats.Evaluation)
    if not evaluation.runs:
        raise UserError(f"{formats.EVALUATION}: no runs in it; make it again with `dvc repro`")
    per_class = read_table(formats.PER_CLASS, formats.ClassScores)
    calibration = read_table(formats.CALIBRATION, formats.CalibrationBin)
    runs = {
        name: Run(
            name,
            label,
            evaluation.runs[name],
            read_json(formats.of_run(formats.TRAIN_METRICS, name), formats.Metrics),
            read_json(formats.of_run(formats.TIMING, name), formats.Timing),
            read_table(formats.of_run(formats.HISTORY, name), formats.Epoch),
            read_table(formats.of_run(formats.PREDICTIONS, name), formats.Prediction),
            per_class[per_class.run == name].reset_index(drop=True),
            calibration[calibration.run == name].reset_index(drop=True),
        )
        for name, label in labels(evaluation.runs).items()
    }
    for run in runs.values():
        _check(run, info, test)
    for name, compared in evaluation.comparisons.items():
        if missing := [run for run in compared.runs if run not in runs]:
            raise UserError(f"{formats.EVALUATION}: {name} compares {missing[0]}, which is not in it; run `dvc repro`")
    pairs = [_pair(of, runs) for of in evaluation.comparisons.values()]
    titles = [pair.title for pair in pairs]
    pairs = [_by_label(pair) if titles.count(pair.title) > 1 else pair for pair in pairs]
    return Results([*runs.values()], pairs, *_read_study([*runs.values()], seed))


def read_table(path: Path, kind: type[BaseModel]) -> pd.DataFrame:
    """The rows of a CSV file, a column for each field of `kind`."""
    rows = [row.model_dump(by_alias=True) for row in read_csv(path, kind)]
    return pd.DataFrame(rows, columns=columns(kind))


def _read_study(runs: list[Run], seed: int) -> tuple[pd.DataFrame | None, bool]:
    """The study that these runs are part of, and whether plots/seeds.csv, which may be missing, holds another."""
    if not formats.SEEDS.exists():
        return None, False
    table = read_table(formats.SEEDS, formats.SeedResult).drop_duplicates(["seed", "run"])
    names = [run.name for run in runs]
    study = table[table.run.isin(names)].pivot(index="seed", columns="run").dropna()
    if table.empty or set(study.columns) != {(of, name) for of in ("accuracy", "last_accuracy") for name in names}:
        return None, not table.empty
    if seed not in study.index or not all(_is_result(study, seed, run) for run in runs):
        return None, True
    return (study if len(study) > 1 else None), False


def labels(runs: dict[str, formats.EvaluatedRun]) -> dict[str, str]:
    """Model and weight decay of each run, and its name where another run has the same."""
    found = {name: f"{architecture(run)}, decay {scientific(run.weight_decay)}" for name, run in runs.items()}
    shared = [label for label in found.values() if list(found.values()).count(label) > 1]
    return {name: f"{label} ({name})" if label in shared else label for name, label in found.items()}


def architecture(run: formats.EvaluatedRun) -> str:
    """The model without its width: ResNet-18."""
    return run.model.partition(",")[0]


def recipe(run: formats.EvaluatedRun) -> tuple:
    return run.model, run.weight_decay, run.epochs, run.seed


def _pair(compared: formats.ComparedRuns, runs: dict[str, Run]) -> Pair:
    first, second = (runs[run] for run in compared.runs)
    tested = first.tested, second.tested
    differing = [
        ("", [architecture(run) for run in tested]),
        ("", [run.model for run in tested]),
        ("weight decay", [scientific(run.weight_decay) for run in tested]),
        ("", compared.runs),
    ]
    subject, names = next(((of, names) for of, names in differing if names[0] != names[1]), differing[-1])
    low, high = compared.interval
    comparison = Comparison(compared.difference, (low, high), compared.p)
    return Pair(first, second, subject, names, comparison, compared.only_right)


def _by_label(pair: Pair) -> Pair:
    """The pair with names that tell it from another one of the same models."""
    return replace(pair, subject="", names=(pair.first.label, pair.second.label))


def _check(run: Run, info: DatasetInfo, test: Split) -> None:
    actual = np.array(info.classes, dtype=object)[test.labels]
    good = {
        formats.of_run(formats.HISTORY, run.name): len(run.history) == run.tested.epochs
        and run.history.epoch.tolist() == list(range(1, len(run.history) + 1)),
        formats.of_run(formats.PREDICTIONS, run.name): run.predictions["index"].tolist() == list(range(len(actual)))
        and run.predictions.actual.tolist() == actual.tolist()
        and run.predictions.predicted.isin(info.classes).all(),
        formats.PER_CLASS: run.per_class["class"].tolist() == info.classes
        and run.per_class.images.tolist() == np.bincount(test.labels, minlength=len(info.classes)).tolist(),
        formats.CALIBRATION: run.calibration.images.sum() == len(actual),
    }
    for path, fits in good.items():
        if not fits:
            raise UserError(
                f"{path}: does not fit run {run.name} in {formats.EVALUATION} and the images in data/; run `dvc repro`"
            )


def _is_result(study: pd.DataFrame, seed: int, run: Run) -> bool:
    """The study has this run's figures under this seed, as its training measured them."""
    found = study.loc[[seed], [("accuracy", run.name), ("last_accuracy", run.name)]].to_numpy()[0]
    return bool((np.abs(found - [run.metrics.accuracy, run.metrics.last_accuracy]) < 1e-6).all())
