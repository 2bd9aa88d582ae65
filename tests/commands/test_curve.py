from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from stages.commands import curve
from stages.common.errors import UserError
from tests.commands.trainings import training, trainings


@pytest.fixture
def experiments(monkeypatch, tmp_path):
    """Say which trainings there are besides those of the workspace."""
    monkeypatch.chdir(tmp_path)

    def say(*others, **own) -> None:
        monkeypatch.setattr(curve, "read_trainings", lambda: (trainings(**own), [*others]))

    return say


def dots(parameter: str) -> list[list]:
    return curve.read_dots(parameter)[0][["run", "value", "seed", "accuracy"]].values.tolist()


def test_each_training_that_differs_in_the_parameter_and_the_seed_is_a_dot(experiments):
    experiments(
        training("cnn", 0.6, cnn__epochs=20, seed=43),
        training("cnn", 0.7, cnn__epochs=20),
        training("cnn", 0.5, cnn__epochs=3),
        training("cnn", 0.4, cnn__epochs=3, train__momentum=0.1),
    )
    assert dots("cnn.epochs") == [
        ["cnn", 3, 42, 0.5],
        ["cnn", 5, 42, 0.9],
        ["cnn", 20, 42, 0.7],
        ["cnn", 20, 43, 0.6],
    ]


def test_values_that_are_no_numbers_are_texts(experiments):
    experiments(training("cnn", 0.6, train__compile=True), train__compile="auto")
    assert [row[1] for row in dots("train.compile")] == ["auto", "true", "auto"]
    experiments(training("resnet", 0.6, resnet__blocks=[1, 1]), resnet__blocks=[2, 2])
    assert [row[1] for row in dots("resnet.blocks") if row[0] == "resnet"] == ["[1, 1]", "[2, 2]"]


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("train.weight-decay", r"^'train\.weight-decay' is no parameter of a training; one is train\.weight_decay$"),
        ("train.momentum", r"^train\.momentum has one value in all experiments; vary it with"),
    ],
)
def test_a_parameter_that_shows_nothing_is_refused(experiments, parameter, message):
    experiments()
    with pytest.raises(UserError, match=message):
        curve.read_dots(parameter)


@pytest.mark.parametrize(("values", "scale"), [([1e-5, 1e-3], "log"), ([1e-4, 3e-4], "linear"), ([0, 1e-3], "linear")])
def test_each_dot_has_its_interval_and_lines_go_through_the_means(experiments, values, scale):
    low, high = values
    experiments(
        training("cnn", 0.7, train__weight_decay=high, seed=43),
        training("cnn", 0.8, train__weight_decay=high),
        train__weight_decay=low,
    )
    axes = curve.draw(curve.read_dots("train.weight_decay")[0], "train.weight_decay").axes[0]
    assert axes.get_xscale() == scale
    (cnn, *_), means = axes.containers[0], axes.lines[3]
    np.testing.assert_allclose(cnn.get_xydata(), [[low, 0.9], [high, 0.8], [high, 0.7]])
    bars = [segment[:, 1].tolist() for segment in axes.containers[0].lines[2][0].get_segments()]
    np.testing.assert_allclose(bars, [[0.85, 0.94], [0.75, 0.84], [0.65, 0.74]])
    np.testing.assert_allclose(means.get_xydata(), [[low, 0.9], [high, 0.75]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cnn", "resnet"]


def test_it_says_on_which_images_a_choice_would_be_made(experiments, capsys):
    other = training("cnn", 0.7, train__weight_decay=1e-3, validation=0.1)
    experiments(other)
    curve.main(Namespace(parameter="train.weight_decay", to=Path("curve.png")))
    assert "The best of these 2 values is chosen on the test set" in capsys.readouterr().out
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")
    experiments(other, validation=0.1)
    curve.main(Namespace(parameter="train.weight_decay", to=Path("curve.svg")))
    said = capsys.readouterr().out
    assert "choose a value by the validation accuracy" in said
    assert "best of" not in said


def test_a_chart_of_another_form_is_refused(experiments):
    experiments()
    with pytest.raises(UserError, match=r"^--to curve\.pdf: choose a name that ends in \.svg or \.png$"):
        curve.main(Namespace(parameter="cnn.epochs", to=Path("curve.pdf")))
