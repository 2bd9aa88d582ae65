import json
import math
import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from stages import evaluate
from stages.common.dataset import Counts, DatasetInfo, Split, write_dataset
from stages.common.errors import UserError
from stages.common.files import write_csv
from stages.common.formats import Epoch
from stages.common.params import load_params
from stages.training.checkpoint import Checkpoint
from stages.training.models import build_model
from stages.training.state import State
from stages.training.weights import Card, load_model, to_bytes
from tests.pipeline import DEFAULTS

RUNS = {"third": 1e-4, "one": 5e-4, "two": 5e-4}  # weight decays; their results are in the order of the names
IMAGES = 30


def dataset_info(classes: list[str], size: int = 8) -> DatasetInfo:
    counts = Counts(train=2, test=IMAGES)
    return DatasetInfo(
        name="noise", source="images", sha256="ab" * 32, classes=classes, image_size=size, counts=counts,
        mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25],
    )  # fmt: skip


def write_data(classes: list[str]) -> np.ndarray:
    """Random images of 8×8 pixels under data/; the labels of the test images."""
    random = np.random.default_rng(0)
    labels = random.integers(0, len(classes), IMAGES)
    images = random.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    write_dataset(dataset_info(classes), Split(images[:2], labels[:2]), Split(images, labels))
    return labels


def write_run(run: str, info: DatasetInfo, decay: float = 5e-4) -> None:
    """A model with random weights, and the history of two epochs."""
    recipe = load_params().recipe(run, "cnn", "train.weight_decay")
    recipe = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"weight_decay": decay}),
            "settings": recipe.settings.model_copy(update={"epochs": 2}),
        }
    )
    model = build_model(recipe.settings, len(info.classes), seed=sum(map(ord, run)))
    Path("models").mkdir(exist_ok=True)
    Path(f"models/{run}.safetensors").write_bytes(to_bytes(Card(recipe=recipe, data=info), model.state_dict()))
    write_csv(Path(f"plots/history/{run}.csv"), Epoch, [history_row(1, len(run)), history_row(2, len(run))])


def history_row(epoch: int, number: int) -> Epoch:
    return Epoch(
        epoch=epoch, train_loss=1 / 3 + number, train_accuracy=2 / 3, test_loss=0.1 + 0.2, test_accuracy=1e-5,
        generalization_gap=2 / 3 - 1e-5, learning_rate=0.1 / epoch,
    )  # fmt: skip


def write_project(classes: list[str], runs: dict[str, float], compare: dict[str, list[str]]) -> np.ndarray:
    params = yaml.safe_load((DEFAULTS).read_text()) | {"compare": compare}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    Path("dvc.yaml").write_text(
        yaml.safe_dump({"stages": {"train": {"foreach": {run: {} for run in runs}}}}, sort_keys=False)
    )
    for run, decay in runs.items():
        write_run(run, dataset_info(classes), decay)
    return write_data(classes)


@pytest.fixture
def labels(tmp_path, monkeypatch) -> np.ndarray:
    """A folder with three runs of three classes and one pair to compare; the labels of its test images."""
    monkeypatch.chdir(tmp_path)
    return write_project(["cat", "dog", "frog"], RUNS, {"decay": ["one", "third"]})


def results() -> list[str]:
    found = (path for folder in ("metrics", "plots") for path in Path(folder).rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parent.name != "history")


def evaluation() -> dict:
    return json.loads(Path("metrics/evaluation.json").read_text())


def read_text_csv(path: str) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_every_run_is_tested_into_the_files_of_the_contract(labels, capsys):
    evaluate.main(Namespace())
    assert results() == [
        "metrics/compare/decay.json",
        "metrics/evaluation.json",
        "plots/calibration.csv",
        "plots/curves.csv",
        "plots/per_class.csv",
        "plots/predictions/one.csv",
        "plots/predictions/third.csv",
        "plots/predictions/two.csv",
    ]
    assert list(evaluation()["runs"]) == ["one", "third", "two"]
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["one", "third", "two"]


def test_the_predictions_are_those_of_the_network_on_normalised_images(labels):
    evaluate.main(Namespace())
    table = pd.read_csv("plots/predictions/one.csv")
    assert list(table) == ["index", "actual", "predicted", "confidence"]
    assert table["index"].tolist() == list(range(IMAGES))
    assert table["actual"].tolist() == [["cat", "dog", "frog"][label] for label in labels]
    with np.load("data/test.npz") as arrays:
        pixels = (arrays["images"] / 255 - np.array([0.4, 0.5, 0.6])) / np.array([0.2, 0.3, 0.25])
    network = load_model("models/one.safetensors").network.double().eval()
    with torch.no_grad():
        probabilities = network(torch.from_numpy(pixels).permute(0, 3, 1, 2)).softmax(1).numpy()
    assert table["predicted"].tolist() == [["cat", "dog", "frog"][label] for label in probabilities.argmax(1)]
    assert table["confidence"].tolist() == pytest.approx(probabilities.max(1), abs=2e-6)


