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
from stages.datasets import cifar10, digits, image_files
from stages.datasets.source import Source, describe


def main(args: Namespace) -> None:
    inputs = Inputs(lambda: load_params().data)
    source = read_source(inputs.settings)
    info = describe(source, inputs.settings.source)
    inputs.check()
    write_dataset(info, source.train, source.test)
    print(
        f"{info.name}: {info.counts.train:,} training and {info.counts.test:,} test images, "
        f"{len(info.classes)} classes, {info.image_size}×{info.image_size}"
    )


def read_source(data: Data) -> Source:
    path = Path(os.path.expanduser(data.path)) if data.path else None
    match data.source:
        case "cifar10":
            return cifar10.read(path, data.image_size)
        case "images":
            return image_files.read(path, data.image_size)
        case "digits":
            if path:
                print("data.path is not read: the digits come with scikit-learn")
            return digits.read(data.image_size)


if __name__ == "__main__":
    cli.run(main, cli.parser("download", __doc__))
