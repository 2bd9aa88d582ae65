"""Train one model and write its weights, metrics and history under the name of the run.

python -m stages.train resnet --model resnet18 --epochs 100 --weight-decay 0.0005
"""

import hashlib
import json
import platform
import sys
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from stages import cli
from stages.checkpoint import Checkpoint
from stages.core.dataset import Split, read_info, read_split
from stages.core.device import Backend, choose_backend, training_flops
from stages.core.errors import UserError
from stages.core.models import MODELS, build_model, count_parameters
from stages.core.processes import Processes, is_lost_connection, join_processes, leave_processes
from stages.core.training import Epoch, Recipe, State, Trained, train
from stages.core.weights import Card, to_bytes
from stages.files import replacing, write_csv, write_json
from stages.params import Params, Run, check, load_params

DATA = Path("data")


def main(args: Namespace) -> None:
    arguments = {name: value for name, value in vars(args).items() if name in Run.model_fields}
    check(Run, arguments, "command line")
    params = load_params()
    info = read_info(DATA)
    train_split, test_split = (read_split(DATA, name, info) for name in ("train", "test"))

    recipe = read_recipe(params, args)
    card = Card(
        run=args.run,
        model=args.model,
        base_channels=params.resnet.base_channels,
        blocks=params.resnet.blocks,
        classes=info.classes,
        image_size=info.image_size,
        mean=info.mean,
        std=info.std,
        recipe=asdict(recipe),
    )
    model = build_model(card.model, len(card.classes), card.base_channels, card.blocks, recipe.seed)
    flops = training_flops(model, info.image_size, recipe.epochs * len(train_split.labels))
    processes = join_processes()
    check_processes(params, processes)
    backend = choose_backend(params.train.precision, params.train.compile, flops, processes)
    is_first = processes.rank == 0
    if is_first:
        print(f"{args.run}: {card.title}, {count_parameters(model):,} parameters, on {backend}")

    origin = fingerprint(card, backend, train_split, test_split)
    checkpoint = Checkpoint(Path(f".cache/training/{args.run}.safetensors"), origin, backend.device_name)
    state = processes.from_first(checkpoint.load() if is_first else None)
    if state and is_first:
        print(f"{args.run}: going on after epoch {len(state.history)}, the last that an interrupted training finished")
    finished = len(state.history) if state else 0
    progress = Progress(args.run, recipe.epochs, finished, len(train_split.labels), backend, silent=not is_first)

    def on_epoch(state: State) -> None:
        if is_first:
            checkpoint.save(state)
            progress.epoch(state.history[-1])

    normalisation = info.mean, info.std
    try:
        trained = train(model, train_split, test_split, normalisation, recipe, backend, state, progress.batch, on_epoch)
        model_file = to_bytes(card, trained.weights)
        processes.check_alike(sha256(model_file))
    except RuntimeError as error:
        explained = explain(error, recipe, backend)
        if explained is None:
            raise
        raise explained from error
    finally:
        progress.close()
    if is_first:
        write_results(card, trained, model_file, count_parameters(model), backend)
        checkpoint.remove()
    leave_processes()


def check_processes(params: Params, processes: Processes) -> None:
    if params.train.batch_size < processes.count:
        raise UserError(
            f"train.batch_size = {params.train.batch_size}: a batch of all {processes.count} processes together; "
            "make it larger or start fewer"
        )
    if params.train.sync_batchnorm and processes.count > 1 and not torch.cuda.is_available():
        raise UserError("train.sync_batchnorm = True: several processes can do this on GPUs alone; make it false")


