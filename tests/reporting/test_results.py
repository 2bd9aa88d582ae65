import json
from pathlib import Path

import pytest

from stages.common.errors import UserError


def change(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def test_runs_and_pairs_keep_the_order_of_the_evaluation(experiment, results):
    experiment()
    found = results()
    assert [run.name for run in found.runs] == ["cnn", "resnet", "resnet_ablation"]
    assert [(pair.first.name, pair.second.name) for pair in found.pairs] == [
        ("resnet", "cnn"),
        ("resnet", "resnet_ablation"),
    ]


def run(model="ResNet-18", decay=5e-4, epochs=2) -> tuple:
    return model, 10, decay, epochs, 0.01, 3, [0]


@pytest.mark.parametrize(
    ("one", "other", "title"),
    [
        (run(), run("Simple CNN", 1e-4), "ResNet-18 beside Simple CNN"),
        (run("ResNet-18, 16 channels"), run("ResNet-34"), "ResNet-18 beside ResNet-34"),
        (run("ResNet-18, 16 channels"), run(), "ResNet-18, 16 channels beside ResNet-18"),
        (run(), run(decay=0.02), "Weight decay 5e-4 beside 0.02"),
        (run(), run(epochs=3), "A beside b"),
    ],
)
def test_a_pair_is_named_for_what_sets_its_runs_apart(experiment, results, one, other, title):
    comparison = (["a", "b"], 0.0, [-0.1, 0.1], 1.0, [0, 0])
    experiment(runs={"a": one, "b": other}, comparisons={"any_name": comparison})
    assert results().pairs[0].title == title


def test_pairs_of_the_same_models_are_told_apart_by_their_weight_decay(experiment, results):
    numbers = (0.0, [-0.1, 0.1], 1.0, [0, 0])
    comparisons = {"x": (["a", "c"], *numbers), "y": (["b", "c"], *numbers), "z": (["a", "b"], *numbers)}
    experiment(runs={"a": run(), "b": run(decay=1e-4), "c": run("Simple CNN")}, comparisons=comparisons)
    assert [pair.title for pair in results().pairs] == [
        "ResNet-18, decay 5e-4 beside Simple CNN, decay 5e-4",
        "ResNet-18, decay 1e-4 beside Simple CNN, decay 5e-4",
        "Weight decay 5e-4 beside 1e-4",
    ]


def test_labels_tell_runs_of_one_model_and_weight_decay_apart(experiment, results):
    experiment(runs={"a": run(), "b": run(epochs=3), "c": run(decay=0)}, comparisons={})
    labels = ["ResNet-18, decay 5e-4 (a)", "ResNet-18, decay 5e-4 (b)", "ResNet-18, decay 0"]
    assert [run.label for run in results().runs] == labels


def test_names_of_classes_that_are_numbers_or_nan_stay_texts(experiment, results):
    experiment(classes=("1", "NA"))
    run = results().runs[1]
    assert run.per_class["class"].tolist() == ["1", "NA"]
    assert run.predictions.predicted.value_counts().to_dict() == {"1": 8, "NA": 12}


def test_a_study_holds_each_seed_once_and_leaves_out_incomplete_ones_and_other_runs(study, results):
    with Path("plots/seeds.csv").open("a") as file:
        file.write("46,cnn,0.1,0.1\n42,gone,0.1,0.1\n43,cnn,0.1,0.1\n")
    found = results()
    assert found.study["accuracy"]["resnet"].to_dict() == {42: 0.9, 43: 0.88, 44: 0.9, 45: 0.9}
    assert not found.foreign_study


@pytest.mark.parametrize(
    ("old", "new"), [("\n42,", "\n7,"), ("42,resnet,0.9,", "42,resnet,0.91,"), (",0.84\n", ",0.8\n")]
)
def test_a_study_that_these_runs_are_no_part_of_is_foreign(study, results, old, new):
    change("plots/seeds.csv", old, new)
    found = results()
    assert found.study is None
    assert found.foreign_study


def test_accuracies_of_a_study_are_those_of_the_training(study, results):
    change("metrics/train/cnn.json", '"accuracy": 0.8,', '"accuracy": 0.75,')
    change("plots/seeds.csv", "42,cnn,0.8,", "42,cnn,0.75,")
    assert results().study is not None


@pytest.mark.parametrize("rows", [None, "", "42,cnn,0.8,0.79\n42,resnet,0.9,0.89\n42,resnet_ablation,0.85,0.84\n"])
def test_no_seed_or_one_is_no_study_and_nothing_foreign(experiment, results, rows):
    experiment()
    if rows is not None:
        Path("plots/seeds.csv").write_text("seed,run,accuracy,last_accuracy\n" + rows)
    found = results()
    assert found.study is None
    assert not found.foreign_study


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("plots/history/cnn.csv", "\n50,", "\n51,"),
        ("plots/predictions/resnet.csv", "\n5,cat,cat", "\n5,dog,cat"),
        ("plots/predictions/resnet.csv", "\n5,cat,cat", "\n5,cat,cow"),
        ("plots/predictions/resnet.csv", "\n5,cat", "\n6,cat"),
        ("plots/history/cnn.csv", "\n50,", "\n50,1,1,1,1,0,0\n50,"),
        ("plots/per_class.csv", "cnn,dog", "cnn,cow"),
        ("plots/per_class.csv", "cnn,dog,10,", f"cnn,dog,{'9' * 400},"),
        ("plots/calibration.csv", "\ncnn", "\nother"),
        ("metrics/evaluation.json", '"cnn"\n', '"gone"\n'),
        ("metrics/evaluation.json", '"accuracy": 0.8,', '"accuracy": 80,'),
        ("metrics/train/resnet.json", '"gap": ', '"gap_": '),
    ],
)
def test_results_that_do_not_fit_each_other_are_named_in_one_line(experiment, results, path, old, new):
    experiment()
    change(path, old, new)
    with pytest.raises(UserError, match=f"^{path}: .*`dvc repro`$"):
        results()


def test_an_evaluation_without_runs_is_named(experiment, results):
    experiment()
    Path("metrics/evaluation.json").write_text(json.dumps({"runs": {}, "comparisons": {}}))
    with pytest.raises(UserError, match=r"^metrics/evaluation.json: no runs in it"):
        results()
