import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from stages.common.errors import UserError
from stages.common.params import Params
from stages.models import cnn, resnet, torchvision
from stages.training.recipe import Recipe, build_model, learning_rates, recipe_of
from tests.pipeline import PARAMS
from tests.training.toys import recipe


def params(**sections: dict) -> Params:
    """The tests' parameters, with these keys of these sections changed or added."""
    values = copy.deepcopy(PARAMS)
    for name, changes in sections.items():
        values[name] = values.get(name, {}) | changes
    return Params.model_validate(values)


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("epochs", [1, 2, 5, 100])
@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_learning_rates_are_those_of_torchs_schedulers(schedule, epochs, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    if schedule == "step":  # a single epoch has the full rate, and each drop is an epoch away from the start
        scheduler = lr_scheduler.MultiStepLR(optimizer, [max(1, epochs // 2), max(1, 3 * epochs // 4)], gamma=0.1)
    if warmup:
        rise = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), 1.0, total_iters=warmup)
        scheduler = lr_scheduler.SequentialLR(optimizer, [rise, scheduler], milestones=[warmup])
    expected = []
    for _ in range(warmup + epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    of = recipe(epochs=warmup + epochs, schedule=schedule, learning_rate=0.3, warmup_epochs=warmup)
    assert learning_rates(of) == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert learning_rates(of)[warmup] == 0.3


def test_a_recipe_is_that_of_its_run_and_model_and_holds_nothing_of_others():
    all_ = params(runs={"odd": {"model": "torchvision", "weight_decay": "ablation.weight_decay"}})
    expected = {
        "cnn": (cnn.Settings(epochs=1), 5e-4),
        "resnet_ablation": (resnet.Settings(epochs=1, base_channels=16, blocks=[1, 1, 1, 1]), 1e-4),
        "odd": (torchvision.Settings(name="mobilenet_v2", epochs=1), 1e-4),
    }
    for run, (settings, weight_decay) in expected.items():
        of = recipe_of(all_, run)
        assert (of.run, of.model, of.seed) == (run, all_.runs[run].model, all_.seed)
        assert (of.settings, of.augment, of.epochs, of.title) == (settings, all_.augment, 1, settings.title)
        assert of.train == all_.train.model_copy(update={"weight_decay": weight_decay})
        assert Recipe.model_validate_json(of.model_dump_json()) == of


def test_a_mistake_in_any_run_is_found_by_the_first_training():
    with pytest.raises(UserError, match=r"^params\.yaml: section resnet: blocks = \[\]: "):
        recipe_of(params(resnet={"blocks": []}), "cnn")
    with pytest.raises(UserError, match=r"must be less than resnet\.epochs = 1$"):
        recipe_of(params(train={"warmup_epochs": 1}, cnn={"epochs": 2}), "cnn")


@pytest.mark.parametrize(("name", "model"), [("cnn", cnn), ("resnet", resnet)])
def test_fresh_weights_follow_from_the_seed_alone_and_leave_torchs_random_state(name, model):
    state = torch.get_rng_state()
    seeds = (1, 1, 2, 2**16 + 1, 2**31 + 1, -1)  # torch's generator of the CPU takes the lower 32 bits alone
    drawn = [nn.utils.parameters_to_vector(build_model(recipe(name, seed=seed), 4).parameters()) for seed in seeds]
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn[0].equal(drawn[1])
    torch.manual_seed(1)  # the weights are those that follow it
    assert drawn[0].equal(nn.utils.parameters_to_vector(model.build(recipe(name).settings, 4).parameters()))
    assert len({tuple(weights[:1000].tolist()) for weights in drawn}) == len(set(seeds))
