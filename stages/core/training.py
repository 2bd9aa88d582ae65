"""Stochastic gradient descent over images that live on the device: the loop, its recipe and what comes out of it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core.dataset import Split
from stages.core.device import Backend
from stages.core.errors import UserError
from stages.core.images import Normalise, TrainingImages, draw_epoch
from stages.core.prediction import predict


@dataclass(frozen=True)
class Recipe:
    """How to train. Epochs count from 1."""

    seed: int
    epochs: int
    batch_size: int
    learning_rate: float  # of the first epoch
    momentum: float
    weight_decay: float  # on every parameter
    schedule: str  # cosine or step
    crop_padding: int  # pixels
    flip: bool
    keep: str  # best or last
    sync_batchnorm: bool = False  # whether several processes normalise with the statistics of their whole batch


@dataclass(frozen=True)
class Epoch:
    """One row of the history. Accuracies are fractions; the training ones are those of the batches as they came."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    generalization_gap: float  # train_accuracy - test_accuracy
    learning_rate: float


@dataclass(frozen=True)
class State:
    """Where a training stands after an epoch: all that it takes to go on as if it had never stopped."""

    history: list[Epoch]
    tensors: dict[str, Tensor]  # see `Step.tensors`
    best_weights: dict[str, Tensor]  # the state_dict of the best epoch so far; empty where the last is kept
    seconds: float  # since the start, evaluations and compilation included
    training_seconds: float  # evaluations left out


@dataclass(frozen=True)
class Trained:
    history: list[Epoch]
    weights: dict[str, Tensor]  # the state_dict of the epoch kept
    seconds: float  # of the whole run, evaluations and compilation included
    images_per_second: float  # of the training epochs, evaluations left out

    @property
    def best(self) -> Epoch:
        """The first epoch of the highest test accuracy."""
        return max(self.history, key=lambda epoch: epoch.test_accuracy)


