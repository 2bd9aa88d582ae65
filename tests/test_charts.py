"""The charts of `dvc plots show`: drawn by Vega from what the real dvc writes, and compared with the tables."""

import io
import json
import re

import pandas as pd
import pytest
import vl_convert

from tests.pipeline import ROOT, RUNS, Clone

COLOURS = ["#0072b2", "#b84a00", "#007a59"]


def marks(spec: dict) -> list[dict[str, str]]:
    """The marks that Vega draws, as it describes them to a screen reader: by the titles of their axes and legends."""
    svg = vl_convert.vegalite_to_svg(spec, vl_version="5.20")
    labels = [label for label in re.findall(r'aria-label="([^"]*)"', svg) if re.match(r"[^:;]+: [^;]*;", label)]
    return [dict(part.split(": ", 1) for part in label.split("; ")) for label in labels]


def drawn(spec: dict, *fields: str) -> set[tuple]:
    """The values of these fields of all marks that have them, numbers to four digits."""
    found = [tuple(mark[field] for field in fields) for mark in marks(spec) if {*fields} <= mark.keys()]
    return {tuple(rounded(value) for value in values) for values in found}


def rounded(value: object) -> object:
    """A number to four digits, a percentage as its fraction."""
    text = str(value).replace("−", "-")
    try:
        return round(float(text.removesuffix("%")) / (100 if text.endswith("%") else 1), 4)
    except ValueError:
        return value


def percent(fraction: float, digits: int | None = None) -> str:
    """As the axes write it: with so many significant digits, or whole."""
    return f"{100 * fraction:.{digits}g}%" if digits else f"{int(100 * fraction + 0.5)}%"


def rows(table: pd.DataFrame, *columns: str) -> set[tuple]:
    return {tuple(rounded(value) for value in row) for row in table[list(columns)].itertuples(index=False)}


def table(clone: Clone, name: str) -> pd.DataFrame:
    return pd.read_csv(clone.folder / name, dtype={"class": str, "actual": str, "predicted": str, "image": str})


@pytest.fixture(scope="module")
def charts(finished) -> dict[str, dict]:
    return finished.charts()


def test_every_chart_is_on_the_page_in_its_order(charts):
    assert list(charts) == [
        "Test or validation accuracy",
        "Training accuracy",
        "Test or validation loss",
        "Generalisation gap",
        *RUNS,
        "Learning rate",
        "F1 of each class",
        "Calibration",
        *(f"plots/predictions/{run}.csv" for run in RUNS),
        "Perhaps labelled wrong",
    ]


@pytest.mark.parametrize(
    ("title", "column", "axis"),
    [
        ("Test or validation accuracy", "test_accuracy", "test_accuracy"),
        ("Training accuracy", "train_accuracy", "train_accuracy"),
        ("Test or validation loss", "test_loss", "test_loss"),
        ("Generalisation gap", "generalization_gap", "generalization_gap"),
        ("Learning rate", "learning_rate", "learning_rate"),
    ],
)
def test_a_curve_is_the_column_that_its_axis_names_in_the_runs_own_colour(finished, charts, title, column, axis):
    curves = table(finished, "plots/curves.csv")
    assert drawn(charts[title], "epoch", axis, "run") == rows(curves, "epoch", column, "run")
    scale = charts[title]["encoding"]["color"]["scale"]["range"]
    assert scale[:3] == COLOURS


def test_accuracies_have_percentages_on_their_axis_and_losses_have_none(charts):
    def ticks(title: str) -> list[str]:
        return re.findall(r">(-?[\d.]+%?)</text>", vl_convert.vegalite_to_svg(charts[title], vl_version="5.20"))

    assert any(tick.endswith("%") for tick in ticks("Test or validation accuracy"))
    assert any(tick.endswith("%") for tick in ticks("Generalisation gap"))
    assert not any(tick.endswith("%") for tick in ticks("Test or validation loss"))
    assert not any(tick.endswith("%") for tick in ticks("Learning rate"))


