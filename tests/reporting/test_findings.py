from dataclasses import replace

import numpy as np
import pytest

from stages.reporting import findings, tables

CIFAR10 = ["truck", "ship", "horse", "frog", "dog", "deer", "cat", "bird", "automobile", "airplane"]


def test_a_verdict_rests_on_accuracies_interval_p_and_the_images_that_one_alone_has_right(experiment, results):
    experiment()
    # 3 against 1 and 1 against 0 of 20: McNemar's z is 2/√4 and 1/√1, both p = 0.3173, twice that for two questions
    p = "p = 0.32 (p = 0.63 adjusted for 2 questions)"
    facts = [
        f"90.00% against 80.00% of 20 test images: +10.00 points, 95% interval −12.41 to +32.64, {p}.",
        "Right by ResNet-18, decay 5e-4 alone: 3, by Simple CNN alone: 1.",
        f"90.00% against 85.00% of 20 test images: +5.00 points, 95% interval −11.92 to +23.61, {p}.",
        "Right by ResNet-18, decay 5e-4 alone: 1, by ResNet-18, decay 1e-4 alone: 0.",
    ]  # with Tango's intervals
    model, decay = (findings.answer(pair, 0.003, 2) for pair in results().pairs)
    assert (model["question"], decay["question"]) == (
        "Is ResNet-18, decay 5e-4 better than Simple CNN?",
        "Is ResNet-18, decay 5e-4 better than ResNet-18, decay 1e-4?",
    )
    assert (*model["facts"], *decay["facts"]) == tuple(facts)
    alone = findings.answer(results().pairs[0], 0.003, 1)["facts"][0]
    assert alone.endswith(", p = 0.32.")


@pytest.mark.parametrize(
    ("judged", "words"),
    [
        ("better", "ResNet-18, decay 5e-4 is better than Simple CNN"),
        ("worse", "Simple CNN is better than ResNet-18, decay 5e-4"),
        ("equal", "ResNet-18, decay 5e-4 and Simple CNN are equal within 0.3 points"),
        ("undecided", "undecided between ResNet-18, decay 5e-4 and Simple CNN"),
    ],
)
def test_single_trainings_judge_these_two_models_and_seeds_the_recipes(experiment, results, judged, words):
    experiment()
    single = replace(results().pairs[0], verdict=judged)
    assert findings.verdict(single, 0.003) == f"These two models: {words}"
    assert findings.verdict(replace(single, recipes=object()), 0.003) == words[0].upper() + words[1:]


def test_a_study_speaks_first_of_recipes_and_names_seeds_that_are_missing_or_not_planned(experiment, writer, results):
    experiment()
    wrong = {"cnn": 4, "resnet": 2, "resnet_ablation": 3}
    answers = {(s, run): np.roll(np.arange(20) >= n, s * n) for s in (42, 43, 44, 45) for run, n in wrong.items()}
    del answers[45, "cnn"]
    writer.seeds(answers)
    for pair, seeds, difference in zip(results().pairs, (3, 4), ("+10.00", "+5.00"), strict=True):
        over, models, _ = findings.answer(pair, 0.003, 2)["facts"]
        assert over.startswith(
            f"Over {seeds} seeds, for other seeds and other images too: {difference} points, 95% inter"
        )
        shares = ", ".join(f"{part} {pair.recipes.shares[part]:.0%}" for part in ("images", "seeds", "rest"))
        assert over.endswith(f"(p = {pair.p:.2g} adjusted for 2 questions). Shares of its variance: {shares}.")
        assert models.startswith("These two models: 90.00% against 8")
    text = " ".join(findings.notes(results()))
    assert "5 seeds were planned and 4 are here: " in text
    assert "Seed 45 lacks cnn." in text
    assert "make seeds" not in text
    assert "`plots/seeds.csv`" not in text
    text = " ".join(
        findings.notes(replace(results(), parameters={"study.seeds": 4, "study.margin": 0.003}, foreign=True))
    )
    assert "planned" not in text
    assert "`plots/seeds.csv` also holds trainings of other recipes or data, which are left out." in text


