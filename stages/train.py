"""Train one run and write its model, timing and history.

python -m stages.train resnet
"""

import json
import platform
from argparse import Namespace
from contextlib import nullcontext, suppress

import pandas as pd
import torch

from stages.common import cli
from stages.common.dataset import Dataset, read_dataset
from stages.common.errors import UserError
from stages.common.files import HISTORY, MODELS, TIMING, locked, sha256, write_bytes, write_csv, write_json
from stages.common.inputs import Inputs
from stages.common.params import load_params
from stages.training.checkpoint import FOLDER, Checkpoint, State, is_stored
from stages.training.device import Device, choose_device
from stages.training.distributed import check_processes, joined_processes
from stages.training.loop import train
from stages.training.progress import Progress
from stages.training.recipe import Recipe, build_model, count_parameters, recipe_of
from stages.training.weights import Card, to_bytes


def main(args: Namespace) -> None:
    """Train the run that the command line names."""
    with joined_processes() as processes:
        inputs = Inputs(lambda: recipe_of(load_params(), args.run))
        recipe, dataset = inputs.settings, read_dataset(inputs.read)
        check_processes(recipe.train, processes.world_size)
        device = choose_device(recipe.train, recipe.epochs * len(dataset.train.labels), processes)
        held = f"{recipe.run}: another process trains this run in this folder; wait for it, or stop it"
        with locked(FOLDER / f"{recipe.run}.lock", held) if processes.rank == 0 else nullcontext():
            state = train_run(recipe, dataset, inputs, device)
            model_file = to_model_file(recipe, dataset, state)
            if processes.differing({"weights": sha256(model_file)}):
                raise RuntimeError(f"the {processes.world_size} processes ended with different weights")
            if processes.rank == 0:
                inputs.check()
                write_bytes(MODELS / f"{recipe.run}.safetensors", model_file)
                write_json(TIMING / f"{recipe.run}.json", timing(state, len(dataset.train.labels), device))
                write_csv(HISTORY / f"{recipe.run}.csv", pd.DataFrame(state.history))


def train_run(recipe: Recipe, dataset: Dataset, inputs: Inputs[Recipe], device: Device) -> State:
    """Train the model, or resume an interrupted training of it; rank 0 reports and keeps checkpoints.

    Raises:
        UserError: the processes began with different inputs.
    """
    processes, fingerprint = device.processes, fingerprint_of(inputs, device)
    # Not the device: the GPUs of a cluster may be of several kinds
    if differing := processes.differing({what: value for what, value in fingerprint.items() if what != "device"}):
        different = f"the {processes.world_size} processes began with different {' and '.join(differing)}"
        raise UserError(f"{different}; give all of them the same files")
    model = build_model(recipe, len(dataset.info.classes))
    if processes.rank > 0:
        state = processes.broadcast(None)
        return [state, *train(model, dataset, recipe, device, state)][-1]
    print(f"{recipe.run}: {recipe.title}, {count_parameters(model):,} parameters")
    print(f"{recipe.run}: on {device}", flush=True)
    checkpoint = Checkpoint(recipe.run, fingerprint, device.name)
    state = resumed = processes.broadcast(resumable(checkpoint, recipe, dataset))
    progress = Progress(recipe, len(dataset.train.labels), len(state.history) if state else 0, device)
    for state in train(model, dataset, recipe, device, resumed, progress.batches):
        checkpoint.save(state, finished=len(state.history) == recipe.epochs)
        with suppress(OSError):  # `main` writes it again, and reports what is wrong
            write_csv(HISTORY / f"{recipe.run}.csv", pd.DataFrame(state.history))
        progress.epoch(state)
    progress.finish(state)
    return state


def resumable(checkpoint: Checkpoint, recipe: Recipe, dataset: Dataset) -> State | None:
    """Return the state from which to go on, if there is one."""
    state = checkpoint.load()
    if state and len(state.history) == recipe.epochs and is_stored(to_model_file(recipe, dataset, state)):
        return None  # DVC has the results and asks for a training all the same: `dvc repro --force`
    if state:
        print(f"{recipe.run}: resumed after epoch {len(state.history)} of {recipe.epochs}", flush=True)
    return state


def fingerprint_of(inputs: Inputs[Recipe], device: Device) -> dict[str, str]:
    """Return everything that determines the bytes of a training, except the number of threads and processes."""
    return {
        "parameters": inputs.settings.model_dump_json(),
        "data": json.dumps([*inputs.files.values()]),
        "code": json.dumps([*inputs.code().values()]),  # wherever the project lies
        "device": device.kind,
    }


def timing(state: State, images: int, device: Device) -> dict[str, object]:
    """Return metrics/timing/RUN.json: all that differs from run to run or from machine to machine, and nothing else."""
    return {
        "train_seconds": round(state.seconds, 2),  # testing after each epoch and compilation included
        "images_per_second": round(len(state.history) * images / state.training_seconds, 1),  # testing left out
        "device": device.name,
        "instruction_set": device.instructions,
        "threads": torch.get_num_threads(),
        "precision": device.precision,
        "compiled": device.compile,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def to_model_file(recipe: Recipe, dataset: Dataset, state: State) -> bytes:
    """Return the content of models/RUN.safetensors."""
    return to_bytes(Card(recipe=recipe, data=dataset.info, history=state.history), state.weights)


if __name__ == "__main__":
    parser = cli.parser("train", __doc__)
    parser.add_argument("run", help="its name under `runs` in params.yaml")
    cli.run(main, parser)
