"""The training loop: epochs of training and testing over images that live on the device, resumed where they stopped."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.common.dataset import Dataset, Split
from stages.common.errors import UserError
from stages.common.formats import Epoch
from stages.common.params import Recipe
from stages.training.augmentation import Normalise, TrainingImages, draw_epoch
from stages.training.device import Backend
from stages.training.state import Observer, State
from stages.training.step import Step

TEST_PIXELS = 1000 * 32 * 32  # of a batch of test images


def train(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    backend: Backend,
    resumed: State | None = None,
    observer: Observer | None = None,
) -> State:
    """Train a freshly built model, testing it after each epoch, or resume an interrupted training.

    The host waits for the device twice an epoch, to read the sums of training and of testing. Order, crops and flips
    follow from seed and epoch, so they are the same on every device. Several processes share each batch and the test
    images, and return the same.

    Args:
        resumed: the last state that `on_epoch` received, in a call with the same other arguments.

    Raises:
        UserError: the loss of an epoch is not finite.
    """
    if recipe.train.sync_batchnorm and backend.processes.world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = backend.place(model)
    normalise = Normalise(dataset.info.mean, dataset.info.std, backend.device)
    images = TrainingImages(dataset.train, recipe.augment.crop_padding, normalise, backend.device)
    step = Step(backend.processes.replicate(model), images, recipe.train, backend.autocast)
    update = build_update(step, recipe.train.batch_size, backend)
    test = build_test(model, dataset.test, normalise, backend)
    state = _restored(step, resumed)
    observer = observer or Observer()

    def draws_of(epoch: int) -> Tensor:
        augment = recipe.augment
        return backend.to_device(draw_epoch(recipe.seed, epoch, len(images), augment.crop_padding, augment.flip))

    start = time.perf_counter() - state.seconds
    rates = list(enumerate(learning_rates(recipe), start=1))[len(state.history) :]
    draws = draws_of(len(state.history) + 1)
    for epoch, rate in rates:
        began = time.perf_counter()
        model.train()
        train_epoch(step, update, batches(draws, recipe, backend), rate, observer.on_batch)
        if epoch < recipe.settings.epochs:
            draws = draws_of(epoch + 1)  # while the device trains
        backend.processes.all_reduce(step.sums)
        training = (step.sums / len(images)).tolist()  # here the host waits for the device
        state.training_seconds += time.perf_counter() - began
        backend.processes.average(model.buffers())  # the running statistics of batch normalisation
        testing = test()
        state.history.append(_epoch(epoch, training, testing, rate))
        if recipe.train.keep == "best" and state.best.epoch == epoch:
            state.best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state.seconds = time.perf_counter() - start
        observer.on_epoch(state)
    return state


def train_epoch(
    step: Step,
    update: Callable[[Tensor], None],
    batches: list[Tensor],
    learning_rate: float,
    on_batch: Callable[[int], None],
) -> None:
    """Hand the batches of an epoch to the device; loss and correct predictions add up in `step.sums`."""
    step.learning_rate.fill_(learning_rate)
    step.sums.zero_()
    for batch in batches:
        update(batch)
        on_batch(len(batch))


def batches(draws: Tensor, recipe: Recipe, backend: Backend) -> list[Tensor]:
    """The rows of an epoch as batches, int64 B×4, for all processes together.

    The last, smaller batch is trained on too. Where it would leave a process a single image, of which batch
    normalisation may have no variance, it joins the batch before.
    """
    parts = list(draws.split(recipe.train.batch_size))
    if len(parts) > 1 and len(parts[-1]) < 2 * backend.processes.world_size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def build_update(step: Step, batch_size: int, backend: Backend) -> Callable[[Tensor], None]:
    """The step on this process's shard of a batch, compiled and captured as the backend decides."""
    compiled = backend.compiled(step.forward)
    whole = len(backend.processes.shard(torch.empty(batch_size))[0])

    def update(batch: Tensor) -> None:
        draws, weight = backend.processes.shard(batch)
        # Compiling for the shape of the last, smaller batch would take longer than it ever saves.
        step(draws, weight, compiled if len(draws) == whole else step.forward)

    return backend.replayed(update, [*step.tensors().values(), step.sums])


def build_test(model: nn.Module, test: Split, normalise: Normalise, backend: Backend) -> Callable[[], list[float]]:
    """Loss and accuracy on the test images as a function of no arguments; each process tests its shard of them."""
    processes, count = backend.processes, len(test.labels)
    images, labels = (
        torch.from_numpy(array).tensor_split(processes.world_size)[processes.rank].to(backend.device) for array in test
    )
    predicted = backend.replayed(lambda images: predict(model, images, normalise, backend), state=[])

    def test_epoch() -> list[float]:
        logits = predicted(images)
        loss, correct = F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()
        sums = torch.stack([loss.double(), correct.double()])
        processes.all_reduce(sums)
        return (sums / count).tolist()

    return test_epoch


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, normalise: Normalise, backend: Backend) -> Tensor:
    """The model's logits, float32 N×classes, for uint8 N×H×W×3 images on its device."""
    model.eval()
    size = max(1, TEST_PIXELS // (images.shape[1] * images.shape[2]))
    with backend.autocast():
        return torch.cat([model(normalise(batch)).float() for batch in images.split(size)])


def learning_rates(recipe: Recipe) -> list[float]:
    """The learning rate of each epoch.

    `cosine` falls to zero over the run without restarts (Loshchilov & Hutter 2017, equation 5); `step` divides by ten
    at half and again at three quarters of it (He et al. 2015, section 4.2).
    """
    epochs, peak = recipe.settings.epochs, recipe.train.learning_rate
    if recipe.train.schedule == "cosine":
        return [peak * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs)]
    milestones = max(1, epochs // 2), max(1, 3 * epochs // 4)
    return [peak * 0.1 ** sum(epoch >= milestone for milestone in milestones) for epoch in range(epochs)]


def _restored(step: Step, resumed: State | None) -> State:
    """The state of a training: its tensors are those of the step, with the values of the resumed one."""
    tensors = step.tensors()
    if resumed is None:
        return State(tensors)
    for name, tensor in tensors.items():
        tensor.copy_(resumed.tensors[name])
    best = {name: tensor.to(step.sums.device) for name, tensor in resumed.best_weights.items()}
    return State(tensors, list(resumed.history), best, resumed.seconds, resumed.training_seconds)


def _epoch(number: int, training: list[float], testing: list[float], rate: float) -> Epoch:
    (train_loss, train_accuracy), (test_loss, test_accuracy) = training, testing
    if not (math.isfinite(train_loss) and math.isfinite(test_loss)):
        raise UserError(
            f"the loss is no longer finite after epoch {number} at learning rate {rate:g}; lower train.learning_rate"
        )
    return Epoch(
        epoch=number,
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        generalization_gap=train_accuracy - test_accuracy,
        learning_rate=rate,
    )
