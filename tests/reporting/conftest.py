"""Results of an experiment in the current folder, other figures for every run, written as the earlier stages do."""

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages import report
from stages.common import files
from stages.common.dataset import Counts, DatasetInfo, Split, read_info, read_split, write_dataset
from stages.evaluation.metrics import Evaluation, TestResult, compare, suspects
from stages.reporting import page
from stages.reporting.results import Results, read_results, recipe_digest

RUNS: dict[str, dict[str, Any]] = {  # `wrong`: test images, the most confident first
    "cnn": {"model": "cnn", "wrong": [0, 11, 3, 4], "decay": 5e-4, "epochs": 6, "gap": 0.02, "seconds": 59.94},
    "resnet": {"model": "resnet", "wrong": [7, 0], "decay": 5e-4, "epochs": 12, "gap": 0.0456, "seconds": 3720.0},
    "resnet_ablation": {
        "model": "resnet",
        "wrong": [7, 0, 12],
        "decay": 1e-4,
        "epochs": 11,
        "gap": 0.07,
        "seconds": 75.0,
    },
}
PAIRS = {"model": ["resnet", "cnn"], "weight_decay": ["resnet", "resnet_ablation"]}
TITLES = {"cnn": "Simple CNN", "resnet": "ResNet-18"}


def recipe(name: str, run: dict[str, Any]) -> dict[str, Any]:
    network = {"base_channels": 64, "blocks": [2, 2, 2, 2]} if run["model"] == "resnet" else {}
    settings = {"epochs": run["epochs"], **network, **run.get("settings", {})}
    train = {"learning_rate": 0.1, "weight_decay": run["decay"], "keep": run.get("keep", "best")}
    return {"run": name, "model": run["model"], "seed": run.get("seed", 42), "settings": settings, "train": train}


def history(run: dict[str, Any], number: int, accuracy: float, held_out: str) -> pd.DataFrame:
    """Accuracies rise from half of `accuracy` in equal steps to the last but one epoch, the best."""
    epoch, epochs = np.arange(1, run["epochs"] + 1), run["epochs"]
    accuracies = np.append(np.linspace(accuracy / 2, accuracy, epochs - 1), accuracy - 0.01 * (number + 1))[-epochs:]
    gaps = run["gap"] * epoch / epochs
    columns = {"epoch": epoch, "train_loss": (1 + number) / epoch, "train_accuracy": accuracies + gaps}
    columns |= {f"{held_out}_loss": (1.5 + number) / epoch, f"{held_out}_accuracy": accuracies}
    rates = 0.1 / (1 + number) * (1 - (epoch - 1) / epochs)
    return pd.DataFrame(columns | {"generalization_gap": gaps, "learning_rate": rates})


def tested(name: str, run: dict[str, Any], number: int, split: Split, classes: list[str]) -> TestResult:
    """A run that takes its wrong images for the next class, at 0.968 less 0.01 a run down to 0.6; others at 0.9 on."""
    answers, confidence, wrong = split.labels.copy(), np.full(len(split.labels), 0.9 + 0.02 * number), run["wrong"]
    answers[wrong] = (split.labels[wrong] + 1) % len(classes)
    confidence[wrong] = np.linspace(0.968 - 0.01 * number, 0.6, len(wrong))
    logs = np.repeat(np.log((1 - confidence) / (len(classes) - 1))[:, None], len(classes), axis=1)
    logs[np.arange(len(answers)), answers] = np.log(confidence)
    return TestResult(name, split.labels, logs, classes, split.names)


