"""Collect the experiments that differ from the workspace in nothing but the seed, and compare the recipes over them.

python -m stages.commands.seeds              writes plots/seeds.csv, which `dvc repro` takes into the report
python -m stages.commands.seeds --missing    prints which seeds of `study` are still to train, after `dvc repro`
"""

import base64
import json
import subprocess
import sys
import textwrap
from argparse import Namespace
from typing import Any

import numpy as np
import pandas as pd
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException

from stages.common import cli
from stages.common.dataset import read_info, read_split
from stages.common.errors import UserError, listed, printable
from stages.common.files import EVALUATION, PREDICTIONS, SEEDS, parse_csv, parse_json, read_bytes, sha256, write_csv
from stages.common.params import PARAMS, flat, parse_yaml
from stages.evaluation.metrics import Evaluation
from stages.reporting.findings import answer, notes
from stages.reporting.results import read_results, recipe_digest
from stages.reporting.wording import percent

LOCK = "dvc.lock"
COLUMNS = ["seed", "run", "accuracy", "images", "correct", "recipe"]  # of plots/seeds.csv


def main(args: Namespace) -> None:
    """Print the missing seeds, or write the study and print what it shows."""
    evaluation, trainings = read_trainings()
    study = alike(trainings, "seed").drop_duplicates(["seed", "run"]).sort_values(["seed", "run"])
    parameters: dict[str, Any] = evaluation.parameters
    planned = range(parameters["seed"], parameters["seed"] + parameters["study.seeds"])
    missing = ",".join(str(seed) for seed in planned if (study.seed == seed).sum() < len(evaluation.runs))
    if args.missing:
        print(missing)
        return
    write_csv(SEEDS, study[COLUMNS])
    info = read_info()
    results = read_results(info, read_split("test", info), read_bytes)
    print(results.seed_accuracies.map(percent, na_action="ignore").to_string(na_rep="-"))
    answers = (answer(pair, parameters["study.margin"], len(results.pairs)) for pair in results.pairs)
    for said in [*(f"{of['verdict']}. {of['facts'][0]}" for of in answers), *notes(results)]:
        print(textwrap.fill(said, 80))
    print(f"{SEEDS} is written" + (f"; missing, for `make seeds`: {missing}" if missing else ""))


def read_trainings() -> tuple[Evaluation, pd.DataFrame]:
    """Read the workspace's results, and what was trained and tested there and in each commit and finished experiment.

    Experiments and branches whose results cannot be read are named in a line.

    Returns:
        metrics/evaluation.json; and a row for each training, those of the workspace (`own`) first: the columns of
        plots/seeds.csv, the ends `low` and `high` of the accuracy's interval, the digests of data and code, `inputs`,
        and the `parameters` that it was trained with, by their names in params.yaml.

    Raises:
        UserError: the workspace has no results, or is no git repository.
    """
    try:
        evaluation, rows = read_revision(None)
    except (OSError, DvcException, KeyError) as error:
        raise UserError(f"no results here ({printable(error)}); run `dvc repro`") from error
    named, unread = dict(line.split() for line in git("for-each-ref", "--format=%(objectname) %(refname)")), []
    for revision in git("rev-list", "--all", "--", LOCK):
        try:
            rows += read_revision(revision)[1]
        except (UserError, OSError, DvcException, KeyError):
            unread += [printable(named[revision].rpartition("/")[2])] if revision in named else []
    if unread:
        print(f"No model here has the parameters of: {listed(unread)}", file=sys.stderr, flush=True)
    return evaluation, pd.DataFrame(rows)


def git(*arguments: str) -> list[str]:
    """Return the lines that git prints."""
    done = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="surrogateescape")
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {printable(done.stderr)}")
    return done.stdout.splitlines()


def read_revision(revision: str | None) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Read the results of a revision (None: the workspace), and its rows of `read_trainings`."""
    files, rows = DVCFileSystem(rev=revision), []  # what git, DVC's cache or its remote have
    stages = parse_yaml(files.read_bytes(LOCK), LOCK)["stages"]
    evaluation = parse_json(files.read_bytes(str(EVALUATION)), Evaluation, EVALUATION)
    saved = flat(parse_yaml(files.read_bytes(str(PARAMS)), PARAMS))
    if revision and not evaluation.parameters.items() <= saved.items():
        raise UserError(f"{PARAMS}: not what its models were trained with")  # saved without a run
    tested = {dep["path"]: dep["md5"] for dep in stages["evaluate"]["deps"]}  # if trained again since, the older ones
    for run, of in evaluation.runs.items():
        path = PREDICTIONS / f"{run}.csv"
        content = files.read_bytes(str(path))
        if sha256(content) != evaluation.files[str(path)]:
            raise UserError(f"{path}: not the one that evaluate wrote; run `dvc repro`")
        table = parse_csv(content, path)
        correct = base64.b64encode(np.packbits(table.actual == table.predicted).tobytes()).decode()
        parameters, recipe = parameters_of(evaluation, run), recipe_digest(evaluation, run)
        inputs = {dep["path"]: tested.get(dep["path"], dep["md5"]) for dep in stages[f"train@{run}"]["deps"]}
        values = (parameters["seed"], run, of.accuracy, len(table), correct, recipe)
        row = dict(zip(COLUMNS, values, strict=True), low=of.interval[0], high=of.interval[1])
        rows.append(row | {"own": revision is None, "inputs": inputs, "parameters": parameters})
    return evaluation, rows


def parameters_of(evaluation: Evaluation, run: str) -> dict[str, Any]:
    """Return the parameters that a model was trained with; an experiment saved without a run has new ones beside it."""
    recipe: dict[str, Any] = evaluation.runs[run].recipe
    values = flat({name: recipe[name] for name in ("seed", "train", "augment")} | {recipe["model"]: recipe["settings"]})
    decay = values.pop("train.weight_decay")
    return values | {str(evaluation.parameters[f"runs.{run}.weight_decay"]): decay}


def alike(trainings: pd.DataFrame, *free: str) -> pd.DataFrame:
    """Keep the trainings that equal one of the workspace in run, inputs and all parameters but these."""
    parameters = [{name: value for name, value in of.items() if name not in free} for of in trainings.parameters]
    parts = zip(trainings.run, trainings.inputs, parameters, strict=True)
    keys = pd.Series([json.dumps(part, sort_keys=True) for part in parts])
    return trainings[keys.isin(keys[trainings.own])]


if __name__ == "__main__":
    parser = cli.parser("seeds", __doc__)
    parser.add_argument("--missing", action="store_true", help="print the seeds of the study that are still to train")
    cli.run(main, parser)
