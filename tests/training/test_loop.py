import copy
import itertools
import math
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torchvision.transforms.v2 import functional as vision

from stages.common.dataset import Dataset
from stages.common.errors import UserError
from stages.train import timing
from stages.training import loop
from stages.training.augmentation import Normalise, TrainingImages, draw_epoch
from stages.training.checkpoint import State, from_bytes, to_bytes
from stages.training.device import Device, choose_device
from stages.training.distributed import Processes
from stages.training.loop import predict, seed_dropout, train
from stages.training.recipe import Recipe
from stages.training.step import Step
from tests.training.toys import CPU, MEAN, STD, Dropping, augmented, dataset, fresh, recipe, same, states

DATA = dataset()


def device_of(name: str) -> Device:
    precision, _, compiled = name.partition(" ")
    return CPU if name == "cpu" else choose_device(recipe(precision=precision, compile=bool(compiled)).train, 0)


@pytest.fixture(
    params=["cpu", *(pytest.param(name, marks=pytest.mark.cuda) for name in ("fp32", "bf16", "bf16 compiled"))]
)
def device(request) -> Device:
    """The CPU, and where there is a GPU, it in every way that it is used."""
    return device_of(request.param)


class Exact(nn.Module):
    """A small network in float64, in which twenty steps add up no rounding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        layers = nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)
        self.layers = nn.Sequential(*layers).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.double())


def plain_training(
    network: nn.Module, data: Dataset, keep: str, seed: int, cutout: int, **options
) -> tuple[list, dict]:
    """The history and the weights kept of a training of four epochs by torch's own parts; of ours, the draws alone."""
    criterion, history, kept = nn.CrossEntropyLoss(label_smoothing=options["label_smoothing"]), [], {}
    optimizer = torch.optim.SGD(
        network.parameters(), 0.05, 0.8, weight_decay=1e-2, nesterov=options["nesterov"], foreach=False
    )
    if options["schedule"] == "cosine":
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    else:  # an epoch of warming up, then times 0.1 at half and three quarters of the three that are left
        rise, fall = lr_scheduler.LinearLR(optimizer, 0.5, 1.0, 1), lr_scheduler.MultiStepLR(optimizer, [1, 2], 0.1)
        scheduler = lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[1])

    def prepared(image: Tensor) -> Tensor:  # uint8 H×W×3
        return vision.normalize(vision.to_dtype(image.permute(2, 0, 1), torch.float32, scale=True), MEAN, STD)

    for epoch in range(1, 5):
        draws, loss_sum, right = draw_epoch(seed, epoch, 70, 8, augmented(2, True, cutout)), 0.0, 0
        network.train()
        for order in torch.arange(70).split(16):
            batch, labels = [], torch.from_numpy(data.train.labels)[draws.index[order]]
            for i in order.tolist():
                image = torch.from_numpy(data.train.images[draws.index[i]]).permute(2, 0, 1)
                image = vision.crop(vision.pad(image, [2]), int(draws.top[i]), int(draws.left[i]), 8, 8)
                image = prepared((vision.hflip(image) if draws.flip[i] else image).permute(1, 2, 0))
                if cutout:  # 3: a pixel to each side of the centre
                    top, left = (max(0, int(centre[i]) - 1) for centre in (draws.hole_y, draws.hole_x))
                    image[:, top : int(draws.hole_y[i]) + 2, left : int(draws.hole_x[i]) + 2] = 0
                batch.append(image)
            optimizer.zero_grad()
            outputs = network(torch.stack(batch))
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            loss_sum, right = loss_sum + loss.item() * len(order), right + (outputs.argmax(1) == labels).sum().item()
        rate = optimizer.param_groups[0]["lr"]
        scheduler.step()
        network.eval()
        with torch.no_grad():
            outputs = network(torch.stack([prepared(torch.from_numpy(image)) for image in data.held_out.images]))
        labels = torch.from_numpy(data.held_out.labels)
        accuracy = (outputs.argmax(1) == labels).double().mean().item()
        test = [nn.CrossEntropyLoss()(outputs, labels).item(), accuracy]
        history.append([epoch, loss_sum / 70, right / 70, *test, right / 70 - accuracy, rate])
        if keep == "last" or all(accuracy > row[4] for row in history[:-1]):
            kept = copy.deepcopy(network.state_dict())
    return history, kept


