import torch

from stages.commands.gradients import IMAGES, NoShortcut, gradient_norms
from stages.common.params import Resnet
from stages.training.models import BasicBlock, build_model
from tests.pipeline import DEFAULTS

SETTINGS = Resnet(epochs=1, base_channels=16, blocks=[1, 1, 1, 1])


def test_the_norm_is_the_slope_of_the_summed_logits_along_the_gradient():
    model = build_model(SETTINGS, classes=10, seed=3).double()
    norm = gradient_norms(model, image_size=32, seed=3)["conv1"]
    weight = model.conv1.weight
    direction = weight.grad / weight.grad.norm()
    x = torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        weight += 1e-7 * direction
        above = model(x).sum()
        weight -= 2e-7 * direction
        slope = (above - model(x).sum()) / 2e-7
    assert abs(slope - norm) < 1e-3 * norm


def test_a_block_without_its_shortcut_is_its_two_convolutions_alone():
    block = BasicBlock(16, 16, stride=1).eval()
    block.shortcut = NoShortcut()
    x = torch.randn(2, 16, 8, 8)
    inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    assert torch.equal(block(x), torch.relu(inner))


def test_the_command_prints_the_norms_of_both_networks(tmp_path, monkeypatch, stage, request):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(DEFAULTS.read_text().replace("base_channels: 64", "base_channels: 16"))
    done = stage("stages.commands.gradients")
    assert done.returncode == 0, done.stderr
    title, head, *rows = done.stdout.splitlines()
    assert "ResNet-18, 16 channels" in title
    assert head.split() == ["with", "shortcuts", "without"]
    assert [row[:24].strip() for row in rows] == ["input", "conv1", "layer4, first conv", "layer4, last conv"]
    for row in rows:
        with_shortcuts, without = map(float, row[24:].split())
        assert with_shortcuts > 0 < without != with_shortcuts
