from pathlib import Path

import numpy as np
import pytest

from stages.common.errors import UserError

RESNET = {"model": "resnet", "title": "ResNet-18", "wrong": [7], "decay": 5e-4, "epochs": 2, "gap": 0, "seconds": 9}
CNN, DECAY, WIDTH = {"model": "cnn", "title": "Simple CNN"}, {"decay": 0.02}, {"title": "ResNet-18, 16 channels"}


@pytest.mark.parametrize(
    ("others", "labels"),
    [
        ([CNN], ["ResNet-18", "Simple CNN"]),
        ([DECAY], ["ResNet-18, decay 5e-4", "ResNet-18, decay 0.02"]),
        ([CNN | DECAY, CNN], ["ResNet-18", "Simple CNN, decay 0.02", "Simple CNN, decay 5e-4"]),
        ([WIDTH, DECAY], ["a", "b", "ResNet-18, decay 0.02"]),
    ],
)
def test_a_label_says_what_sets_a_run_apart_and_pairs_are_named_by_labels(experiment, others, labels):
    runs = {name: RESNET | other for name, other in zip("abc", [{}, *others], strict=False)}
    found = experiment(runs=runs, pairs={"x": ["b", "a"]})
    assert [run.label for run in found.runs] == labels
    assert found.pairs[0].labels == (labels[1], labels[0])


def test_results_of_other_images_are_refused_in_one_line(experiment, writer):
    experiment()
    split, info = dict(np.load("data/test.npz")), Path("data/dataset.json")
    for names, digest in ((split["names"][::-1], "ab12"), (split["names"], "cd34")):
        np.savez("data/test.npz", **split | {"names": names})
        info.write_text(info.read_text().replace("ab12", digest))
        with pytest.raises(UserError, match=r"^metrics/evaluation.json: of other images than those in data/; run `dvc"):
            writer.read()


@pytest.mark.parametrize(
    ("wrong", "margin", "alone", "two"),
    [
        ((range(117), range(200, 350)), 0.003, ("better", 0.0434), ("undecided", 0.0869)),  # z = 33 / √267
        # The same answers: of equality, z = √(400 · 0.009 / 0.991) = 1.91, p = 0.028
        ((range(7), range(7)), 0.009, ("equal", 1), ("undecided", 1)),
    ],
)
def test_verdicts_use_p_before_it_is_rounded_and_adjusted_for_the_pairs(experiment, wrong, margin, alone, two):
    of = {"a": RESNET | {"wrong": [*wrong[0]]}, "b": RESNET | {"wrong": [*wrong[1]], "decay": 0.1}}
    for count, expected in ((1, alone), (2, two)):
        pairs = {f"p{n}": ["a", "b"] for n in range(count)}
        found = experiment(labels=(0, 1) * 200, runs=of, pairs=pairs, study__margin=margin)
        assert [(pair.verdict, round(pair.p, 4)) for pair in found.pairs] == [expected] * count


def test_a_study_has_the_seeds_of_these_recipes_alone_and_at_least_three(experiment, writer):
    experiment()
    wrong = {"cnn": 4, "resnet": 2, "resnet_ablation": 3}
    answers = {(seed, run): np.roll(np.arange(20) >= n, seed) for seed in (44, 42, 43) for run, n in wrong.items()}
    found, shares = writer.seeds(answers), {run: 1 - n / 20 for run, n in wrong.items()}
    assert found.seed_accuracies.to_dict("index") == dict.fromkeys((42, 43, 44), shares)
    assert not found.foreign
    assert [round(pair.recipes.difference, 9) for pair in found.pairs] == [0.1, 0.05]
    assert (found.pairs[0].recipes.seeds, found.pairs[0].recipes.images) == (3, 20)
    np.testing.assert_array_equal(found.study["resnet"][44], answers[44, "resnet"])
    opposite = {(seed, run): np.arange(20) >= 15 * (run == "resnet") for seed, run in answers}
    assert [pair.verdict for pair in writer.seeds(opposite).pairs] == ["worse", "worse"]  # which one training was not
    writer.seeds(answers)
    table = Path("plots/seeds.csv")
    table.write_text(table.read_text() + table.read_text().splitlines()[1])  # as a merge may leave it
    assert writer.read().study.shape == (3, 3)
    table.write_text(table.read_text().replace(writer.digest("cnn"), "0" * 64))
    other = writer.read()
    assert (other.foreign, other.study["cnn"].isna().all()) == (True, True)
    assert [pair.recipes is None for pair in other.pairs] == [True, False]
    few = writer.seeds({key: right for key, right in answers.items() if key[0] != 44})
    assert [pair.recipes for pair in few.pairs] == [None, None]


def test_the_digest_of_a_recipe_leaves_out_the_seed_alone(experiment, writer):
    same = {"runs": {n: run | {"seed": 7} for n, run in writer.runs.items()}}
    others = {"size": 16}, {"data__validation": 0.1}, {"runs": {"cnn": writer.runs["resnet"]}, "pairs": {}}
    first, second, *rest = (experiment(**changes) and writer.digest("cnn") for changes in ({}, same, *others))
    assert first == second
    path = Path("metrics/evaluation.json")
    path.write_text(path.read_text().replace("ab12", "cd34"))  # other images of the same size
    assert len({first, *rest, writer.digest("cnn")}) == 5
