"""Export a trained model for use without this project: a program of torch.export, and its model card as JSON.

python -m stages.commands.export models/resnet.safetensors
"""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.common import cli
from stages.common.errors import printable
from stages.common.files import replacing, write_json
from stages.training.weights import Classifier, load_model

EXPORTED = Path("exported")  # not models/, which the stages read


class Program(nn.Module):
    """float32 N×3×H×W, pixels in [0, 1] → probabilities, float32 N×classes: normalisation is part of it."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        data = classifier.card.data
        self.mean, self.std = (nn.Buffer(torch.tensor(of).view(3, 1, 1)) for of in (data.mean, data.std))
        self.network = classifier.network

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std).softmax(1)


def main(args: Namespace) -> None:
    """Write the program as NAME.pt2, and its card as NAME.pt2.json."""
    to = args.to or EXPORTED / f"{args.model.stem}.pt2"
    classifier = load_model(args.model)
    size = classifier.card.data.image_size
    images, shapes = torch.zeros(2, 3, size, size), {"images": {0: torch.export.Dim("N", max=4096)}}
    program = torch.export.export(Program(classifier).eval(), (images,), dynamic_shapes=shapes)
    with replacing(to) as file:
        torch.export.save(program, file)
    use = {
        "use": f'torch.export.load("{to.name}").module()(images)',
        "images": f"float32 N×3×{size}×{size}, RGB in [0, 1], up to 4,096 at a time",
        "returns": f"probabilities, float32 N×{len(classifier.classes)}, in the order of data.classes",
    }
    write_json(Path(f"{to}.json"), use | classifier.card.model_dump(mode="json"))
    print(f"{printable(to)}, and its card beside it: {classifier.card.recipe.title}")


if __name__ == "__main__":
    parser = cli.parser("export", __doc__)
    parser.add_argument("model", type=Path, help="such as models/resnet.safetensors")
    parser.add_argument("--to", type=Path, metavar="FILE", help="default: exported/, and the model's name with .pt2")
    cli.run(main, parser)
