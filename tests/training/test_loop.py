import copy
import itertools
from typing import ClassVar
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torchvision.transforms.v2 import functional as vision

from stages.common.dataset import Dataset
from stages.common.errors import UserError
from stages.training import loop
from stages.training.augmentation import Draws, Normalise, TrainingImages, draw_epoch
from stages.training.checkpoint import State, from_bytes, to_bytes
from stages.training.device import Device, choose_device
from stages.training.distributed import Processes
from stages.training.loop import predict
from tests.training.test_step import ROWS, stepping
from tests.training.toys import CPU, MEAN, STD, augmented, dataset, dropping, fresh, recipe, same, states

DATA = dataset()
ON_GPU = [pytest.param(name, marks=pytest.mark.cuda) for name in ("fp32", "bf16", "bf16 compiled")]


@pytest.fixture(params=["cpu", *ON_GPU])
def device(request) -> Device:
    """The CPU, and where there is a GPU, it in every way that it is used."""
    precision, _, compiled = request.param.partition(" ")
    return CPU if precision == "cpu" else choose_device(recipe(precision=precision, compile=bool(compiled)).train, 0)


def exact() -> nn.Module:
    """A small network in float64, in which twenty steps add up no rounding."""
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)
    network = nn.Sequential(*layers).double()
    network.register_forward_pre_hook(lambda _, x: x[0].double())
    return network


def plain_training(
    data: Dataset, keep: str, cutout: int, schedule: str, nesterov: bool, label_smoothing: float, warmup_epochs: int
) -> tuple[list[list[float]], dict[str, Tensor]]:
    """The history and the weights kept of a training of four epochs by torch; of ours, the batches alone."""
    network, criterion, history, kept = exact(), nn.CrossEntropyLoss(label_smoothing=label_smoothing), [], {}
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.8, weight_decay=1e-2, nesterov=nesterov, foreach=False)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    if schedule == "step":  # after an epoch of warming up, times 0.1 at half and three quarters of three
        scheduler = lr_scheduler.MultiStepLR(optimizer, [1, 2], 0.1)
        rise = lr_scheduler.LinearLR(optimizer, 1 / (warmup_epochs + 1), 1.0, warmup_epochs)
        scheduler = lr_scheduler.SequentialLR(optimizer, [rise, scheduler], [warmup_epochs])

    test_images = torch.from_numpy(data.held_out.images).permute(0, 3, 1, 2)
    tests = vision.normalize(vision.to_dtype(test_images, torch.float32, scale=True), MEAN, STD)
    answers, augment = torch.from_numpy(data.held_out.labels), augmented(2, True, cutout)
    images = TrainingImages(data.train, augment, Normalise(MEAN, STD, CPU.torch), CPU.torch)
    for epoch in range(1, 5):
        draws, loss_sum, right = torch.stack(draw_epoch(5, epoch, 70, 8, augment), 1), 0.0, 0
        network.train()
        for rows in draws.split(16):
            x, targets = images.batch(Draws(*rows.unbind(1)))
            optimizer.zero_grad()
            outputs = network(x)
            loss = criterion(outputs, targets)
            loss.backward()
            optimizer.step()
            loss_sum, right = loss_sum + loss.item() * len(rows), right + (outputs.argmax(1) == targets).sum().item()
        rate = optimizer.param_groups[0]["lr"]
        scheduler.step()
        with torch.no_grad():
            outputs = network.eval()(tests)
        accuracy = (outputs.argmax(1) == answers).double().mean().item()
        test = [nn.CrossEntropyLoss()(outputs, answers).item(), accuracy, right / 70 - accuracy]
        history.append([epoch, loss_sum / 70, right / 70, *test, rate])
        if keep == "last" or all(accuracy > row[4] for row in history[:-1]):
            kept = copy.deepcopy(network.state_dict())
    return history, kept


@pytest.mark.parametrize(
    ("held_out", "keep", "cutout", "usual"),
    [("test", "last", 0, ["cosine", 0, False, 0.0]), ("validation", "best", 3, ["step", 1, True, 0.2])],
)
def test_twenty_steps_are_those_of_a_plain_loop(held_out, keep, cutout, usual):
    """Five steps an epoch, the last of six images; losses, accuracies, rates, and the weights and statistics kept."""
    names = ["schedule", "warmup_epochs", "nesterov", "label_smoothing"]
    data, usual = dataset(validation=held_out == "validation"), dict(zip(names, usual, strict=True))
    changes = {"batch_size": 16, "learning_rate": 0.05, "momentum": 0.8, "weight_decay": 1e-2, "keep": keep}
    of = recipe(epochs=4, seed=5, augment=augmented(2, True, cutout), **changes, **usual)
    ours = states(exact(), data, of)[-1]
    history, kept = plain_training(data, keep, cutout, **usual)
    names = ["epoch", "train_loss", "train_accuracy", f"{held_out}_loss", f"{held_out}_accuracy"]
    assert [list(row) for row in ours.history] == [[*names, "generalization_gap", "learning_rate"]] * 4
    for row, expected in zip(ours.history, history, strict=True):
        assert list(row.values()) == pytest.approx(expected, abs=2e-6)
    for name, tensor in kept.items():
        torch.testing.assert_close(ours.weights[name], tensor, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("name", "keep"), [("cnn", "best"), ("resnet", "last"), ("dropout", "best")])
