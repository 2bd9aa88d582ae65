"""Make the study's tables and figure, in docs/results.md, README.md and docs/results/, from docs/results/study/.

    python -m benchmarks.study --collect

first adds the results of the workspace to these raw data, as those of their seed.
"""

import hashlib
import json
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from stages.reporting import figures  # isort: skip - before matplotlib

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from stages.common.dataset import read_info
from stages.common.files import EVALUATION, HISTORY, MODELS, PREDICTIONS, TIMING, parse_json, read_bytes
from stages.evaluation import significance
from stages.evaluation.metrics import Evaluation
from stages.evaluation.significance import ENOUGH_SEEDS, RecipeComparison, compare_recipes, holm, verdict_of
from stages.reporting.wording import p_value, percent, points, points_range

RESULTS = Path("docs/results")
RAW = RESULTS / "study"
RUNS = {
    "cnn": "simple CNN",
    "resnet": "ResNet-18, decay 5e-4",
    "resnet_ablation": "ResNet-18, decay 1e-4",
    "cnn_50": "simple CNN, 50 epochs",
}


def collect() -> None:
    """Add the workspace's results: histories, the answer of each model to each test image, digests, times."""
    evaluation, classes = parse_json(read_bytes(EVALUATION), Evaluation, EVALUATION), read_info().classes
    folder = RAW / f"seed-{evaluation.parameters['seed']}"
    folder.mkdir(exist_ok=True)
    answers, trainings = {}, {}
    for run in evaluation.runs:
        table = pd.read_csv(PREDICTIONS / f"{run}.csv", dtype=str, keep_default_na=False)
        for name, column in ("labels", "actual"), (run, "predicted"):
            answers[name] = table[column].map(classes.index).to_numpy(np.uint8)
        (folder / f"{run}.csv").write_bytes(read_bytes(HISTORY / f"{run}.csv"))
        digest = hashlib.sha256(read_bytes(MODELS / f"{run}.safetensors")).hexdigest()
        trainings[run] = {"sha256": digest, **json.loads(read_bytes(TIMING / f"{run}.json"))}
    np.savez_compressed(folder / "answers.npz", **answers)
    (folder / "trainings.json").write_text(json.dumps(trainings, indent=2) + "\n")


def read_answers() -> pd.DataFrame:
    """Return a row for each seed, a column for each run: which test images are classified rightly, bool N, or NaN."""
    rows = {}
    for folder in sorted(RAW.glob("seed-*")):
        answers = dict(np.load(folder / "answers.npz"))
        labels = answers.pop("labels")
        rows[int(folder.name.removeprefix("seed-"))] = {run: answer == labels for run, answer in answers.items()}
    return pd.DataFrame([pd.Series(row, name=seed) for seed, row in rows.items()])


def judge(study: pd.DataFrame, plan: dict) -> list[tuple[str, RecipeComparison, float, str]]:
    """Return for each pair of the plan what is asked, the comparison over seeds, its adjusted p, and the verdict."""
    compared = [compare_recipes(*map(np.stack, study[pair].dropna().to_numpy().T)) for pair in plan["compare"].values()]
    ps, equal = holm([of.p for of in compared]), holm([of.p_equal(plan["margin"]) for of in compared])
    questions = [" − ".join(RUNS[run] for run in pair) for pair in plan["compare"].values()]
    verdicts = [verdict_of(of.difference, p, same) for of, p, same in zip(compared, ps, equal, strict=True)]
    verdicts = verdicts if len(study) >= ENOUGH_SEEDS else ["too few seeds"] * len(verdicts)
    return list(zip(questions, compared, ps, verdicts, strict=True))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Write a table in Markdown, its first column text and the others numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def by_seed(accuracies: pd.DataFrame) -> str:
    """Write the accuracies with each seed, their mean and standard deviation."""
    rows = [[str(seed), *map(percent, row)] for seed, row in accuracies.iterrows()]
    rows += [
        ["mean", *map(percent, accuracies.mean())],
        ["sd, points", *(f"{100 * sd:.2f}" for sd in accuracies.std())],
    ]
    rows = [[cell.replace("nan%", "–") for cell in row] for row in rows]
    return table(["seed", *(RUNS[run] for run in accuracies)], rows)


