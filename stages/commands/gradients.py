"""Print how much of the gradient reaches the first layers of a fresh ResNet, with its shortcuts and without.

python -m stages.commands.gradients
python -m stages.commands.gradients --blocks 8 8 8 8
"""

from argparse import Namespace

import torch
from pydantic import ValidationError

from stages.common import cli
from stages.common.errors import UserError, explain
from stages.common.params import load_params
from stages.models.resnet import BasicBlock, ResNet, Settings

IMAGES = 2
MATTERS = 10  # times as large or as small


def main(args: Namespace) -> None:
    """Compare two networks with the same initial weights."""
    params = load_params()
    chosen = {"blocks": args.blocks} if args.blocks else {}
    try:
        settings = Settings.model_validate(params.models.get("resnet", {}) | chosen)
    except ValidationError as error:
        raise UserError(f"resnet: {explain(error, Settings)}") from error
    models = (network(settings, params.seed, shortcuts) for shortcuts in (True, False))
    norms = [gradient_norms(model, params.data.image_size, params.seed) for model in models]
    print(f"Gradient norms of a fresh {settings.title}, sum of the logits of {IMAGES} random images:")
    print(f"{'':24}{'with shortcuts':>16}{'without':>12}")
    for name in norms[0]:
        print(f"{name:24}{norms[0][name]:>16.4g}{norms[1][name]:>12.4g}")
    print(conclusion(norms[1]["conv1"] / norms[0]["conv1"], settings.title.partition(",")[0]))


def conclusion(ratio: float, title: str) -> str:
    """Say what follows from the gradient at conv1 without shortcuts, divided by that with them."""
    found = f"Without shortcuts, the gradient at conv1 is {ratio:,.{2 * (ratio < MATTERS)}f} times as large"
    if ratio >= MATTERS:
        reason = "With batch normalisation, gradients grow from layer to layer (Yang et al. 2019)"
        return f"{found}: in {title}, gradients explode.\n{reason}; shortcuts hold that down."
    if ratio <= 1 / MATTERS:
        return f"{found}: in {title}, gradients vanish."
    return f"{found}: at the depth of {title}, shortcuts\nhardly matter for the gradient. Try --blocks 8 8 8 8."


def network(settings: Settings, seed: int, shortcuts: bool) -> ResNet:
    """Return a network for ten classes; its initial weights depend on the settings and the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**64)
        model = ResNet(10, settings.base_channels, settings.blocks)
    for module in model.modules():
        if isinstance(module, BasicBlock) and not shortcuts:
            module.shortcut.register_forward_hook(lambda *_: 0)  # its output: nothing is added
    return model


def gradient_norms(model: ResNet, image_size: int, seed: int) -> dict[str, float]:
    """Return the Euclidean norm of the gradient of the summed logits at the input, and in the first and last layers."""
    random = torch.Generator().manual_seed(seed % 2**64)
    x = torch.randn(IMAGES, 3, image_size, image_size, generator=random)
    x = x.to(model.fc.weight).requires_grad_()
    last = len(model.layer4) - 1
    places = {"conv1": "conv1", "layer4, first conv": "layer4.0.conv1", "layer4, last conv": f"layer4.{last}.conv2"}
    weights = dict(model.named_parameters())
    tensors = {"input": x} | {place: weights[f"{name}.weight"] for place, name in places.items()}
    gradients = torch.autograd.grad(model(x).sum(), [*tensors.values()])
    return {place: float(gradient.norm()) for place, gradient in zip(tensors, gradients, strict=True)}


if __name__ == "__main__":
    parser = cli.parser("gradients", __doc__)
    parser.add_argument("--blocks", type=int, nargs=4, metavar="N", help="in each layer; default: as in params.yaml")
    cli.run(main, parser)
