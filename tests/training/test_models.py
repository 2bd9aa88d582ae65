import math

import pytest
import torch
from torch import nn

from stages.common.params import Cnn, Resnet
from stages.training.models import BasicBlock, build_model, count_parameters


def resnet(base_channels: int = 64, classes: int = 10, seed: int = 1) -> nn.Module:
    return build_model(Resnet(epochs=1, base_channels=base_channels, blocks=[2, 2, 2, 2]), classes, seed)


def simple_cnn(base_channels: int = 64, classes: int = 10, seed: int = 1) -> nn.Module:
    return build_model(Cnn(epochs=1), classes, seed)


def blocks(model: nn.Module) -> list[BasicBlock]:
    return [module for module in model.modules() if isinstance(module, BasicBlock)]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_parameter_counts_are_the_notebooks():
    assert count_parameters(resnet()) == 11_173_962
    assert count_parameters(simple_cnn()) == 391_946


@pytest.mark.parametrize("build", [resnet, simple_cnn])
@pytest.mark.parametrize("size", [8, 16, 32, 33])
def test_a_batch_of_any_size_of_image_becomes_a_logit_a_class(build, size):
    model = build(classes=7, base_channels=16).eval()
    assert model(torch.zeros(3, 3, size, size)).shape == (3, 7)


def test_the_layers_of_resnet18_halve_the_image_and_double_the_channels():
    shapes = []
    model = resnet(base_channels=16).eval()
    for block in blocks(model):
        block.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    assert shapes == 2 * [(16, 32, 32)] + 2 * [(32, 16, 16)] + 2 * [(64, 8, 8)] + 2 * [(128, 4, 4)]


def test_rectifying_after_pooling_gives_the_values_and_gradients_of_pooling_after_rectifying():
    model = simple_cnn()
    pooled_last = nn.Sequential(*simple_cnn().features)
    for i in (2, 6, 10):
        pooled_last[i], pooled_last[i + 1] = nn.ReLU(), model.features[i]
    x = torch.randn(8, 3, 32, 32)
    ours, theirs = model.features(x), pooled_last(x)
    assert isinstance(model.features[2], nn.MaxPool2d)
    assert torch.equal(ours, theirs)
    direction = torch.randn_like(ours)
    ours.backward(direction)
    theirs.backward(direction)
    for mine, other in zip(model.features.parameters(), pooled_last.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)


def test_resnet_starts_from_kaimings_distribution_over_the_fan_out():
    model = resnet()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
            assert abs(module.weight.mean().item()) < 0.05 * module.weight.std().item()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (model.fc.bias == 0).all()


def test_layers_and_their_blocks_have_the_names_and_numbers_of_the_paper():
    model = build_model(Resnet(epochs=1, base_channels=16, blocks=[3, 4, 6, 3]), 10, seed=1)  # ResNet-34
    assert [len(layer) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)] == [3, 4, 6, 3]
    assert [name for name, _ in model.named_children()] == [
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc",
    ]  # fmt: skip


def test_the_shortcut_is_a_strided_1x1_convolution_only_where_the_shape_changes():
    assert len(BasicBlock(16, 16, stride=1).shortcut) == 0
    for block in (BasicBlock(16, 32, stride=1), BasicBlock(16, 16, stride=2)):
        convolution, normalisation = block.shortcut
        assert convolution.kernel_size == (1, 1)
        assert convolution.stride == block.conv1.stride
        assert convolution.bias is None
        assert isinstance(normalisation, nn.BatchNorm2d)


def test_a_block_without_residual_is_its_rectified_shortcut():
    block = BasicBlock(16, 16, stride=1).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(block(x), x.clamp(min=0))


def test_the_gradient_reaches_the_first_convolution_through_the_shortcuts_alone():
    model = resnet(base_channels=16)
    for block in blocks(model):
        nn.init.zeros_(block.bn2.weight)
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    assert model.conv1.weight.grad.norm() > 0
    assert all((block.conv1.weight.grad == 0).all() for block in blocks(model))


@pytest.mark.parametrize("build", [resnet, simple_cnn])
@pytest.mark.parametrize("seed", [1, -1, 2**70])
def test_weights_follow_from_the_seed_alone(build, seed):
    first = build(seed=seed, base_channels=16)
    state = torch.get_rng_state()
    assert same_weights(build(seed=seed, base_channels=16), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not same_weights(build(seed=seed + 1, base_channels=16), first)
