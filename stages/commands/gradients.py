"""Print how much of the gradient reaches the first layers of a fresh ResNet, with its shortcuts and without.

python -m stages.commands.gradients
"""

from argparse import Namespace

import torch
from torch import Tensor, nn

from stages.common import cli
from stages.common.params import load_params
from stages.training.models import BasicBlock, ResNet, build_model

IMAGES = 2


class NoShortcut(nn.Module):
    """In place of a block's shortcut: nothing is added to what its convolutions make of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def main(args: Namespace) -> None:
    params = load_params()
    plain, residual = (build_model(params.resnet, classes=10, seed=params.seed) for _ in range(2))
    for module in plain.modules():
        if isinstance(module, BasicBlock):
            module.shortcut = nn.Sequential(NoShortcut())
    with_shortcuts, without = (
        gradient_norms(model, params.data.image_size, params.seed) for model in (residual, plain)
    )
    print(f"Gradient norms of a fresh {params.resnet.title}, sum of the logits of {IMAGES} random images:")
    print(f"{'':24}{'with shortcuts':>16}{'without':>12}")
    for name in with_shortcuts:
        print(f"{name:24}{with_shortcuts[name]:>16.4g}{without[name]:>12.4g}")


def gradient_norms(model: nn.Module, image_size: int, seed: int) -> dict[str, float]:
    """The Euclidean norm of the gradient of the summed logits, at the input, in the first layer and in the last."""
    assert isinstance(model, ResNet)
    random = torch.Generator().manual_seed(seed % 2**64)
    x = torch.randn(IMAGES, 3, image_size, image_size, generator=random)
    x = x.to(model.fc.weight).requires_grad_()
    model(x).sum().backward()
    first, last = model.layer4[0], model.layer4[-1]
    assert isinstance(first, BasicBlock)
    assert isinstance(last, BasicBlock)
    tensors = {
        "input": x,
        "conv1": model.conv1.weight,
        "layer4, first conv": first.conv1.weight,
        "layer4, last conv": last.conv2.weight,
    }
    return {name: float(tensor.grad.norm()) for name, tensor in tensors.items() if tensor.grad is not None}


if __name__ == "__main__":
    cli.run(main, cli.parser("gradients", __doc__))
