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

CLASSES = ("cat", "dog")
LABELS = (0,) * 10 + (1,) * 10
# Test images that are wrong, most confident first; then what else only this run has
RUNS: dict[str, dict[str, Any]] = {
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
COMPARE = {"model": ["resnet", "cnn"], "weight_decay": ["resnet", "resnet_ablation"]}
SETTINGS: dict[str, dict[str, Any]] = {"cnn": {}, "resnet": {"base_channels": 64, "blocks": [2, 2, 2, 2]}}


def recipe(name: str, run: dict[str, Any]) -> dict[str, Any]:
    settings = {"epochs": run["epochs"], **SETTINGS.get(run["model"], {}), **run.get("settings", {})}
    train = {"learning_rate": 0.1, "weight_decay": run["decay"], "keep": run.get("keep", "best")}
    augment = {"crop_padding": 4, "flip": True, "cutout": 0}
    return {"run": name, "model": run["model"], "seed": 42, "settings": settings, "train": train, "augment": augment}


def history(run: dict[str, Any], number: int, accuracy: float, held_out: str) -> pd.DataFrame:
    """The best epoch is the last but one; losses fall from number to number / epochs."""
    epochs = run["epochs"]
    rise = np.linspace(accuracy / 2, accuracy, epochs - 1)
    accuracies = np.append(rise, accuracy - 0.01 * (number + 1)) if epochs > 1 else np.array([accuracy])
    epoch = np.arange(1, epochs + 1)
    gaps = run["gap"] * epoch / epochs
    return pd.DataFrame(
        {
            "epoch": epoch,
            "train_loss": (1 + number) / epoch,
            "train_accuracy": accuracies + gaps,
            f"{held_out}_loss": (1.5 + number) / epoch,
            f"{held_out}_accuracy": accuracies,
            "generalization_gap": gaps,
            "learning_rate": 0.1 / (1 + number) * (1 - (epoch - 1) / epochs),
        }
    )


def tested(name: str, run: dict[str, Any], number: int, split: Split, classes: list[str]) -> TestResult:
    """A run that takes its wrong images for the next class, the first with most confidence: 0.97, 0.94, ..."""
    count = len(classes)
    answers, confidence = split.labels.copy(), np.full(len(split.labels), 0.9 + 0.02 * number)
    wrong = np.array(run["wrong"], dtype=int)
    answers[wrong] = (split.labels[wrong] + 1) % count
    confidence[wrong] = np.linspace(0.97 - 0.01 * number, 0.6, len(wrong)) if len(wrong) else []
    log_probabilities = np.repeat(np.log((1 - confidence) / (count - 1))[:, None], count, axis=1)
    log_probabilities[np.arange(len(answers)), answers] = np.log(confidence)
    return TestResult(name, split.labels, log_probabilities, classes, split.names)


def write_experiment(
    classes: Sequence[str] = CLASSES,
    labels: Sequence[int] = LABELS,
    runs: dict[str, dict[str, Any]] = RUNS,
    pairs: dict[str, list[str]] = COMPARE,
    held_out: str = "test",
    size: int = 32,
    train: int = 50_000,
    images: np.ndarray | None = None,
    **parameters: Any,
) -> None:
    """Write data/, metrics/ and plots/ of an experiment; `parameters` with __ for dots."""
    classes, number = list(classes), len(labels)
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (number, size, size, 3), dtype=np.uint8)
    names = np.array([f"{label}/{index:04}.jpg" for index, label in enumerate(labels)])
    split = Split(images, np.array(labels, dtype=np.int64), names)
    counts = Counts(train=train, test=number, validation=200 if held_out == "validation" else 0)
    info = DatasetInfo(name="<toys>", source="images", sha256="ab12" * 16, classes=classes, image_size=size,
                       test_share=0.2, validation=0.0, counts=counts, mean=[0.5] * 3, std=[0.2] * 3)  # fmt: skip
    write_dataset(info, {"test": split})
    results = {name: tested(name, run, n, split, classes) for n, (name, run) in enumerate(runs.items())}
    histories = {
        name: history(run, n, float(results[name].correct.mean()), held_out)
        for n, (name, run) in enumerate(runs.items())
    }
    tables = {
        files.CURVES: pd.concat([of.assign(run=name)[["run", *of]] for name, of in histories.items()]),
        files.PER_CLASS: pd.concat([result.by_class() for result in results.values()]),
        files.CALIBRATION: pd.concat([result.by_confidence() for result in results.values()]),
        files.SUSPECTS: suspects([*results.values()]),
        **{files.PREDICTIONS / f"{name}.csv": result.predictions() for name, result in results.items()},
    }
    for path, table in tables.items():
        files.write_csv(path, table)
    summaries = {}
    for n, (name, run) in enumerate(runs.items()):
        title = run.get("title", {"cnn": "Simple CNN", "resnet": "ResNet-18"}.get(run["model"], run["model"]))
        summaries[name] = results[name].summary(recipe(name, run), title, 391_946 + 1000 * n, histories[name])
        timing = {"train_seconds": run["seconds"], "images_per_second": 1234.4 + 1000 * n, "device": f"GPU {n}"}
        timing |= {"instruction_set": "AVX2", "threads": 2 + n, "precision": ["fp32", "bf16", "tf32"][n % 3]}
        timing |= {"compiled": bool(n % 2), "torch": f"2.9{n}", "python": f"3.9{n}"}
        files.write_json(files.TIMING / f"{name}.json", timing)
    settings = {
        "seed": 42,
        "data.path": None,
        "data.image_size": size,
        "study.seeds": 5,
        "study.margin": 0.003,
        "resnet.blocks": [2, 2, 2, 2],
    }
    settings |= {name.replace("__", "."): value for name, value in parameters.items()}
    evaluation = Evaluation(
        data=info.sha256,
        parameters=settings,
        runs=summaries,
        comparisons=compare(results, pairs),
        files={str(path): files.sha256(path.read_bytes()) for path in tables},
    )
    files.write_json(files.EVALUATION, evaluation)


