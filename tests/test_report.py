import base64
import io
import json
import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import report
from stages.core.errors import UserError
from stages.core.quality import calibration, per_class

CLASSES = ["cat", "dog"]
LABELS = np.array([0] * 10 + [1] * 10)
DATASET = {
    "name": "<toys>",
    "source": "images",
    "sha256": "ab12",
    "classes": CLASSES,
    "image_size": 32,
    "counts": {"train": 50_000, "test": 20},
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


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def write_run(name: str, model: str, wrong: list[int], decay: float, gap: float, seconds: float, epochs: int) -> dict:
    """The files of a run that has these test images wrong, the first with most confidence; its part of
    evaluation.json."""
    accuracy = 1 - len(wrong) / 20
    metrics = {
        "best_test_accuracy": accuracy,
        "best_epoch": 1,
        "final_test_accuracy": accuracy - 0.01,
        "final_test_loss": 0.5,
        "final_train_accuracy": accuracy - 0.01 + gap,
        "final_train_loss": 0.4,
        "generalization_gap": gap,
        "parameters": 11_173_962,
        "epochs": epochs,
        "weight_decay": decay,
    }
    write(f"metrics/train/{name}.json", json.dumps(metrics))
    write(f"metrics/timing/{name}.json", json.dumps({"train_seconds": seconds, **TIMING}))
    rows = [f"1,0.9,0.5,0.8,{accuracy},{0.5 - accuracy},0.1", f"2,0.4,0.9,0.5,{accuracy - 0.01},{gap},0.05"]
    write(f"plots/history/{name}.csv", "\n".join([HISTORY, *rows]) + "\n")
    predicted, confidence = LABELS.copy(), np.full(20, 0.9)
    predicted[wrong] = 1 - predicted[wrong]
    confidence[wrong] = 0.8 - 0.01 * np.arange(len(wrong))
    answers = zip(LABELS, predicted, confidence, strict=True)
    lines = [f"{index},{CLASSES[a]},{CLASSES[p]},{c}" for index, (a, p, c) in enumerate(answers)]
    write(f"plots/predictions/{name}.csv", "\n".join(["index,actual,predicted,confidence", *lines]) + "\n")
    for path, table in {
        "plots/per_class.csv": per_class(LABELS, predicted, CLASSES),
        "plots/calibration.csv": calibration(predicted == LABELS, confidence),
    }.items():
        table.insert(0, "run", name)
        table.to_csv(path, mode="a", header=not Path(path).exists(), index=False)
    return {
        "model": model,
        "accuracy": accuracy,
        "interval": [accuracy - 0.1, accuracy + 0.02],
        "top2": 1.0,
        "loss": 0.4321,
        "ece": 0.0123,
        "temperature": 1.5,
    }


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Write the results of three runs, the second with other weight decays or epochs if asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def results(decay=5e-4, ablation_decay=1e-4, epochs=100):
        for folder in ("metrics", "plots"):
            shutil.rmtree(folder, ignore_errors=True)
        write("plots/seeds.csv", "seed,run,accuracy,last_accuracy\n")
        evaluation = {
            "cnn": write_run("cnn", "Simple CNN", [0, 11, 3, 4], decay, 0.02, 59.94, 50),
            "resnet": write_run("resnet", "ResNet-18", [7, 0], decay, 0.0456, 3720, epochs),
            "resnet_ablation": write_run("resnet_ablation", "ResNet-18", [7, 0, 12], ablation_decay, 0.07, 75, epochs),
            "comparisons": [
                {
                    "runs": ["resnet", "cnn"],
                    "subject": "",
                    "names": ["ResNet-18", "Simple CNN"],
                    "difference": 0.1,
                    "interval": [-0.05, 0.25],
                    "p": 0.625,
                    "only_right": [3, 1],
                    "verdict": "ResNet-18 against Simple CNN: no difference that 20 test images can show",
                },
                {
                    "runs": ["resnet", "resnet_ablation"],
                    "subject": "weight decay",
                    "names": ["5e-4", "1e-4"],
                    "difference": 0.05,
                    "interval": [0.01, 0.15],
                    "p": 0.0123,
                    "only_right": [1, 0],
                    "verdict": "Weight decay 5e-4 is better than 1e-4",
                },
            ],
        }
        write("metrics/evaluation.json", json.dumps(evaluation))

    results()
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    Path("data").mkdir()
    np.savez("data/test.npz", images=images, labels=LABELS)
    write("data/dataset.json", json.dumps(DATASET))
    shutil.copy(Path(__file__).parents[1] / "params.yaml", tmp_path)
    return results


@pytest.fixture
def study(experiment):
    """A study of four seeds that these runs are part of: the ResNets differ by 5, 3, 4 and 4 points."""
    rows = []
    for seed, (cnn, resnet, ablation) in {
        42: (0.8, 0.9, 0.85),
        43: (0.8, 0.88, 0.85),
        44: (0.7, 0.9, 0.86),
        45: (0.9, 0.9, 0.86),
    }.items():
        rows += [f"{seed},cnn,{cnn},0.5", f"{seed},resnet,{resnet},0.6", f"{seed},resnet_ablation,{ablation},0.7"]
    write("plots/seeds.csv", "\n".join(["seed,run,accuracy,last_accuracy", *rows]) + "\n")


def page() -> str:
    return Path("report/index.html").read_text()


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def markdown_rows() -> list[list[str]]:
    return [cells(line) for line in Path("report/report.md").read_text().splitlines() if line.startswith("|")]


def html_rows() -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page(), re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


@pytest.mark.parametrize("rows_of", [markdown_rows, html_rows])
def test_the_tables_hold_the_figures_of_the_files(experiment, rows_of):
    report.main(Namespace())
    rows = rows_of()
    for expected in (
        ["Metric", "Simple CNN", "ResNet-18", "Difference"],
        ["Test accuracy, best epoch", "80.00%", "90.00%", "+10.00"],
        ["95% interval", "70.00–82.00%", "80.00–92.00%", ""],
        ["Test accuracy, last epoch", "79.00%", "89.00%", "+10.00"],
        ["Metric", "1e-4", "5e-4", "Difference"],
        ["Test accuracy, best epoch", "85.00%", "90.00%", "+5.00"],
        ["Generalisation gap, points", "+7.00", "+4.56", "−2.44"],
        ["Loss", "0.4321", "0.4321", "0.0000"],
        ["Parameters", "11,173,962", "11,173,962", ""],
        ["Training time", "59.9 s", "1 h 02 min", ""],
    ):
        assert expected in rows


def test_only_the_last_epoch_is_given_where_it_is_kept(experiment):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("keep: best", "keep: last"))
    report.main(Namespace())
    rows = markdown_rows()
    assert ["Test accuracy", "80.00%", "90.00%", "+10.00"] in rows
    assert not [row for row in rows if "epoch" in row[0] and row[0] != "Training epochs"]
    assert "flatter" not in page()


