"""Results of an experiment in the current folder, written with the types that the earlier stages write them with."""

import shutil
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import precision_recall_fscore_support

from stages import report
from stages.common import formats
from stages.common.dataset import DatasetInfo, read_info, read_split
from stages.common.files import write_csv, write_json
from stages.common.params import load_params
from stages.reporting import page
from stages.reporting.results import Results, read_results
from tests.pipeline import DEFAULTS

RUNS = {  # model, parameters, weight decay, epochs, gap, seconds, test images it has wrong
    "cnn": ("Simple CNN", 391_946, 5e-4, 50, 0.02, 59.94, [0, 11, 3, 4]),
    "resnet": ("ResNet-18", 11_173_962, 5e-4, 100, 0.0456, 3720, [7, 0]),
    "resnet_ablation": ("ResNet-18", 11_173_962, 1e-4, 100, 0.07, 75, [7, 0, 12]),
}
COMPARISONS = {
    "model": (["resnet", "cnn"], 0.1, [-0.05, 0.25], 0.625, [3, 1]),
    "weight_decay": (["resnet", "resnet_ablation"], 0.05, [0.01, 0.15], 0.0123, [1, 0]),
}


@pytest.fixture(scope="session")
def writer() -> Callable[..., None]:
    """Write the results of `runs` on test images with these labels, in place of what is there."""
    return write_experiment


