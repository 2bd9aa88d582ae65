"""The state of a training after an epoch, and what receives it."""

from dataclasses import dataclass, field

from torch import Tensor

from stages.common.formats import Epoch


@dataclass
class State:
    """The state of a training after an epoch: all that is needed to resume it as if it had never stopped."""

    tensors: dict[str, Tensor]  # see `Step.tensors`
    history: list[Epoch] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)  # of the best epoch; empty where the last is kept
    seconds: float = 0.0  # since the start, testing and compilation included
    training_seconds: float = 0.0  # without testing

    @property
    def best(self) -> Epoch:
        """The first epoch of the highest test accuracy."""
        return max(self.history, key=lambda epoch: epoch.test_accuracy)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state_dict to keep."""
        prefix = "model."
        last = {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        return self.best_weights or last


class Observer:
    """Receives the progress of a training."""

    def on_batch(self, images: int) -> None:
        """A batch of this many images was handed to the device."""

    def on_epoch(self, state: State) -> None:
        """An epoch is over. The next one overwrites the tensors of the state: copy what is to be kept."""
