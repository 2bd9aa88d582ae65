"""Results of an experiment in the current folder, other figures for every run, written as the earlier stages do."""

import base64
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages import report
from stages.common import files
from stages.common.dataset import Counts, DatasetInfo, Split, read_info, read_split, write_dataset
from stages.evaluate import tables_of
from stages.evaluation.metrics import Evaluation, TestResult, compare
from stages.reporting import page
from stages.reporting.results import Results, read_results, recipe_digest

COLUMNS = ("model", "title", "wrong", "decay", "epochs", "gap", "seconds")  # `wrong`: images, the most confident first
RUNS: dict[str, dict[str, Any]] = {
    "cnn": dict(zip(COLUMNS, ("cnn", "Simple CNN", [0, 11, 3, 4], 5e-4, 6, 0.02, 59.94), strict=True)),
    "resnet": dict(zip(COLUMNS, ("resnet", "ResNet-18", [7, 0], 5e-4, 12, 0.0456, 3720.0), strict=True)),
    "resnet_ablation": dict(zip(COLUMNS, ("resnet", "ResNet-18", [7, 0, 12], 1e-4, 11, 0.07, 75.0), strict=True)),
}
PAIRS = {"model": ["resnet", "cnn"], "weight_decay": ["resnet", "resnet_ablation"]}


def history(run: dict[str, Any], number: int, accuracy: float, held_out: str) -> pd.DataFrame:
    """Accuracies rise from half of `accuracy` in equal steps to the last but one epoch, the best."""
    epoch, epochs = np.arange(1, run["epochs"] + 1), run["epochs"]
    accuracies = np.append(np.linspace(accuracy / 2, accuracy, epochs - 1), accuracy - 0.01 * (number + 1))[-epochs:]
    columns = {f"{held_out}_loss": (1.5 + number) / epoch, f"{held_out}_accuracy": accuracies}
    return pd.DataFrame({"epoch": epoch, **columns, "generalization_gap": run["gap"] * epoch / epochs})


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
) -> Results:
    """Write data/, metrics/ and plots/; `other`: held_out, size, or parameters with __ for dots."""
    held_out, size = other.pop("held_out", "test"), other.pop("size", 32)
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
        train = {"weight_decay": run["decay"], "keep": run.get("keep", "best")}
        recipe = {"run": name, "model": run["model"], "seed": run.get("seed", 42), "settings": {}, "train": train}
        summaries[name] = results[name].summary(recipe, run["title"], 391_946 + 1000 * n, epochs)
        curves.append(epochs.assign(run=name)[["run", *epochs]])
        timing = {"train_seconds": run["seconds"], "images_per_second": 1234.4 + 1000 * n, "device": f"GPU {n}"}
        timing |= {"instruction_set": "AVX2", "threads": 2 + n, "precision": ["fp32", "bf16", "tf32"][n % 3]}
        timing |= {"compiled": bool(n % 2), "torch": f"2.9{n}", "python": f"3.9{n}"}
        files.write_json(files.TIMING / f"{name}.json", timing)
    tables = tables_of([*results.values()], curves)
    for path, table in tables.items():
        files.write_csv(path, table)
    parameters = {"seed": 42, "data.image_size": size, "resnet.blocks": [2, 2, 2, 2]}
    parameters |= {"study.seeds": 5, "study.margin": 0.003, **{k.replace("__", "."): v for k, v in other.items()}}
    digests = {str(path): files.sha256(path.read_bytes()) for path in tables}
    record = {"data": info.sha256, "parameters": parameters, "runs": summaries, "comparisons": compare(results, pairs)}
    files.write_json(files.EVALUATION, Evaluation(**record, files=digests))
    return read()


def digest(run: str) -> str:
    return recipe_digest(files.parse_json(files.EVALUATION.read_bytes(), Evaluation, files.EVALUATION), run)


def write_seeds(answers: dict[tuple[int, str], np.ndarray]) -> Results:
    """Write plots/seeds.csv of the experiment that is there: by seed and run, which test images are right; read it."""
    table = pd.DataFrame([*answers], columns=["seed", "run"]).assign(images=[*map(len, answers.values())])
    table["correct"] = [base64.b64encode(np.packbits(right)).decode() for right in answers.values()]
    files.write_csv(files.SEEDS, table.assign(recipe=table.run.map(digest)))
    return read()


def read() -> Results:
    return read_results(read_info(), read_split("test", read_info()), Path.read_bytes)


@pytest.fixture(scope="session")
def writer() -> SimpleNamespace:
    """What writes results and reads them, and the runs that are written."""
    return SimpleNamespace(experiment=write_experiment, seeds=write_seeds, digest=digest, runs=RUNS, read=read)


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Results]:
    """Write an experiment in a folder of the test's own, without git, and return its results."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return write_experiment


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Return the results of the experiment of this module, which no test changes."""
    with chdir(tmp_path_factory.mktemp("toys")):
        return write_experiment()


@pytest.fixture
def render() -> Callable[[], tuple[str, str]]:
    """Return index.html and report.md for the results in the current folder, with its name for each chart."""

    def rendered() -> tuple[str, str]:
        found, names = read(), ["accuracies", "accuracy", "loss", "generalisation_gap", "per_class"]
        names += [f"reliability_{run.name}" for run in found.runs]
        content = report.gather(found) | page.pictures(found, read_split("test", read_info()))
        content["svgs"] = {name: name.encode() for name in names}
        return tuple(page.render(f"{form}.j2", content).decode() for form in ("index.html", "report.md"))

    return rendered
