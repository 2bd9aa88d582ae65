"""Train one model and write its weights, metrics and history under the name of the run.

python -m stages.train resnet --model resnet --weight-decay train.weight_decay
"""

import contextlib
import hashlib
import platform
from argparse import Namespace
from contextlib import AbstractContextManager

import torch

from stages.common import cli
from stages.common.dataset import Dataset, read_dataset
from stages.common.errors import UserError
from stages.common.files import locked, write_bytes, write_csv, write_json
from stages.common.formats import DATA, HISTORY, MODELS, TIMING, TRAIN_METRICS, Epoch, Metrics, Timing, of_run
from stages.common.inputs import Inputs
from stages.common.params import Recipe, load_params
from stages.training.checkpoint import FOLDER, Checkpoint, Recorder, fingerprint
from stages.training.device import Backend, choose_backend, explained
from stages.training.distributed import check_processes, joined_processes
from stages.training.loop import train
from stages.training.models import build_model, count_parameters
from stages.training.progress import Progress
from stages.training.state import State
from stages.training.weights import Card, to_bytes


def main(args: Namespace) -> None:
    with joined_processes() as processes:
        inputs = Inputs(lambda: load_params().recipe(args.run, args.model, args.weight_decay), DATA)
        recipe, dataset = inputs.settings, read_dataset()
        check_processes(recipe.train, processes.world_size)
        backend = choose_backend(recipe.train, recipe.settings.epochs * len(dataset.train.labels), processes)
        with alone(recipe.run) if processes.rank == 0 else contextlib.nullcontext(), explained(recipe, backend):
            state = train_run(recipe, dataset, inputs, backend)
            model_file = to_bytes(Card(recipe=recipe, data=dataset.info), state.weights)
            if processes.differing({"weights": hashlib.sha256(model_file).hexdigest()}):
                raise RuntimeError(f"the {processes.world_size} processes ended with different weights")
            if processes.rank == 0:
                inputs.check()
                write_results(recipe.run, state, model_file, timing(state, len(dataset.train.labels), backend))


def alone(run: str) -> AbstractContextManager:
    """The only training of this run in this folder."""

    def refuse() -> None:
        raise UserError(f"{run}: another process trains this run in this folder; wait for it, or stop it")

    return locked(FOLDER / f"{run}.lock", refuse)


def train_run(recipe: Recipe, dataset: Dataset, inputs: Inputs, backend: Backend) -> State:
    """Train the model, or resume an interrupted training of it; rank 0 reports and keeps checkpoints."""
    processes, origin = backend.processes, fingerprint(inputs, backend.kind)
    # Devices may be of several kinds
    if differing := processes.differing({what: value for what, value in origin.items() if what != "device"}):
        raise UserError(
            f"the {processes.world_size} processes began with different {' and '.join(differing)}; give all of them "
            "the same files"
        )
    model = build_model(recipe.settings, len(dataset.info.classes), recipe.seed)
    if processes.rank > 0:
        return train(model, dataset, recipe, backend, processes.broadcast(None))
    print(f"{recipe.run}: {recipe.settings.title}, {count_parameters(model):,} parameters")
    print(f"{recipe.run}: on {backend}", flush=True)
    checkpoint = Checkpoint(recipe.run, origin, backend.device_name)
    resumed = processes.broadcast(checkpoint.load(model))
    if resumed:
        print(f"{recipe.run}: resumed after epoch {len(resumed.history)} of {recipe.settings.epochs}", flush=True)
    finished = len(resumed.history) if resumed else 0
    progress = Progress(recipe, len(dataset.train.labels), finished, backend)
    try:
        state = train(model, dataset, recipe, backend, resumed, Recorder(recipe, checkpoint, progress))
    except KeyboardInterrupt as stopped:
        checkpoint.close()
        epoch = max(finished, checkpoint.saved)
        stopped.add_note(f"run the same command to resume {recipe.run} after epoch {epoch}" if epoch else "no epoch of "
                         f"{recipe.run} was finished; run the same command to start it again")  # fmt: skip
        raise
    finally:
        progress.close()
        checkpoint.close()
    progress.finish(state)
    return state


def timing(state: State, images: int, backend: Backend) -> Timing:
    return Timing(
        train_seconds=round(state.seconds, 2),
        images_per_second=round(len(state.history) * images / state.training_seconds, 1),
        device=backend.device_name,
        precision=backend.precision,
        compiled=backend.compile,
        torch=torch.__version__,
        python=platform.python_version(),
    )


def write_results(run: str, state: State, model_file: bytes, timing: Timing) -> None:
    best, last = state.best, state.history[-1]
    kept = best if state.best_weights else last
    write_bytes(of_run(MODELS, run), model_file)
    write_json(
        of_run(TRAIN_METRICS, run),
        Metrics(
            accuracy=kept.test_accuracy,
            loss=kept.test_loss,
            last_accuracy=last.test_accuracy,
            gap=last.generalization_gap,
            best_epoch=best.epoch,
        ),
    )
    write_json(of_run(TIMING, run), timing)
    write_csv(of_run(HISTORY, run), Epoch, state.history)


if __name__ == "__main__":
    parser = cli.parser("train", __doc__)
    parser.add_argument("run", help="the name under which the results are written")
    parser.add_argument("--model", required=True, help="its section of params.yaml: cnn or resnet")
    parser.add_argument("--weight-decay", required=True, help="the parameter that holds it, such as train.weight_decay")
    cli.run(main, parser)
