"""Test the model of every run in fp32 on the whole test set, and compare the pairs under `compare`.

python -m stages.evaluate
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pandas as pd

from stages.common import cli, files
from stages.common.dataset import DATASET, DatasetInfo, read_info, read_split
from stages.common.errors import UserError, listed, shown
from stages.common.files import csv_bytes, sha256, write_bytes, write_json
from stages.common.inputs import Inputs
from stages.common.params import PARAMS, Params, flat, load_params
from stages.evaluation.metrics import Evaluation, TestResult, compare, suspects
from stages.training.recipe import Recipe, count_parameters, recipe_of
from stages.training.weights import Classifier, parse_model


def main(args: Namespace) -> None:
    """Write the results of all runs under `runs` in params.yaml."""
    inputs = Inputs(load_settings)
    params, recipes = inputs.settings
    info = read_info(inputs.read)
    made = info.model_dump(include={"source", "image_size", "test_share", "validation"}, exclude_none=True)
    check_equal(DATASET, "made", {"data": made}, params.model_dump())
    test = read_split("test", info, inputs.read)
    results, summaries, curves = {}, {}, []
    for run, recipe in recipes.items():
        model = read_model(run, recipe, info, inputs)
        history = pd.DataFrame(model.card.history)
        results[run] = TestResult(run, test.labels, model.log_probabilities(test.images), info.classes, test.names)
        values = model.card.recipe.model_dump(mode="json")
        summaries[run] = results[run].summary(values, recipe.title, count_parameters(model.network), history)
        curves.append(history.assign(run=run)[["run", *history]])
        print(f"{run}: {summaries[run].accuracy:.2%} of {len(test.labels):,} test images are right", flush=True)
    tables = {path: csv_bytes(table) for path, table in tables_of([*results.values()], curves).items()}
    unused = dict.fromkeys(params.models.keys() - {of.model for of in params.runs.values()}, True)
    evaluation = Evaluation(
        data=info.sha256,
        parameters=flat(params.model_dump(exclude={"launcher": True, "data": {"path"}, **unused})),
        runs=summaries,
        comparisons=compare(results, params.compare),
        files={str(path): sha256(content) for path, content in tables.items()},
    )
    inputs.check()
    for path, content in tables.items():
        write_bytes(path, content)
    write_json(files.ACCURACY, {run: round(of.accuracy, 6) for run, of in summaries.items()})
    pairs = evaluation.comparisons.items()
    write_json(files.COMPARE, {name: {"difference": round(of.difference, 6), "p": of.adjusted_p} for name, of in pairs})
    write_json(files.EVALUATION, evaluation)


def load_settings() -> tuple[Params, dict[str, Recipe]]:
    """Return the parameters and the recipe of each run."""
    params = load_params()
    return params, {run: recipe_of(params, run) for run in params.runs}


def read_model(run: str, recipe: Recipe, info: DatasetInfo, inputs: Inputs) -> Classifier:
    """Read the model of a run.

    Raises:
        UserError: it is missing or damaged, was trained by another recipe than params.yaml has, or on other data.
    """
    path = files.MODELS / f"{run}.safetensors"
    model = parse_model(inputs.read(path), path)
    check_equal(path, "trained", model.card.recipe.model_dump(), recipe.model_dump())
    if model.card.data != info:
        raise UserError(f"{path}: trained on other images than data/ holds; train it with `dvc repro`")
    return model


def check_equal(path: Path, made: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise a UserError if `path` was made with values that are not those wanted."""
    found, wanted = flat(found), flat(wanted)
    if differing := [name for name in found if found[name] != wanted.get(name)]:
        values = [f"{name} {shown(found[name])}, {PARAMS} has {shown(wanted.get(name))}" for name in differing]
        raise UserError(f"{path}: {made} with {listed(values)}; run `dvc repro`, with --force if this comes again")


def tables_of(results: list[TestResult], curves: list[pd.DataFrame]) -> dict[Path, pd.DataFrame]:
    """Return the tables under plots/, by path."""
    return {
        files.CURVES: pd.concat(curves),
        files.PER_CLASS: pd.concat([result.by_class() for result in results]),
        files.CALIBRATION: pd.concat([result.by_confidence() for result in results]),
        files.SUSPECTS: suspects(results),
        **{files.PREDICTIONS / f"{result.run}.csv": result.predictions() for result in results},
    }


if __name__ == "__main__":
    cli.run(main, cli.parser("evaluate", __doc__))