def test_what_is_less_than_the_full_experiment_is_said_once(experiment, results, writer):
    def caveats(**run) -> list[str]:
        full = {"epochs": 100, **run}
        experiment(runs=dict.fromkeys(("one", "two"), writer.runs["resnet"] | full), pairs={})
        counts = results().info.counts.model_copy(update={"test": 10_000})
        return findings.caveats(replace(results(), info=results().info.model_copy(update={"counts": counts})))

    experiment()
    few = (
        "few images: 50,000 to train on and 20 to test with (CIFAR-10: 50,000 and 10,000), so an accuracy is known to "
    )
    short = "short training: Simple CNN 6 of 50 epochs, ResNet-18 12 of 100 epochs, ResNet-18 11 of 100 epochs"
    assert findings.caveats(results()) == [f"{few}±16.8 points", short]  # Wilson's 58.40 to 91.93 %
    assert caveats() == caveats(model="mobile", epochs=3) == []
    narrow = {"title": "ResNet-18, 16 channels", "settings": {"base_channels": 16}}
    assert caveats(**narrow) == ["smaller ResNets: ResNet-18, 16 channels in place of ResNet-18"]
    flat = {"title": "ResNet-16", "settings": {"blocks": [2, 2, 2, 1]}, "epochs": 99}
    assert caveats(**flat) == [
        "short training: ResNet-16 99 of 100 epochs",
        "smaller ResNets: ResNet-16 in place of ResNet-18",
    ]


@pytest.mark.parametrize(("held_out", "keep"), [("test", "best"), ("test", "last"), ("validation", "best")])
def test_an_epoch_that_was_chosen_on_the_test_set_is_told(experiment, results, writer, held_out, keep):
    experiment(runs={name: run | {"keep": keep} for name, run in writer.runs.items()}, held_out=held_out)
    text = " ".join(findings.notes(results()))
    assert ("The best epoch was chosen on the test set" in text) == (held_out == "test" and keep == "best")
    assert ("the test images were looked at once" in text) == (held_out == "validation")


def test_notes_name_the_commonest_class_the_known_result_and_what_seeds_are_for(experiment, results):
    experiment(labels=(0,) * 16 + (1,) * 4)
    text = " ".join(findings.notes(results()))
    assert "whoever always answers with the commonest one is right for 80.00% of the test images" in text
    assert "Each run is one training: a verdict holds for these models. `make seeds` trains others." in text
    assert "known" not in text
    experiment(CIFAR10, list(range(10)) * 2)
    text = " ".join(findings.notes(results()))
    assert "ResNet-18, trained in full on CIFAR-10, is known to reach about 95%: the dotted line." in text
    assert "unbalanced" not in text


def test_what_to_do_next_follows_from_the_numbers(experiment, results, writer):
    experiment()
    assert (
        findings.next_step(results()) == "Next: more test images; with these, 45.1 points stay open."
    )  # −12.4 to 32.6
    runs = {name: run | {"wrong": [n, 9]} for n, (name, run) in enumerate(writer.runs.items())}
    experiment(labels=(0, 1) * 500, runs=runs)
    assert findings.next_step(results()) == "Next: `make seeds`, for 5 seeds of each recipe."
    random = np.random.default_rng(0)
    writer.seeds({(s, run): random.random(1000) < 0.9 + 0.02 * (s % 2) for s in range(4) for run in writer.runs})
    count = tables.recipe_table(results()).iloc[0, -1].split()[0]
    assert findings.next_step(results()) == f"Next: more seeds; about {count} would show a difference of 0.3 points."
    (cnn, *_), parts = results().runs, {"gap": 0.06, "best_epoch": 6}
    for change, words in (
        ({}, "stronger augmentation or weight decay, since Simple CNN has a gap of 6.0 points."),
        ({"gap": 0.05}, "longer training, since Simple CNN was best in epoch 6 of 6."),
        ({"gap": 0.05, "best_epoch": 5}, "a wider or deeper model, since Simple CNN neither "),
    ):
        run = replace(cnn, tested=cnn.tested.model_copy(update=parts | change))
        assert findings.next_step(replace(results(), runs=[run], pairs=[])).startswith(f"Next: {words}")