@pytest.mark.parametrize("name", ["report.md", "index.html"])
def test_the_verdicts_stand_above_the_tables_with_what_they_rest_on(experiment, name, capsys):
    report.main(Namespace())
    text = Path("report", name).read_text().replace("&#39;", "'")
    facts = (
        "On 20 test images: 90.00% against 85.00%, +5.00 points, 95% interval +1.00 to +15.00 (paired bootstrap), "
        "p = 0.012 (McNemar's exact test). Right in the first alone: 1, in the second alone: 0."
    )
    printed = capsys.readouterr().out
    for finding in ("no difference that 20 test images can show", "Weight decay 5e-4 is better than 1e-4", facts):
        assert finding in printed
        assert 0 < text.index(finding) < text.index("Top-2 accuracy")


@pytest.mark.parametrize("name", ["report.md", "index.html"])
def test_a_trial_is_called_one_above_the_verdicts(experiment, name):
    experiment(epochs=3)
    report.main(Namespace())
    text = Path("report", name).read_text().lower()
    for caveat in ("few images: 50,000 to train on and 20 to test with", "resnet 3 of 100 epochs"):
        assert text.index("not the full experiment") < text.index(caveat) < text.index("can show")
    assert "cnn 50 of 50" not in text


def test_the_full_experiment_has_no_caveat(experiment):
    info = DATASET | {"counts": {"train": 50_000, "test": 10_000}}
    write("data/dataset.json", json.dumps(info))
    np.savez("data/test.npz", images=np.zeros((10_000, 32, 32, 3), np.uint8), labels=np.zeros(10_000, np.int64))
    report.main(Namespace())
    assert "Not the full experiment" not in page()


@pytest.mark.parametrize("name", ["report.md", "index.html"])
def test_the_report_says_what_was_run(experiment, name):
    report.main(Namespace())
    text = Path("report", name).read_text()
    for fact in ("toys", "50,000 training", "20 test", "ab12", "a GPU", "bf16", "1,234", "2.99", "3.98"):
        assert fact in text
    assert "resnet.base_channels" in text
    assert "dvc exp run" in text


@pytest.mark.parametrize("name", ["report.md", "index.html"])
def test_a_study_over_seeds_gives_the_verdict(study, name):
    report.main(Namespace())
    text = Path("report", name).read_text()
    # Differences of 5, 3, 4 and 4 points: mean 4, standard error √(2/3) / 2, and t(3) is 3.1824 at 97.5 %.
    assert "Over 4 seeds: +4.00 points on average, 95% interval +2.70 to +5.30, p = 0.0023 (paired t test)." in text
    assert "Weight decay 5e-4 is better than 1e-4" in text
    assert "ResNet-18 against Simple CNN: no difference that 4 seeds can show" in text
    rows = markdown_rows() if name.endswith("md") else html_rows()
    assert ["resnet", "89.50%", "1.00", "88.00%", "90.00%", "60.00%"] in rows
    assert "make seeds" not in text


