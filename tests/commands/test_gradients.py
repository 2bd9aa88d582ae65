from argparse import Namespace

import pytest
import torch

from stages.commands import gradients
from stages.commands.gradients import conclusion, gradient_norms, remove_shortcuts
from stages.common.errors import UserError
from stages.models.resnet import ResNet


def test_a_norm_is_that_of_the_gradient_of_the_summed_logits():
    model, x = ResNet(10, 16, [1, 1, 1, 2]), torch.randn(2, 3, 32, 32)
    norms = gradient_norms(model, x)
    model(x).sum().backward()
    assert norms["conv1"] == pytest.approx(float(model.conv1.weight.grad.square().sum().sqrt()), rel=1e-3)
    last = model.layer4[1].conv2.weight.grad
    assert norms["layer4.1.conv2"] == pytest.approx(float(last.square().sum().sqrt()), rel=1e-3)


def test_without_its_shortcut_a_block_is_its_two_convolutions_alone():
    model = ResNet(10, 16, [1, 2, 1, 1]).eval()
    remove_shortcuts(model)
    for block, channels in zip(model.layer2, (16, 32), strict=True):
        x = torch.randn(2, channels, 8, 8)
        inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
        assert torch.equal(block(x), torch.relu(inner))


def test_deep_networks_explode_without_shortcuts_and_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gradients, "CHANNELS", 16)
    gradients.main(Namespace(blocks=[8, 8, 8, 8]))
    head, conv1, *_, ratio, effect = capsys.readouterr().out.splitlines()
    assert head.split() == ["with", "shortcuts", "without"]
    name, with_shortcuts, without = conv1.split()
    assert (name, effect) == ("conv1", "gradients explode.")
    assert float(ratio.split()[7]) == pytest.approx(float(without) / float(with_shortcuts), rel=0.01)
    assert conclusion(0.05).endswith("at conv1 is 0.05 times as large:\ngradients vanish.")
    with pytest.raises(UserError, match=r"^--blocks 1 0 1 1: each layer has a block"):
        gradients.main(Namespace(blocks=[1, 0, 1, 1]))
    assert "at conv1 is 9.9 times as large:\nat this depth, shortcuts hardly matter" in conclusion(9.9)
