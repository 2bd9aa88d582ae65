"""Figures of the documents, recomputed from what they are said to follow from, by other libraries."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from tests.evaluation.test_significance import score

ROOT = Path(__file__).parents[1]


def rows(document: str, heading: str) -> list[list[list[float]]]:
    """The numbers in each row of the tables under a heading, cell by cell, a table after the other."""
    section = (ROOT / document).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.replace("−", "-").splitlines() if line.startswith("| ")]
    cells = [[cell.replace(",", "") for cell in line.strip("| ").split("|")] for line in lines]
    return [[[float(n) for n in re.findall(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?", cell)] for cell in row] for row in cells]


def test_the_intervals_of_single_trainings_are_wilsons_and_the_differences_are_theirs():
    models, questions = (rows("docs/results.md", "One longer training of each")[a:b] for a, b in ((2, 5), (7, 9)))
    accuracies = []
    for row in models:
        (best,), (low, high) = row[3], row[4]
        low_high = proportion_confint(round(best * 100), 10_000, method="wilson")
        assert [low, high] == [round(100 * limit, 2) for limit in low_high]
        accuracies.append(best)
    cnn, resnet, ablation = accuracies
    assert [row[1][0] for row in questions] == pytest.approx([resnet - cnn, resnet - ablation], abs=1e-9)
    p_values = [p_of_difference(row, row[3]) for row in questions]
    adjusted = multipletests(p_values, method="holm")[1]
    assert [row[5][0] for row in questions] == [float(f"{p:.2g}") for p in adjusted]
    assert [row[4][0] for row in questions] == [float(f"{p:.2g}") for p in p_values]


def p_of_difference(row: list[list[float]], alone: Sequence[float]) -> float:
    """Assert that difference and interval, cells 1 and 2, follow from the images that one alone has right; return p."""
    first, second = alone
    assert row[1][0] == pytest.approx((first - second) / 100, abs=1e-9)
    for limit in row[2]:  # Tango's score at the limit is the normal quantile
        assert abs(score(first, second, 10_000, limit / 100)) == pytest.approx(1.96, abs=0.02)
    return mcnemar([[0, first], [second, 0]], exact=False, correction=False).pvalue


def test_the_figures_of_five_seeds_are_those_of_a_paired_t_test():
    table = rows("docs/results.md", "Five seeds, few epochs")
    cnn, resnet, ablation = np.array([[cell[0] for cell in row[1:]] for row in table[2:7]]).T
    p_values = []
    for row, (first, second) in zip(table[9:], ((resnet, cnn), (resnet, ablation)), strict=True):
        test = stats.ttest_rel(first, second)
        low, high = test.confidence_interval()
        assert row[1][0] == round(float((first - second).mean()), 2)
        assert row[2] == [round(float(low), 2), round(float(high), 2)]
        assert row[3][0] == float(f"{test.pvalue:.2g}")
        p_values.append(test.pvalue)
    assert [row[4][0] for row in table[9:]] == [float(f"{p:.2g}") for p in multipletests(p_values, method="holm")[1]]


def test_the_figures_of_the_study_are_those_of_its_raw_answers():
    table = rows("docs/results.md", "A study at the original ratio of epochs")
    seeds, questions = [row for row in table if len(row) == 4 and row[0]], [row for row in table if len(row) == 5][2:]
    folders = sorted((ROOT / "docs/results/study").glob("seed-*"))
    assert [int(row[0][0]) for row in seeds] == [int(folder.name[5:]) for folder in folders]
    for row, folder in zip(seeds, folders, strict=True):
        answers = np.load(folder / "answers.npz")
        right = {run: answers[run] == answers["labels"] for run in ("cnn", "resnet", "resnet_ablation")}
        assert [cell[0] for cell in row[1:]] == [round(100 * float(of.mean()), 2) for of in right.values()]
        for run, of in right.items():  # the history's last row is the training's own view of the same model
            last = (folder / f"{run}.csv").read_text().splitlines()[-1].split(",")
            assert float(last[4]) == pytest.approx(of.mean(), abs=5e-4)
    first, p_values = right["resnet"], []
    for row, second in zip(questions, (right["cnn"], right["resnet_ablation"]), strict=True):
        alone = int((first & ~second).sum()), int((second & ~first).sum())
        assert row[3] == [*map(float, alone)]
        p_values.append(p_of_difference(row, alone))
    assert [row[4][0] for row in questions] == [float(f"{p:.2g}") for p in multipletests(p_values, method="holm")[1]]
