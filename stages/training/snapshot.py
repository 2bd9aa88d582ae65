"""A copy of a training's state, made without waiting for the device."""

import torch
from torch import Tensor

from stages.training import tensor_file
from stages.training.state import State


class Snapshot:
    """A copy of a state in one flat buffer: copied on the device at once, then to the host on a second CUDA stream.

    Args:
        state: the first state, whose tensors have the shapes of all that follow.
    """

    def __init__(self, state: State):
        tensors = self._named(state, with_best=True)
        device = next(iter(state.tensors.values())).device
        self.layout = tensor_file.Layout(tensors)
        self.buffer = torch.empty(self.layout.size, dtype=torch.uint8, device=device)
        self.views = self.layout.views(self.buffer, tensors)
        self.host, self.stream = self.buffer, None
        if device.type == "cuda":
            self.host = torch.empty_like(self.buffer, device="cpu", pin_memory=True)
            self.stream = torch.cuda.Stream(device)
        self.content: memoryview = self.host.numpy().data
        self.best = 0  # the epoch of the best weights in the buffer

    def take(self, state: State) -> torch.cuda.Event | None:
        """Copy the state; returns the event after which `content` has it, None where it has it already."""
        tensors = self._named(state, with_best=state.best.epoch != self.best)
        torch._foreach_copy_([self.views[name] for name in tensors], list(tensors.values()))
        self.best = state.best.epoch
        if self.stream is None:
            return None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.host.copy_(self.buffer, non_blocking=True)
        return self.stream.record_event()

    @staticmethod
    def _named(state: State, with_best: bool) -> dict[str, Tensor]:
        tensors = {f"step.{name}": tensor for name, tensor in state.tensors.items()}
        best = {f"best.{name}": tensor for name, tensor in state.best_weights.items()} if with_best else {}
        return tensors | best