def explain(error: RuntimeError, recipe: Recipe, backend: Backend) -> UserError | None:
    """The error in the user's terms, None where it is a bug of ours."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return UserError(
            f"{backend.device_name} ran out of memory at train.batch_size = {recipe.batch_size}; make it smaller"
        )
    if backend.processes.count > 1 and is_lost_connection(error):
        return UserError(
            f"another of the {backend.processes.count} processes ended, and with it this training; see what it said, "
            "and run this again to go on after the last finished epoch"
        )
    return None


def read_recipe(params: Params, args: Namespace) -> Recipe:
    return Recipe(
        seed=params.seed,
        epochs=args.epochs,
        batch_size=params.train.batch_size,
        learning_rate=params.train.learning_rate,
        momentum=params.train.momentum,
        weight_decay=args.weight_decay,
        schedule=params.train.schedule,
        crop_padding=params.augment.crop_padding,
        flip=params.augment.flip,
        keep=params.train.keep,
        sync_batchnorm=params.train.sync_batchnorm,
    )


def fingerprint(card: Card, backend: Backend, *splits: Split) -> dict[str, str]:
    """What the bytes of a training follow from, but for the number of threads and processes."""
    loaded = (getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("stages."))
    modules = sorted({__file__, *filter(None, loaded)})
    return {
        "parameters": json.dumps(asdict(card), sort_keys=True),
        "data": sha256(*(array for split in splits for array in split)),
        "code": sha256(*(Path(module).read_bytes() for module in modules)),
        "torch": torch.__version__,
        "device": backend.kind,
    }


def sha256(*contents: bytes | np.ndarray) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def write_results(card: Card, trained: Trained, model_file: bytes, parameters: int, backend: Backend) -> None:
    best, final = trained.best, trained.history[-1]
    metrics = {
        "best_test_accuracy": best.test_accuracy,
        "best_epoch": best.epoch,
        "final_test_accuracy": final.test_accuracy,
        "final_test_loss": final.test_loss,
        "final_train_accuracy": final.train_accuracy,
        "final_train_loss": final.train_loss,
        "generalization_gap": final.generalization_gap,
        "parameters": parameters,
        "epochs": final.epoch,
        "weight_decay": card.recipe["weight_decay"],
    }
    timing = {
        "train_seconds": round(trained.seconds, 2),
        "images_per_second": round(trained.images_per_second, 1),
        "device": backend.device_name,
        "precision": backend.precision,
        "compiled": backend.compile,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    with replacing(Path(f"models/{card.run}.safetensors"), "wb") as file:
        file.write(model_file)
    write_json(Path(f"metrics/train/{card.run}.json"), {key: round(value, 6) for key, value in metrics.items()})
    write_json(Path(f"metrics/timing/{card.run}.json"), timing)
    write_csv(Path(f"plots/history/{card.run}.csv"), pd.DataFrame(trained.history))


class Progress:
    """A bar over the images of the run on a terminal, a line an epoch elsewhere; early word of a long run on a CPU."""

    SETTLED = 10  # seconds after which the speed so far tells how long the run takes
    LONG = 3600  # seconds

    def __init__(self, run: str, epochs: int, finished: int, images: int, backend: Backend, silent: bool = False):
        self.run, self.epochs, self.to_do = run, epochs, (epochs - finished) * images
        total, initial = epochs * images, finished * images
        disable = True if silent else None  # None: where there is no terminal
        self.bar = tqdm(total=total, initial=initial, desc=run, unit=" images", unit_scale=True, disable=disable)
        self.began: float | None = None  # when the first batch was done, which pays for starting up
        self.done = 0  # images since then
        self.announced = silent or backend.device.type != "cpu"

    def batch(self, images: int) -> None:
        self.bar.update(images)
        if self.began is None:
            self.began = time.perf_counter()
            return
        self.done += images
        if not self.announced and time.perf_counter() - self.began > self.SETTLED:
            self.announced = True
            if self.left() > self.LONG:
                self.bar.write(
                    f"{self.run}: about {self.left() / 3600:.0f} h to go on this CPU. `make demo` takes minutes; "
                    "fewer epochs or `-S resnet.base_channels=16` shorten it.",
                    file=sys.stderr,
                )

    def epoch(self, epoch: Epoch) -> None:
        figures = f"loss {epoch.train_loss:.4f}, train {epoch.train_accuracy:.2%}, test {epoch.test_accuracy:.2%}"
        if not self.bar.disable:
            self.bar.set_postfix_str(f"epoch {epoch.epoch}/{self.epochs}: {figures}")
            return
        speed = self.done / (time.perf_counter() - self.began)
        left = tqdm.format_interval(self.left())
        print(f"{self.run} {epoch.epoch}/{self.epochs}: {figures}, {speed:,.0f} images/s, {left} left", flush=True)

    def left(self) -> float:
        """Seconds to the end at the speed so far."""
        elapsed = time.perf_counter() - self.began
        return elapsed / self.done * (self.to_do - self.done)

    def close(self) -> None:
        self.bar.close()


if __name__ == "__main__":
    parser = ArgumentParser(prog="train", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="the name under which the results are written")
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--weight-decay", type=float, required=True)
    cli.run(main, parser)