def test_the_figures_of_a_run_by_hand(labels):
    evaluate.main(Namespace())
    table, run = pd.read_csv("plots/predictions/third.csv"), evaluation()["runs"]["third"]
    share, z = (table.actual == table.predicted).mean(), 1.959964
    centre, half = share + z**2 / (2 * IMAGES), z * math.sqrt(share * (1 - share) / IMAGES + (z / (2 * IMAGES)) ** 2)
    assert run["accuracy"] == pytest.approx(share, abs=1e-6)
    assert run["interval"] == pytest.approx(
        [(centre + sign * half) / (1 + z**2 / IMAGES) for sign in (-1, 1)], abs=2e-6
    )
    assert run["top2"] >= run["accuracy"]
    assert {name: run[name] for name in ("model", "epochs", "weight_decay", "seed")} == {
        "model": "Simple CNN",
        "epochs": 2,
        "weight_decay": 1e-4,
        "seed": 42,
    }
    # 391,946 with 10 classes, of which each has 256 weights and a bias
    assert run["parameters"] == 391_946 - 7 * 257
    assert list(run)[4:] == ["seed", "accuracy", "interval", "top2", "loss", "ece", "temperature"]


def test_pairs_are_compared_image_by_image(labels):
    evaluate.main(Namespace())
    first, second = (pd.read_csv(f"plots/predictions/{run}.csv") for run in ("one", "third"))
    first, second = first.actual == first.predicted, second.actual == second.predicted
    compared = evaluation()["comparisons"]
    assert list(compared) == ["decay"]
    assert compared["decay"]["runs"] == ["one", "third"]
    assert compared["decay"]["difference"] == pytest.approx(first.mean() - second.mean(), abs=1e-6)
    assert compared["decay"]["only_right"] == [sum(first > second), sum(first < second)]
    low, high = compared["decay"]["interval"]
    assert low <= compared["decay"]["difference"] <= high
    metric = json.loads(Path("metrics/compare/decay.json").read_text())
    assert metric == {name: compared["decay"][name] for name in ("difference", "p")}


def test_tables_have_a_row_for_each_run_and_class_or_bin(labels):
    evaluate.main(Namespace())
    per_class = pd.read_csv("plots/per_class.csv")
    assert list(per_class) == ["run", "class", "images", "precision", "recall", "f1"]
    assert per_class[["run", "class"]].values.tolist() == [
        [run, name] for run in sorted(RUNS) for name in ("cat", "dog", "frog")
    ]
    calibration = pd.read_csv("plots/calibration.csv")
    assert list(calibration) == ["run", "lower", "upper", "images", "confidence", "accuracy"]
    assert calibration.groupby("run")["images"].sum().to_dict() == dict.fromkeys(RUNS, IMAGES)


def test_the_curves_hold_every_history_to_the_last_digit(labels):
    evaluate.main(Namespace())
    curves = read_text_csv("plots/curves.csv")
    assert list(curves)[:3] == ["run", "epoch", "train_loss"]
    assert curves["run"].tolist() == ["one", "one", "third", "third", "two", "two"]
    for run, rows in curves.groupby("run"):
        history = read_text_csv(f"plots/history/{run}.csv")
        assert rows.drop(columns="run").values.tolist() == history.values.tolist()
        assert list(rows)[1:] == list(history)


def test_the_same_inputs_give_the_same_bytes(labels):
    evaluate.main(Namespace())
    before = {path: Path(path).read_bytes() for path in results()}
    evaluate.main(Namespace())
    assert {path: Path(path).read_bytes() for path in results()} == before


