"""Files between the stages, with any value in any place: they are read as they are, or named in one line."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.common.dataset import DatasetInfo, read_info
from stages.common.errors import UserError
from stages.common.files import read_csv, read_json
from stages.common.formats import (
    CalibrationBin,
    ClassScores,
    Comparison,
    Curve,
    Epoch,
    Evaluation,
    Metrics,
    Prediction,
    SeedResult,
    Timing,
)
from stages.common.params import Params, load_params
from stages.common.yaml12 import read_yaml
from tests.any_value import JSON, TEXT, found, places, replaced
from tests.pipeline import DEFAULTS

PARAMS = read_yaml(DEFAULTS)
RUN = {
    "model": "ResNet-18", "parameters": 5, "epochs": 1, "weight_decay": 1e-4, "seed": 1, "accuracy": 0.5,
    "interval": [0.4, 0.6], "top2": 0.7, "loss": 1.0, "ece": 0.1, "temperature": None,
}  # fmt: skip
PAIR = {"runs": ["a", "b"], "difference": 0.1, "p": 0.5, "interval": [0.0, 0.2], "only_right": [1, 2]}
INFO = {
    "name": "toys", "source": "images", "sha256": "ab" * 32, "classes": ["a", "b"], "image_size": 8,
    "counts": {"train": 7, "test": 5}, "mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3],
}  # fmt: skip
METRICS = {"accuracy": 0.5, "loss": 0.5, "last_accuracy": 0.25, "gap": -0.125, "best_epoch": 2}
TIMING = {
    "train_seconds": 1.5, "images_per_second": 100.0, "device": "CPU", "precision": "fp32", "compiled": False,
    "torch": "2", "python": "3",
}  # fmt: skip
DOCUMENTS = {
    "params.yaml": (Params, load_params, PARAMS),
    "data/dataset.json": (DatasetInfo, lambda path: read_info(path.parent), INFO),
    "metrics.json": (Metrics, lambda path: read_json(path, Metrics), METRICS),
    "timing.json": (Timing, lambda path: read_json(path, Timing), TIMING),
    "comparison.json": (Comparison, lambda path: read_json(path, Comparison), {"difference": 0.1, "p": 0.5}),
    "evaluation.json": (
        Evaluation,
        lambda path: read_json(path, Evaluation),
        {"runs": {"a": RUN, "b": RUN}, "comparisons": {"model": PAIR}},
    ),
}
HISTORY = "epoch,train_loss,train_accuracy,test_loss,test_accuracy,generalization_gap,learning_rate"
EPOCH = "1,2.5e-05,0.5,0.33333333,0.25,0.25,0.1"
TABLES = {
    Epoch: f"{HISTORY}\n{EPOCH}\n",
    Curve: f"run,{HISTORY}\ncnn,{EPOCH}\n",
    Prediction: "index,actual,predicted,confidence\n0,cat,dog,0.5\n1,dog,dog,1\n",
    ClassScores: "run,class,images,precision,recall,f1\ncnn,cat,10,0.5,0.5,0.5\n",
    CalibrationBin: "run,lower,upper,images,confidence,accuracy\ncnn,0.4,0.6,10,0.5,0.5\n",
    SeedResult: "seed,run,accuracy,last_accuracy\n42,cnn,0.5,0.5\n",
}
any_of = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


NAMED, READ = "named in one line", "read as it is"


def is_one_short_line_about(path: Path, error: UserError) -> bool:
    message = str(error)
    return message.startswith(f"{path}: ") and message.isprintable() and len(message) < len(str(path)) + 1000


@pytest.mark.parametrize("name", DOCUMENTS)
@any_of
@given(data=st.data())
def test_any_value_in_any_place_is_read_as_it_is_or_named_in_one_short_line(tmp_path, tried, name, data):
    kind, read, document = DOCUMENTS[name]
    place, value = data.draw(st.sampled_from(list(places(document)))), data.draw(JSON)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(replaced(document, place, value), ensure_ascii=False), encoding="utf-8")
    try:
        content = read(path)
    except UserError as error:
        tried(f"any value in {name}", NAMED)
        assert is_one_short_line_about(path, error)
    else:
        tried(f"any value in {name}", READ)
        assert isinstance(content, kind)
        assert found(content, place) == value


@pytest.mark.parametrize("name", DOCUMENTS)
@any_of
@given(data=st.data())
def test_a_place_that_is_missing_or_too_many_is_named(tmp_path, tried, name, data):
    _, read, document = DOCUMENTS[name]
    named = [place for place in places(document) if place and isinstance(place[-1], str)]
    *where, key = data.draw(st.sampled_from(named))
    value = document
    for part in where:
        value = value[part]
    without = {other: value[other] for other in value if other != key}
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for changed, said in ((without, f"{key} is missing"), (value | {"zzz": 1}, "zzz")):
        path.write_text(json.dumps(replaced(document, tuple(where), changed)))
        try:
            read(path)
        except UserError as error:
            tried(f"a key missing in {name}, or one too many", NAMED)
            assert is_one_short_line_about(path, error)
            assert said in str(error)
        else:  # a mapping whose names are free
            assert [*where] in ([], ["ablation"], ["compare"], ["runs"], ["comparisons"])


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
@any_of
@given(data=st.data())
def test_any_text_in_any_cell_is_read_as_it_is_or_named_in_one_short_line(tmp_path, tried, kind, data):
    header, *rows = csv.reader(TABLES[kind].splitlines())
    row, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, len(header) - 1))
    rows[row][column] = data.draw(TEXT | st.sampled_from(["nan", "inf", "-1", "1e999", "9" * 5000, "x" * 5000, "0x1"]))
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    path = tmp_path / "table.csv"
    path.write_bytes(text.getvalue().encode())
    try:
        read = read_csv(path, kind)
    except UserError as error:
        tried("any text in a cell of a table", NAMED)
        assert is_one_short_line_about(path, error)
    else:
        tried("any text in a cell of a table", READ)
        value = list(read[row].model_dump(by_alias=True).items())
        value = dict(value)[header[column]]
        assert type(value)(rows[row][column]) == value


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
@any_of
@given(data=st.data())
def test_a_table_in_which_any_part_is_replaced_is_read_or_named_in_one_short_line(tmp_path, tried, kind, data):
    text = TABLES[kind]
    begin, end = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(text))])))
    path = tmp_path / "table.csv"
    replacement = data.draw(TEXT | st.sampled_from(["", '"', "\n", ",", "\0", "\r"]))
    path.write_bytes((text[:begin] + replacement + text[end:]).encode())
    try:
        assert all(isinstance(row, kind) for row in read_csv(path, kind))
        tried("any part of a table replaced", READ)
    except UserError as error:
        tried("any part of a table replaced", NAMED)
        assert is_one_short_line_about(path, error)
