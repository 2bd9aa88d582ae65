"""Export a trained model for use without this project: a program of torch.export, and its model card as text.

python -m stages.commands.export models/resnet.safetensors --to resnet.pt2
"""

import io
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.common import cli
from stages.common.files import write_bytes
from stages.training.weights import Classifier, load_model


class Program(nn.Module):
    """float32 N×3×H×W, pixels in [0, 1] → probabilities, float32 N×classes: normalisation is part of it."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        data = classifier.card.data
        self.mean = nn.Buffer(torch.tensor(data.mean).view(3, 1, 1))
        self.std = nn.Buffer(torch.tensor(data.std).view(3, 1, 1))
        self.network = classifier.network

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std).softmax(1)


def main(args: Namespace) -> None:
    classifier = load_model(args.model)
    to = args.to or args.model.with_suffix(".pt2")
    size = classifier.card.data.image_size
    program = torch.export.export(
        Program(classifier).eval(),
        (torch.zeros(2, 3, size, size),),
        dynamic_shapes={"images": {0: torch.export.Dim("N", max=4096)}},
    )
    content = io.BytesIO()
    torch.export.save(program, content)
    write_bytes(to, content.getvalue())
    card = model_card(classifier, to.name)
    write_bytes(to.with_suffix(".md"), card.encode())
    title = classifier.card.recipe.settings.title
    print(f"{to}, {to.with_suffix('.md')}: {title}, {classifier.parameters:,} parameters")


def model_card(classifier: Classifier, file: str) -> str:
    """The model card as Markdown."""
    recipe, data = classifier.card.recipe, classifier.card.data
    settings = recipe.settings.model_dump() | recipe.train.model_dump() | recipe.augment.model_dump()
    size, count = data.image_size, len(data.classes)
    rows = "\n".join(f"| {name} | `{value}` |" for name, value in {"seed": recipe.seed, **settings}.items())
    return f"""# {recipe.settings.title} for {data.name}

{classifier.parameters:,} parameters, trained from scratch on {data.counts.train:,} images as run `{recipe.run}`.

```python
import torch

program = torch.export.load("{file}").module()
probabilities = program(images)  # float32 N×3×{size}×{size}, RGB in [0, 1] → N×{count}
```

Classes, in order: {", ".join(f"`{name}`" for name in data.classes)}.

| recipe | |
| --- | --- |
{rows}

Data: {data.name} (`{data.source}`), sha256 `{data.sha256}`. The model answers with one of these
classes, whatever the image shows.
"""


if __name__ == "__main__":
    parser = cli.parser("export", __doc__)
    parser.add_argument("model", type=Path, help="such as models/resnet.safetensors")
    parser.add_argument("--to", type=Path, help="default: the model's name with .pt2")
    cli.run(main, parser)
