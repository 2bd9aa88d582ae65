"""Collect the experiments that differ from the workspace in nothing but the seed, and compare the recipes over them.

python -m stages.commands.seeds              writes plots/seeds.csv, which `dvc repro` takes into the report
python -m stages.commands.seeds --missing    prints which seeds of `study` in params.yaml are still to train
"""

import base64
import json
import subprocess
import sys
import textwrap
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException

from stages.common import cli
from stages.common.dataset import read_info, read_split
from stages.common.errors import UserError, listed, printable
from stages.common.files import EVALUATION, PREDICTIONS, SEEDS, parse_csv, parse_json, sha256, write_csv
from stages.common.params import PARAMS, Params, flat, load_params, parse_yaml
from stages.evaluation.metrics import Evaluation, TestedRun
from stages.reporting.findings import answer
from stages.reporting.results import read_results, recipe_digest
from stages.reporting.wording import percent

LOCK = "dvc.lock"


@dataclass(frozen=True)
class Training:
    """A model that was trained and tested."""

    files: DVCFileSystem  # of the revision: what git, DVC's cache or its remote have of it
    run: str
    parameters: dict[str, Any]  # that it was trained with, by their names in params.yaml
    inputs: dict[str, str]  # digests of data and code, by path
    evaluation: Evaluation

    @property
    def tested(self) -> TestedRun:
        return self.evaluation.runs[self.run]


def main(args: Namespace) -> None:
    """Print the missing seeds, or write the study and print what it shows."""
    params, (own, others) = load_params(), read_trainings()
    check_workspace(own, params)
    by_seed: dict[int, dict[str, Training]] = {}
    for training in equal_but(own, others, "seed"):
        by_seed.setdefault(training.parameters["seed"], {})[training.run] = training
    whole = {seed: found for seed, found in sorted(by_seed.items()) if len(found) == len(own)}
    planned = range(params.seed, params.seed + params.study.seeds)
    missing = ",".join(str(seed) for seed in planned if seed not in whole)
    if args.missing:
        print(missing)
        return
    for seed in sorted(by_seed.keys() - whole.keys()):
        print(
            f"Seed {seed} lacks {', '.join(run for run in params.runs if run not in by_seed[seed])}, and is left out."
        )
    write_csv(SEEDS, pd.DataFrame([row_of(found[run]) for found in whole.values() for run in params.runs]))
    report()
    count = f"{len(whole)} seeds; study.seeds in {PARAMS} is {len(planned)}"
    print(f"{SEEDS}: {count}" + (f"; missing, for `make seeds`: {missing}" if missing else ""))


def report() -> None:
    """Print accuracies and verdicts as the report will have them."""
    info = read_info()
    results = read_results(info, read_split("test", info), Path.read_bytes)
    print(results.seed_accuracies.map(percent).to_string())
    for pair in results.pairs:
        said = answer(pair, results.parameters["study.margin"], len(results.pairs))
        print(textwrap.fill(f"{said['verdict']}. {said['facts'][0]}", 80))


def read_trainings() -> tuple[list[Training], list[Training]]:
    """Read what was trained and tested in the workspace, and in each commit and finished experiment.

    Parameters are those of the results: an experiment that was saved without a run has new ones beside old results.
    Experiments and branches whose results cannot be read are named in a line.

    Raises:
        UserError: the workspace has no results, or is no git repository.
    """
    try:
        own, others, unread = read_revision(None), list[Training](), list[str]()
    except (OSError, DvcException, KeyError) as error:
        raise UserError(f"no results here ({printable(error)}); run `dvc repro`") from error
    named = dict(line.split() for line in git("for-each-ref", "--format=%(objectname) %(refname)"))
    for revision in git("rev-list", "--all", "--", LOCK):
        try:
            others += read_revision(revision)
        except (UserError, OSError, DvcException, KeyError):
            unread += [printable(named[revision].rpartition("/")[2])] if revision in named else []
    if unread:
        reason = "DVC's cache lacks their results, or these have another layout"
        print(f"Passed over, since {reason}: {listed(unread)}", file=sys.stderr, flush=True)
    return own, others


def git(*arguments: str) -> list[str]:
    """Return the lines that git prints."""
    done = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="surrogateescape")
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {printable(done.stderr)}")
    return done.stdout.splitlines()


def read_revision(revision: str | None) -> list[Training]:
    """Read the trainings of a revision (None: the workspace), but for those that were repeated and not tested since."""
    files = DVCFileSystem(rev=revision)
    stages = parse_yaml(files.read_bytes(LOCK), LOCK)["stages"]
    evaluation = parse_json(files.read_bytes(str(EVALUATION)), Evaluation, EVALUATION)
    trainings, tested_with = [], {dep["path"]: dep["md5"] for dep in stages["evaluate"]["deps"]}
    for run in evaluation.runs:
        inputs = {dep["path"]: dep["md5"] for dep in stages[f"train@{run}"]["deps"]}
        if all(inputs[path] == tested_with[path] for path in inputs.keys() & tested_with.keys()):
            trainings.append(Training(files, run, parameters_of(evaluation, run), inputs, evaluation))
    return trainings


def parameters_of(evaluation: Evaluation, run: str) -> dict[str, Any]:
    """Return the parameters that a model was trained with, by their names in params.yaml."""
    recipe: dict[str, Any] = evaluation.runs[run].recipe
    values = flat({recipe["model"]: recipe["settings"]} | {name: recipe[name] for name in ("seed", "train", "augment")})
    decay = values.pop("train.weight_decay")
    return values | {str(evaluation.parameters[f"runs.{run}.weight_decay"]): decay}


def check_workspace(own: list[Training], params: Params) -> None:
    """Raise a UserError if the results in the workspace are not those of params.yaml."""
    current = flat(params.model_dump())
    changed = {name for training in own for name, value in training.parameters.items() if current.get(name) != value}
    if changed or {training.run for training in own} != {*params.runs}:
        names = listed(sorted(changed)) or "runs"
        raise UserError(f"{PARAMS}: {names} changed since the results; run `dvc repro`, or else `dvc repro --force`")


def equal_but(own: list[Training], others: list[Training], *free: str) -> list[Training]:
    """Keep the trainings that equal one of the workspace in all but these parameters; of equal ones, the first."""

    def key(training: Training, *free: str) -> str:
        values = {name: value for name, value in training.parameters.items() if name not in free}
        return json.dumps([training.run, training.inputs, values], sort_keys=True)

    wanted = {key(training, *free) for training in own}
    first = {key(training): training for training in reversed(own + others)}
    return [training for training in first.values() if key(training, *free) in wanted]


def row_of(training: Training) -> dict[str, object]:
    """Return a row of plots/seeds.csv.

    Raises:
        UserError: the answers are not those that evaluate wrote.
    """
    path = PREDICTIONS / f"{training.run}.csv"
    content = training.files.read_bytes(str(path))
    if sha256(content) != training.evaluation.files[str(path)]:
        raise UserError(f"{path}: not the one that evaluate wrote; run `dvc repro`")
    table = parse_csv(content, path)
    correct = (table.actual == table.predicted).to_numpy()
    return {
        "seed": training.parameters["seed"],
        "run": training.run,
        "accuracy": training.tested.accuracy,
        "images": len(correct),
        "correct": base64.b64encode(np.packbits(correct).tobytes()).decode(),
        "recipe": recipe_digest(training.evaluation, training.run),
    }


if __name__ == "__main__":
    parser = cli.parser("seeds", __doc__)
    parser.add_argument("--missing", action="store_true", help="print the seeds of the study that are still to train")
    cli.run(main, parser)