@pytest.mark.parametrize(
    ("keep", "cutout", "options"),
    [
        ("best", 0, {"schedule": "cosine", "warmup_epochs": 0, "nesterov": False, "label_smoothing": 0.0}),
        ("last", 3, {"schedule": "step", "warmup_epochs": 1, "nesterov": True, "label_smoothing": 0.2}),
    ],
)
@pytest.mark.parametrize("validation", [False, True])
def test_twenty_steps_are_those_of_a_plain_loop(keep, cutout, options, validation):
    """Five steps an epoch, the last of six images; losses, accuracies, rates, and the weights and statistics kept."""
    data, augment = dataset(validation=validation), augmented(2, True, cutout)
    usual = {"batch_size": 16, "learning_rate": 0.05, "momentum": 0.8, "weight_decay": 1e-2, "keep": keep}
    of = recipe(epochs=4, seed=5, augment=augment, **usual, **options)
    ours = states(Exact(), data, of)[-1]
    history, kept = plain_training(Exact(), data, keep, 5, cutout, **options)
    held_out = "validation" if validation else "test"
    columns = ["epoch", "train_loss", "train_accuracy", f"{held_out}_loss", f"{held_out}_accuracy"]
    assert [list(row) for row in ours.history] == [[*columns, "generalization_gap", "learning_rate"]] * 4
    for row, expected in zip(ours.history, history, strict=True):
        assert list(row.values()) == pytest.approx(expected, abs=2e-6)
    for name, tensor in kept.items():
        torch.testing.assert_close(ours.weights[name], tensor, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 4)])
@pytest.mark.parametrize("validation", [False, True])
def test_the_weights_kept_are_of_the_first_best_epoch_or_of_the_last(monkeypatch, validation, keep, kept):
    right = iter([10, 30, 30, 20])  # correct images after each epoch; a stand-in, since training gives no ties

    def answers(forward, images):
        labels = torch.from_numpy(DATA.held_out.labels)
        return F.one_hot(torch.where(torch.arange(50) < next(right), labels, (labels + 1) % 4), 4).float()

    monkeypatch.setattr(loop, "predict", answers)
    of = recipe(epochs=4, keep=keep)
    seen = states(fresh(of), dataset(validation=validation), of)
    column = "validation_accuracy" if validation else "test_accuracy"
    assert [row[column] for row in seen[-1].history] == [0.2, 0.6, 0.6, 0.4]
    assert seen[-1].weights["fc.bias"].equal(seen[kept - 1].tensors["model.fc.bias"])
    assert len({tuple(state.tensors["model.fc.bias"].tolist()) for state in seen}) == 4


def networks(name: str, of: Recipe) -> nn.Module:
    return Dropping() if name == "dropout" else fresh(of)


@pytest.mark.parametrize(("name", "keep"), [("cnn", "best"), ("resnet", "last"), ("dropout", "best")])
def test_two_trainings_and_one_resumed_from_the_file_of_any_epoch_have_the_same_bytes(name, keep, device):
    of = recipe("resnet" if name == "resnet" else "cnn", epochs=3, keep=keep)
    seen = states(networks(name, of), DATA, of, device)
    torch.manual_seed(99)  # what else draws from torch's generator has no say
    assert same(states(networks(name, of), DATA, of, device)[-1], seen[-1])
    for number, state in enumerate(seen, start=1):
        card, tensors = from_bytes(to_bytes({"history": state.history}, state.tensors))
        torch.manual_seed(number)
        resumed = State(tensors, card["history"], state.best_weights, state.seconds, state.training_seconds)
        rest = states(networks(name, of), DATA, of, device, resumed)
        assert len(rest) == 3 - number
        assert all(same(*pair) for pair in zip(rest, seen[number:], strict=True))


