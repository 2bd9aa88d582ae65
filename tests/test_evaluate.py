import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import evaluate
from stages.core.errors import UserError
from stages.core.models import build_model
from stages.core.weights import Card, to_bytes

CLASSES = ["cat", "dog", "frog"]


def write_model(run: str, seed: int, classes: list[str] = CLASSES, size: int = 8, decay: float = 5e-4) -> None:
    recipe = {"seed": seed, "weight_decay": decay}
    card = Card(run, "simple_cnn", 64, [2, 2, 2, 2], classes, size, [0.5] * 3, [0.29] * 3, recipe)
    model = build_model("simple_cnn", len(classes), 64, [2, 2, 2, 2], seed)
    Path("models").mkdir(exist_ok=True)
    Path(f"models/{run}.safetensors").write_bytes(to_bytes(card, model.state_dict()))


@pytest.fixture
def labels(tmp_path, monkeypatch) -> np.ndarray:
    """A folder with random test images; their labels."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 30)
    images = random.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    Path("data").mkdir()
    np.savez("data/test.npz", images=images, labels=labels)
    info = {
        "name": "noise",
        "source": "images",
        "sha256": "ab12",
        "classes": CLASSES,
        "image_size": 8,
        "counts": {"train": 1, "test": 30},
        "mean": [0.5] * 3,
        "std": [0.29] * 3,
    }
    Path("data/dataset.json").write_text(json.dumps(info))
    return labels


def results() -> list[str]:
    return sorted(str(path) for folder in ("metrics", "plots") for path in Path(folder).rglob("*") if path.is_file())


def test_every_model_is_tested_into_the_files_of_the_contract(labels):
    write_model("one", seed=1)
    write_model("two", seed=2)
    evaluate.main(Namespace())
    assert results() == [
        "metrics/evaluation.json",
        "plots/calibration.csv",
        "plots/per_class.csv",
        "plots/predictions/one.csv",
        "plots/predictions/two.csv",
    ]
    summaries = json.loads(Path("metrics/evaluation.json").read_text())
    assert summaries.pop("comparisons") == []
    assert list(summaries) == ["one", "two"]
    for run, summary in summaries.items():
        assert list(summary) == ["model", "seed", "accuracy", "interval", "top2", "loss", "ece", "temperature"]
        predictions = pd.read_csv(f"plots/predictions/{run}.csv")
        assert list(predictions) == ["index", "actual", "predicted", "confidence"]
        assert predictions["index"].tolist() == list(range(30))
        assert predictions["actual"].tolist() == [CLASSES[label] for label in labels]
        assert summary["accuracy"] == pytest.approx((predictions.actual == predictions.predicted).mean(), abs=1e-6)
        assert predictions["confidence"].between(1 / 3, 1).all()


def test_tables_have_a_row_a_run_and_class_or_bin(labels):
    write_model("one", seed=1)
    write_model("two", seed=2)
    evaluate.main(Namespace())
    per_class = pd.read_csv("plots/per_class.csv")
    assert list(per_class) == ["run", "class", "images", "precision", "recall", "f1"]
    assert per_class[["run", "class"]].values.tolist() == [[run, name] for run in ("one", "two") for name in CLASSES]
    calibration = pd.read_csv("plots/calibration.csv")
    assert list(calibration) == ["run", "lower", "upper", "images", "confidence", "accuracy"]
    assert calibration.groupby("run")["images"].sum().to_dict() == {"one": 30, "two": 30}


def test_the_pairs_of_the_experiment_are_compared_image_by_image(labels):
    for seed, (run, decay) in enumerate({"cnn": 5e-4, "resnet": 5e-4, "resnet_ablation": 1e-4}.items()):
        write_model(run, seed, decay=decay)
    evaluate.main(Namespace())
    correct = {}
    for run in ("cnn", "resnet", "resnet_ablation"):
        table = pd.read_csv(f"plots/predictions/{run}.csv")
        correct[run] = (table.actual == table.predicted).to_numpy()
    comparisons = json.loads(Path("metrics/evaluation.json").read_text())["comparisons"]
    assert [comparison["runs"] for comparison in comparisons] == [["resnet", "cnn"], ["resnet", "resnet_ablation"]]
    assert [comparison["names"] for comparison in comparisons] == [["Simple CNN", "Simple CNN"], ["5e-4", "1e-4"]]
    for comparison in comparisons:
        first, second = (correct[run] for run in comparison["runs"])
        assert comparison["difference"] == pytest.approx(first.mean() - second.mean(), abs=1e-6)
        assert comparison["only_right"] == [sum(first > second), sum(first < second)]
        assert comparison["interval"][0] <= comparison["difference"] <= comparison["interval"][1]
    assert comparisons[1]["verdict"].startswith("Weight decay ")


def test_without_a_model_it_says_so(labels):
    with pytest.raises(UserError, match="models/: no trained model"):
        evaluate.main(Namespace())


@pytest.mark.parametrize("other", [{"classes": ["cat", "dog", "bird"]}, {"classes": ["cat", "dog"]}, {"size": 16}])
def test_a_model_of_other_data_is_named_and_nothing_written(labels, other):
    write_model("one", seed=1)
    write_model("two", seed=2, **other)
    with pytest.raises(UserError, match=r"models/two\.safetensors: trained on other classes or sizes"):
        evaluate.main(Namespace())
    assert results() == []


def test_a_model_under_the_name_of_another_run_is_refused(labels):
    write_model("one", seed=1)
    Path("models/one.safetensors").rename("models/two.safetensors")
    with pytest.raises(UserError, match=r"models/two\.safetensors: the model of run one"):
        evaluate.main(Namespace())
    assert results() == []


def test_more_classes_than_cifar10s_are_as_good(labels):
    classes = [f"class {i}" for i in range(23)]
    info = json.loads(Path("data/dataset.json").read_text())
    Path("data/dataset.json").write_text(json.dumps(info | {"classes": classes}))
    write_model("one", seed=1, classes=classes)
    evaluate.main(Namespace())
    assert pd.read_csv("plots/per_class.csv")["class"].tolist() == classes
