"""Classify image files with a trained model: the likeliest classes of each, with their probabilities.

python -m stages.commands.predict cat.jpg photos/*.png --model models/cnn.safetensors
python -m stages.commands.predict --examples 5

From another folder: python PROJECT/stages/commands/predict.py cat.jpg --model PROJECT/models/cnn.safetensors
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stages.common import cli
from stages.common.dataset import DatasetInfo, read_info, read_split
from stages.common.errors import UserError, printable
from stages.common.files import read_bytes
from stages.datasets.image import MAX_FILE_BYTES, decode
from stages.training.weights import Classifier, load_model

TOP = 3  # classes named for an image
BATCH_PIXELS = 2**20  # of the images that are classified together


def main(args: Namespace) -> None:
    if not args.images and args.examples is None:
        raise UserError("name image files to classify, or choose N test images by --examples N")
    classifier, refused = load_model(args.model), list[Path]()
    chosen = () if args.examples is None else examples(classifier.card.data, args.examples)
    images = chain(chosen, read_images(args.images, classifier.card.data.image_size, refused))
    most = max(1, BATCH_PIXELS // classifier.card.data.image_size**2)
    while batch := list(islice(images, most)):
        print(*answers(classifier, batch), sep="\n", flush=True)
    if refused:
        sys.exit(1)


def examples(trained: DatasetInfo, count: int) -> list[tuple[str, np.ndarray]]:
    """Test images evenly spread over data/, named by their number and class.

    Args:
        trained: what the model was trained on; data/ must hold the same classes and sizes.
        count: number of images.
    """
    info = read_info()
    if not info.fits(trained):
        raise UserError("--examples: data/ holds other classes or sizes than this model was trained on")
    test = read_split("test", info)
    if not 1 <= count <= len(test.labels):
        raise UserError(f"--examples {count}: choose from 1 to {len(test.labels):,}, the number of test images")
    indices = np.linspace(0, len(test.labels) - 1, count).astype(int)
    return [(f"test image {i}, {printable(info.classes[test.labels[i]])}", test.images[i]) for i in indices]


def read_images(paths: list[Path], size: int, refused: list[Path]) -> Iterator[tuple[str, np.ndarray]]:
    """The name and image of each file, uint8 size×size×3. One that cannot be read costs a line and joins `refused`."""
    for path in paths:
        name = printable(path)
        try:
            yield name, decode(read_bytes(path, MAX_FILE_BYTES, missing="no such file"), size, name)
        except UserError as error:
            print(f"predict: {error}", file=sys.stderr, flush=True)
            refused.append(path)


def answers(classifier: Classifier, batch: list[tuple[str, np.ndarray]]) -> Iterator[str]:
    """A line for each image of a batch: its name and the likeliest classes."""
    names, images = zip(*batch, strict=True)
    for name, probabilities in zip(names, classifier.probabilities(np.stack(images)), strict=True):
        likeliest = np.argsort(-probabilities, kind="stable")[:TOP]
        yield f"{name}: " + ", ".join(f"{printable(classifier.classes[i])} {probabilities[i]:.1%}" for i in likeliest)


def parser() -> ArgumentParser:
    parser = cli.parser("predict", __doc__)
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE")
    parser.add_argument("--model", type=Path, default="models/resnet.safetensors", help="default: %(default)s")
    parser.add_argument("--examples", type=int, metavar="N", help="classify N of the test images in data/ as well")
    return parser


if __name__ == "__main__":
    cli.run(main, parser())