def learning_rates(recipe: Recipe) -> list[float]:
    """The learning rate of each epoch.

    `cosine` falls to zero over the run without restarts (Loshchilov & Hutter 2017, equation 5); `step` divides by ten
    at half and again at three quarters of it (He et al. 2015, section 4.2).
    """
    epochs, peak = recipe.epochs, recipe.learning_rate
    if recipe.schedule == "cosine":
        return [peak * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs)]
    milestones = max(1, epochs // 2), max(1, 3 * epochs // 4)
    return [peak * 0.1 ** sum(epoch >= milestone for milestone in milestones) for epoch in range(epochs)]


class Step:
    """One step of SGD with momentum on a batch, together with the sums of loss and of correct predictions.

    All that changes from step to step, the learning rate too, is a tensor on the device at a fixed address, as a
    recorded step needs it.
    """

    def __init__(self, model: nn.Module, images: TrainingImages, recipe: Recipe, backend: Backend):
        self.model, self.images, self.backend = model, images, backend
        self.processes, self.replica = backend.processes, backend.processes.replicate(model)
        self.compiled_size = len(self.processes.share(torch.empty(recipe.batch_size))[0])  # of a whole batch's share
        self.learning_rate = torch.tensor(recipe.learning_rate, device=backend.device)
        self.optimizer = torch.optim.SGD(
            model.parameters(), self.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay, fused=True
        )
        for parameter in model.parameters():
            self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.sums = torch.zeros(2, dtype=torch.float64, device=backend.device)  # of the loss, of the correct
        self.compiled_forward = torch.compile(self.forward, dynamic=False) if backend.compile else self.forward
        self.update = backend.graphed(self._update, [*self.tensors().values(), self.sums])

    def tensors(self) -> dict[str, Tensor]:
        """What a step hands on to the next, no copies: model.* and momentum.*, named as in the model."""
        momentum = {
            f"momentum.{name}": self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.model.named_parameters()
        }
        return {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()} | momentum

    def forward(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and number of correct predictions of the batch that B rows of `draw_epoch` stand for."""
        x, labels = self.images.batch(draws)
        with self.backend.autocast():
            logits = self.replica(x)  # B×classes
        return F.cross_entropy(logits.float(), labels), (logits.argmax(1) == labels).sum()

    def _update(self, batch: Tensor) -> None:
        draws, weight = self.processes.share(batch)
        # The last, smaller batch of an epoch runs uncompiled: compiling for its shape takes longer than it ever saves.
        forward = self.compiled_forward if len(draws) == self.compiled_size else self.forward
        loss, correct = forward(draws)
        (loss if weight == 1 else loss * weight).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if weight:
            self.sums += torch.stack([loss.detach().double() * len(draws), correct.double()])


def train(
    model: nn.Module,
    train_split: Split,
    test_split: Split,
    normalisation: tuple[list[float], list[float]],
    recipe: Recipe,
    backend: Backend,
    state: State | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
    on_epoch: Callable[[State], None] = lambda state: None,
) -> Trained:
    """Train a freshly built model, testing it after each epoch, or go on from the state of an earlier call.

    The host waits for the device once an epoch, to read the sums. Order, crops and flips follow from seed and epoch, so
    they are the same on every device. Several processes share each batch and the test images, and return the same.

    Args:
        normalisation: mean and standard deviation of each channel, pixels in [0, 1].
        state: what `on_epoch` was told last, by a call with the same arguments.
        on_batch: told the number of images of each batch, when it is handed to the device.
        on_epoch: told the state after each epoch, whose tensors change when it returns.

    Raises:
        UserError: the loss of an epoch is not finite.
    """
    processes = backend.processes
    if recipe.sync_batchnorm and processes.count > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = backend.place(model)
    normalise = Normalise(*normalisation, backend.device)
    images = TrainingImages(train_split, recipe.crop_padding, normalise, backend.device)
    test_images, test_labels = (
        torch.from_numpy(array).tensor_split(processes.count)[processes.rank].to(backend.device) for array in test_split
    )
    step = Step(model, images, recipe, backend)
    test = backend.graphed(lambda images: predict(model, images, normalise, backend), state=[])

    history: list[Epoch] = []
    best_weights: dict[str, Tensor] = {}
    seconds = training_seconds = 0.0
    if state:
        history, best_weights = list(state.history), state.best_weights
        seconds, training_seconds = state.seconds, state.training_seconds
        for name, tensor in step.tensors().items():
            tensor.copy_(state.tensors[name])
    start = time.perf_counter() - seconds
    for number, rate in list(enumerate(learning_rates(recipe), start=1))[len(history) :]:
        began = time.perf_counter()
        model.train()
        step.learning_rate.fill_(rate)
        step.sums.zero_()
        draws = draw_epoch(recipe.seed, number, len(images), recipe.crop_padding, recipe.flip)
        for batch in backend.to_device(draws).split(recipe.batch_size):
            step.update(batch)
            on_batch(len(batch))
        processes.sum(step.sums)
        train_loss, train_accuracy = (step.sums / len(images)).tolist()
        training_seconds += time.perf_counter() - began

        processes.average(model.buffers())
        logits = test(test_images)
        loss, correct = F.cross_entropy(logits, test_labels, reduction="sum"), (logits.argmax(1) == test_labels).sum()
        sums = torch.stack([loss.double(), correct.double()])
        processes.sum(sums)
        test_loss, test_accuracy = (sums / len(test_split.labels)).tolist()
        if not (math.isfinite(train_loss) and math.isfinite(test_loss)):
            raise UserError(
                f"the loss is no longer finite after epoch {number} at learning rate {rate:g}; "
                "lower train.learning_rate"
            )
        gap = train_accuracy - test_accuracy
        if recipe.keep == "best" and all(test_accuracy > earlier.test_accuracy for earlier in history):
            best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        history.append(Epoch(number, train_loss, train_accuracy, test_loss, test_accuracy, gap, rate))
        on_epoch(State(history, step.tensors(), best_weights, time.perf_counter() - start, training_seconds))

    images_per_second = recipe.epochs * len(images) / training_seconds
    return Trained(history, best_weights or model.state_dict(), time.perf_counter() - start, images_per_second)
