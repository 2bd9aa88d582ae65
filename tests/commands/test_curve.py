from argparse import Namespace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import yaml
from scipy.stats import norm

from stages.commands import curve
from stages.common.errors import UserError
from stages.reporting import drawing

DATASET = {
    "name": "noise",
    "source": "images",
    "sha256": "ab" * 32,
    "classes": ["cat", "dog"],
    "image_size": 32,
    "counts": {"train": 40, "test": 400},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.29, 0.29, 0.29],
}


@pytest.fixture
def grid(project):
    """Experiments over resnet.epochs and the seed, made one by one."""
    Path(".git/info/exclude").write_text("data\n")
    project.write("data/dataset.json", DATASET)

    def run(name: str, epochs: object, accuracy: float, **params: object) -> None:
        resnet = yaml.safe_load(Path("params.yaml").read_text())["resnet"]
        project.finish(accuracy=accuracy, resnet=resnet | {"epochs": epochs}, **params)
        project.keep(name)

    return run


def points() -> list[list]:
    return curve.read_dots("resnet.epochs")[0].values.tolist()


def test_each_training_that_differs_in_the_parameter_and_the_seed_is_a_dot(grid):
    grid("short", 10, 0.7)
    grid("short-again", 10, 0.72, seed=43)
    grid("very-short", 2, 0.5)
    assert points() == [
        ["resnet", 2, 42, 0.5],
        ["resnet", 10, 42, 0.7],
        ["resnet", 10, 43, 0.72],
        ["resnet", 100, 42, 0.9],
    ]


def test_the_commit_that_the_workspace_differs_from_counts_too(grid, project):
    resnet = yaml.safe_load(Path("params.yaml").read_text())["resnet"]
    project.finish(accuracy=0.7, resnet=resnet | {"epochs": 10})
    assert points() == [["resnet", 10, 42, 0.7], ["resnet", 100, 42, 0.9]]


def test_experiments_that_differ_in_more_are_passed_over_and_named(grid, project):
    grid("short", 10, 0.7)
    grid("both", 2, 0.5, cnn={"epochs": 3})  # of the ResNet it is the same recipe
    project.finish(resnet={"epochs": 5, "base_channels": 16, "blocks": [1, 1, 1, 1]})
    project.keep("another-network")
    project.finish()
    Path("dvc.lock").unlink()
    project.keep("no-lock")
    dots, passed_over = curve.read_dots("resnet.epochs")
    assert dots["value"].tolist() == [2, 10, 100]
    assert sorted(passed_over) == [
        "another-network (differs in more than resnet.epochs and the seed)",
        "no-lock (has no dvc.lock)",
    ]


def test_values_that_are_no_numbers_are_in_a_row(grid, project):
    resnet = yaml.safe_load(Path("params.yaml").read_text())["resnet"]
    project.finish(resnet=resnet | {"blocks": [1, 1, 1, 1]}, accuracy=0.8)
    project.keep("shallow")
    assert curve.read_dots("resnet.blocks")[0][["value", "accuracy"]].values.tolist() == [
        ["[1, 1, 1, 1]", 0.8],
        ["[2, 2, 2, 2]", 0.9],
    ]


def test_the_chart_has_a_dot_for_each_training_with_wilsons_interval_and_a_line_through_the_means(grid):
    grid("short", 10, 0.7)
    grid("short-again", 10, 0.72, seed=43)
    figure = curve.draw(curve.read_dots("resnet.epochs")[0], "resnet.epochs", 400)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_xscale()) == ("resnet.epochs", "log")
    dots, *caps, line = axes.lines
    assert dots.get_xydata().tolist() == [[10, 0.7], [10, 0.72], [100, 0.9]]
    assert line.get_xydata().tolist() == [[10, pytest.approx(0.71)], [100, 0.9]]
    z, n, p = norm.ppf(0.975), 400, np.array([0.7, 0.72, 0.9])
    middle, half = (p + z**2 / 2 / n) / (1 + z**2 / n), z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
    assert caps[0].get_ydata() == pytest.approx(middle - half)
    assert caps[1].get_ydata() == pytest.approx(middle + half)


def test_an_axis_of_values_close_together_is_linear(grid):
    grid("a-little-shorter", 50, 0.7)
    figure = curve.draw(curve.read_dots("resnet.epochs")[0], "resnet.epochs", 400)
    assert figure.axes[0].get_xscale() == "linear"


def test_a_figure_and_a_table_are_written(grid, stage):
    grid("short", 10, 0.7)
    grid("short-again", 10, 0.72, seed=43)
    done = stage("stages.commands.curve", "resnet.epochs", "--to", "charts/epochs.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()[1:4]] == [
        ["resnet.epochs"],
        ["10", "70.00%", "72.00%"],
        ["100", "90.00%"],
    ]
    height, width, _ = matplotlib.image.imread("charts/epochs.png").shape
    assert (width, height) == (6.5 * drawing.DPI, 4 * drawing.DPI)


@pytest.mark.parametrize(
    ("parameter", "to", "message"),
    [
        ("resnet.epochs", "curve.png", r"resnet\.epochs: has one value in all experiments; vary it"),
        ("resnet.epoch", "curve.png", r"resnet\.epoch: no parameter of a training"),
        ("resnet.epochs", "curve.doc", r"--to curve\.doc: choose a name that ends in \.png or \.svg"),
    ],
)
def test_a_curve_that_cannot_be_is_one_line(grid, parameter, to, message):
    with pytest.raises(UserError, match=f"^{message}"):
        curve.main(Namespace(parameter=parameter, to=Path(to)))
    assert not Path(to).exists()
