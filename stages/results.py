"""What the earlier stages wrote about each run, read back and checked."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stages.core.errors import UserError
from stages.core.significance import Comparison
from stages.wording import scientific

# What is read of each file
EVALUATION = ["model", "accuracy", "interval", "top2", "loss", "ece", "temperature"]
COMPARISON = ["runs", "subject", "names", "difference", "interval", "p", "only_right", "verdict"]
METRICS = [
    "best_epoch", "final_test_accuracy", "generalization_gap", "parameters", "epochs", "weight_decay",
]  # fmt: skip
TIMING = ["train_seconds", "images_per_second", "device", "precision", "compiled", "torch", "python"]
HISTORY = ["epoch", "train_loss", "test_loss", "test_accuracy", "generalization_gap", "learning_rate"]
PREDICTIONS = ["index", "actual", "predicted", "confidence"]
PER_CLASS = ["run", "class", "images", "precision", "recall", "f1"]
CALIBRATION = ["run", "images", "confidence", "accuracy"]
SEEDS = ["seed", "run", "accuracy", "last_accuracy"]


@dataclass(frozen=True)
class Run:
    """Everything that was measured of one run."""

    name: str
    metrics: dict  # metrics/train/RUN.json
    timing: dict  # metrics/timing/RUN.json
    evaluation: dict  # the run's part of metrics/evaluation.json
    history: pd.DataFrame  # plots/history/RUN.csv
    predictions: pd.DataFrame  # plots/predictions/RUN.csv
    per_class: pd.DataFrame  # the run's rows of plots/per_class.csv
    calibration: pd.DataFrame  # the run's rows of plots/calibration.csv

    @property
    def model(self) -> str:
        return self.evaluation["model"]

    @property
    def architecture(self) -> str:
        """The model less its width."""
        return self.model.partition(" (")[0]

    @property
    def label(self) -> str:
        """The run in a word or two, beside its line in a figure."""
        return f"{self.architecture}, {scientific(self.metrics['weight_decay'])}"


@dataclass(frozen=True)
class Pair:
    """Two runs and how they compare: an item of comparisons in metrics/evaluation.json."""

    first: Run
    second: Run
    subject: str
    names: tuple[str, str]
    comparison: Comparison
    only_right: tuple[int, int]
    verdict: str


def read_runs(first: list[str]) -> tuple[list[Run], list[Pair]]:
    """The runs that were evaluated, those named first at the head, and the comparisons that were made of them.

    Raises:
        UserError: a file is missing or does not hold what it should, or a run named first was not evaluated.
    """
    path = Path("metrics/evaluation.json")
    evaluation = read_json(path, [*first, "comparisons"])
    comparisons = [has(path, comparison, COMPARISON) for comparison in evaluation.pop("comparisons")]
    per_class = read_csv(Path("plots/per_class.csv"), PER_CLASS)
    calibration = read_csv(Path("plots/calibration.csv"), CALIBRATION)
    runs = {
        name: Run(
            name,
            read_json(Path(f"metrics/train/{name}.json"), METRICS),
            read_json(Path(f"metrics/timing/{name}.json"), TIMING),
            has(path, evaluation[name], EVALUATION),
            read_csv(Path(f"plots/history/{name}.csv"), HISTORY),
            read_csv(Path(f"plots/predictions/{name}.csv"), PREDICTIONS),
            per_class[per_class.run == name],
            calibration[calibration.run == name],
        )
        for name in dict.fromkeys((*first, *evaluation))
    }
    pairs = [
        Pair(
            *(runs[name] for name in of["runs"]),
            of["subject"],
            tuple(of["names"]),
            Comparison(of["difference"], tuple(of["interval"]), of["p"]),
            tuple(of["only_right"]),
            of["verdict"],
        )
        for of in comparisons
    ]
    return list(runs.values()), pairs


def read_study(runs: list[Run], seed: int) -> tuple[pd.DataFrame | None, bool]:
    """The study over seeds that these runs are part of: a row a seed, columns accuracy and last_accuracy by run; or
    none, and whether plots/seeds.csv holds one of other runs."""
    table = read_csv(Path("plots/seeds.csv"), SEEDS).drop_duplicates(["seed", "run"])
    study = table[table.run.isin([run.name for run in runs])].pivot(index="seed", columns="run").dropna()
    accuracies = {run.name: run.evaluation["accuracy"] for run in runs}
    if seed not in study.index or study.loc[seed, "accuracy"].to_dict() != accuracies:
        return None, not table.empty
    return (study, False) if len(study) > 1 else (None, False)


def read_json(path: Path, keys: list[str]) -> dict:
    try:
        return has(path, json.loads(path.read_text(encoding="utf-8")), keys)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make it with `dvc repro`") from error


def read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    classes = dict.fromkeys(["class", "actual", "predicted"], str)  # also where their names are numbers, or "NA"
    try:
        return has(path, pd.read_csv(path, dtype=classes, keep_default_na=False), columns)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make it with `dvc repro`") from error


def has(path: Path, value: Any, keys: list[str]) -> Any:
    """The value itself, when it is a mapping or table that has all of the keys."""
    missing = [key for key in keys if not isinstance(value, dict | pd.DataFrame) or key not in value]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} not in it; make it with `dvc repro`")
    return value