def test_dropout_has_other_masks_in_each_epoch_seed_and_process():
    masks = []
    for number in itertools.product((1, 2, 2**32 + 1, -1), (1, 2), (0, 1)):
        seed_dropout(*number)
        masks.append(tuple(torch.rand(4).tolist()))
    assert len(set(masks)) == len(masks)


def test_a_frozen_layer_is_trained_around():
    of, network = recipe(), fresh(recipe())
    network.features[0].weight.requires_grad_(False)
    before = network.features[0].weight.clone()
    (*_, last) = states(network, DATA, of)
    assert last.weights["features.0.weight"].equal(before)
    assert not last.weights["features.4.weight"].equal(fresh(of).features[4].weight)


class Counting(nn.Module):
    """Counts its forward passes in training, and has other outputs than one for each class."""

    trained = 0

    def __init__(self, outputs):
        super().__init__()
        self.outputs, self.weight = outputs, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor):
        self.trained += self.training
        return self.outputs(x.new_ones(len(x), 4) * self.weight)


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (lambda x: x[:, :3], r"\(1, 3\)"),
        (lambda x: x[:, :, None], r"\(1, 4, 1\)"),
        (lambda x: x[0], r"\(4,\)"),
        (lambda x: (x, x), "tuple"),
    ],
)
def test_outputs_that_are_not_one_for_each_class_are_refused_before_the_first_step(outputs, found):
    network = Counting(outputs)
    with pytest.raises(UserError, match=rf"output for one image is {found}; it must be a tensor of shape \(1, 4\)$"):
        states(network, DATA, recipe())
    assert network.trained == 0


def test_a_network_that_needs_larger_images_is_refused_in_one_line():
    def outputs(x: Tensor) -> Tensor:
        raise AssertionError("Wrong image height!\nExpected 224")

    with pytest.raises(UserError, match=r"fails on an image of 8×8 pixels \(Wrong image height! Expected 224\);"):
        states(Counting(outputs), DATA, recipe())


@pytest.mark.parametrize("place", ["train", "test"])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_epoch_and_rate(place):
    def outputs(x: Tensor) -> Tensor:  # one of the two losses, in the second epoch
        bad = network.training == (place == "train") and network.trained > 3
        return x * (math.inf if bad else 1)

    network = Counting(outputs)
    with pytest.raises(
        UserError, match=r"no longer finite after epoch 2 at learning rate 0\.01; lower train\.learning_rate"
    ):
        states(network, DATA, recipe())


