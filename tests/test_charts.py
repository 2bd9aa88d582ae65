"""The charts of `dvc plots show`: drawn by Vega from what the real dvc writes, and compared with the tables."""

import io
import json
import re

import pandas as pd
import pytest
import vl_convert

from tests.pipeline import ROOT, RUNS, Clone

COLOURS = ["#0072b2", "#b84a00", "#007a59"]
CURVES = {
    "Test or validation accuracy": "test_accuracy",
    "Training accuracy": "train_accuracy",
    "Test or validation loss": "test_loss",
    "Generalisation gap": "generalization_gap",
    "Learning rate": "learning_rate",
}


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


def test_every_chart_is_on_the_page_in_its_order_and_has_the_runs_colours(charts):
    *curves, rate = CURVES
    assert list(charts) == [
        *curves,
        *RUNS,
        rate,
        "F1 of each class",
        "Calibration",
        *(f"plots/predictions/{run}.csv" for run in RUNS),
        "Perhaps labelled wrong",
    ]
    texts = {title: json.dumps(spec) for title, spec in charts.items()}
    assert all(json.dumps(COLOURS)[:-1] in texts[title] for title in (*CURVES, "F1 of each class", "Calibration"))
    assert all(json.dumps(COLOURS[1::-1]) in texts[run] for run in RUNS)  # training and test images


@pytest.mark.parametrize("title", CURVES)
def test_a_curve_is_the_column_that_its_axis_names(finished, charts, title):
    curves, column = table(finished, "plots/curves.csv"), CURVES[title]
    assert drawn(charts[title], "epoch", column, "run") == rows(curves, "epoch", column, "run")
    assert charts[title]["encoding"]["y"]["scale"] == {"zero": False}


def test_accuracies_have_percentages_on_their_axis_and_losses_have_none(finished, charts):
    def ticks(title: str) -> list[str]:
        return re.findall(r">(-?[\d.]+%?)</text>", vl_convert.vegalite_to_svg(charts[title], vl_version="5.20"))

    titles = "Test or validation accuracy", "Generalisation gap", *RUNS, "F1 of each class", "Perhaps labelled wrong"
    for title in (*titles, "Test or validation loss", "Learning rate"):
        assert any(tick.endswith("%") for tick in ticks(title)) == (title in titles)
    gaps = table(finished, "plots/curves.csv").generalization_gap
    assert any(tick.startswith("-") for tick in ticks("Generalisation gap")) == (gaps.min() < 0)


def test_validation_takes_the_place_of_test_in_a_history_that_has_it(charts):
    for title, column in (("Test or validation accuracy", "accuracy"), ("Test or validation loss", "loss")):
        spec = json.loads(json.dumps(charts[title]))
        for number, row in enumerate(spec["data"]["values"]):
            row.pop(f"test_{column}")
            row[f"validation_{column}"] = str(number / 8)
        assert {value for (value,) in drawn(spec, f"test_{column}")} == {0, 0.125, 0.25}
    data = json.loads(json.dumps(charts["cnn"]["data"]).replace("test_accuracy", "validation_accuracy"))
    assert drawn(charts["cnn"] | {"data": data}, "images") == {("train",), ("validation",)}


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
    assert "Y-axis for a discrete scale with 10 values: 0, 1, 2, 3" in svg
    assert spec["encoding"]["x"]["scale"]["zero"] is False


def test_calibration_is_accuracy_against_confidence(finished, charts):
    bins = table(finished, "plots/calibration.csv")
    spec = charts["Calibration"]
    axes = [spec["encoding"][axis] for axis in "xy"]
    assert [(of["title"], *of["scale"]["domain"]) for of in axes] == [("confidence", 0, 1), ("accuracy", 0, 1)]
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
    svg = vl_convert.vegalite_to_svg(spec, vl_version="5.20")
    for axis in ("X-axis titled 'taken for'", "Y-axis titled 'class'"):
        assert f"{axis} for a discrete scale with 10 values: 0, 1, 2, 3" in svg
    assert {percent(share) for share in counts.share} <= {*re.findall(r">(\d+%)</text>", svg)}
    cells = {(mark["class"], mark["taken for"], mark["of the class"]) for mark in marks(spec) if "of the class" in mark}
    expected = {(row.actual, row.predicted, rounded(percent(row.share))) for row in counts.itertuples()}
    assert {(row, column, rounded(share)) for row, column, share in cells} == expected


def test_suspects_have_the_names_of_their_images(finished, charts):
    suspects = table(finished, "plots/suspects.csv")
    suspects["confidence"] = suspects.confidence.map(lambda share: percent(share, 3))
    found = drawn(charts["Perhaps labelled wrong"], "confidence that the label is wrong", "image")
    assert found == rows(suspects, "confidence", "image") != set()


def test_templates_tell_revisions_apart_and_take_their_size_from_the_viewer():
    for template in (ROOT / ".dvc/plots").glob("*.json"):
        text = template.read_text()
        assert '"field": "rev"' in text
        # A confusion matrix stands beside that of the other revision
        assert ('"width": "<DVC_METRIC_PLOT_WIDTH>"' in text) == (template.stem != "confusion")


def test_numbers_in_the_table_of_experiments_are_numbers_in_pandas(finished):
    shown = pd.read_csv(io.StringIO(finished.dvc("exp", "show", "--csv")))
    columns = [name for name in shown if name in RUNS or name.startswith(("model.", "weight_decay."))]
    assert len(columns) == len(RUNS) + 4
    assert all(shown[name].dtype == float for name in columns)
