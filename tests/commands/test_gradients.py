from argparse import Namespace

import pytest
import torch

from stages.commands import gradients
from stages.commands.gradients import IMAGES, conclusion, gradient_norms, network
from stages.common.errors import UserError
from stages.models.resnet import Settings
from tests.pipeline import write_params

SMALL = Settings(epochs=1, base_channels=16, blocks=[1, 1, 1, 1])


def test_the_norm_is_the_slope_of_the_summed_logits_along_the_gradient():
    model = network(SMALL, seed=3, shortcuts=True).double()
    norm = gradient_norms(model, image_size=32, seed=3)["conv1"]
    weight = model.conv1.weight
    x = torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(3)).double()
    (gradient,) = torch.autograd.grad(model(x).sum(), weight)
    with torch.no_grad():
        step = 1e-7 * gradient / gradient.norm()
        weight += step
        above = model(x).sum()
        weight -= 2 * step
        slope = (above - model(x).sum()) / 2e-7
    assert abs(slope - norm) < 1e-3 * norm


def test_without_its_shortcut_a_block_is_its_two_convolutions_alone():
    for block in network(SMALL, seed=3, shortcuts=False).eval().layer2:
        x = torch.randn(2, 16, 8, 8)
        inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
        assert torch.equal(block(x), torch.relu(inner))


def test_both_networks_begin_with_the_same_weights():
    one, other = (network(SMALL, seed=3, shortcuts=shortcuts).state_dict() for shortcuts in (True, False))
    assert all(tensor.equal(other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("blocks", "with_shortcuts", "without", "says"),
    [
        (None, (4, 40), (4, 40), "at the depth of ResNet-18, shortcuts\nhardly matter"),
        ([8, 8, 8, 8], (90, 120), (4e4, 5e4), "times as large: in ResNet-66, gradients explode.\nWith batch norm"),
    ],
)
def test_the_command_prints_the_norms_of_both_networks_and_what_follows(
    tmp_path, monkeypatch, capsys, blocks, with_shortcuts, without, says
):
    monkeypatch.chdir(tmp_path)
    resnet = {"epochs": 1, "base_channels": 16, "blocks": [2, 2, 2, 2]}
    write_params(tmp_path, resnet=resnet, data__image_size=32)
    gradients.main(Namespace(blocks=blocks))
    title, head, *rows, conclusion, more = capsys.readouterr().out.splitlines()
    assert title.startswith(f"Gradient norms of a fresh ResNet-{66 if blocks else 18}, 16 channels")
    assert head.split() == ["with", "shortcuts", "without"]
    norms = {row[:24].strip(): [float(norm) for norm in row[24:].split()] for row in rows}
    assert [*norms] == ["input", "conv1", "layer4, first conv", "layer4, last conv"]
    assert with_shortcuts[0] < norms["conv1"][0] < with_shortcuts[1]
    assert without[0] < norms["conv1"][1] < without[1]
    assert says in f"{conclusion}\n{more}"


def test_the_conclusion_follows_from_the_numbers():
    assert "is 0.05 times as large: in ResNet-50, gradients vanish" in conclusion(0.05, "ResNet-50")
    assert "is 9.90 times as large: at the depth of ResNet-50" in conclusion(9.9, "ResNet-50")
    assert "is 12,346 times as large: in ResNet-50, gradients explode" in conclusion(12345.6, "ResNet-50")


def test_impossible_blocks_end_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    with pytest.raises(UserError, match=r"^resnet: blocks\.3 = 0: must be greater"):
        gradients.main(Namespace(blocks=[1, 1, 1, 0]))
