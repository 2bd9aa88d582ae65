"""Collect every finished experiment that differs from the workspace in nothing but the seed into plots/seeds.csv.

python -m stages.seeds
"""

import json
import subprocess
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pandas as pd
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages import cli
from stages.core.errors import UserError
from stages.files import write_csv
from stages.results import SEEDS


def main(args: Namespace) -> None:
    if not Path("dvc.lock").is_file():
        raise UserError("dvc.lock: missing, so nothing has run here yet; run `dvc repro` first")
    with Repo() as repo:
        by_commit = repo.experiments.ls(all_commits=True)
    revisions = [None, *(revision for experiments in by_commit.values() for _, revision in experiments)]
    rows, (_, wanted) = {}, origin(read(None, "dvc.lock"))
    if not wanted:
        raise UserError("dvc.lock: the trainings in the workspace are not of one seed; run `dvc repro` first")
    for revision in revisions:
        seed, recipe = origin(read(revision, "dvc.lock"))
        if recipe == wanted:
            rows |= {(seed, row["run"]): row for row in accuracies(revision, seed)}
    table = pd.DataFrame([rows[key] for key in sorted(rows)], columns=SEEDS)
    write_csv(Path("plots/seeds.csv"), table)
    print(table.pivot(index="seed", columns="run", values="accuracy").map("{:.2%}".format).to_string())
    print(f"plots/seeds.csv: {table.seed.nunique()} seeds of this experiment; `dvc repro` takes them into the report")


def read(revision: str | None, path: str) -> str:
    """A file's content in a revision, in the workspace if that is None; empty where the revision lacks it."""
    if revision is None:
        return Path(path).read_text(encoding="utf-8")
    shown = subprocess.run(["git", "show", f"{revision}:./{path}"], capture_output=True, encoding="utf-8")
    return shown.stdout if shown.returncode == 0 else ""


def origin(lock: str) -> tuple[int | None, dict]:
    """The seed of an experiment, and all else that its trainings came from: commands, data, code, parameters."""
    stages = (YAML(typ="safe", pure=True).load(lock) or {}).get("stages", {})
    trainings = {name: stage for name, stage in stages.items() if name.startswith("train@")}
    seeds = {stage["params"]["params.yaml"].pop("seed") for stage in trainings.values()}
    recipe = {name: (stage["cmd"], stage["deps"], stage["params"]) for name, stage in trainings.items()}
    return (seeds.pop(), recipe) if len(seeds) == 1 else (None, {})


def accuracies(revision: str | None, seed: int) -> list[dict]:
    """The test accuracies of an experiment's runs, of the weights kept and after the last epoch; none where what was
    evaluated were runs of another seed."""
    evaluation = json.loads(read(revision, "metrics/evaluation.json") or "{}")
    evaluation.pop("comparisons", None)
    return [
        {
            "seed": seed,
            "run": run,
            "accuracy": values["accuracy"],
            "last_accuracy": json.loads(read(revision, f"metrics/train/{run}.json"))["final_test_accuracy"],
        }
        for run, values in evaluation.items()
        if values.get("seed") == seed
    ]


if __name__ == "__main__":
    cli.run(main, ArgumentParser(prog="seeds", description=__doc__.partition("\n")[0]))
