"""The training loop: epochs of training and testing over images that live on the device, resumed where they stopped."""

import math
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.common.dataset import Dataset, Split, held_out_name
from stages.common.errors import UserError, printable
from stages.training.augmentation import Normalise, TrainingImages, batches, draw_epoch
from stages.training.checkpoint import State
from stages.training.device import Device
from stages.training.recipe import Recipe, learning_rates
from stages.training.step import Step

TEST_PIXELS = 1000 * 32 * 32  # of a batch of test images


def train(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    device: Device,
    resumed: State | None = None,
    watch: Callable[[Iterable[Tensor]], Iterable[Tensor]] = iter,
) -> Iterator[State]:
    """Train a freshly built model, or resume an interrupted training; yield the state after each epoch.

    The host waits for the device twice an epoch, to read the sums of training and of testing. Whatever is random
    follows from seed and epoch, so order, crops and flips are the same on every device. Several processes share each
    batch and the test images, and yield the same.

    Args:
        dataset: trained on `train`, tested after each epoch on `held_out`.
        resumed: a state of a call with the same other arguments.
        watch: gets the batches of an epoch and yields them: a place for a progress bar.

    Raises:
        UserError: the loss of an epoch is not finite, or the model has not one output for each class.
    """
    processes, augment = device.processes, recipe.augment
    if recipe.train.sync_batchnorm and processes.world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = device.place(model)
    normalise = Normalise(dataset.info.mean, dataset.info.std, device.torch)
    check_outputs(model, dataset, normalise)
    padded = dataset.train.images.nbytes * (1 + 2 * augment.crop_padding / dataset.info.image_size) ** 2
    device.check_memory(padded, "the padded training images")
    images = TrainingImages(dataset.train, augment, normalise, device.torch)
    step = Step(processes.replicate(model), images, recipe.train, device.autocast)
    update = build_update(step, recipe.train.batch_size, device)
    test = build_test(model, dataset.held_out, normalise, device)
    state = _restored(step, resumed)

    def draws_of(epoch: int) -> Tensor:
        """The fields of `Draws` side by side, int64 N×6 on the device."""
        draws = draw_epoch(recipe.seed, epoch, len(images), dataset.info.image_size, augment)
        return device.copied(torch.stack(draws, 1))

    start = time.perf_counter() - state.seconds
    first = len(state.history) + 1
    draws = draws_of(first)
    for epoch in range(first, recipe.epochs + 1):
        began = time.perf_counter()
        rate = learning_rates(recipe)[epoch - 1]
        seed_dropout(recipe.seed, epoch, processes.rank)
        model.train()
        step.learning_rate.fill_(rate)
        step.sums.zero_()
        for batch in watch(batches(draws, recipe.train.batch_size, processes.world_size)):
            update(batch)
        if epoch < recipe.epochs:
            draws = draws_of(epoch + 1)  # while the device trains
        processes.all_reduce(step.sums)
        training = (step.sums / len(images)).tolist()  # here the host waits for the device
        state.training_seconds += time.perf_counter() - began
        processes.average(model.buffers())  # the running statistics of batch normalisation
        state.history.append(row(epoch, training, test(), rate, held_out_name(dataset.info)))
        if recipe.train.keep == "best" and state.best["epoch"] == epoch:
            state.best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state.seconds = time.perf_counter() - start
        yield state


def seed_dropout(seed: int, epoch: int, rank: int) -> None:
    """Seed torch's generators, from which dropout draws, so that an epoch does not depend on those before it."""
    (number,) = np.random.SeedSequence(seed % 2**64, spawn_key=(epoch, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(number))


def check_outputs(model: nn.Module, dataset: Dataset, normalise: Normalise) -> None:
    """Raise a UserError unless the model has one output for each class; its statistics stay as they are."""
    classes, size = len(dataset.info.classes), dataset.info.image_size
    image = torch.from_numpy(dataset.train.images[:1]).to(normalise.mean.device)
    try:
        with torch.no_grad():
            logits = model.eval()(normalise(image))
    except (RuntimeError, ValueError, AssertionError) as error:  # as networks for large images do on small ones
        reason = f"fails on an image of {size}×{size} pixels ({printable(error)})"
        raise UserError(f"the model {reason}; choose another model or data.image_size") from error
    if (found := tuple(getattr(logits, "shape", [type(logits).__name__]))) != (1, classes):
        raise UserError(f"the model's output for one image is {found}; it must be a tensor of shape (1, {classes})")


def build_update(step: Step, batch_size: int, device: Device) -> Callable[[Tensor], None]:
    """Return the step on this process's shard of a batch, compiled and captured as the device decides."""
    compiled = device.compiled(step.forward)
    whole = len(device.processes.shard(torch.empty(batch_size))[0])

    def update(batch: Tensor) -> None:
        rows, weight = device.processes.shard(batch)
        # Compiling for the shape of the last, smaller batch would take longer than it ever saves
        step(rows, weight, compiled if len(rows) == whole else step.forward)

    return device.graphed(update, [*step.tensors().values(), step.sums])


def build_test(model: nn.Module, test: Split, normalise: Normalise, device: Device) -> Callable[[], list[float]]:
    """Return a function that tests the model: mean cross-entropy in nats, and accuracy as a fraction.

    Each process tests its shard of the images.
    """
    processes, count = device.processes, len(test.labels)
    arrays = (torch.from_numpy(array).tensor_split(processes.world_size) for array in (test.images, test.labels))
    images, labels = (shards[processes.rank].to(device.torch) for shards in arrays)
    forward = device.graphed(lambda batch: forward_test(model, normalise(batch), device), [])

    def test_epoch() -> list[float]:
        logits = predict(forward, images)
        loss, correct = F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()
        sums = torch.stack([loss.double(), correct.double()])
        processes.all_reduce(sums)
        return (sums / count).tolist()

    return test_epoch


@torch.no_grad()
def forward_test(model: nn.Module, x: Tensor, device: Device) -> Tensor:
    """Return the logits, float32 B×classes, of normalised images, B×3×H×W, with the running statistics."""
    model.eval()
    with device.autocast():
        return model(x).float()


def predict(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the logits, float32 N×classes, of uint8 N×H×W×3 images, batch by batch.

    Args:
        forward: logits of a batch; it may overwrite what it returned before.
    """
    size = max(1, TEST_PIXELS // (images.shape[1] * images.shape[2]))
    return torch.cat([forward(batch).clone() for batch in images.split(size)])


def row(epoch: int, training: list[float], testing: list[float], rate: float, held_out: str) -> dict[str, float]:
    """Return a row of the history from (loss, accuracy) on both kinds of images.

    Raises:
        UserError: a loss is not finite.
    """
    (train_loss, train_accuracy), (loss, accuracy) = training, testing
    if not (math.isfinite(train_loss) and math.isfinite(loss)):
        where = f"after epoch {epoch} at learning rate {rate:g}"
        raise UserError(f"the loss is no longer finite {where}; lower train.learning_rate")
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        f"{held_out}_loss": loss,
        f"{held_out}_accuracy": accuracy,
        "generalization_gap": train_accuracy - accuracy,
        "learning_rate": rate,
    }


def _restored(step: Step, resumed: State | None) -> State:
    """Copy a resumed state's tensors into those of the step, which the returned state holds."""
    tensors = step.tensors()
    if resumed is None:
        return State(tensors)
    for name, tensor in tensors.items():
        tensor.copy_(resumed.tensors[name])
    best = {name: tensor.to(step.sums.device) for name, tensor in resumed.best_weights.items()}
    return State(tensors, list(resumed.history), best, resumed.seconds, resumed.training_seconds)
