"""Figures of the documents, recomputed from what they are said to follow from, by other libraries."""

import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from benchmarks import study
from tests.evaluation.test_significance import score

ROOT = Path(__file__).parents[1]
RAW = ROOT / "docs/results/study"
RUNS = "cnn", "resnet", "resnet_ablation", "cnn_50"  # in the order of the table


def rows(document: str, heading: str) -> list[list[list[float]]]:
    """The numbers in each row of the tables under a heading, cell by cell, a table after the other."""
    section = (ROOT / document).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.replace("−", "-").splitlines() if line.startswith("| ")]
    cells = [[cell.replace(",", "") for cell in line.strip("| ").split("|")] for line in lines]
    return [[[float(n) for n in re.findall(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?", cell)] for cell in row] for row in cells]


def test_the_figures_of_one_gpu_follow_from_its_raw_answers():
    """Wilson's interval of an accuracy, Tango's of the difference, and McNemar's p."""
    (*models, _, _, question), of = rows("docs/results.md", "On one GPU")[2:], np.load(RAW.parent / "h100/answers.npz")
    right = {run: of[run] == of["labels"] for run in ("cnn", "resnet")}
    for row, run in zip(models, right, strict=True):
        low_high = proportion_confint(right[run].sum(), 10_000, method="wilson")
        assert row[3:5] == [[round(100 * right[run].mean(), 2)], [round(100 * limit, 2) for limit in low_high]]
        assert row[5] == [round(100 * pd.read_csv(RAW.parent / f"h100/{run}.csv").test_accuracy.iloc[-1], 2)]
    first, second = question[3]  # right in one alone
    assert [first, second] == [(right[a] & ~right[b]).sum() for a, b in (("resnet", "cnn"), ("cnn", "resnet"))]
    assert question[1] == [(first - second) / 100]
    for limit in question[2]:  # Tango's score at the limit is the normal quantile
        assert abs(score(first, second, 10_000, limit / 100)) == pytest.approx(1.96, abs=0.02)
    assert question[4] == [float(f"{mcnemar([[0, first], [second, 0]], exact=False, correction=False).pvalue:.2g}")]


def test_the_figures_of_the_study_follow_from_its_raw_answers():
    """Those of the differences by the analysis of variance over seeds and images."""
    table, seeds = rows("docs/results.md", "A study at the original ratio of epochs"), sorted(RAW.glob("seed-*"))
    answers = [np.load(seed / "answers.npz") for seed in seeds]
    for row, seed, of in zip(table[2:], seeds, answers, strict=False):
        accuracies = {run: float((of[run] == of["labels"]).mean()) for run in RUNS if run in of}
        assert row[0] == [float(seed.name[5:])]
        assert [cell[0] for cell in row[1:] if cell] == [round(100 * of, 2) for of in accuracies.values()]
        for run, accuracy in accuracies.items():  # which the training saw, too, in its last epoch
            assert pd.read_csv(seed / f"{run}.csv").test_accuracy.iloc[-1] == pytest.approx(accuracy)
    levels, p_values = np.logspace(-90, 0, 100_001), []
    for row, other in zip(table[-2:], ("cnn", "resnet_ablation"), strict=True):
        gain = np.array([1.0 * (of["resnet"] == of["labels"]) - (of[other] == of["labels"]) for of in answers])
        (s, n), difference = gain.shape, gain.mean()
        of_images, of_seeds = (((gain.mean(axis) - difference) ** 2).sum() * gain.shape[axis] for axis in (0, 1))
        rest = (((gain - difference) ** 2).sum() - of_images - of_seeds) / (s - 1) / (n - 1)
        parts = np.array([of_images / (n - 1) - rest, max(of_seeds / (s - 1) - rest, 0), rest])
        parts[2] = min(rest, of_seeds / (s - 1))
        share = parts[0] / parts.sum()
        quantiles = share * stats.t.isf(levels / 2, n - 1) + (1 - share) * stats.t.isf(levels / 2, s - 1)
        error = np.sqrt(parts.sum() / gain.size)
        half = error * np.interp(np.log(0.05), np.log(levels), quantiles)
        shown = [100 * difference, 100 * (difference - half), 100 * (difference + half)]
        assert row[1] + row[2] == pytest.approx(shown, abs=0.0051)
        assert row[5] == [round(100 * part) for part in parts / parts.sum()]
        p_values.append(np.exp(np.interp(-difference / error, -quantiles, np.log(levels))))
    assert [row[3][0] for row in table[-2:]] == [float(f"{p:.2g}") for p in multipletests(p_values, method="holm")[1]]


def test_one_command_makes_the_figures_of_the_study_anew(tmp_path, monkeypatch):
    texts = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "docs/results.md")}
    shutil.copytree(RAW, tmp_path / "docs/results/study")
    for name, text in texts.items():
        begin, _, end = re.split(r"(?s)(?<=benchmarks.study -->\n)(.*?)(?=<!-- end)", text)
        (tmp_path / name).write_text(begin + end, "utf-8")
    monkeypatch.chdir(tmp_path)
    study.main(Namespace(collect=False))
    assert {name: Path(name).read_text("utf-8") for name in texts} == texts
    assert Image.open("docs/results/study.png").size == (2000, 760)