def test_two_trainings_and_one_resumed_from_the_file_of_any_epoch_have_the_same_bytes(name, keep, device):
    of = recipe("resnet" if name == "resnet" else "cnn", epochs=3, keep=keep)

    def trained(resumed: State | None = None) -> list[State]:
        torch.manual_seed(99 if resumed else 1)  # what else was drawn from torch's generator has no say
        return states(dropping() if name == "dropout" else fresh(of), DATA, of, device, resumed)

    seen = trained()
    assert same(trained()[-1], seen[-1])
    for number, state in enumerate(seen, start=1):
        card, tensors = from_bytes(to_bytes({"history": state.history}, state.tensors))
        rest = trained(State(tensors, card["history"], state.best_weights, state.seconds, state.training_seconds))
        assert all(same(*pair) for pair in zip(rest, seen[number:], strict=True))


class Outputs(nn.Module):
    """A network whose outputs are a function of four ones for each image; it counts its forward passes in training."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weight, self.trained = function, nn.Parameter(torch.ones(1)), 0

    def forward(self, x: Tensor):
        self.trained += self.training
        return self.function(x.new_ones(len(x), 4) * self.weight)


def test_seconds_count_all_epochs_those_of_training_no_tests_and_a_resumed_run_goes_on_with_both(monkeypatch):
    """A stand-in clock: a step takes two seconds, the test one."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    network = Outputs(lambda x: now.append(now.pop() + 1 + network.training) or x)
    seen = states(network, DATA, recipe(epochs=3))
    for last in (*seen[1:], *states(network, DATA, recipe(epochs=3), resumed=seen[0])):
        assert (last.seconds, last.training_seconds) == (7 * len(last.history), 6 * len(last.history))


def test_images_that_do_not_fit_padded_into_the_memory_that_is_free_are_refused(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", memory := Mock())
    memory.return_value.available = 70 * 12 * 12 * 3
    states(fresh(recipe()), DATA, recipe())
    memory.return_value.available -= 1
    with pytest.raises(UserError, match=r"^the padded training images need"):
        states(fresh(recipe()), DATA, recipe())


@pytest.mark.parametrize("function", [lambda x: x[:, :3], lambda x: (x, x), lambda x: x[:9, None] @ x])
def test_a_network_without_an_output_for_each_class_is_refused_before_the_first_step(function):
    network = Outputs(function)
    with pytest.raises(UserError, match=r"output for one image is .*; it must be a tensor of shape|fails on an image"):
        states(network, DATA, recipe())
    assert network.trained == 0


@pytest.mark.parametrize("place", ["train", "test"])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_epoch_and_rate(place):
    """One of the two losses, in the second epoch; weights and gradients stay finite."""
    bad = torch.tensor([3e38, -3e38, -3e38, -3e38])
    wanted = place == "train"
    network = Outputs(lambda x: x * 0 + bad if network.training == wanted and network.trained > 3 else x)
    with pytest.raises(UserError, match=r"finite after epoch 2 at learning rate 0\.01; lower train\.learning_rate$"):
        states(network, DATA, recipe())


class Together(Processes):
    """One of several processes, of which the others compute nothing; it notes the types of the replicated modules."""

    types: ClassVar[list[type]] = []
    all_reduce = average = lambda self, tensors: None

    def replicate(self, model: nn.Module) -> nn.Module:
        self.types[:] = [type(module) for module in model.modules()]
        return model


@pytest.mark.parametrize(("world_size", "wanted", "converted"), [(1, True, False), (2, False, False), (2, True, True)])
def test_several_processes_share_batch_statistics_where_that_is_wanted(world_size, wanted, converted):
    device = Device(CPU.torch, "fp32", compile=False, processes=Together(0, world_size))
    states(fresh(recipe()), DATA, recipe(sync_batchnorm=wanted), device)
    assert (nn.SyncBatchNorm in Together.types, nn.BatchNorm2d in Together.types) == (converted, not converted)


def test_dropout_has_other_masks_in_each_seed_epoch_and_process():
    drawn = []
    for seed, rank in itertools.product((1, 2, 2**32 + 1, -1), (0, 1)):
        network = Outputs(lambda x: (drawn.extend([tuple(torch.rand(4).tolist())] * network.training), x)[1])  # noqa: B023
        states(network, DATA, recipe(seed=seed), Device(CPU.torch, "fp32", False, Together(rank, 2)))
    assert len(set(drawn)) == len(drawn) == 4 * 2 * 2 * 3  # three batches in each of two epochs


def test_whole_batches_are_compiled_and_the_capture_knows_all_that_a_step_changes():
    """The CPU, telling what it is asked to compile and to capture."""
    device, compiled, step = Mock(processes=Processes()), [], stepping(recipe(), fresh(recipe()))
    device.compiled = lambda function: lambda rows: (compiled.append(len(rows)), function(rows))[1]
    device.graphed = Mock(side_effect=lambda function, state: function)
    update = loop.build_update(step, 32, device)
    captured = {tensor.data_ptr() for tensor in device.graphed.call_args.args[1]}
    before = [(tensor, tensor.clone()) for tensor in (*step.tensors().values(), step.sums)]
    for rows in ROWS.split(32):
        update(rows)
    assert compiled == [32, 32]  # and not the last, smaller one
    assert all(not tensor.equal(old) and tensor.data_ptr() in captured for tensor, old in before)


@pytest.mark.parametrize(("count", "size", "batches"), [(2500, 32, [1000, 1000, 500]), (2, 1100, [1, 1])])
def test_predictions_are_made_in_batches_of_bounded_memory_whose_results_may_be_overwritten(count, size, batches):
    seen, result = [], torch.zeros(1000, 1)

    def forward(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return result[: len(batch)].copy_(batch[:, :1, 0, 0].float())

    images = torch.arange(count).to(torch.uint8).view(count, 1, 1, 1).expand(count, size, size, 3)
    assert predict(forward, images)[:, 0].equal((torch.arange(count) % 256).float())
    assert seen == batches
