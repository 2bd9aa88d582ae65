"""The state of a training after an epoch, and its file on disk, from which the stage resumes when it is run again."""

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, contiguous_format

from stages.common.errors import printable
from stages.common.files import sha256, write_bytes

FOLDER = Path(".cache/training")  # outside of DVC's outputs, which DVC removes before it starts a stage
SHARE = 50  # a checkpoint is due when this many times its duration has passed: checkpoints take at most a fiftieth
LOCK = Path("dvc.lock")


@dataclass
class State:
    """The state of a training after an epoch: all that is needed to resume it as if it had never stopped.

    Attributes:
        tensors: see `Step.tensors`.
        history: a row for each epoch: the columns of plots/history/RUN.csv.
        best_weights: the state_dict of the best epoch; empty where the last one is kept.
        seconds: since the start, testing and compilation included.
        training_seconds: without testing.
    """

    tensors: dict[str, Tensor]
    history: list[dict[str, float]] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    training_seconds: float = 0.0

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state_dict to keep."""
        return self.best_weights or _below("model.", self.tensors)

    @property
    def held_out(self) -> str:
        """The images on which epochs are compared: `validation` or `test`."""
        return "validation" if "validation_accuracy" in self.history[0] else "test"

    @property
    def best(self) -> dict[str, float]:
        """The first row of the history with the highest accuracy on those images."""
        return max(self.history, key=lambda row: row[f"{self.held_out}_accuracy"])


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class Checkpoint:
    """The file of one run, written at once, between two epochs.

    It stays when the training is over, until DVC has the results: if they are lost before, the next run of the stage
    writes them again without training.

    Args:
        run: the name of the run.
        fingerprint: everything that the result follows from; a checkpoint with another one is not used.
        devices: their number and kind. Resuming on others is allowed, and is said.
    """

    def __init__(self, run: str, fingerprint: dict[str, str], devices: str):
        self.path, self.fingerprint, self.devices = FOLDER / f"{run}.safetensors", fingerprint, devices
        self.due = 0.0  # by time.monotonic()

    def load(self) -> State | None:
        """Return the state of an interrupted training, or None; print why a checkpoint is not used."""
        if not self.path.exists():
            return None
        try:
            card, tensors = from_bytes(self.path.read_bytes())
            if other := [name for name, value in self.fingerprint.items() if card["fingerprint"].get(name) != value]:
                raise ValueError(f"has other {' and '.join(other)}")
        except ValueError as error:
            print(f"{self.path}: starting from epoch 1, because this checkpoint {printable(error)}")
            return None
        if card["devices"] != self.devices:
            print(f"{self.path}: begun on {card['devices']}, resumed on {self.devices}: like another seed")
        step, best = (_below(prefix, tensors) for prefix in ("step.", "best."))
        return State(step, card["history"], best, card["seconds"], card["training_seconds"])

    def save(self, state: State, finished: bool) -> None:
        """Write the state if a checkpoint is due, that of a finished training always.

        If the file cannot be written, a line says so and the training continues.
        """
        began = time.monotonic()
        if began < self.due and not finished:
            return
        card = {name: getattr(state, name) for name in ("history", "seconds", "training_seconds")}
        card |= {"fingerprint": self.fingerprint, "devices": self.devices}
        tensors = {f"step.{name}": tensor for name, tensor in state.tensors.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in state.best_weights.items()}
        content = to_bytes(card, tensors)
        try:
            write_bytes(self.path, content)
        except OSError as error:
            reason = f"{error.strerror}, {len(content) / 2**20:,.0f} MiB are needed"
            print(f"{self.path}: no checkpoint ({reason}); an interruption would lose this training, which goes on")
        self.due = time.monotonic() + SHARE * (time.monotonic() - began)


def is_stored(model_file: bytes) -> bool:
    """Return whether DVC has this model: dvc.lock, which it writes last, has its md5."""
    return LOCK.is_file() and hashlib.md5(model_file, usedforsecurity=False).hexdigest() in LOCK.read_text()


def to_bytes(card: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """Return a safetensors file with a JSON object and tensors, which depends on them alone, and a digest over both."""
    tensors = {name: tensor.detach().cpu().clone(memory_format=contiguous_format) for name, tensor in tensors.items()}
    # Copies: a module may have two names. One entry of metadata: safetensors writes several in random order
    return safetensors.torch.save(tensors, {"card": json.dumps(card | {"sha256": _digest(card, tensors)})})


def from_bytes(content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON object and the tensors of a file, on the CPU.

    Raises:
        ValueError: the content is no such file, or damaged.
    """
    try:
        tensors = safetensors.torch.load(content)
        card = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["card"])
        digest = card.pop("sha256")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"is no safetensors file of this pipeline: {error}") from error
    if digest != _digest(card, tensors):
        raise ValueError("is damaged: its content does not have the digest that it states")
    return card, tensors


def _digest(card: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    return sha256(json.dumps(card).encode() + safetensors.torch.save(tensors))
