from pathlib import Path

import numpy as np
import pytest

from stages.common import files
from stages.common.errors import UserError
from stages.evaluation.metrics import Evaluation
from stages.reporting.results import recipe_digest

RESNET = {"model": "resnet", "wrong": [7], "decay": 5e-4, "epochs": 2, "gap": 0.01, "seconds": 3.0}


def answers(wrong: int, seed: int = 0) -> np.ndarray:
    """20 test images, the first `wrong` after a shift of `seed` wrong."""
    return np.roll(np.arange(20) >= wrong, seed)


def test_runs_and_pairs_keep_the_order_of_the_evaluation_and_each_has_its_own_files(experiment, results):
    experiment()
    found = results()
    assert [run.name for run in found.runs] == ["cnn", "resnet", "resnet_ablation"]
    assert [(pair.first.name, pair.second.name) for pair in found.pairs] == [
        ("resnet", "cnn"),
        ("resnet", "resnet_ablation"),
    ]
    for run, epochs, wrong, device in zip(found.runs, (6, 12, 11), (4, 2, 3), ("GPU 0", "GPU 1", "GPU 2"), strict=True):
        assert run.history.epoch.tolist() == list(range(1, epochs + 1))
        assert (run.predictions.actual != run.predictions.predicted).sum() == wrong
        assert run.calibration.images.sum() == run.per_class.images.sum() == 20
        assert run.timing["device"] == device
    assert found.best.name == "resnet"


@pytest.mark.parametrize(
    ("one", "other", "title"),
    [
        ({}, {"model": "cnn", "decay": 1e-4}, "ResNet-18 and Simple CNN"),
        ({"title": "ResNet-18, 16 channels"}, {}, "ResNet-18, 16 channels and ResNet-18"),
        ({}, {"decay": 0.02}, "Weight decay 5e-4 and 0.02"),
        ({}, {"epochs": 3}, "A and b"),
    ],
)
def test_a_pair_is_named_for_what_sets_its_runs_apart(experiment, results, one, other, title):
    experiment(runs={"a": RESNET | one, "b": RESNET | other}, pairs={"any_name": ["a", "b"]})
    assert results().pairs[0].joined("and") == title


def test_pairs_of_the_same_models_are_told_apart_by_their_labels(experiment, results):
    runs = {"a": RESNET, "b": RESNET | {"decay": 1e-4}, "c": RESNET | {"model": "cnn"}}
    experiment(runs=runs, pairs={"x": ["a", "c"], "y": ["b", "c"], "z": ["a", "b"]})
    assert [pair.joined("and") for pair in results().pairs] == [
        "ResNet-18, decay 5e-4 and Simple CNN, decay 5e-4",
        "ResNet-18, decay 1e-4 and Simple CNN, decay 5e-4",
        "Weight decay 5e-4 and 1e-4",
    ]


def test_labels_tell_runs_of_one_model_and_weight_decay_apart(experiment, results):
    experiment(runs={"a": RESNET, "b": RESNET | {"epochs": 3}, "c": RESNET | {"decay": 0.0}}, pairs={})
    assert [run.label for run in results().runs] == ["a", "b", "ResNet-18, decay 0"]


def test_names_that_are_numbers_or_nan_stay_texts(experiment, results):
    experiment(classes=("1", "NA"))
    run = results().runs[1]
    assert run.per_class["class"].tolist() == ["1", "NA"]
    assert run.predictions.predicted.value_counts().to_dict() == {"1": 8, "NA": 12}


TABLES = ["curves", "per_class", "calibration", "suspects", "predictions/resnet"]


@pytest.mark.parametrize("path", [f"plots/{name}.csv" for name in TABLES])
def test_a_table_that_evaluate_did_not_write_with_its_numbers_is_refused_in_one_line(experiment, results, path):
    experiment()
    Path(path).write_text(Path(path).read_text() + "\n")
    with pytest.raises(UserError, match=rf"^{path}: not the one that evaluate wrote .*; run `dvc repro`$"):
        results()


@pytest.mark.parametrize("key", ["data", "names"])
def test_results_of_other_images_are_refused_in_one_line(experiment, results, key):
    experiment()
    if key == "data":
        text = Path("data/dataset.json").read_text()
        Path("data/dataset.json").write_text(text.replace("ab12", "cd34"))
    else:
        split = dict(np.load("data/test.npz"))
        np.savez("data/test.npz", **split | {"names": split["names"][::-1]})
    with pytest.raises(UserError, match=r"^metrics/evaluation.json: of other images than those in data/; run `dvc rep"):
        results()


def test_verdicts_use_p_before_it_is_rounded(experiment, results):
    wrong = {
        "one": list(range(117)),
        "two": list(range(200, 350)),
    }  # 150 against 117 of 400: p = 0.043 without rounding
    runs = {name: RESNET | {"wrong": images, "decay": len(images) / 1e5} for name, images in wrong.items()}
    experiment(labels=(0, 1) * 200, runs=runs, pairs={"x": ["one", "two"]})
    (pair,) = results().pairs
    assert pair.comparison.only_right == [150, 117]
    assert 0.03 < pair.p < 0.05
    assert pair.verdict == "better"


def test_a_study_has_the_seeds_of_these_recipes_alone(experiment, writer, results):
    experiment()
    shown = {"cnn": 4, "resnet": 2, "resnet_ablation": 3}
    writer.seeds({(seed, run): answers(wrong, seed) for seed in (44, 42, 43) for run, wrong in shown.items()})
    found = results()
    assert found.seed_accuracies.to_dict("index")[43] == {"cnn": 0.8, "resnet": 0.9, "resnet_ablation": 0.85}
    assert found.seed_accuracies.index.tolist() == [42, 43, 44]
    assert not found.foreign
    first, second = found.pairs
    assert (first.recipes.difference, second.recipes.difference) == (pytest.approx(0.1), pytest.approx(0.05))
    assert (first.recipes.seeds, first.recipes.images) == (3, 20)
    np.testing.assert_array_equal(found.study["resnet"][44], answers(2, 44))
    evaluation = files.parse_json(files.EVALUATION.read_bytes(), Evaluation, files.EVALUATION)
    table = Path("plots/seeds.csv").read_text()
    Path("plots/seeds.csv").write_text(table.replace(recipe_digest(evaluation, "cnn"), "0" * 64))
    other = results()
    assert other.foreign
    assert other.study["cnn"] == {}
    assert other.pairs[0].recipes is None
    assert other.pairs[1].recipes is not None


def test_two_seeds_are_no_study_and_p_is_adjusted_for_the_pairs(experiment, writer, results):
    experiment()
    writer.seeds({(seed, run): answers(wrong) for seed in (42, 43) for run, wrong in (("cnn", 4), ("resnet", 2))})
    first, second = results().pairs
    assert first.recipes is second.recipes is None
    assert first.p == first.comparison.adjusted_p > first.comparison.p


def test_the_digest_of_a_recipe_leaves_out_seed_and_place_of_the_images_alone(experiment):
    def digest(**changes) -> str:
        experiment(**changes)
        content = files.EVALUATION.read_bytes()
        return recipe_digest(files.parse_json(content, Evaluation, files.EVALUATION), "cnn")

    first = digest()
    assert first == digest(seed=7, data__path="elsewhere", study__seeds=9)
    for changes in ({"size": 16}, {"data__validation": 0.1}, {"runs": {"cnn": RESNET}, "pairs": {}}):
        assert digest(**changes) != first