def write_experiment(
    classes: Sequence[str] = ("cat", "dog"),
    labels: Sequence[int] = (0,) * 10 + (1,) * 10,
    runs: dict[str, dict[str, Any]] = RUNS,
    pairs: dict[str, list[str]] = PAIRS,
    **other: Any,
) -> None:
    """Write data/, metrics/ and plots/; `other`: held_out, size and images, or parameters with __ for dots."""
    held_out, size, images = other.pop("held_out", "test"), other.pop("size", 32), other.pop("images", None)
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    names = np.array([f"{label}/{index:04}.jpg" for index, label in enumerate(labels)])
    split, classes = Split(images, np.array(labels, dtype=np.int64), names), list(classes)
    counts = Counts(train=50_000, test=len(labels), validation=200 if held_out == "validation" else 0)
    place = {"name": "<toys>", "source": "images", "sha256": "ab12" * 16, "test_share": 0.2, "validation": 0.0}
    info = DatasetInfo(**place, classes=classes, image_size=size, counts=counts, mean=[0.5] * 3, std=[0.2] * 3)
    write_dataset(info, {"test": split})
    results = {name: tested(name, run, n, split, classes) for n, (name, run) in enumerate(runs.items())}
    summaries, curves = {}, []
    for n, (name, run) in enumerate(runs.items()):
        epochs = history(run, n, float(results[name].correct.mean()), held_out)
        title = run.get("title", TITLES.get(run["model"], run["model"]))
        summaries[name] = results[name].summary(recipe(name, run), title, 391_946 + 1000 * n, epochs)
        curves.append(epochs.assign(run=name)[["run", *epochs]])
        timing = {"train_seconds": run["seconds"], "images_per_second": 1234.4 + 1000 * n, "device": f"GPU {n}"}
        timing |= {"instruction_set": "AVX2", "threads": 2 + n, "precision": ["fp32", "bf16", "tf32"][n % 3]}
        timing |= {"compiled": bool(n % 2), "torch": f"2.9{n}", "python": f"3.9{n}"}
        files.write_json(files.TIMING / f"{name}.json", timing)
    tables = {files.CURVES: pd.concat(curves), files.SUSPECTS: suspects([*results.values()])}
    tables |= {files.PER_CLASS: pd.concat([result.by_class() for result in results.values()])}
    tables |= {files.CALIBRATION: pd.concat([result.by_confidence() for result in results.values()])}
    tables |= {files.PREDICTIONS / f"{name}.csv": result.predictions() for name, result in results.items()}
    for path, table in tables.items():
        files.write_csv(path, table)
    parameters = {"seed": 42, "data.path": None, "data.image_size": size, "resnet.blocks": [2, 2, 2, 2]}
    parameters |= {"study.seeds": 5, "study.margin": 0.003, **{k.replace("__", "."): v for k, v in other.items()}}
    digests = {str(path): files.sha256(path.read_bytes()) for path in tables}
    comparisons = compare(results, pairs)
    record = {"data": info.sha256, "parameters": parameters, "runs": summaries, "comparisons": comparisons}
    files.write_json(files.EVALUATION, Evaluation(**record, files=digests))


def evaluation() -> Evaluation:
    return files.parse_json(files.EVALUATION.read_bytes(), Evaluation, files.EVALUATION)


def write_seeds(answers: dict[tuple[int, str], np.ndarray]) -> None:
    """Write plots/seeds.csv of the experiment that is there: by seed and run, which test images are right."""
    rows = [
        {
            "seed": seed,
            "run": run,
            "images": len(right),
            "correct": base64.b64encode(np.packbits(right).tobytes()).decode(),
            "recipe": recipe_digest(evaluation(), run),
        }
        for (seed, run), right in answers.items()
    ]
    files.write_csv(files.SEEDS, pd.DataFrame(rows))


@pytest.fixture(scope="session")
def writer() -> SimpleNamespace:
    """What writes results and reads them, and the runs that are written."""
    return SimpleNamespace(experiment=write_experiment, seeds=write_seeds, evaluation=evaluation, runs=RUNS)


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write an experiment in a folder of the test's own, without git."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return write_experiment


@pytest.fixture
def results() -> Callable[[], Results]:
    """Return the results in the current folder, as the report reads them."""
    return lambda: read_results(read_info(), read_split("test", read_info()), Path.read_bytes)


@pytest.fixture
def render(results: Callable[[], Results]) -> Callable[[], tuple[str, str]]:
    """Return index.html and report.md for the results in the current folder, with its name for each chart."""

    def rendered() -> tuple[str, str]:
        found, names = results(), ["accuracies", "accuracy", "loss", "generalisation_gap", "learning_rate", "per_class"]
        svgs = {name: name.encode() for name in names + [f"reliability_{run.name}" for run in found.runs]}
        content = report.gather(found)
        return page.html(content | page.pictures(found, read_split("test", read_info())), svgs), page.text(content)

    return rendered
