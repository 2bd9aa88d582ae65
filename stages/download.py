"""Read the data set that params.yaml names and write it as data/train.npz, data/test.npz and data/dataset.json.

python -m stages.download
"""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from stages import cli
from stages.core.dataset import Source, describe, write_split
from stages.core.image_files import read_image_files
from stages.core.sources import cifar10, digits
from stages.files import replacing, write_json
from stages.params import Data, load_params

CACHE = Path(".cache/cifar10")


def main(args: Namespace) -> None:
    data = load_params().data
    source = read_source(data)
    info = describe(source, data.source)

    folder = Path("data")
    for name, split in (("train", source.train), ("test", source.test)):
        with replacing(folder / f"{name}.npz", "wb") as file:
            write_split(file, split)
    write_json(folder / "dataset.json", asdict(info))
    print(
        f"{info.name}: {info.counts['train']:,} training and {info.counts['test']:,} test images, "
        f"{len(info.classes)} classes, {info.image_size}×{info.image_size}"
    )


def read_source(data: Data) -> Source:
    path = Path(data.path).expanduser() if data.path else None
    match data.source:
        case "cifar10":
            return cifar10(path, data.image_size, CACHE)
        case "images":
            return read_image_files(path, data.image_size)
        case "digits":
            return digits(data.image_size)


if __name__ == "__main__":
    cli.run(main, ArgumentParser(prog="download", description=__doc__.partition("\n")[0]))
