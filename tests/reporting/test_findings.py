import pytest

from stages.common.dataset import read_info
from stages.common.params import load_params
from stages.reporting import findings, tables

SAME = {"one": (["resnet", "again"], 0.0, [0.0, 0.0], 1.0, [0, 0])}
RESNET = ("ResNet-18", 11_173_962, 5e-4, 100, 0.0456, 3720, [7, 0])


def test_a_verdict_rests_on_accuracies_interval_p_and_the_images_that_one_alone_has_right(experiment, results):
    experiment()
    model, decay = (findings.answer(pair, None) for pair in results().pairs)
    assert model["question"] == "Is ResNet-18 better than Simple CNN?"
    assert model["verdict"] == "ResNet-18 against Simple CNN: no difference that 20 test images can show"
    assert model["facts"][1] == "Only ResNet-18 right: 3, only Simple CNN: 1."
    assert decay == {
        "question": "Is weight decay 5e-4 better than 1e-4?",
        "verdict": "Weight decay 5e-4 is better than 1e-4",
        "facts": [
            "90.00% against 85.00% of 20 test images: +5.00 points, 95% interval +1.00 to +15.00 (paired bootstrap), "
            "p = 0.012 (McNemar's exact test).",
            "Only weight decay 5e-4 right: 1, only 1e-4: 0.",
        ],
    }


def test_a_study_of_enough_seeds_gives_the_verdict(study, results):
    found = results()
    model, decay = (findings.answer(pair, found.study) for pair in found.pairs)
    # Differences of 5, 3, 4 and 4 points: mean 4, standard error √(2/3) / 2, and t(3) is 3.1824 at 97.5 %; one image of
    # 20 is 5 points, which is more than their standard deviation, so 5 / 2 takes the place of the standard error.
    assert decay["facts"][0].startswith(
        "Over 4 seeds, on average: +4.00 points, 95% interval −3.96 to +11.96, p = 0.21"
    )
    assert decay["verdict"] == "Weight decay 5e-4 against 1e-4: no difference that 4 seeds can show"
    assert decay["facts"][1].startswith("90.00% against 85.00% of 20 test images")
    assert model["verdict"] == "ResNet-18 against Simple CNN: no difference that 4 seeds can show"


def test_two_seeds_are_too_few_for_a_verdict(study, results):
    found = results()
    pair, two = found.pairs[1], found.study.iloc[:2]
    assert findings.answer(pair, two)["verdict"] == "Weight decay 5e-4 is better than 1e-4"
    assert findings.answer(pair, found.study.iloc[:3])["verdict"].endswith("no difference that 3 seeds can show")


def test_of_one_recipe_there_is_nothing_to_compare_and_no_p(experiment, results):
    experiment(runs={"resnet": RESNET, "again": RESNET}, comparisons=SAME)
    (pair,) = results().pairs
    assert findings.answer(pair, None) == {
        "question": "Is resnet better than again?",
        "verdict": "resnet and again have the same recipe: nothing to compare",
        "facts": [],
    }


def test_what_is_less_than_the_full_experiment_is_said(experiment, results):
    experiment()
    text = "few images: 50,000 to train on and 20 to test with; CIFAR-10 has 50,000 and 10,000"
    info, params, runs = read_info(), load_params(), results().runs
    assert findings.caveats(info, params, runs) == [text]
    full = info.model_copy(update={"counts": info.counts.model_copy(update={"test": 10_000})})
    assert findings.caveats(full, params, runs) == []

    def with_resnet(**settings):
        return params.model_copy(update={"resnet": params.resnet.model_copy(update=settings)})

    assert findings.caveats(full, with_resnet(epochs=3), runs) == ["short training: ResNet-18 3 of 100 epochs"]
    narrow = with_resnet(base_channels=16, epochs=3)
    assert findings.caveats(full, narrow, runs) == []  # no run of this model was evaluated
    runs = [run for run in runs if run.name == "cnn"]
    assert findings.caveats(
        full, params.model_copy(update={"cnn": params.cnn.model_copy(update={"epochs": 9})}), runs
    ) == ["short training: Simple CNN 9 of 50 epochs"]


@pytest.mark.parametrize(
    ("settings", "title"), [({"base_channels": 16}, "ResNet-18, 16 channels"), ({"blocks": [2, 2, 2, 1]}, "ResNet-16")]
)
def test_resnets_that_are_smaller_are_said_to_be(experiment, results, settings, title):
    experiment(runs={"resnet": (title, *RESNET[1:])}, comparisons={})
    params = load_params()
    params = params.model_copy(update={"resnet": params.resnet.model_copy(update=settings)})
    said = f"smaller ResNets: {title} in place of ResNet-18"
    assert findings.caveats(read_info(), params, results().runs)[1:] == [said]


@pytest.mark.parametrize(("keep", "said"), [("best", True), ("last", False)])
def test_accuracies_of_the_best_epoch_are_said_to_be_too_high(experiment, results, keep, said):
    experiment()
    found, params = results(), load_params()
    params = params.model_copy(update={"train": params.train.model_copy(update={"keep": keep})})
    assert ("slightly too high" in " ".join(findings.notes(params, found))) == said
    assert ("Last epoch" in tables.run_table(found.runs, keep)) == said
    assert ("Best epoch" in tables.pair_table(found.pairs[0], keep).Figure.tolist()) == said


def test_the_share_of_the_commonest_class_is_told_where_classes_are_unbalanced(experiment, results):
    experiment(labels=(0,) * 16 + (1,) * 4)
    assert "is right for 80.00% of the test images" in findings.notes(load_params(), results())[-1]
    experiment(labels=(0,) * 11 + (1,) * 9)
    assert "unbalanced" not in " ".join(findings.notes(load_params(), results()))


def test_notes_tell_a_foreign_study_and_a_missing_one(study, results):
    found, params = results(), load_params()
    assert "make seeds" not in " ".join(findings.notes(params, found))
    with open("plots/seeds.csv") as file:
        text = file.read()
    with open("plots/seeds.csv", "w") as file:
        file.write(text.replace("\n42,", "\n7,"))
    notes = " ".join(findings.notes(params, results()))
    assert "`plots/seeds.csv` holds a study of another experiment, which is not shown." in notes
    assert "make seeds" in notes
