"""Test the model of every run in fp32 on the whole test set, and compare the pairs under `compare`.

python -m stages.evaluate
"""

from argparse import Namespace

from stages.common import cli, formats
from stages.common.dataset import DatasetInfo, read_info, read_split
from stages.common.errors import UserError, listed, printable, shown
from stages.common.files import read_csv, write_csv, write_json
from stages.common.formats import of_run
from stages.common.inputs import Inputs
from stages.common.params import PARAMS, PIPELINE, load_params, load_runs
from stages.evaluation.metrics import Tested, compare
from stages.training.checkpoint import discard_finished
from stages.training.weights import Classifier, load_model


def main(args: Namespace) -> None:
    inputs = Inputs(lambda: (load_params().compare, load_runs()), formats.DATA, formats.MODELS, formats.HISTORY)
    pairs, runs = inputs.settings[0], sorted(inputs.settings[1])
    check_pairs(pairs, runs)
    check_models(runs)
    info = read_info()
    test = read_split("test", info)
    curves = gathered_histories(runs)

    tested, summaries = {}, {}
    for run in runs:
        classifier = load_run(run, info)
        tested[run] = Tested(run, test.labels, classifier.probabilities(test.images), info.classes)
        summaries[run] = tested[run].summary(classifier.card.recipe, classifier.parameters)
        print(f"{run}: {summaries[run].accuracy:.2%} of {len(test.labels):,} test images are right", flush=True)
    compared = {name: compare(tested[first], tested[second]) for name, (first, second) in pairs.items()}

    inputs.check()
    clear_stale(runs, pairs)
    write_json(formats.EVALUATION, formats.Evaluation(runs=summaries, comparisons=compared))
    for name, pair in compared.items():
        write_json(formats.COMPARISONS / f"{name}.json", formats.Comparison(difference=pair.difference, p=pair.p))
    for run in runs:
        write_csv(of_run(formats.PREDICTIONS, run), formats.Prediction, tested[run].predictions())
    write_csv(formats.CURVES, formats.Curve, curves)
    write_csv(formats.PER_CLASS, formats.ClassScores, [row for run in runs for row in tested[run].by_class()])
    write_csv(formats.CALIBRATION, formats.CalibrationBin, [row for run in runs for row in tested[run].by_confidence()])
    for run in runs:  # DVC starts this stage only when it has the results of the trainings
        discard_finished(run)


def check_pairs(pairs: dict[str, list[str]], runs: list[str]) -> None:
    for name, (first, second) in pairs.items():
        if unknown := [run for run in (first, second) if run not in runs]:
            raise UserError(
                f"{PARAMS}: compare.{name} names {shown(unknown[0])}, which is no run of {PIPELINE}; there is "
                f"{', '.join(runs)}"
            )
        if first == second:
            raise UserError(f"{PARAMS}: compare.{name} compares {first} with itself; name two runs, or delete the line")


def check_models(runs: list[str]) -> None:
    """Raise a UserError if models/ holds one that belongs to no run: DVC keeps the outputs of a stage that is gone.

    DVC does not know that this stage reads the names of the runs. So they must be those of the files, which it knows.
    """
    strangers = sorted(set(formats.MODELS.glob("*.safetensors")) - {of_run(formats.MODELS, run) for run in runs})
    if strangers:
        names = listed([printable(path) for path in strangers])
        raise UserError(f"{names}: {PIPELINE} has no run of that name; delete the file, or restore the run's line")


def gathered_histories(runs: list[str]) -> list[formats.Curve]:
    """All histories in one table."""
    rows = ((run, row) for run in runs for row in read_csv(of_run(formats.HISTORY, run), formats.Epoch))
    return [formats.Curve(run=run, **row.model_dump()) for run, row in rows]


def load_run(run: str, info: DatasetInfo) -> Classifier:
    path = of_run(formats.MODELS, run)
    classifier = load_model(path)
    of = classifier.card.recipe.run
    if of != run:
        raise UserError(f"{path}: holds the model of run {of}; delete it and train {run} with `dvc repro`")
    if not classifier.card.data.fits(info):
        raise UserError(f"{path}: trained on other classes or sizes than data/ holds; train it with `dvc repro`")
    return classifier


def clear_stale(runs: list[str], pairs: dict[str, list[str]]) -> None:
    """Delete the results of runs and pairs that are gone, as DVC does before it starts this stage."""
    wanted = {of_run(formats.PREDICTIONS, run) for run in runs} | {
        formats.COMPARISONS / f"{name}.json" for name in pairs
    }
    for folder, kind in ((formats.PREDICTIONS, "*.csv"), (formats.COMPARISONS, "*.json")):
        folder.mkdir(parents=True, exist_ok=True)
        for path in set(folder.glob(kind)) - wanted:
            path.unlink()


if __name__ == "__main__":
    cli.run(main, cli.parser("evaluate", __doc__))
