"""Print how much of the gradient reaches the first layers of a fresh ResNet, with its shortcuts and without.

With batch normalisation, gradients grow from layer to layer (Yang et al. 2019, *A mean field theory of batch
normalization*); shortcuts hold that down.

python -m stages.commands.gradients
python -m stages.commands.gradients --blocks 8 8 8 8
"""

from argparse import Namespace

import pandas as pd
import torch
from torch import Tensor

from stages.common import cli
from stages.common.errors import UserError
from stages.models.resnet import BasicBlock, ResNet

SEED, IMAGES, CHANNELS = 42, 2, 64


def main(args: Namespace) -> None:
    """Compare a network on random images with the same network without its shortcuts."""
    if min(args.blocks) < 1:
        raise UserError(f"--blocks {' '.join(map(str, args.blocks))}: each layer has a block at least")
    torch.manual_seed(SEED)
    model, x = ResNet(10, CHANNELS, args.blocks), torch.randn(IMAGES, 3, 32, 32)
    norms = pd.DataFrame({"with shortcuts": gradient_norms(model, x)})
    remove_shortcuts(model)
    norms["without"] = gradient_norms(model, x)
    print(norms.to_string(float_format="{:.4g}".format))
    print(conclusion(norms["without"]["conv1"] / norms["with shortcuts"]["conv1"]))


def conclusion(ratio: float) -> str:
    """Say what follows from the gradient at conv1 without shortcuts, divided by that with them."""
    effect = f"gradients {'explode' if ratio > 1 else 'vanish'}."
    if 1 / 10 < ratio < 10:  # less than ten times as large or as small
        effect = "at this depth, shortcuts hardly matter for it. Try --blocks 8 8 8 8."
    return f"Without shortcuts, the gradient at conv1 is {ratio:.3g} times as large:\n{effect}"


def remove_shortcuts(model: ResNet) -> None:
    """Add nothing to what the convolutions of a block return."""
    for module in model.modules():
        if isinstance(module, BasicBlock):
            module.shortcut.register_forward_hook(lambda *_: 0)  # in place of its output


def gradient_norms(model: ResNet, x: Tensor) -> dict[str, float]:
    """Return the Euclidean norm of the gradient of the summed logits in the first and the last layers.

    Args:
        x: images, float B×3×H×W.
    """
    names = ["conv1", "layer4.0.conv1", f"layer4.{len(model.layer4) - 1}.conv2"]
    gradients = torch.autograd.grad(model(x).sum(), [model.get_parameter(f"{name}.weight") for name in names])
    return {name: float(gradient.norm()) for name, gradient in zip(names, gradients, strict=True)}


if __name__ == "__main__":
    parser = cli.parser("gradients", __doc__)
    said = "in each layer; default: ResNet-18's"
    parser.add_argument("--blocks", type=int, nargs=4, default=[2, 2, 2, 2], metavar="N", help=said)
    cli.run(main, parser)