def write_seeds(answers: dict[tuple[int, str], np.ndarray]) -> None:
    """Write plots/seeds.csv of the experiment that is there: by seed and run, which test images are right."""
    evaluation = files.parse_json(files.EVALUATION.read_bytes(), Evaluation, files.EVALUATION)
    rows = [
        {
            "seed": seed,
            "run": run,
            "accuracy": right.mean(),
            "correct": base64.b64encode(np.packbits(right).tobytes()).decode(),
            "images": len(right),
            "recipe": recipe_digest(evaluation, run),
        }
        for (seed, run), right in answers.items()
    ]
    files.write_csv(files.SEEDS, pd.DataFrame(rows))


@pytest.fixture(scope="session")
def writer() -> SimpleNamespace:
    """The two functions that write results, and the runs that they write."""
    return SimpleNamespace(experiment=write_experiment, seeds=write_seeds, runs=RUNS)


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write an experiment in a folder of the test's own, without git."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return write_experiment


@pytest.fixture
def results() -> Callable[[], Results]:
    """Return the results in the current folder, as the report reads them."""

    def read() -> Results:
        info = read_info()
        return read_results(info, read_split("test", info), Path.read_bytes)

    return read


@pytest.fixture
def render(results: Callable[[], Results]) -> Callable[[], tuple[str, str]]:
    """Return index.html and report.md for the results in the current folder, with the chart's name for each chart."""

    def rendered() -> tuple[str, str]:
        of, test = results(), read_split("test", read_info())
        content = report.gather(of)
        names = ["accuracies", "accuracy", "loss", "generalisation_gap", "learning_rate", "per_class", "seeds"]
        svgs = {name: name.encode() for name in names + [f"reliability_{run.name}" for run in of.runs]}
        return page.html(content | page.pictures(of, test), svgs), page.text(content)

    return rendered
