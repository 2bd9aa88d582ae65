"""Classify image files with a trained model: the likeliest classes of each, with their probabilities.

python -m stages.commands.predict cat.jpg photos/*.png --model models/cnn.safetensors
python -m stages.commands.predict --examples 5
"""

import sys
from argparse import Namespace

import numpy as np
from PIL import Image

from stages.common import cli
from stages.common.dataset import read_info, read_split
from stages.common.errors import UserError, printable
from stages.training.weights import load_model

TOP = 3  # classes named for an image


def main(args: Namespace) -> None:
    """Print a line for each image; one that cannot be read costs a line of its own, and exit status 1 at the end."""
    if not args.images and args.examples < 1:
        raise UserError("name image files to classify, or choose N test images by --examples N")
    classifier, images, status = load_model(args.model), {path: path for path in args.images}, 0
    if args.examples > 0:  # evenly spread over the test images
        info = read_info()
        test = read_split("test", info)
        for i in np.unique(np.linspace(0, info.counts.test - 1, args.examples).astype(int)):
            name = f"test image {test.names[i]}, {info.classes[test.labels[i]]}"
            images[name] = Image.fromarray(test.images[i])
    for name, image in images.items():
        try:
            likeliest = [*classifier.classify(image).items()][:TOP]
            answer = ", ".join(f"{printable(of_class)} {share:.1%}" for of_class, share in likeliest)
            print(f"{printable(name)}: {answer}", flush=True)
        except UserError as error:
            print(f"predict: {error}", file=sys.stderr, flush=True)
            status = 1
    sys.exit(status)


if __name__ == "__main__":
    parser = cli.parser("predict", __doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE")
    parser.add_argument("--model", default="models/resnet.safetensors", help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="classify N test images of data/, too")
    cli.run(main, parser)