def by_question(judged: list, margin: float) -> pd.DataFrame:
    """Return what the study says to each question, as texts."""
    rows = []
    for question, of, p, verdict in judged:
        count, low, high = significance.seeds_needed(of, margin)
        rows += [
            {
                "first − second": question,
                "points": points(of.difference),
                "95% interval": points_range(of.interval),
                "p, adjusted": p_value(p).removeprefix("p = "),
                "verdict": f"**{verdict}**",
                "images · seeds · rest": " · ".join(f"{share:.0%}" for share in of.shares.values()),
                "seeds needed": f"{count:,} ({low:,} to {high:,})",
            }
        ]
    return pd.DataFrame(rows)


def figure(accuracies: pd.DataFrame, judged: list, margin: float) -> Figure:
    """Draw the histories, each seed a line, and the differences between recipes with their intervals."""
    chart = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = chart.subplots(1, 2)
    for number, run in enumerate(accuracies):
        for seed in accuracies.index[accuracies[run].notna()]:
            history = pd.read_csv(RAW / f"seed-{seed}" / f"{run}.csv")
            look = {"color": f"C{number}", "linestyle": figures.DASHES[number], "linewidth": 0.9}
            left.plot(history.epoch, history.test_accuracy, **look)
        left.plot([], [], **look, label=RUNS[run])
    left.set(xlabel="Epoch", ylabel="Test accuracy, each seed", ylim=(0.5, None))
    left.yaxis.set_major_formatter(figures.tick_percent)
    left.grid(axis="y")
    left.legend(loc="lower right", fontsize=9)
    right.axvspan(-margin, margin, color="#e6e6e6", label=f"equal: within {100 * margin:g} points")
    for place, (question, of, _, verdict) in enumerate(judged):
        right.plot(of.interval, [place, place], color=f"C{place}", linewidth=2.2)
        right.plot(of.difference, place, figures.MARKERS[place], color=f"C{place}", markersize=8)
        said = f"{question}\n{points(of.difference)} points, {verdict}"
        right.annotate(said, (of.difference, place), (0, 12), textcoords="offset points", ha="center", fontsize=9)
    right.set(yticks=[], ylim=(len(judged) - 0.5, -0.9), xlabel="Difference over seeds, with 95% interval")
    right.margins(x=0.35)
    right.xaxis.set_major_formatter(figures.tick_points)
    right.legend(loc="lower right", fontsize=9)
    return chart


def replace(path: str, text: str) -> None:
    """Put the text between the two comments of a document that name this script."""
    begin, end = "<!-- made by benchmarks.study -->\n", "<!-- end -->\n"
    document, count = re.subn(f"(?s)(?<={begin}).*?(?={end})", lambda _: f"\n{text}\n", Path(path).read_text("utf-8"))
    if count != 1:
        raise SystemExit(f"{path}: no {begin.strip()} … {end.strip()}")
    Path(path).write_text(document, "utf-8")


def main(args: Namespace) -> None:
    if args.collect:
        collect()
    plan, study = yaml.safe_load((RAW / "plan.yaml").read_text()), read_answers()
    study = study[[run for run in RUNS if run in study]]
    judged, accuracies = judge(study, plan), study.map(np.mean)
    (RESULTS / "study.png").write_bytes(figures.draw(figure, accuracies, judged, plan["margin"])[1])
    questions = by_question(judged, plan["margin"])
    whole, short = (table([*of], of.values.tolist()) for of in (questions, questions.iloc[:, :5]))
    progress = f"{len(study)} of {len(plan['seeds'])} seeds are complete."
    replace("docs/results.md", f"**{progress}** Test accuracy:\n\n{by_seed(accuracies)}\n{whole}")
    means = ", ".join(f"{RUNS[run]} {percent(mean)}" for run, mean in accuracies.mean().items())
    replace("README.md", f"{progress} Mean test accuracy: {means}.\n\n{short}")


if __name__ == "__main__":
    parser = ArgumentParser(prog="benchmarks.study", description=__doc__.partition("\n")[0])
    parser.add_argument("--collect", action="store_true", help="first add the results of the workspace")
    main(parser.parse_args())