def test_validation_takes_the_place_of_test_in_a_history_that_has_it(charts):
    for title, column in (("Test or validation accuracy", "accuracy"), ("Test or validation loss", "loss")):
        spec = json.loads(json.dumps(charts[title]))
        for number, row in enumerate(spec["data"]["values"]):
            row.pop(f"test_{column}")
            row[f"validation_{column}"] = str(number / 8)
        assert {value for (value,) in drawn(spec, f"test_{column}")} == {0, 0.125, 0.25}


@pytest.mark.parametrize("run", RUNS)
def test_the_chart_of_a_run_has_its_training_and_its_test_accuracy(finished, charts, run):
    history = table(finished, f"plots/history/{run}.csv")
    expected = {
        (rounded(row.epoch), rounded(percent(getattr(row, f"{images}_accuracy"), 3)), images)
        for row in history.itertuples()
        for images in ("train", "test")
    }
    assert drawn(charts[run], "epoch", "accuracy", "images") == expected


def test_the_chart_of_f1_has_a_dot_for_each_class_and_run_in_the_order_of_the_classes(finished, charts):
    scores = table(finished, "plots/per_class.csv")
    spec = charts["F1 of each class"]
    expected = scores.assign(f1=scores.f1.map(lambda f1: percent(f1, 3)))
    assert drawn(spec, "f1", "class", "run") == rows(expected, "f1", "class", "run")
    svg = vl_convert.vegalite_to_svg(spec, vl_version="5.20")
    axis = re.search(r"Y-axis for a discrete scale with 10 values: ([^\"]*)", svg)
    assert axis
    assert axis[1].startswith("0, 1, 2, 3")


def test_calibration_is_accuracy_against_confidence(finished, charts):
    bins = table(finished, "plots/calibration.csv")
    spec = charts["Calibration"]
    whole = bins.assign(confidence=bins.confidence.map(percent), accuracy=bins.accuracy.map(percent))
    assert drawn(spec, "confidence", "accuracy", "run") >= rows(whole, "confidence", "accuracy", "run")
    dots = {mark["images"] for mark in marks(spec) if "images" in mark}
    assert {rounded(size) for size in dots} == {rounded(size) for size in bins.images}


@pytest.mark.parametrize("run", RUNS)
def test_a_confusion_matrix_counts_the_images_of_each_class_in_its_row(finished, charts, run):
    predictions = table(finished, f"plots/predictions/{run}.csv")
    counts = predictions.groupby(["actual", "predicted"], as_index=False).size()
    counts["share"] = counts["size"] / counts.groupby("actual")["size"].transform("sum")
    spec = charts[f"plots/predictions/{run}.csv"]
    assert spec["spec"]["encoding"]["x"]["title"] == "taken for"
    assert spec["spec"]["encoding"]["y"]["title"] == "class"
    cells = {(mark["class"], mark["taken for"], mark["of the class"]) for mark in marks(spec) if "of the class" in mark}
    expected = {(row.actual, row.predicted, rounded(percent(row.share))) for row in counts.itertuples()}
    assert {(row, column, rounded(share)) for row, column, share in cells} == expected


def test_suspects_have_the_names_of_their_images(finished, charts):
    suspects = table(finished, "plots/suspects.csv")
    spec = charts["Perhaps labelled wrong"]
    assert {image for (image,) in drawn(spec, "image")} <= {rounded(image) for image in suspects.image}
    assert len(suspects) > 0


@pytest.mark.parametrize("template", sorted((ROOT / ".dvc/plots").glob("*.json")), ids=lambda path: path.stem)
def test_a_template_names_the_revisions_and_takes_its_size_from_the_viewer(template):
    text = template.read_text()
    assert json.loads(text)["data"]["values"] == "<DVC_METRIC_DATA>"
    assert '"field": "rev"' in text
    side_by_side = template.stem == "confusion"  # one for each revision
    assert ('"width": "<DVC_METRIC_PLOT_WIDTH>"' in text) == (not side_by_side)


def test_numbers_in_the_table_of_experiments_are_numbers_in_pandas(finished):
    shown = pd.read_csv(io.StringIO(finished.dvc("exp", "show", "--csv")))
    columns = [name for name in shown if name in RUNS or name.startswith(("model.", "weight_decay."))]
    assert len(columns) == len(RUNS) + 4
    assert all(shown[name].dtype == float for name in columns)
