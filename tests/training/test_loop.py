import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as vision

from stages.common.errors import UserError
from stages.training import loop
from stages.training.augmentation import Normalise, TrainingImages, draw_epoch
from stages.training.device import choose_backend
from stages.training.distributed import Processes
from stages.training.loop import batches, learning_rates, predict, train
from stages.training.state import Observer, State
from stages.training.step import Step
from tests.training.toys import CPU, MEAN, STD, dataset, model, recipe

DATA = dataset()


@pytest.fixture(
    params=["cpu", *(pytest.param(name, marks=pytest.mark.cuda) for name in ("fp32", "bf16", "bf16 compiled"))]
)
def backend(request):
    """The CPU, and where there is a GPU, it in every way that it is used."""
    precision, _, compiled = request.param.partition(" ")
    return CPU if precision == "cpu" else choose_backend(recipe(precision=precision, compile=bool(compiled)).train, 0)


class Remember(Observer):
    def __init__(self, of=copy.deepcopy):
        self.of, self.states, self.batches = of, [], []

    def on_batch(self, images: int) -> None:
        self.batches.append(images)

    def on_epoch(self, state: State) -> None:
        self.states.append(self.of(state))


class Bias(torch.nn.Module):
    """Gives every image the same logits, so that training it can be worked out by hand."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(x), 10)


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
    of = recipe(schedule=schedule, epochs=epochs, learning_rate=0.3)
    assert learning_rates(of) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_a_single_epoch_trains_at_the_full_rate(schedule):
    assert learning_rates(recipe(schedule=schedule, epochs=1)) == [0.02]


@pytest.mark.parametrize(
    ("schedule", "rates"), [("cosine", [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5]), ("step", [2, 2, 0.2, 0.02])]
)
def test_the_rate_really_applied_is_the_epochs(backend, schedule, rates):
    of = recipe(epochs=4, batch_size=310, learning_rate=2.0, schedule=schedule)
    seen = Remember(lambda state: state.tensors["model.bias"].tolist())
    train(Bias(), DATA, of, backend, observer=seen)
    bias, momentum = np.zeros(10), np.zeros(10)
    for rate, state in zip(rates, seen.states, strict=True):
        gradient = np.exp(bias) / np.exp(bias).sum() - np.bincount(DATA.train.labels, minlength=10) / 310
        momentum = 0.9 * momentum + gradient + 5e-4 * bias
        bias = bias - rate * momentum
        assert state == pytest.approx(bias, abs=1e-5)


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 4)])
def test_the_weights_kept_are_of_the_first_best_epoch_or_of_the_last(monkeypatch, keep, kept):
    right = iter([10, 30, 30, 20])  # correct test images after each epoch; a stand-in, since training gives no ties

    def answers(model, images, normalise, backend):
        labels = torch.from_numpy(DATA.test.labels)
        return F.one_hot(torch.where(torch.arange(50) < next(right), labels, (labels + 1) % 10), 10).float()

    monkeypatch.setattr(loop, "predict", answers)
    seen = Remember(lambda state: state.tensors["model.fc.bias"].tolist())
    trained = train(model(recipe()), DATA, recipe(epochs=4, keep=keep), CPU, observer=seen)
    assert [epoch.test_accuracy for epoch in trained.history] == [0.2, 0.6, 0.6, 0.4]
    assert trained.best.epoch == 2
    assert trained.weights["fc.bias"].tolist() == seen.states[kept - 1]
    assert len({tuple(state) for state in seen.states}) == 4


def test_a_loss_that_is_not_finite_ends_the_run_and_names_epoch_and_rate():
    with pytest.raises(UserError, match=r"epoch 1 at learning rate 1e\+30.*train\.learning_rate"):
        train(model(recipe("cnn")), DATA, recipe("cnn", learning_rate=1e30), CPU)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_the_same_inputs_give_the_same_weights_and_history(name, backend):
    first, second = (train(model(recipe(name)), DATA, recipe(name), backend) for _ in range(2))
    assert first.history == second.history
    assert all(torch.equal(first.weights[key], second.weights[key]) for key in first.weights)


@pytest.mark.parametrize(("name", "keep"), [("cnn", "best"), ("resnet", "last")])
def test_a_training_resumed_from_the_state_of_any_epoch_ends_as_an_undisturbed_one(name, keep, backend):
    of, seen = recipe(name, epochs=3, keep=keep), Remember()
    whole = train(model(of), DATA, of, backend, observer=seen)
    assert len(seen.states) == 3
    for state in seen.states:
        resumed = train(model(of), DATA, of, backend, state)
        assert resumed.history == whole.history
        assert resumed.weights.keys() == whole.weights.keys()
        assert all(torch.equal(resumed.weights[key], whole.weights[key]) for key in whole.weights)
        assert resumed.seconds >= state.seconds


def test_seeds_and_epochs_are_not_added_up():
    """Seed 2 must not repeat the epochs of seed 1 one later."""
    assert not torch.equal(draw_epoch(1, 2, 50, 4, True), draw_epoch(2, 1, 50, 4, True))


def test_every_image_is_trained_on_once_an_epoch_and_the_figures_are_the_epochs():
    seen = Remember(lambda state: state.history[-1])
    trained = train(model(recipe("cnn")), DATA, recipe("cnn"), CPU, observer=seen)
    assert seen.batches == 2 * ([32] * 9 + [22])
    assert seen.states == trained.history
    assert [epoch.epoch for epoch in trained.history] == [1, 2]
    assert [epoch.learning_rate for epoch in trained.history] == pytest.approx([0.02, 0.01])
    assert all(epoch.generalization_gap == epoch.train_accuracy - epoch.test_accuracy for epoch in trained.history)
    assert 0 < trained.training_seconds < trained.seconds < math.inf
    logits = predict(CPU.place(loaded(trained)), torch.from_numpy(DATA.test.images), normalise(), CPU)
    labels = torch.from_numpy(DATA.test.labels)
    assert trained.best.test_loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert trained.best.test_accuracy == (logits.argmax(1) == labels).double().mean().item()


def loaded(trained: State) -> torch.nn.Module:
    network = model(recipe("cnn"))
    network.load_state_dict(trained.weights)
    return network


def normalise() -> Normalise:
    return Normalise(MEAN, STD, CPU.device)


@pytest.mark.parametrize(
    ("count", "processes", "sizes"),
    [
        (310, 1, [32] * 9 + [22]),
        (33, 1, [33]),
        (65, 1, [32, 33]),
        (67, 2, [32, 35]),
        (68, 2, [32, 32, 4]),
        (20, 1, [20]),
    ],
)
def test_a_last_batch_that_is_too_small_joins_the_one_before(count, processes, sizes):
    backend = type(CPU)(CPU.device, "fp32", False, Processes(0, processes))
    parts = batches(draw_epoch(1, 1, count, 2, True), recipe(), backend)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts), draw_epoch(1, 1, count, 2, True))


@pytest.mark.parametrize("size", [8, 15])
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_images_of_a_few_pixels_train_also_where_one_is_left_over(name, size):
    data = dataset(train=33, test=5, size=size)
    assert len(train(model(recipe(name)), data, recipe(name), CPU).history) == 2


def test_logits_are_those_of_single_images_in_evaluation_mode(monkeypatch):
    monkeypatch.setattr(loop, "TEST_PIXELS", 4 * 16 * 16)  # four images a batch
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8))
    network = model(recipe()).train()
    network(torch.randn(8, 3, 16, 16))  # running statistics that are not their initial ones
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    logits = predict(network, images, normalise(), CPU)
    assert (logits.shape, logits.dtype, logits.requires_grad) == ((10, 10), torch.float32, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    network.eval()
    for image, ours in zip(images, logits, strict=True):
        x = vision.normalize(vision.to_dtype(image.permute(2, 0, 1), torch.float32, scale=True), MEAN, STD)
        torch.testing.assert_close(ours, network(x[None])[0].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_on_a_gpu_replayed_steps_agree_with_the_cpu(name):
    gpu = choose_backend(recipe(precision="fp32").train, 0)
    of = recipe(name, epochs=4, learning_rate=0.01)
    on_gpu, on_cpu = (train(model(of), DATA, of, backend) for backend in (gpu, CPU))
    for ours, plain in zip(on_gpu.history, on_cpu.history, strict=True):
        assert ours.train_loss == pytest.approx(plain.train_loss, abs=2e-3)
        assert ours.test_loss == pytest.approx(plain.test_loss, abs=2e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_on_a_gpu_a_replay_trains_on_its_own_batch(name):
    gpu = choose_backend(recipe(precision="fp32").train, 0)
    of, images = recipe(name), TrainingImages(DATA.train, 2, Normalise(MEAN, STD, gpu.device), gpu.device)
    steps = [Step(gpu.place(model(of)).train(), images, of.train, gpu.autocast) for _ in range(2)]
    replayed, draws = loop.build_update(steps[0], 32, gpu), gpu.to_device(draw_epoch(1, 1, 310, 2, True))
    for batch in draws[:160].split(32):
        replayed(batch)
        steps[1](batch)
        torch.testing.assert_close(steps[0].sums, steps[1].sums, rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_on_a_gpu_the_host_waits_for_no_step(name):
    gpu = choose_backend(recipe(precision="auto").train, 0)
    of, images = recipe(name), TrainingImages(DATA.train, 2, Normalise(MEAN, STD, gpu.device), gpu.device)
    step = Step(gpu.place(model(of)).train(), images, of.train, gpu.autocast)
    update, draws = loop.build_update(step, 32, gpu), draw_epoch(1, 1, 310, 2, True)
    update(gpu.to_device(draws[:32]))  # captures it
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in gpu.to_device(draws[:288]).split(32):
            update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
