import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

from stages import report
from stages.core.errors import UserError

DATASET = {
    "name": "<toys>",
    "source": "images",
    "sha256": "ab12",
    "classes": ["cat", "dog"],
    "image_size": 32,
    "counts": {"train": 50_000, "test": 10_000},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
}
TIMING = {
    "images_per_second": 1234.5,
    "device": "a GPU",
    "precision": "bf16",
    "compiled": True,
    "torch": "2.99",
    "python": "3.98",
}
HISTORY = "epoch,train_loss,train_accuracy,test_loss,test_accuracy,generalization_gap,learning_rate"


def write_run(name: str, model: str, best: float, decay: float, gap: float, seconds: float, parameters: int) -> dict:
    """The files of a run; what evaluation.json says of it."""
    metrics = {
        "best_test_accuracy": best,
        "best_epoch": 1,
        "final_test_accuracy": best - 0.01,
        "final_test_loss": 0.5,
        "final_train_accuracy": best - 0.01 + gap,
        "final_train_loss": 0.4,
        "generalization_gap": gap,
        "parameters": parameters,
        "epochs": 2,
        "weight_decay": decay,
    }
    rows = [f"1,0.9,0.5,0.8,{best},{0.5 - best},0.1", f"2,0.4,0.9,0.5,{best - 0.01},{gap},0.05"]
    for path, text in {
        f"metrics/train/{name}.json": json.dumps(metrics),
        f"metrics/timing/{name}.json": json.dumps({"train_seconds": seconds, **TIMING}),
        f"plots/history/{name}.csv": "\n".join([HISTORY, *rows]) + "\n",
    }.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    return {"model": model, "accuracy": best, "loss": 0.4321, "calibration_error": 0.0123}


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Write the results of three runs, with other best accuracies or weight decays if asked for."""
    monkeypatch.chdir(tmp_path)

    def write(cnn=0.9, resnet=0.95, ablation=0.9425, decay=5e-4, ablation_decay=1e-4):
        evaluation = {
            "cnn": write_run("cnn", "Simple CNN", cnn, decay, 0.02, 59.94, 391_946),
            "resnet": write_run("resnet", "ResNet-18", resnet, decay, 0.0456, 3720, 11_173_962),
            "resnet_ablation": write_run(
                "resnet_ablation", "ResNet-18", ablation, ablation_decay, 0.07, 75, 11_173_962
            ),
        }
        Path("metrics/evaluation.json").write_text(json.dumps(evaluation))
        Path("data").mkdir(exist_ok=True)
        Path("data/dataset.json").write_text(json.dumps(DATASET))

    write()
    return write


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def markdown_rows() -> list[list[str]]:
    return [cells(line) for line in Path("report/report.md").read_text().splitlines() if line.startswith("|")]


def html_rows() -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", Path("report/index.html").read_text(), re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


@pytest.mark.parametrize("rows_of", [markdown_rows, html_rows])
def test_the_tables_hold_the_notebooks_figures(experiment, rows_of):
    report.main(Namespace())
    rows = rows_of()
    for expected in (
        ["Metric", "Simple CNN", "ResNet-18", "Improvement"],
        ["Parameters", "391,946", "11,173,962", ""],
        ["Training epochs", "2", "2", ""],
        ["Best test accuracy", "90.00%", "95.00%", "+5.00 points"],
        ["Training time", "59.9 s", "1 h 02 min", ""],
        ["resnet", "0.0005", "95.00%", "", "4.56 points", "1 h 02 min"],
        ["resnet_ablation", "0.0001", "94.25%", "-0.75 points", "7.00 points", "1 min 15 s"],
        ["cnn", "Simple CNN", "90.00%", "0.4321", "1.23%", "1", "89.00%"],
    ):
        assert expected in rows


@pytest.mark.parametrize("name", ["report.md", "index.html"])
def test_the_report_names_data_device_and_versions(experiment, name):
    report.main(Namespace())
    text = Path("report", name).read_text()
    for fact in ("toys", "50,000 training", "10,000 test", "ab12", "a GPU", "bf16", "1,234 images/s"):
        assert fact in text
    assert "PyTorch 2.99, Python 3.98" in text


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "Better weight decay: 0.0005, by 0.75 points."),
        ({"ablation": 0.9525}, "Better weight decay: 0.0001, by 0.25 points."),
        ({"ablation": 0.95}, "Weight decay 0.0005 and 0.0001 reach the same test accuracy."),
        ({"ablation_decay": 5e-4}, "Both ResNets have weight decay 0.0005: nothing to compare."),
        ({"decay": 1e-5}, "Better weight decay: 1e-05, by 0.75 points."),
        ({"cnn": 0.96}, "ResNet-18 against Simple CNN: -1.00 points of test accuracy."),
    ],
)
def test_the_verdict_stands_on_the_page_and_in_the_terminal(experiment, changes, verdict, capsys):
    experiment(**changes)
    report.main(Namespace())
    assert verdict in capsys.readouterr().out
    assert verdict in Path("report/index.html").read_text()
    assert verdict in Path("report/report.md").read_text()


def test_the_page_stands_alone_and_escapes_names(experiment):
    report.main(Namespace())
    page = Path("report/index.html").read_text()
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert not re.findall(r"url\(|@import|https?:", page)
    assert "&lt;toys&gt;" in page
    assert "<toys>" not in page
    assert page.count('src="data:image/png;base64,') == 2


def test_figures_are_pictures_wide_enough_to_read(experiment):
    report.main(Namespace())
    for name in ("comparison", "ablation"):
        with Image.open(f"report/figures/{name}.png") as image:
            assert image.width >= 1000
            assert len(image.convert("RGB").getcolors(maxcolors=2**20)) > 50


def test_the_same_results_give_the_same_bytes(experiment):
    written = []
    for _ in range(2):
        report.main(Namespace())
        written.append({path: path.read_bytes() for path in Path("report").rglob("*") if path.is_file()})
    assert len(written[0]) == 4
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "path", ["metrics/evaluation.json", "metrics/train/cnn.json", "metrics/timing/resnet.json", "plots/history/cnn.csv"]
)
@pytest.mark.parametrize("content", [None, "", "[]", '{"cnn": 1, "resnet": 2, "resnet_ablation": 3}', "a,b\n1,2\n"])
def test_a_file_that_is_missing_or_foreign_is_named_and_nothing_written(experiment, path, content):
    Path(path).unlink() if content is None else Path(path).write_text(content)
    with pytest.raises(UserError, match=re.escape(path)):
        report.main(Namespace())
    assert not Path("report").exists()


def test_a_run_that_was_not_evaluated_is_named(experiment):
    evaluation = json.loads(Path("metrics/evaluation.json").read_text())
    del evaluation["resnet_ablation"]
    Path("metrics/evaluation.json").write_text(json.dumps(evaluation))
    with pytest.raises(UserError, match=r"evaluation\.json: resnet_ablation not in it"):
        report.main(Namespace())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90_060, "25 h 01 min"),
    ],
)
def test_durations_are_for_people(seconds, text):
    assert report.duration(seconds) == text
