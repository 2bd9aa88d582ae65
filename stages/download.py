"""Read the images that params.yaml names and write them to data/.

python -m stages.download
"""

import os
from argparse import Namespace
from pathlib import Path

from stages.common import cli
from stages.common.dataset import write_dataset
from stages.common.inputs import Inputs
from stages.common.params import Data, load_params
from stages.datasets import cifar, digits, image_files
from stages.datasets.source import Source, describe


def main(args: Namespace) -> None:
    inputs = Inputs(lambda: load_params().data)
    info, splits = describe(read_source(inputs.settings), inputs.settings)
    inputs.check()
    write_dataset(info, splits)
    counts = ", ".join(f"{len(split.labels):,} {name}" for name, split in splits.items())
    print(f"{info.name}: {counts} images, {len(info.classes)} classes, {info.image_size}×{info.image_size}")


def read_source(data: Data) -> Source:
    """Return the data set that the section `data` of params.yaml names."""
    path = Path(os.path.expanduser(data.path)) if data.path else None
    if data.source == "digits":
        return digits.read(data.image_size)
    if data.source == "images" and path:  # params.py asks for one
        return image_files.read(path, data.image_size, data.test_share)
    return cifar.read(data.source, path, data.image_size)


if __name__ == "__main__":
    cli.run(main, cli.parser("download", __doc__))
