"""Classify image files with a trained model: the likeliest classes of each, with their probabilities.

python -m stages.commands.predict cat.jpg photos/*.png --model models/cnn.safetensors
python -m stages.commands.predict --examples 5
"""

import sys
from argparse import ArgumentParser, Namespace

import numpy as np
from PIL import Image

from stages.common import cli
from stages.common.dataset import DatasetInfo, Split, read_info, read_split
from stages.common.errors import UserError, printable
from stages.training.weights import load_model

TOP = 3  # classes named for an image


def main(args: Namespace) -> None:
    """Print a line for each image; one that cannot be read costs a line of its own, and exit status 1 at the end."""
    if not args.images and args.examples is None:
        raise UserError("name image files to classify, or choose N test images by --examples N")
    classifier, status = load_model(args.model), 0
    if args.examples is not None:
        classes, test = classifier.classes, examples(classifier.card.data, args.examples)
        for pixels, label, name in zip(*test, strict=True):
            likeliest = line(classifier.classify(Image.fromarray(pixels)))
            print(f"test image {printable(name)}, {printable(classes[label])}: {likeliest}", flush=True)
    for path in args.images:
        try:
            print(f"{printable(path)}: {line(classifier.classify(path))}", flush=True)
        except UserError as error:
            print(f"predict: {error}", file=sys.stderr, flush=True)
            status = 1
    sys.exit(status)


def line(probabilities: dict[str, float]) -> str:
    """Write the likeliest classes."""
    return ", ".join(f"{printable(name)} {share:.1%}" for name, share in list(probabilities.items())[:TOP])


def examples(trained: DatasetInfo, count: int) -> Split:
    """Return so many test images, evenly spread over data/.

    Raises:
        UserError: data/ holds other classes or sizes than the model was trained on, or fewer test images.
    """
    info = read_info()
    if not info.fits(trained):
        raise UserError("--examples: data/ holds other classes or sizes than this model was trained on")
    if not 1 <= count <= info.counts.test:
        raise UserError(f"--examples {count}: choose from 1 to {info.counts.test:,}, the number of test images")
    chosen = np.linspace(0, info.counts.test - 1, count).astype(int)
    return Split(*(array[chosen] for array in read_split("test", info)))


def parser() -> ArgumentParser:
    parser = cli.parser("predict", __doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE")
    parser.add_argument("--model", default="models/resnet.safetensors", help="default: %(default)s")
    parser.add_argument("--examples", type=int, metavar="N", help="classify N of the test images in data/ as well")
    return parser


if __name__ == "__main__":
    cli.run(main, parser())
