import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from stages.reporting import findings, tables


def test_a_verdict_rests_on_accuracies_interval_p_and_the_images_that_one_alone_has_right(toys):
    # 3 against 1 and 1 against 0 of 20: McNemar's z is 2/√4 and 1/√1, both p = 0.3173, twice that for two questions
    p = "p = 0.32 (p = 0.63 adjusted for 2 questions)"
    model, decay = (findings.answer(pair, 0.003, 2) for pair in toys.pairs)
    assert model["question"] == "Is ResNet-18, decay 5e-4 better than Simple CNN?"
    assert decay["question"] == "Is ResNet-18, decay 5e-4 better than ResNet-18, decay 1e-4?"
    assert model["facts"] + decay["facts"] == [
        f"90.00% against 80.00% of 20 test images: +10.00 points, 95% interval −12.41 to +32.64, {p}.",
        "Right by ResNet-18, decay 5e-4 alone: 3, by Simple CNN alone: 1.",
        f"90.00% against 85.00% of 20 test images: +5.00 points, 95% interval −11.92 to +23.61, {p}.",
        "Right by ResNet-18, decay 5e-4 alone: 1, by ResNet-18, decay 1e-4 alone: 0.",
    ]  # with Tango's intervals
    assert findings.answer(toys.pairs[0], 0.003, 1)["facts"][0].endswith(", p = 0.32.")


def test_single_trainings_judge_these_two_models_and_seeds_the_recipes(experiment, writer):
    single, answers = experiment().pairs[0], {(s, run): np.arange(20) >= s for s in range(3) for run in writer.runs}
    studied = writer.seeds(answers).pairs[0]
    for judged, words in {
        "better": "ResNet-18, decay 5e-4 is better than Simple CNN",
        "worse": "Simple CNN is better than ResNet-18, decay 5e-4",
        "equal": "ResNet-18, decay 5e-4 and Simple CNN are equal within 0.3 points",
        "undecided": "undecided between ResNet-18, decay 5e-4 and Simple CNN",
    }.items():
        one, two = (findings.answer(replace(pair, verdict=judged), 0.003, 1)["verdict"] for pair in (single, studied))
        assert (one, two) == (f"These two models: {words}", words[0].upper() + words[1:])


def test_a_study_speaks_first_of_recipes_and_names_seeds_that_are_missing_or_not_planned(experiment, writer):
    experiment()
    wrong = {"cnn": 4, "resnet": 2, "resnet_ablation": 3}
    answers = {(s, run): np.roll(np.arange(20) >= n, s * n) for s in (42, 43, 44, 45) for run, n in wrong.items()}
    del answers[45, "cnn"]
    found = writer.seeds(answers)
    model, decay = (findings.answer(pair, 0.003, 2)["facts"] for pair in found.pairs)
    assert model[0] == (
        "Over 3 seeds, for other seeds and other images too: +10.00 points, 95% interval −7.21 to +27.21, p = 0.24 "
        "(p = 0.48 adjusted for 2 questions). Shares of its variance: images 100%, seeds 0%, rest 0%."
    )
    assert model[1].startswith("These two models: 90.00% against 80.00% of 20 test images: +10.00 points, 95% interval")
    assert model[1].endswith(" −12.41 to +32.64, p = 0.32 (p = 0.63 adjusted for 2 questions).")
    assert decay[0].startswith("Over 4 seeds, for other seeds and other images too: +5.00 points, ")
    text = " ".join(findings.notes(found))
    assert "5 seeds were planned and 3 are complete: " in text
    assert "Seed 45 lacks cnn." in text
    assert not re.search("make seeds|seeds.csv", text)
    more, planned = (replace(found, parameters=found.parameters | {"study.seeds": n}, foreign=True) for n in (2, 3))
    assert "2 seeds were planned and 3 are complete: " in " ".join(findings.notes(more))
    text = " ".join(findings.notes(planned))
    assert "planned" not in text
    assert "plots/seeds.csv also holds trainings of other recipes or data, which are left out." in text


