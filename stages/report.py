"""Compare the runs: write report/index.html, report/report.md and report/figures/, and print the comparison.

python -m stages.report
"""

import base64
import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages import cli, figures
from stages.core.dataset import read_info
from stages.core.errors import UserError
from stages.files import replacing, write_text

REPORT = Path("report")
BASELINE, REFERENCE, ABLATION = "cnn", "resnet", "resnet_ablation"

# What is read of each file
EVALUATION = ["model", "accuracy", "loss", "calibration_error"]
METRICS = [
    "best_test_accuracy", "best_epoch", "final_test_accuracy", "generalization_gap",
    "parameters", "epochs", "weight_decay",
]  # fmt: skip
TIMING = ["train_seconds", "images_per_second", "device", "precision", "compiled", "torch", "python"]
HISTORY = ["epoch", "test_accuracy", "generalization_gap"]


@dataclass(frozen=True)
class Run:
    """Everything that was measured of one run."""

    name: str
    colour: str
    metrics: dict  # metrics/train/RUN.json
    timing: dict  # metrics/timing/RUN.json
    evaluation: dict  # the run's part of metrics/evaluation.json
    history: pd.DataFrame  # plots/history/RUN.csv

    @property
    def model(self) -> str:
        return self.evaluation["model"]

    @property
    def decay(self) -> str:
        return f"{self.metrics['weight_decay']:g}"

    def curve(self, label: str) -> figures.Curve:
        return figures.Curve(label, self.colour, self.history)


def main(args: Namespace) -> None:
    runs = read_runs()
    baseline, reference, ablation = runs[BASELINE], runs[REFERENCE], runs[ABLATION]
    pictures = {
        "comparison.png": figures.comparison(
            [run.curve(f"{run.model}, {run.metrics['epochs']} epochs") for run in (baseline, reference)]
        ),
        "ablation.png": figures.ablation([run.curve(f"{run.name}, WD {run.decay}") for run in (reference, ablation)]),
    }
    findings = {
        "data": read_info(Path("data")),
        "runs": list(runs.values()),
        "verdicts": verdicts(baseline, reference, ablation),
        "comparison": comparison_table(baseline, reference),
        "ablation": ablation_table(reference, ablation),
        "evaluation": evaluation_table(runs),
    }
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name.startswith("index.html"),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    embedded = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
    page = templates.get_template("index.html.j2").render(findings, pictures=embedded)
    text = templates.get_template("report.md.j2").render(findings)

    for name, png in pictures.items():
        with replacing(REPORT / "figures" / name, "wb") as file:
            file.write(png)
    write_text(REPORT / "index.html", page)
    write_text(REPORT / "report.md", text)
    for table in ("comparison", "ablation"):
        print(findings[table].to_string(index=False), end="\n\n")
    print(*findings["verdicts"], f"Report: {REPORT / 'index.html'}", sep="\n")


def read_runs() -> dict[str, Run]:
    """The runs that were evaluated, by name, the three that the report compares first."""
    path = Path("metrics/evaluation.json")
    evaluations = read_json(path, [BASELINE, REFERENCE, ABLATION])
    runs = {}
    for name in dict.fromkeys((BASELINE, REFERENCE, ABLATION, *evaluations)):
        evaluation = has(path, evaluations[name], EVALUATION)
        metrics = read_json(Path(f"metrics/train/{name}.json"), METRICS)
        timing = read_json(Path(f"metrics/timing/{name}.json"), TIMING)
        history = read_csv(Path(f"plots/history/{name}.csv"))
        colour = figures.COLOURS[len(runs) % len(figures.COLOURS)]
        runs[name] = Run(name, colour, metrics, timing, evaluation, history)
    return runs


def read_json(path: Path, keys: list[str]) -> dict:
    try:
        return has(path, json.loads(path.read_text(encoding="utf-8")), keys)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make it with `dvc repro`") from error


def read_csv(path: Path) -> pd.DataFrame:
    try:
        return has(path, pd.read_csv(path), HISTORY)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make it with `dvc repro`") from error


def has(path: Path, value: Any, keys: list[str]) -> Any:
    """The value itself, when it is a mapping or table that has all of the keys."""
    missing = [key for key in keys if not isinstance(value, dict | pd.DataFrame) or key not in value]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} not in it; make it with `dvc repro`")
    return value


def verdicts(baseline: Run, reference: Run, ablation: Run) -> list[str]:
    """The answers to the two questions, by best test accuracy."""
    gain = points(reference, baseline)
    difference = points(reference, ablation)
    if reference.decay == ablation.decay:
        better = f"Both ResNets have weight decay {reference.decay}: nothing to compare."
    elif difference == 0:
        better = f"Weight decay {reference.decay} and {ablation.decay} reach the same test accuracy."
    else:
        decay = reference.decay if difference > 0 else ablation.decay
        better = f"Better weight decay: {decay}, by {abs(difference):.2f} points."
    return [f"{reference.model} against {baseline.model}: {gain:+.2f} points of test accuracy.", better]


def points(one: Run, other: Run) -> float:
    """Difference of the best test accuracies in percentage points."""
    return 100 * (one.metrics["best_test_accuracy"] - other.metrics["best_test_accuracy"])


def comparison_table(baseline: Run, reference: Run) -> pd.DataFrame:
    columns = {
        run.model: [
            f"{run.metrics['parameters']:,}",
            f"{run.metrics['epochs']}",
            f"{run.metrics['best_test_accuracy']:.2%}",
            duration(run.timing["train_seconds"]),
        ]
        for run in (baseline, reference)
    }
    improvement = ["", "", f"{points(reference, baseline):+.2f} points", ""]
    metrics = ["Parameters", "Training epochs", "Best test accuracy", "Training time"]
    return pd.DataFrame({"Metric": metrics, **columns, "Improvement": improvement})


def ablation_table(reference: Run, ablation: Run) -> pd.DataFrame:
    rows = [
        {
            "Run": run.name,
            "Weight decay": run.decay,
            "Best test accuracy": f"{run.metrics['best_test_accuracy']:.2%}",
            "Difference": f"{points(run, reference):+.2f} points" if run is ablation else "",
            "Final generalisation gap": f"{100 * run.metrics['generalization_gap']:z.2f} points",
            "Training time": duration(run.timing["train_seconds"]),
        }
        for run in (reference, ablation)
    ]
    return pd.DataFrame(rows)


def evaluation_table(runs: dict[str, Run]) -> pd.DataFrame:
    rows = [
        {
            "Run": run.name,
            "Model": run.model,
            "Accuracy": f"{run.evaluation['accuracy']:.2%}",
            "Loss": f"{run.evaluation['loss']:.4f}",
            "Calibration error": f"{run.evaluation['calibration_error']:.2%}",
            "Best epoch": run.metrics["best_epoch"],
            "Last epoch's accuracy": f"{run.metrics['final_test_accuracy']:.2%}",
        }
        for run in runs.values()
    ]
    return pd.DataFrame(rows)


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {seconds:02} s"


if __name__ == "__main__":
    cli.run(main, ArgumentParser(prog="report", description=__doc__.partition("\n")[0]))