@pytest.fixture
def experiment(tmp_path, monkeypatch, writer) -> Callable[..., None]:
    """The `writer`, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return writer


def write_experiment(
    classes: Sequence[str] = ("cat", "dog"),
    labels: Sequence[int] = (0,) * 10 + (1,) * 10,
    runs: dict[str, tuple] = RUNS,
    comparisons: dict[str, tuple] = COMPARISONS,
    image_size: int = 32,
) -> None:
    for folder in ("data", "metrics", "plots"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copy(DEFAULTS, ".")
    labels = np.array(labels)
    write_data(list(classes), labels, image_size)
    tables = [write_run(name, *run[4:], run[3], np.array(classes, dtype=object), labels) for name, run in runs.items()]
    kinds = {formats.PER_CLASS: formats.ClassScores, formats.CALIBRATION: formats.CalibrationBin}
    for (path, kind), parts in zip(kinds.items(), zip(*tables, strict=True), strict=True):
        write_csv(path, kind, [row for part in parts for row in part])
    fields = ("runs", "difference", "interval", "p", "only_right")
    evaluation = formats.Evaluation(
        runs={name: evaluated(len(labels), *run) for name, run in runs.items()},
        comparisons={
            name: formats.ComparedRuns(**dict(zip(fields, of, strict=True))) for name, of in comparisons.items()
        },
    )
    write_json(formats.EVALUATION, evaluation)


def write_data(classes: list[str], labels: np.ndarray, size: int) -> None:
    info = {"name": "<toys>", "source": "images", "sha256": "ab12" * 16, "classes": classes, "image_size": size}
    counts = {"train": 50_000, "test": len(labels)}
    write_json(formats.DATA / "dataset.json", DatasetInfo(**info, counts=counts, mean=[0.5] * 3, std=[0.2] * 3))
    images = np.random.default_rng(0).integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    np.savez(formats.DATA / "test.npz", images=images, labels=labels)


def evaluated(images: int, model, parameters, decay, epochs, gap, seconds, wrong) -> formats.EvaluatedRun:
    accuracy = 1 - len(wrong) / images
    return formats.EvaluatedRun(
        model=model,
        parameters=parameters,
        epochs=epochs,
        weight_decay=decay,
        seed=42,
        accuracy=accuracy,
        interval=[accuracy - 0.1, min(accuracy + 0.02, 1)],
        top2=1.0,
        loss=0.4321,
        ece=0.0123,
        temperature=1.5,
    )


def write_run(
    name: str, gap: float, seconds: float, wrong: list[int], epochs: int, classes: np.ndarray, labels: np.ndarray
) -> tuple[list[formats.ClassScores], list[formats.CalibrationBin]]:
    """The files of a run that takes these images, the first with most confidence, for the next class; its rows of the
    tables by class and of calibration."""
    accuracy = 1 - len(wrong) / len(labels)
    metrics = {"accuracy": accuracy, "loss": 0.5, "last_accuracy": accuracy - 0.01, "gap": gap, "best_epoch": 1}
    write_json(formats.of_run(formats.TRAIN_METRICS, name), formats.Metrics(**metrics))
    timing = {"device": "a GPU", "precision": "bf16", "compiled": True, "torch": "2.99", "python": "3.98"}
    timing |= {"train_seconds": seconds, "images_per_second": 1234.5}
    write_json(formats.of_run(formats.TIMING, name), formats.Timing(**timing))
    write_csv(formats.of_run(formats.HISTORY, name), formats.Epoch, history(accuracy, gap, epochs))
    predicted, confidence = labels.copy(), np.full(len(labels), 0.9)
    predicted[wrong] = (labels[wrong] + 1) % len(classes)
    confidence[wrong] = 0.8 - 0.3 * np.arange(len(wrong)) / max(30, len(wrong))
    answers = zip(range(len(labels)), classes[labels], classes[predicted], confidence.tolist(), strict=True)
    rows = [formats.Prediction(**dict(zip(formats.Prediction.model_fields, row, strict=True))) for row in answers]
    write_csv(formats.of_run(formats.PREDICTIONS, name), formats.Prediction, rows)
    return class_scores(name, classes, labels, predicted), bins(name, predicted == labels, confidence)


def history(accuracy: float, gap: float, epochs: int) -> list[formats.Epoch]:
    """A run whose first epoch is its best, and whose last is a point below it."""
    last = epochs > 1
    return [
        formats.Epoch(
            epoch=epoch,
            train_loss=1 / epoch,
            train_accuracy=min(accuracy - 0.01 * last + gap, 1),
            test_loss=1.5 / epoch,
            test_accuracy=accuracy - 0.01 * (epoch > 1),
            generalization_gap=gap * epoch / epochs,
            learning_rate=0.1 * (1 - (epoch - 1) / epochs),
        )
        for epoch in range(1, epochs + 1)
    ]


def class_scores(
    name: str, classes: np.ndarray, labels: np.ndarray, predicted: np.ndarray
) -> list[formats.ClassScores]:
    numbers = range(len(classes))
    scores = zip(*precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0), strict=True)
    fields = ("precision", "recall", "f1", "images")
    return [
        formats.ClassScores(
            run=name, **{"class": label}, **dict(zip(fields, (value.item() for value in row), strict=True))
        )
        for label, row in zip(classes, scores, strict=True)
    ]


def bins(name: str, right: np.ndarray, confidence: np.ndarray) -> list[formats.CalibrationBin]:
    table = pd.DataFrame({"bin": (15 * confidence).astype(int), "right": right, "confidence": confidence})
    return [
        formats.CalibrationBin(
            run=name,
            lower=bin / 15,
            upper=(bin + 1) / 15,
            images=len(part),
            confidence=part.confidence.mean(),
            accuracy=part.right.mean(),
        )
        for bin, part in table.groupby("bin")
    ]


@pytest.fixture
def study(experiment) -> None:
    """A study of four seeds that the runs of RUNS are part of: the ResNets differ by 5, 3, 4 and 4 points."""
    experiment()
    accuracies = {42: (0.8, 0.9, 0.85), 43: (0.8, 0.88, 0.85), 44: (0.7, 0.9, 0.86), 45: (0.9, 0.9, 0.86)}
    rows = [
        formats.SeedResult(seed=seed, run=run, accuracy=accuracy, last_accuracy=accuracy - 0.01)
        for seed, by_run in accuracies.items()
        for run, accuracy in zip(RUNS, by_run, strict=True)
    ]
    write_csv(formats.SEEDS, formats.SeedResult, rows)


@pytest.fixture
def render() -> Callable[[], tuple[str, str]]:
    """Return index.html and report.md for the results in the current folder, with one picture for every chart."""

    def rendered() -> tuple[str, str]:
        params, info = load_params(), read_info()
        test = read_split("test", info)
        results = read_results(info, test, params.seed)
        content = report.gather(params, info, results)
        charts = dict.fromkeys(page.charts(results), b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 5 4'/>")
        return page.html(content, charts, charts, page.galleries(results, test.images)), page.text(content)

    return rendered


@pytest.fixture
def results() -> Callable[[], Results]:
    """Return the results in the current folder, as the report reads them."""

    def read() -> Results:
        info = read_info()
        return read_results(info, read_split("test", info), load_params().seed)

    return read