def test_seconds_count_testing_and_images_a_second_do_not_also_after_a_resume(monkeypatch):
    """A stand-in clock: two seconds of training an epoch, one of testing, five in which the caller keeps the state."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    def watch(batches: Iterable[Tensor]) -> Iterator[Tensor]:
        spend(2)
        yield from batches

    def tested(forward, images) -> Tensor:
        spend(1)
        return torch.zeros(50, 4)

    monkeypatch.setattr(loop, "predict", tested)
    of, seen = recipe(epochs=3), []
    for state in train(fresh(of), DATA, of, CPU, None, watch):
        seen.append(copy.deepcopy(state))
        spend(5)
    assert [state.training_seconds for state in seen] == [2, 4, 6]
    assert [state.seconds for state in seen] == [3, 11, 19]
    spend(1000)
    (*_, last) = states(fresh(of), DATA, of, resumed=seen[0], watch=watch)
    assert (last.training_seconds, last.seconds) == (6, 3 + 3 + 3)
    told = timing(last, 70, CPU)
    assert (told["train_seconds"], told["images_per_second"]) == (9, 35)


def test_watch_sees_every_batch_of_the_epoch():
    sizes: list[int] = []

    def watch(batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            sizes.append(len(batch))
            yield batch

    states(fresh(recipe()), DATA, recipe(), watch=watch)
    assert sizes == [32, 32, 6] * 2


class Recording(Device):
    """The CPU, telling what it is asked to compile and to capture."""

    def compiled(self, function):
        return lambda rows: (self.seen.append(len(rows)), function(rows))[1]

    def graphed(self, function, state):
        self.states.append(list(state))
        return function


@pytest.fixture
def recording() -> Recording:
    device = Recording(torch.device("cpu"), "fp32", compile=True)
    object.__setattr__(device, "seen", [])
    object.__setattr__(device, "states", [])
    return device


def test_whole_batches_are_compiled_and_the_last_smaller_one_is_not(recording):
    states(fresh(recipe()), DATA, recipe(), recording)
    assert recording.seen == [32, 32] * 2


def test_the_capture_of_a_step_knows_all_that_a_step_changes(recording):
    step = Step(CPU.place(fresh(recipe())).train(), images_on(CPU), recipe().train, CPU.autocast)
    update = loop.build_update(step, 32, recording)
    (captured,) = recording.states
    held = {tensor.data_ptr() for tensor in captured}
    everything = {**step.tensors(), "sums": step.sums, "learning_rate": step.learning_rate}
    before = {name: tensor.clone() for name, tensor in everything.items()}
    update(rows_of_an_epoch()[:32])
    changed = {name for name, tensor in everything.items() if not tensor.equal(before[name])}
    assert changed == set(everything) - {"learning_rate"}
    assert all(everything[name].data_ptr() in held for name in changed)


class Together(Processes):
    """The first of two processes, of which the other computes nothing."""

    def replicate(self, model: nn.Module) -> nn.Module:
        types.extend(type(module) for module in model.modules())
        return model

    def all_reduce(self, tensor: Tensor) -> None: ...
    def average(self, tensors: Iterable[Tensor]) -> None: ...


types: list[type] = []


@pytest.mark.parametrize(("world_size", "wanted", "converted"), [(1, True, False), (2, False, False), (2, True, True)])
def test_several_processes_share_batch_statistics_where_that_is_wanted(world_size, wanted, converted):
    types.clear()
    device = Device(torch.device("cpu"), "fp32", compile=False, processes=Together(0, world_size))
    states(fresh(recipe()), DATA, recipe(sync_batchnorm=wanted), device)
    assert (nn.SyncBatchNorm in types, nn.BatchNorm2d in types) == (converted, not converted)


@pytest.mark.parametrize(
    ("count", "size", "batches"), [(2500, 32, [1000, 1000, 500]), (9, 512, [3, 3, 3]), (2, 1100, [1, 1])]
)
def test_predictions_are_made_in_batches_of_bounded_memory_whose_results_may_be_overwritten(count, size, batches):
    seen, result = [], torch.zeros(1000, 1)

    def forward(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return result[: len(batch)].copy_(batch[:, :1, 0, 0].float())

    images = torch.arange(count).to(torch.uint8).view(count, 1, 1, 1).expand(count, size, size, 3)
    assert predict(forward, images)[:, 0].equal((torch.arange(count) % 256).float())
    assert seen == batches


def images_on(device: Device) -> TrainingImages:
    return TrainingImages(DATA.train, augmented(), Normalise(MEAN, STD, device.torch), device.torch)


def rows_of_an_epoch() -> Tensor:
    return torch.stack(draw_epoch(1, 1, 70, 8, augmented()), 1)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_on_a_gpu_two_epochs_of_replayed_steps_agree_with_the_cpu(name):
    of = recipe(name)
    (*_, ours), (*_, plain) = (states(fresh(of), DATA, of, device_of(where)) for where in ("fp32", "cpu"))
    for mine, expected in zip(ours.history, plain.history, strict=True):
        assert mine["train_loss"] == pytest.approx(expected["train_loss"], abs=5e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_on_a_gpu_a_replay_trains_on_its_own_batch_and_the_host_waits_for_no_step(name):
    gpu = device_of("fp32")
    steps = [
        Step(gpu.place(fresh(recipe(name))).train(), images_on(gpu), recipe().train, gpu.autocast) for _ in range(2)
    ]
    replayed, rows = loop.build_update(steps[0], 32, gpu), gpu.copied(rows_of_an_epoch())[:64]
    replayed(rows[:32])  # captures it
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in rows[32:].split(32):
            replayed(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch in rows.split(32):
        steps[1](batch)
    torch.testing.assert_close(steps[0].sums, steps[1].sums, rtol=1e-4, atol=1e-4)
