import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as vision

from stages.core import training
from stages.core.dataset import Split
from stages.core.device import Backend, choose_backend
from stages.core.errors import UserError
from stages.core.images import Normalise, TrainingImages, draw_epoch
from stages.core.models import build_model
from stages.core.training import Recipe, State, Step, learning_rates, train

CPU = Backend(torch.device("cpu"), "fp32", compile=False)
MEAN, STD = [0.5, 0.45, 0.4], [0.25, 0.25, 0.3]
RECIPE = Recipe(
    seed=1,
    epochs=2,
    batch_size=32,
    learning_rate=0.02,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="cosine",
    crop_padding=2,
    flip=True,
    keep="best",
)


def random_split(count: int, size: int = 16) -> Split:
    """Images whose brightness tells their class."""
    random = np.random.default_rng(count)
    labels = random.integers(0, 10, count)
    noise = random.integers(0, 60, (count, size, size, 3))
    return Split((noise + 18 * labels[:, None, None, None]).astype(np.uint8), labels)


TRAIN, TEST = random_split(20 * 32 // 2 - 10), random_split(50)  # ten steps an epoch, the last batch of 22 images


@pytest.fixture(
    params=["cpu", *(pytest.param(name, marks=pytest.mark.cuda) for name in ("fp32", "bf16", "bf16 compiled"))]
)
def backend(request) -> Backend:
    """The CPU, and where there is a GPU, it in every way that it is used."""
    precision, _, compiled = request.param.partition(" ")
    return CPU if precision == "cpu" else choose_backend(precision, compile=bool(compiled), flops=0)


class Bias(torch.nn.Module):
    """Gives every image the same logits, so that training it can be worked out by hand."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(x), 10)


def model_named(name: str) -> torch.nn.Module:
    return build_model(name, 10, base_channels=16, blocks=[1, 1], seed=3)


def reference_history(model: torch.nn.Module, recipe: Recipe, scheduler_of) -> tuple[list[float], list[tuple]]:
    """A plain loop in fp32: the loss of each step; loss and accuracy in training and test of each epoch."""
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay, fused=False
    )
    scheduler = scheduler_of(optimizer)

    def prepared(image: torch.Tensor) -> torch.Tensor:
        return vision.normalize(vision.to_dtype(image, torch.float32, scale=True), MEAN, STD)

    steps, epochs = [], []
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        draws = draw_epoch(recipe.seed, epoch, len(TRAIN.labels), recipe.crop_padding, recipe.flip).tolist()
        loss_sum = right = 0.0
        for start in range(0, len(draws), recipe.batch_size):
            images, labels = [], []
            for index, top, left, mirrored in draws[start : start + recipe.batch_size]:
                image = torch.from_numpy(TRAIN.images[index]).permute(2, 0, 1)
                image = vision.crop(vision.pad(image, [recipe.crop_padding]), top, left, 16, 16)
                images.append(prepared(vision.horizontal_flip(image) if mirrored else image))
                labels.append(TRAIN.labels[index])
            x, y = torch.stack(images).contiguous(), torch.tensor(labels)
            optimizer.zero_grad()
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
            loss_sum += loss.item() * len(y)
            right += (logits.argmax(1) == y).sum().item()
        scheduler.step()
        model.eval()
        with torch.no_grad():
            logits = model(prepared(torch.from_numpy(TEST.images).permute(0, 3, 1, 2)).contiguous())
        y = torch.from_numpy(TEST.labels)
        test = F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()
        epochs.append((loss_sum / len(TRAIN.labels), right / len(TRAIN.labels), *test))
    return steps, epochs


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=RECIPE.epochs)


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_twenty_steps_agree_with_a_plain_loop(name):
    expected, _ = reference_history(model_named(name), RECIPE, cosine)
    images = TrainingImages(TRAIN, RECIPE.crop_padding, Normalise(MEAN, STD, CPU.device), CPU.device)
    step = Step(CPU.place(model_named(name)).train(), images, RECIPE, CPU)
    losses = []
    for epoch, rate in enumerate(learning_rates(RECIPE), start=1):
        step.learning_rate.fill_(rate)
        draws = draw_epoch(RECIPE.seed, epoch, len(images), RECIPE.crop_padding, RECIPE.flip)
        for batch in draws.split(RECIPE.batch_size):
            step.sums.zero_()
            step.update(batch)
            losses.append(step.sums[0].item() / len(batch))
    assert len(losses) == 20
    assert losses == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_the_history_is_a_plain_loops(name):
    _, expected = reference_history(model_named(name), RECIPE, cosine)
    history = train(model_named(name), TRAIN, TEST, (MEAN, STD), RECIPE, CPU).history
    figures = [(e.train_loss, e.train_accuracy, e.test_loss, e.test_accuracy) for e in history]
    for ours, plain in zip(figures, expected, strict=True):
        assert ours[::2] == pytest.approx(plain[::2], abs=1e-3)
        assert ours[1::2] == pytest.approx(plain[1::2], abs=1 / 50)  # one test image
    assert [e.epoch for e in history] == [1, 2]
    assert all(e.generalization_gap == e.train_accuracy - e.test_accuracy for e in history)
    assert [e.learning_rate for e in history] == pytest.approx([0.02, 0.01])


@pytest.mark.parametrize("epochs", [2, 3, 10, 50, 100])
@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_learning_rates_are_those_of_torchs_schedulers(schedule, epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    if schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    else:
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 2, 3 * epochs // 4], gamma=0.1)
    expected = []
    for _ in range(epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    recipe = dataclasses.replace(RECIPE, schedule=schedule, epochs=epochs, learning_rate=0.3)
    assert learning_rates(recipe) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_a_single_epoch_trains_at_the_full_rate(schedule):
    assert learning_rates(dataclasses.replace(RECIPE, schedule=schedule, epochs=1)) == [0.02]


@pytest.mark.parametrize(
    ("schedule", "rates"), [("cosine", [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5]), ("step", [2, 2, 0.2, 0.02])]
)
def test_the_rate_really_applied_is_the_epochs(backend, schedule, rates):
    count = len(TRAIN.labels)
    recipe = dataclasses.replace(RECIPE, epochs=4, batch_size=count, learning_rate=2.0, schedule=schedule)
    states = []
    train(
        Bias(),
        TRAIN,
        TEST,
        (MEAN, STD),
        recipe,
        backend,
        on_epoch=lambda state: states.append(state.tensors["model.bias"].tolist()),
    )
    bias, momentum = np.zeros(10), np.zeros(10)
    for rate, state in zip(rates, states, strict=True):
        gradient = np.exp(bias) / np.exp(bias).sum() - np.bincount(TRAIN.labels, minlength=10) / count
        momentum = 0.9 * momentum + gradient + 5e-4 * bias
        bias = bias - rate * momentum
        assert state == pytest.approx(bias, abs=1e-5)


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 4)])
def test_the_weights_kept_are_of_the_first_best_epoch_or_of_the_last(monkeypatch, keep, kept):
    right = iter([10, 30, 30, 20])  # correct test images after each epoch

    def predict(model, images, normalise, backend):
        labels = torch.from_numpy(TEST.labels)
        answers = torch.where(torch.arange(50) < next(right), labels, (labels + 1) % 10)
        return F.one_hot(answers, 10).float()

    states = []
    monkeypatch.setattr(training, "predict", predict)
    model = model_named("resnet18")
    recipe = dataclasses.replace(RECIPE, epochs=4, keep=keep)
    trained = train(
        model, TRAIN, TEST, (MEAN, STD), recipe, CPU, on_epoch=lambda state: states.append(model.fc.bias.tolist())
    )
    assert [e.test_accuracy for e in trained.history] == [0.2, 0.6, 0.6, 0.4]
    assert trained.best.epoch == 2
    assert trained.weights["fc.bias"].tolist() == states[kept - 1]
    assert len({tuple(state) for state in states}) == 4


def test_a_loss_that_is_not_finite_ends_the_run_and_names_epoch_and_rate():
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, epochs=3)
    with pytest.raises(UserError, match=r"epoch 1 at learning rate 1e\+30.*train\.learning_rate"):
        train(model_named("simple_cnn"), TRAIN, TEST, (MEAN, STD), recipe, CPU)


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_the_same_inputs_give_the_same_weights_and_history(name, backend):
    first, second = (train(model_named(name), TRAIN, TEST, (MEAN, STD), RECIPE, backend) for _ in range(2))
    assert first.history == second.history
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_a_training_that_goes_on_from_the_state_of_any_epoch_ends_as_an_undisturbed_one(name, keep, backend):
    recipe = dataclasses.replace(RECIPE, epochs=3, keep=keep)
    states = []

    def remember(state: State) -> None:
        states.append(copy.deepcopy(state))

    whole = train(model_named(name), TRAIN, TEST, (MEAN, STD), recipe, backend, on_epoch=remember)
    for state in states:
        resumed = train(model_named(name), TRAIN, TEST, (MEAN, STD), recipe, backend, state)
        assert resumed.history == whole.history
        assert resumed.weights.keys() == whole.weights.keys()
        assert all(torch.equal(resumed.weights[key], whole.weights[key]) for key in whole.weights)
        assert resumed.seconds >= state.seconds


def test_callbacks_hear_of_every_image_and_epoch_and_the_times_are_positive():
    images, epochs = [], []
    trained = train(
        model_named("simple_cnn"),
        TRAIN,
        TEST,
        (MEAN, STD),
        RECIPE,
        CPU,
        on_batch=images.append,
        on_epoch=lambda state: epochs.append(state.history[-1]),
    )
    assert images == 2 * ([32] * 9 + [22])
    assert epochs == trained.history
    assert trained.seconds > 0
    assert math.isfinite(trained.images_per_second)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_on_a_gpu_recorded_steps_agree_with_the_cpu(name):
    gpu = Backend(torch.device("cuda"), "fp32", compile=False)
    recipe = dataclasses.replace(RECIPE, epochs=4, learning_rate=0.01)
    on_gpu = train(model_named(name), TRAIN, TEST, (MEAN, STD), recipe, gpu)
    on_cpu = train(model_named(name), TRAIN, TEST, (MEAN, STD), recipe, CPU)
    for ours, plain in zip(on_gpu.history, on_cpu.history, strict=True):
        assert ours.train_loss == pytest.approx(plain.train_loss, abs=2e-3)
        assert ours.test_loss == pytest.approx(plain.test_loss, abs=2e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_on_a_gpu_the_host_waits_for_no_step(name):
    gpu = choose_backend("bf16", compile=False, flops=0)
    images = TrainingImages(TRAIN, RECIPE.crop_padding, Normalise(MEAN, STD, gpu.device), gpu.device)
    step = Step(gpu.place(model_named(name)).train(), images, RECIPE, gpu)
    draws = draw_epoch(RECIPE.seed, 1, len(images), RECIPE.crop_padding, RECIPE.flip)
    step.update(gpu.to_device(draws[:32]))  # records it
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in gpu.to_device(draws[:288]).split(32):
            step.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
