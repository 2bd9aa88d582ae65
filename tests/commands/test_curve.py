from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.commands import curve
from stages.commands.seeds import alike
from stages.common.errors import UserError


def training(run: str, accuracy: float, own: bool = False, code: str = "c1", **changes: Any) -> dict[str, Any]:
    parameters = {"seed": 42, "train.momentum": 0.9, f"{run}.epochs": 5, "train.weight_decay": 5e-4}
    parameters |= {name.replace("__", "."): value for name, value in changes.items()}
    row = {"run": run, "accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.04, "own": own}
    return row | {"seed": parameters["seed"], "inputs": {"stages/training": code}, "parameters": parameters}


def trainings(*others: dict[str, Any], **changes: Any) -> pd.DataFrame:
    """A training of each run in the workspace, and others."""
    own = [training(run, accuracy, own=True, **changes) for run, accuracy in (("cnn", 0.9), ("resnet", 0.8))]
    return pd.DataFrame([*own, *others])


def test_alike_is_what_differs_in_the_named_parameters_alone():
    others = {"seed": 7}, {"seed": 8, "train__momentum": 0.5}, {"seed": 9, "code": "c2"}
    table = trainings(*(training("cnn", 0.7, **changes) for changes in others), training("other", 0.7, seed=10))
    for names, seeds in (["seed"], [42, 42, 7]), (["seed", "train.momentum"], [42, 42, 7, 8]):
        assert alike(table, *names).seed.tolist() == seeds


def test_each_training_that_differs_in_the_parameter_and_the_seed_is_a_dot_once():
    found = [(0.6, 20, 43), (0.7, 20, 42), (0.5, 3, 42), (0.5, 3, 42)]
    others = [training("cnn", share, cnn__epochs=epochs, seed=seed) for share, epochs, seed in found]
    dots = curve.dots_of(trainings(*others, training("cnn", 0.4, train__momentum=0.1, seed=44)), "cnn.epochs")
    expected = [["cnn", 3, 42, 0.5], ["cnn", 5, 42, 0.9], ["cnn", 20, 42, 0.7], ["cnn", 20, 43, 0.6]]
    assert dots[["run", "value", "seed", "accuracy"]].values.tolist() == expected


def test_values_that_are_no_numbers_are_texts_and_a_parameter_that_shows_nothing_is_refused():
    dots = curve.dots_of(trainings(training("cnn", 0.6, train__compile=True), train__compile="auto"), "train.compile")
    assert {*dots.value} == {"auto", "True"}
    assert curve.draw(dots, "train.compile").axes[0].get_xscale() == "linear"
    with pytest.raises(UserError, match=r"^'train\.momentum' has no two values in the experiments"):
        curve.dots_of(trainings(), "train.momentum")


@pytest.mark.parametrize(("values", "scale"), [([1e-4, 1e-3], "log"), ([1e-4, 3e-4], "linear"), ([0, 1e-3], "linear")])
def test_each_dot_has_its_interval_and_lines_go_through_the_means(values, scale):
    low, high = values
    others = [training("cnn", share, train__weight_decay=high, seed=seed) for seed, share in ((42, 0.8), (43, 0.7))]
    dots = curve.dots_of(trainings(*others, train__weight_decay=low), "train.weight_decay")
    axes = curve.draw(dots, "train.weight_decay").axes[0]
    assert (axes.get_xscale(), axes.get_xlabel()) == (scale, "train.weight_decay")
    assert axes.xaxis.get_major_formatter()(low) == f"{low:g}".replace("-", "−") or scale == "linear"
    (cnn, *_), means = axes.containers[0], axes.lines[3]
    np.testing.assert_allclose(cnn.get_xydata(), [[low, 0.9], [high, 0.8], [high, 0.7]])
    bars = [segment[:, 1].tolist() for segment in axes.containers[0].lines[2][0].get_segments()]
    np.testing.assert_allclose(bars, [[0.85, 0.94], [0.75, 0.84], [0.65, 0.74]])
    np.testing.assert_allclose(means.get_xydata(), [[low, 0.9], [high, 0.75]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cnn", "resnet"]


def test_it_says_on_which_images_a_choice_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = trainings(training("cnn", 0.7, train__weight_decay=1e-3))
    for validation, says in (0, "The best of these 2 was chosen on the test set"), (0.1, "by the validation accuracy"):
        evaluation = SimpleNamespace(parameters={"data.validation": validation})
        monkeypatch.setattr(curve, "read_trainings", lambda of=evaluation: (of, table))
        curve.main(Namespace(parameter="train.weight_decay", to=Path("curve")))
        said = capsys.readouterr().out
        assert (says in said, "best of" in said) == (True, validation == 0)
        assert said.splitlines()[2].split() == ["cnn", "0.0010", "42", "70.00%", "65.00%", "74.00%"]
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")