@pytest.mark.parametrize("column", ["seed", "accuracy"])
def test_a_study_of_other_runs_is_not_shown(study, column):
    text = Path("plots/seeds.csv").read_text()
    Path("plots/seeds.csv").write_text(
        text.replace("\n42,", "\n7,") if column == "seed" else text.replace("0.9", "0.91")
    )
    report.main(Namespace())
    assert "<code>plots/seeds.csv</code> holds a study of another experiment, which is not shown" in page()
    assert "points on average" not in page()
    assert not Path("report/figures/seeds.png").exists()


def test_seeds_that_lack_a_run_and_runs_that_are_gone_are_left_out_of_a_study(study):
    with Path("plots/seeds.csv").open("a") as file:
        file.write("46,cnn,0.1,0.1\n42,gone,0.1,0.1\n")
    report.main(Namespace())
    assert "Over 4 seeds: +4.00 points on average" in page()


def test_names_of_classes_are_taken_as_they_are(experiment):
    for path in [Path("data/dataset.json"), *Path("plots").rglob("*.csv")]:
        path.write_text(path.read_text().replace("cat", "a|b$^$ <i>ä"))
    report.main(Namespace())
    assert "a|b$^$ &lt;i&gt;ä" in page()
    assert ["a\\", "b$^$ <i>ä", "7", "3"] in markdown_rows()  # split at the escaped pipe as well


def test_the_galleries_show_confident_mistakes_and_disagreements(experiment):
    report.main(Namespace())
    mistakes, disagreements = re.findall(r'<ul class="pictures">(.*?)</ul>', page(), re.DOTALL)
    images = np.load("data/test.npz")["images"]

    def shown(gallery: str) -> list[int]:
        pictures = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", gallery)]
        arrays = [np.asarray(Image.open(io.BytesIO(picture))) for picture in pictures]
        return [int(np.flatnonzero((images == array).all((1, 2, 3)))[0]) for array in arrays]

    assert shown(mistakes) == [7, 0]
    assert re.findall(r"<strong>(.*?)</strong>(.*?)</li>", mistakes)[0] == ("cat", "taken for dog, 80.0%")
    assert sorted(shown(disagreements)) == [3, 4, 7, 11]
    assert "ResNet-18: dog, 90.0%<br>Simple CNN: cat, 79.0%" in disagreements


def test_a_confusion_matrix_counts_test_images(experiment):
    report.main(Namespace())
    matrix = re.findall(r'<table class="counts">.*?</table>', page(), re.DOTALL)[0]
    rows = [re.findall(r"<td[^>]*>(\d+)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", matrix, re.DOTALL)]
    assert rows[1:] == [["7", "3"], ["1", "9"]]


def test_the_page_stands_alone_and_escapes_names(experiment):
    report.main(Namespace())
    text = page()
    assert "<script" not in text
    assert not re.findall(r"\s(?:src|href)=\"(?!data:|#)", text)
    assert not re.findall(r"url\((?!#)|@import|https?:", text)
    assert "&lt;toys&gt;" in text
    assert "<toys>" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) > 50
    assert set(re.findall(r"(?:href=\"|url\()#([^\")]+)", text)) <= set(ids)


def test_a_run_has_one_colour_everywhere(experiment):
    report.main(Namespace())
    accuracy, reliability = (
        re.search(rf'id="{name}-figure_1".*?</svg>', page(), re.DOTALL)[0]
        for name in ("accuracy", "reliability_resnet")
    )
    assert set(re.findall(r"--run-\d", accuracy)) == {"--run-0", "--run-1", "--run-2"}
    assert set(re.findall(r"--run-\d", reliability)) == {"--run-1"}
    assert not re.findall(r"#[0-9a-f]{6}", accuracy + reliability)


def test_figures_are_pictures_wide_enough_to_read(study):
    report.main(Namespace())
    names = {path.stem for path in Path("report/figures").iterdir()}
    assert names == {
        *("accuracy", "loss", "generalisation_gap", "learning_rate", "per_class", "seeds"),
        *(f"reliability_{run}" for run in ("cnn", "resnet", "resnet_ablation")),
    }
    for name in names:
        with Image.open(f"report/figures/{name}.png") as image:
            assert image.width >= 500
            assert len(image.convert("RGB").getcolors(maxcolors=2**20)) > 50


def test_the_same_results_give_the_same_bytes(study):
    written = []
    for _ in range(2):
        report.main(Namespace())
        written.append({path: path.read_bytes() for path in Path("report").rglob("*") if path.is_file()})
    assert len(written[0]) == 11
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "path",
    [
        "metrics/evaluation.json",
        "metrics/train/cnn.json",
        "metrics/timing/resnet.json",
        "plots/history/cnn.csv",
        "plots/predictions/resnet.csv",
        "plots/per_class.csv",
        "plots/calibration.csv",
        "plots/seeds.csv",
    ],
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
