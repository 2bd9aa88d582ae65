"""Classify image files with a trained model: the likeliest classes of each, with their probabilities.

python -m stages.predict cat.jpg photos/*.png --model models/cnn.safetensors
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch

from stages import cli
from stages.core.device import choose_backend
from stages.core.errors import UserError
from stages.core.image_files import decode
from stages.core.images import Normalise
from stages.core.prediction import predict
from stages.core.weights import load_model

TOP = 3


def main(args: Namespace) -> None:
    card, model = load_model(args.model)
    images = np.stack([read_image(path, card.image_size) for path in args.images])
    backend = choose_backend("fp32", compile=False, flops=0)
    normalise = Normalise(card.mean, card.std, backend.device)
    logits = predict(backend.place(model), torch.from_numpy(images).to(backend.device), normalise, backend)
    likeliest = logits.double().softmax(1).topk(min(TOP, len(card.classes)))
    for path, probabilities, labels in zip(args.images, *map(torch.Tensor.tolist, likeliest), strict=True):
        likely = zip(labels, probabilities, strict=True)
        answers = [f"{card.classes[label]} {probability:.1%}" for label, probability in likely]
        print(f"{path}: {', '.join(answers)}")


def read_image(path: Path, size: int) -> np.ndarray:
    """The image as size×size×3 uint8, prepared as the download stage prepares images."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return decode(content, size, str(path))


if __name__ == "__main__":
    parser = ArgumentParser(prog="predict", description=__doc__.partition("\n")[0])
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--model", type=Path, default="models/resnet.safetensors", help="default: %(default)s")
    cli.run(main, parser)
