"""The state of a training on disk, from which it is resumed when the stage is run again."""

import contextlib
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from stages.common.errors import UserError, explain, printable
from stages.common.files import replacing, write_csv
from stages.common.formats import HISTORY, Epoch, of_run
from stages.common.inputs import Inputs
from stages.common.params import Recipe, Section
from stages.training import tensor_file
from stages.training.progress import Progress
from stages.training.snapshot import Snapshot
from stages.training.state import Observer, State

FOLDER = Path(".cache/training")  # outside of DVC's outputs, which DVC removes before it starts a stage
INTERVAL = 5  # seconds between two checkpoints, at least


class Header(Section):
    """The metadata of a checkpoint."""

    fingerprint: dict[str, str]
    workers: str
    history: list[Epoch]
    seconds: float
    training_seconds: float
    finished: bool


class Checkpoint:
    """One file, written in the background while the next epoch is trained.

    It stays when the training is over, until DVC has the results (see `discard_finished`): if they are lost before,
    the next run writes them again without training.

    Args:
        run: the name of the run.
        fingerprint: everything that the result follows from; a checkpoint with another one is not used.
        workers: number and kind of the devices. Resuming on others is allowed; the last digits will differ.
    """

    def __init__(self, run: str, fingerprint: dict[str, str], workers: str):
        self.path, self.fingerprint, self.workers = FOLDER / f"{run}.safetensors", fingerprint, workers
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.writing: Future | None = None
        self.snapshot: Snapshot | None = None
        self.saved = 0  # epochs in the last checkpoint that was written
        self.time = float("-inf")  # of the last checkpoint
        self.failed = False  # and a line said so

    def load(self, model: nn.Module) -> State | None:
        """The state of an interrupted training of the model, or None; prints why a checkpoint is not used."""
        if not self.path.exists():
            return None
        try:
            text, tensors = tensor_file.read(self.path)
            found = Header.model_validate(text)
            state = _state(found, tensors, model)
        except (UserError, ValueError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else printable(error)
            print(f"{self.path}: starting from epoch 1, because this checkpoint cannot be used: {reason}")
            return None
        changed = [what for what, digest in self.fingerprint.items() if found.fingerprint.get(what) != digest]
        if changed:
            print(f"{self.path}: starting from epoch 1, because this checkpoint has other {' and '.join(changed)}")
            return None
        if found.workers != self.workers:
            print(f"{self.path}: begun on {found.workers}, resumed on {self.workers}: the last digits will differ")
        return state

    def save(self, state: State, finished: bool) -> None:
        """Write the state, unless the last checkpoint is younger than INTERVAL; that of a finished training always.

        The training continues meanwhile. If the file cannot be written, a line says so and the training continues.
        """
        if finished:
            self._wait()
        elif time.monotonic() < self.time + INTERVAL or (self.writing and not self.writing.done()):
            return
        self._report()
        self.time = time.monotonic()
        header = Header(
            fingerprint=self.fingerprint,
            workers=self.workers,
            history=state.history,
            seconds=state.seconds,
            training_seconds=state.training_seconds,
            finished=finished,
        )
        self.snapshot = self.snapshot or Snapshot(state)
        self.writing = self.writer.submit(self._write, header.model_dump(), self.snapshot, self.snapshot.take(state))
        if finished:
            self._wait()
            self._report()

    def _write(self, header: dict[str, Any], snapshot: Snapshot, copied: torch.cuda.Event | None) -> None:
        # No tensor operation in this thread: OpenMP would start threads for it as well, and once it has more threads
        # than there are cores, those of the training sleep at each wait.
        if copied:
            copied.synchronize()
        with replacing(self.path) as file:
            file.write(snapshot.layout.head(header, snapshot.content))
            file.write(snapshot.content)
        self.saved, self.failed = len(header["history"]), False

    def _wait(self) -> None:
        if self.writing:
            self.writing.exception()

    def _report(self) -> None:
        """Say in a line that the checkpoint before could not be written, once until one is."""
        error = self.writing.exception() if self.writing else None
        self.writing = None
        if isinstance(error, OSError) and self.snapshot and not self.failed:
            self.failed = True
            reason = f"{error.strerror}, {self.snapshot.layout.size / 2**20:,.0f} MiB are needed"
            print(f"{self.path}: no checkpoint ({reason}); an interruption would lose this training, which continues")
        elif error and not isinstance(error, OSError):
            raise error

    def close(self) -> None:
        """Wait for what is being written."""
        self._wait()
        self._report()
        self.writer.shutdown()


def _state(header: Header, tensors: dict[str, Tensor], model: nn.Module) -> State:
    """The state that a checkpoint holds.

    Raises:
        ValueError: it is not that of a training of this model.
    """
    parts: dict[str, dict[str, Tensor]] = {"step": {}, "best": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    weights = model.state_dict()
    step = {f"model.{name}": tensor for name, tensor in weights.items()}
    step |= {f"momentum.{name}": tensor for name, tensor in model.named_parameters()}
    kinds = {part: _kinds(found) for part, found in parts.items()}
    if kinds["step"] != _kinds(step) or kinds["best"] not in ({}, _kinds(weights)) or len(parts) > 2:
        raise ValueError("its tensors are not those of this model")
    if not header.history or [epoch.epoch for epoch in header.history] != [*range(1, len(header.history) + 1)]:
        raise ValueError("its epochs are not numbered from 1")
    return State(parts["step"], header.history, parts["best"], header.seconds, header.training_seconds)


def _kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


class Recorder(Observer):
    """Keeps checkpoint and history up to date, and shows the progress."""

    def __init__(self, recipe: Recipe, checkpoint: Checkpoint, progress: Progress):
        self.recipe, self.checkpoint, self.progress = recipe, checkpoint, progress

    def on_batch(self, images: int) -> None:
        self.progress.batch(images)

    def on_epoch(self, state: State) -> None:
        self.checkpoint.save(state, finished=len(state.history) == self.recipe.settings.epochs)
        with contextlib.suppress(OSError):  # `write_results` writes it again, and reports what is wrong
            write_csv(of_run(HISTORY, self.recipe.run), Epoch, state.history, synced=False)
        self.progress.epoch(state.history[-1])


def fingerprint(inputs: Inputs[Recipe], device: str) -> dict[str, str]:
    """Everything that determines the bytes of a training, except the number of threads and processes.

    Args:
        device: the kind of device, see `Backend.kind`.
    """
    return {
        "parameters": inputs.settings.model_dump_json(),
        "data": json.dumps(inputs.data),
        "code": json.dumps([*inputs.code.values()]),  # wherever the project lies
        "torch": torch.__version__,
        "device": device,
    }


def discard_finished(run: str) -> None:
    """Remove the checkpoint of a finished training of this run, since DVC has its results; leave one to be resumed."""
    path = FOLDER / f"{run}.safetensors"
    try:
        if path.exists() and Header.model_validate(tensor_file.read(path)[0]).finished:
            path.unlink()
    except (UserError, ValueError):
        return  # damaged: the next training says so and starts from epoch 1
