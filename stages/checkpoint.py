"""The state of a training on disk, from which a killed one goes on when the stage is run again."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from stages.core.training import Epoch, State
from stages.files import replacing


class Checkpoint:
    """One file, written in the background while the next epoch is trained, removed when the training is done.

    Args:
        path: where it lies: outside of DVC's outputs, which DVC removes before it starts a stage.
        fingerprint: what the result follows from; a state with another one is not gone on with.
        workers: how many of what train; a state of others is gone on with, but ends in other last digits.
    """

    def __init__(self, path: Path, fingerprint: dict[str, str], workers: str):
        self.path, self.fingerprint, self.workers = path, fingerprint, workers
        self.copies: dict[str, Tensor] = {}
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.writing: Future | None = None

    def load(self) -> State | None:
        """The state that an interrupted training left, or None; says in a line why one that is there is not used."""
        if not self.path.exists():
            return None
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                found = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
            print(f"{self.path}: starting anew, because this state of an interrupted training cannot be read ({error})")
            return None
        changed = [what for what, digest in self.fingerprint.items() if found["fingerprint"].get(what) != digest]
        if changed:
            print(f"{self.path}: starting anew, because this interrupted training had other {' and '.join(changed)}")
            return None
        if found["workers"] != self.workers:
            print(
                f"{self.path}: trained on {found['workers']} so far, now on {self.workers}: the result will differ in "
                "its last digits from one of a single kind"
            )
        return State(
            [Epoch(**epoch) for epoch in found["history"]],
            {name.removeprefix("step."): tensor for name, tensor in tensors.items() if name.startswith("step.")},
            {name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")},
            found["seconds"],
            found["training_seconds"],
        )

    def save(self, state: State) -> None:
        """Copy the state to the host and have it written; returns when it is copied.

        Raises:
            OSError: the state before could not be written.
        """
        self._written()
        tensors = {f"step.{name}": tensor for name, tensor in state.tensors.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in state.best_weights.items()}
        for name, tensor in tensors.items():
            if name not in self.copies:
                self.copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self.copies[name].copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        described = {
            "fingerprint": self.fingerprint,
            "workers": self.workers,
            "history": [asdict(epoch) for epoch in state.history],
            "seconds": state.seconds,
            "training_seconds": state.training_seconds,
        }
        self.writing = self.writer.submit(self._write, json.dumps(described))

    def _write(self, described: str) -> None:
        # No tensor operation in this thread, not even a change of memory format: OpenMP would start threads for it as
        # well, and once it has more threads than there are cores, those of the training sleep at each wait.
        with replacing(self.path, "wb") as file:
            file.write(safetensors.torch.save(self.copies, {"state": described}))

    def _written(self) -> None:
        """Wait for what is being written, and raise what went wrong with it."""
        if self.writing:
            self.writing.result()

    def remove(self) -> None:
        self._written()
        self.path.unlink(missing_ok=True)