@pytest.mark.parametrize(
    "classes", [["0", "1", "10"], ["NA", "null", "nan"], ["a,b", 'say "x"', "ä\u3042"], ["no", "yes"]]
)
def test_names_of_classes_are_text_whatever_they_look_like(classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = write_project(classes, {"one": 5e-4}, {})
    evaluate.main(Namespace())
    assert read_text_csv("plots/predictions/one.csv")["actual"].tolist() == [classes[label] for label in labels]
    assert read_text_csv("plots/per_class.csv")["class"].tolist() == classes


def test_more_classes_than_cifar10s_are_as_good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes = [f"class {i}" for i in range(23)]
    write_project(classes, {"one": 5e-4}, {})
    evaluate.main(Namespace())
    assert pd.read_csv("plots/per_class.csv")["class"].tolist() == classes


def test_results_of_runs_and_pairs_that_are_gone_are_deleted(labels):
    evaluate.main(Namespace())
    write_project(["cat", "dog", "frog"], {"one": 5e-4, "two": 5e-4}, {"seeds": ["one", "two"]})
    Path("models/third.safetensors").unlink()
    evaluate.main(Namespace())
    folders = "metrics/compare/", "plots/predictions/"
    assert [path for path in results() if path.startswith(folders)] == [
        "metrics/compare/seeds.json",
        "plots/predictions/one.csv",
        "plots/predictions/two.csv",
    ]


def test_a_model_of_no_run_is_named_and_ends_the_stage(labels):
    write_run("dropped", dataset_info(["other", "classes"]))
    with pytest.raises(UserError, match=r"^models/dropped\.safetensors: dvc\.yaml has no run of that name; delete"):
        evaluate.main(Namespace())
    assert results() == []


def copy_of_another() -> None:
    Path("models/one.safetensors").replace("models/two.safetensors")
    write_run("one", dataset_info(["cat", "dog", "frog"]))


def flipped_bit() -> None:
    content = bytearray(Path("models/two.safetensors").read_bytes())
    content[-100] ^= 4
    Path("models/two.safetensors").write_bytes(content)


def in_params(**changes: object) -> Callable[[], object]:
    return lambda: Path("params.yaml").write_text(
        yaml.safe_dump(yaml.safe_load(Path("params.yaml").read_text()) | changes)
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: os.remove("models/two.safetensors"), r"models/two\.safetensors: no such file"),
        (lambda: os.remove("plots/history/two.csv"), r"plots/history/two\.csv: no such file"),
        (copy_of_another, r"models/two\.safetensors: holds the model of run one; delete it and train two"),
        (flipped_bit, r"models/two\.safetensors: .*damaged"),
        (lambda: write_run("two", dataset_info(["cat", "dog", "bird"])), r"models/two\.safetensors: trained on other"),
        (lambda: write_run("two", dataset_info(["cat", "dog"])), r"models/two\.safetensors: trained on other classes"),
        (lambda: write_run("two", dataset_info(["cat", "dog", "frog"], size=16)), r"two\.safetensors: trained on"),
        (in_params(compare={"x": ["one", "four"]}), r"compare\.x names 'four', .* there is one, third, two$"),
        (in_params(compare={"x": ["one", "one"]}), r"compare\.x compares one with itself"),
        (lambda: Path("dvc.yaml").write_text("stages: {}"), r"dvc\.yaml: no runs under stages\.train\.foreach"),
        (lambda: Path("dvc.yaml").write_text("stages: {train: {foreach: {}}}"), r"dvc\.yaml: foreach = "),
        (lambda: Path("dvc.yaml").write_text("stages: {train: {foreach: [../x]}}"), r"dvc\.yaml: foreach\.0 = "),
        (lambda: Path("plots/history/two.csv").write_text("epoch\nx\n"), r"plots/history/two\.csv: "),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_nothing_written(labels, spoil, message):
    spoil()
    with pytest.raises(UserError, match=message):
        evaluate.main(Namespace())
    assert results() == []


def test_inputs_that_change_meanwhile_end_it_and_nothing_is_written(labels, monkeypatch):
    real = evaluate.load_run

    def load_run(run: str, info: DatasetInfo):
        in_params(compare={"other": ["one", "two"]})()
        return real(run, info)

    monkeypatch.setattr(evaluate, "load_run", load_run)  # the moment at which somebody edits params.yaml
    with pytest.raises(UserError, match="changed while this stage ran: the parameters"):
        evaluate.main(Namespace())
    assert results() == []


def test_the_checkpoint_of_a_finished_training_is_removed_and_one_to_resume_kept(labels):
    for run, finished in (("one", True), ("two", False)):
        checkpoint = Checkpoint(run, {}, "CPU")
        checkpoint.save(State({"model.x": torch.ones(3)}, [history_row(1, 0)]), finished)
        checkpoint.close()
    evaluate.main(Namespace())
    assert [path.name for path in Path(".cache/training").glob("*.safetensors")] == ["two.safetensors"]


def test_the_stage_itself_ends_in_one_line(labels, stage):
    done = stage("stages.evaluate")
    assert (done.returncode, done.stderr) == (0, "")
    os.remove("models/one.safetensors")
    done = stage("stages.evaluate")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("evaluate: models/one.safetensors: no such file")
