"""Classify image files with a trained model: the likeliest classes of each, with their probabilities.

python -m stages.commands.predict cat.jpg photos/*.png --model models/cnn.safetensors
python -m stages.commands.predict --examples 5
"""

import sys
from argparse import ArgumentParser, Namespace

import numpy as np
from PIL import Image

from stages.common import cli
from stages.common.dataset import DatasetInfo, read_info, read_split
from stages.common.errors import UserError, printable
from stages.training.weights import load_model

TOP = 3  # classes named for an image


def main(args: Namespace) -> None:
    """Print a line for each image; one that cannot be read costs a line of its own, and exit status 1 at the end."""
    if not args.images and args.examples is None:
        raise UserError("name image files to classify, or choose N test images by --examples N")
    classifier, status = load_model(args.model), 0
    chosen = {} if args.examples is None else examples(classifier.card.data, args.examples)
    for name, image in [*chosen.items(), *((path, path) for path in args.images)]:
        try:
            likeliest = list(classifier.classify(image).items())[:TOP]
            answer = ", ".join(f"{printable(of_class)} {share:.1%}" for of_class, share in likeliest)
            print(f"{printable(name)}: {answer}", flush=True)
        except UserError as error:
            print(f"predict: {error}", file=sys.stderr, flush=True)
            status = 1
    sys.exit(status)


def examples(trained: DatasetInfo, count: int) -> dict[str, Image.Image]:
    """Return so many test images, evenly spread over data/, by their names and classes.

    Raises:
        UserError: data/ holds other classes or sizes than the model was trained on, or fewer test images.
    """
    info = read_info()
    if not info.fits(trained):
        raise UserError("--examples: data/ holds other classes or sizes than this model was trained on")
    if not 1 <= count <= info.counts.test:
        raise UserError(f"--examples {count}: choose from 1 to {info.counts.test:,}, the number of test images")
    test = read_split("test", info)
    chosen = np.linspace(0, info.counts.test - 1, count).astype(int)
    names = (f"test image {test.names[i]}, {info.classes[test.labels[i]]}" for i in chosen)
    return dict(zip(names, map(Image.fromarray, test.images[chosen]), strict=True))


def parser() -> ArgumentParser:
    parser = cli.parser("predict", __doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE")
    parser.add_argument("--model", default="models/resnet.safetensors", help="default: %(default)s")
    parser.add_argument("--examples", type=int, metavar="N", help="classify N of the test images in data/ as well")
    return parser


if __name__ == "__main__":
    cli.run(main, parser())