def test_what_is_less_than_the_full_experiment_is_said_once(experiment, writer):
    for run, said in (
        ({"epochs": 3, "model": "mobile", "title": "MobileNetV2"}, ""),
        ({"epochs": 99}, "ResNet-18: 99 of 100 epochs."),
        ({"epochs": 49, "model": "cnn", "title": "Simple CNN"}, "Simple CNN: 49 of 50 epochs."),
        ({"epochs": 100, "title": "ResNet-18, 16 channels"}, "ResNet-18, 16 channels in place of ResNet-18."),
    ):
        runs = {name: writer.runs["resnet"] | run | {"wrong": wrong} for name, wrong in (("a", [7, 0]), ("b", [7]))}
        found = experiment(findings.CIFAR10, [*range(10)] * 2, runs, {})
        few = "Few images: 50,000 to train on and 20 to test with (CIFAR-10: 50,000 and 10,000), so an accuracy is"
        assert findings.caveats(found) == f"{few} known to ±13.7 points. {said}".strip()  # Wilson's 69.90 to 97.21 %
        for train, begins in ((45_000, said), (44_999, "Few images: 49,999 to train on and 10,000 to test with")):
            counts = found.info.counts.model_copy(update={"train": train, "validation": 5000, "test": 10_000})
            told = findings.caveats(replace(found, info=found.info.model_copy(update={"counts": counts})))
            assert (told == said, told.startswith(begins)) == (train == 45_000, True)


@pytest.mark.parametrize(("held_out", "keep"), [("test", "best"), ("test", "last"), ("validation", "best")])
def test_notes_tell_what_was_chosen_on_the_test_set_the_known_result_and_what_seeds_are_for(
    experiment, writer, held_out, keep
):
    runs = {name: run | {"keep": keep} for name, run in writer.runs.items()}
    text = " ".join(findings.notes(experiment(findings.CIFAR10, [*range(10)] * 2, runs, held_out=held_out)))
    assert ("The best epoch was chosen on the test set" in text) == (held_out == "test" and keep == "best")
    assert "ResNet-18, trained in full on CIFAR-10, is known to reach about 95%: the dotted line." in text
    assert "Each run is one training: a verdict holds for these models. “make seeds” trains others." in text
    assert "known" not in " ".join(findings.notes(experiment("0123456789", [*range(10)] * 2)))


def test_what_to_do_next_follows_from_the_numbers(experiment, writer, toys):
    assert findings.next_step(toys) == "Next: more test images; these leave 45.1 points open."  # −12.4 to 32.6
    runs = {name: run | {"wrong": [n, 9]} for n, (name, run) in enumerate(writer.runs.items())}
    seeds = "Next: train {} seeds of each recipe with “make seeds” (study.seeds in params.yaml)."
    assert findings.next_step(experiment(labels=(0, 1) * 500, runs=runs)) == seeds.format(5)
    random = np.random.default_rng(0)
    study = [*product(range(4), writer.runs)]
    found = writer.seeds({(s, run): random.random(1000) < 0.9 + 0.02 * (s % 2) for s, run in study})
    count = tables.recipe_table(found).iloc[0, -1].split()[0]
    assert findings.next_step(found) == seeds.format(count)
    more = [replace(pair, recipes=replace(pair.recipes, seeds=101)) for pair in found.pairs]  # than are needed
    assert findings.next_step(replace(found, pairs=more)).startswith("Next: another width; ")
    for best, words in ((6, "longer training"), (5, "another width")):
        run = replace(toys.runs[0], tested=toys.runs[0].tested.model_copy(update={"best_epoch": best}))
        said = f"Next: {words}; Simple CNN was best in epoch {best} of 6, and its gap is 2.0 points."
        tested = run.tested.model_copy(update={"accuracy": 0.1, "last_accuracy": 1.0})
        assert findings.next_step(replace(toys, runs=[replace(run, label="x", tested=tested), run], pairs=[])) == said
