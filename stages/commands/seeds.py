"""Collect the finished experiments that differ from the workspace in nothing but the seed into plots/seeds.csv.

python -m stages.commands.seeds
python -m stages.commands.seeds --missing 5
"""

import hashlib
import subprocess
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import map_scm_exception
from pydantic import ValidationError

from stages.common import cli
from stages.common.errors import UserError, listed, printable
from stages.common.files import read_bytes, write_csv
from stages.common.formats import SEEDS, TRAIN_METRICS, Metrics, SeedResult, of_run
from stages.common.params import PARAMS, load_params
from stages.common.yaml12 import parse_yaml

LOCK = Path("dvc.lock")
MOST = 1000  # seeds of a study


@dataclass(frozen=True)
class Trainings:
    """The trainings of a revision, as its dvc.lock records them."""

    seed: int
    recipes: dict[str, Any]  # by run: all that it came from but the seed: command, data, code, parameters
    results: dict[str, str]  # by run: the md5 of its metrics


def main(args: Namespace) -> None:
    own, seed = read_trainings(None), load_params().seed
    if own.seed != seed:
        raise UserError(f"{LOCK}: results of seed {own.seed}, and {PARAMS} has {seed}; run `dvc repro` first")
    study, passed_over = {own.seed: read_results(None, own)}, []
    for name, revision in experiments():
        try:
            trainings = read_trainings(revision)
            if trainings.recipes != own.recipes:
                raise UserError("differs in more than the seed")
            if trainings.seed not in study:
                study[trainings.seed] = read_results(revision, trainings)
        except UserError as error:
            passed_over += [f"{name} ({error})"] if name else []
    if args.missing is None:
        write_study(study, passed_over)
    elif 1 <= args.missing <= MOST:
        print(*(wanted for wanted in range(seed, seed + args.missing) if wanted not in study), sep=",")
    else:
        raise UserError(f"--missing {args.missing}: choose from 1 to {MOST:,} seeds")


def write_study(study: dict[int, list[SeedResult]], passed_over: list[str]) -> None:
    rows = [row for seed in sorted(study) for row in study[seed]]
    write_csv(SEEDS, SeedResult, rows)
    table = pd.DataFrame([row.model_dump() for row in rows])
    accuracies = table.pivot(index="seed", columns="run", values="accuracy")[[row.run for row in study[rows[0].seed]]]
    print(accuracies.map("{:.2%}".format).to_string())
    print(f"{SEEDS}: {len(study)} seeds of this experiment; `dvc repro` takes them into the report")
    if passed_over:
        print(f"Passed over ({len(passed_over)}): {listed(passed_over)}")


def experiments() -> list[tuple[str, str]]:
    """Name and revision of every finished experiment; first, without a name, HEAD and the commits they began from."""
    try:
        with map_scm_exception(), Repo() as repo:
            by_commit = {repo.scm.get_rev(): []} | repo.experiments.ls(all_commits=True)
    except DvcException as error:
        raise UserError(f"experiments cannot be listed: {printable(error)}") from error
    named = [(printable(name), revision) for found in by_commit.values() for name, revision in found]
    return [("", commit) for commit in by_commit] + named


def read(revision: str | None, path: Path) -> bytes:
    """The content of a file in a revision, or in the workspace."""
    if revision is None:
        return read_bytes(path, missing="no such file; run `dvc repro` first")
    shown = subprocess.run(["git", "show", f"{revision}:./{path}"], capture_output=True)
    if shown.returncode:
        raise UserError(f"has no {path}")
    return shown.stdout


def read_trainings(revision: str | None) -> Trainings:
    """The trainings in the dvc.lock of a revision, or of the workspace.

    Raises:
        UserError: there is none, it has another layout, or its trainings have different seeds.
    """
    seeds, recipes, results = set(), {}, {}
    try:
        stages = parse_yaml(read(revision, LOCK).decode(), LOCK)["stages"]
        for name, stage in stages.items():
            if name.startswith("train@"):
                run, parameters = name.removeprefix("train@"), stage["params"][str(PARAMS)]
                seeds.add(parameters.pop("seed"))
                recipes[run] = stage["cmd"], stage["deps"], stage["params"]
                digests = {out["path"]: out["md5"] for out in stage["outs"]}
                results[run] = digests[str(of_run(TRAIN_METRICS, run))]
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{LOCK} has another layout") from error
    if len(seeds) != 1:
        raise UserError(f"{LOCK}: {'trainings of different seeds' if seeds else 'no trainings'}; run `dvc repro` first")
    return Trainings(seeds.pop(), recipes, results)


def read_results(revision: str | None, trainings: Trainings) -> list[SeedResult]:
    """A row for each run.

    Raises:
        UserError: a file of metrics is missing, another than the training wrote, or of another layout.
    """
    rows = []
    for run, digest in trainings.results.items():
        path = of_run(TRAIN_METRICS, run)
        content = read(revision, path)
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != digest:
            raise UserError(f"{path}: not what {LOCK} records; run `dvc repro` first")
        try:
            found = Metrics.model_validate_json(content)
        except ValidationError as error:
            raise UserError(f"{path}: has another layout") from error
        rows.append(
            SeedResult(seed=trainings.seed, run=run, accuracy=found.accuracy, last_accuracy=found.last_accuracy)
        )
    return rows


if __name__ == "__main__":
    parser = cli.parser("seeds", __doc__)
    parser.add_argument("--missing", type=int, metavar="N", help="print which of N seeds have no experiment yet")
    cli.run(main, parser)
