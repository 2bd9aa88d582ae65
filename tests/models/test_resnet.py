import math

import pytest
import torch
from scipy.stats import kstest
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet as reference

from stages.models.resnet import Settings, build


def settings(base_channels: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2)) -> Settings:
    return Settings(epochs=1, base_channels=base_channels, blocks=list(blocks))


def torchvisions(blocks: tuple[int, ...], classes: int) -> nn.Module:
    """The ResNet of torchvision, with a stem for small images, and weights and statistics each of its own value."""
    network = reference.ResNet(reference.BasicBlock, list(blocks), num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    torch.manual_seed(0)
    for name, tensor in network.state_dict().items():
        values = torch.rand(tensor.shape)
        if tensor.ndim == 4:
            tensor.copy_((2 * values - 1) * (3 / tensor[0].numel()) ** 0.5)
        elif tensor.is_floating_point():
            positive = name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1)
            tensor.copy_(values + 0.5 if positive else values - 0.5)
    return network.double()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("blocks", "size"), [((2, 2, 2, 2), 16), ((1, 3, 2, 1), 9)])
def test_outputs_gradients_and_statistics_are_those_of_torchvision(blocks, size, training):
    theirs = torchvisions(blocks, classes=7).train(training)
    ours = build(settings(blocks=blocks), 7).double().train(training)
    called = {name: name.replace("downsample", "shortcut") for name in theirs.state_dict()}
    ours.load_state_dict({called[name]: tensor for name, tensor in theirs.state_dict().items()})
    x = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs = [network(x) for network in (ours, theirs)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-9)
    for logits in outputs:
        F.cross_entropy(logits, torch.tensor([0, 3, 6])).backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    for name, p in theirs.named_parameters():
        assert p.grad.norm() > 1e-6, f"{name} has no part in the outputs"
        torch.testing.assert_close(gradients[called[name]], p.grad, rtol=0, atol=1e-9)
    after = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(after[called[name]], tensor, rtol=0, atol=1e-9)


def test_resnet18_has_the_papers_parameters_and_the_title_has_the_depth_and_an_unusual_width():
    assert sum(p.numel() for p in build(settings(), 10).parameters()) == 11_173_962
    assert len(build(settings(32), 10).conv1.weight) == 32
    assert [settings().title, settings(16, (1, 1, 1, 1)).title] == ["ResNet-18", "ResNet-10, 16 channels"]


def test_it_starts_from_kaimings_distribution_over_the_fan_out_and_a_small_classifier():
    torch.manual_seed(0)
    for module in build(settings(), 10).modules():
        if isinstance(module, nn.Conv2d):
            deviation = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            assert kstest(module.weight.detach().flatten()[:100_000].numpy(), "norm", (0, deviation)).pvalue > 1e-4
        elif isinstance(module, nn.Linear):
            assert kstest(module.weight.detach().flatten().numpy(), "norm", (0, 0.01)).pvalue > 1e-4
            assert (module.bias == 0).all()
        elif isinstance(module, nn.BatchNorm2d):
            assert not torch.cat([module.weight - 1, module.bias]).any()
