"""Read the data set that params.yaml names and write it as data/train.npz, data/test.npz and data/dataset.json.

python -m stages.download
"""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from stages import cli
from stages.core import sources
from stages.core.dataset import describe, write_split
from stages.files import replacing, write_json
from stages.params import Data, load_params

CACHE = Path(".cache/cifar10")


def main(args: Namespace) -> None:
    data = load_params().data
    source = read_source(data)
    info = describe(source.name, data.source, source.sha256, source.classes, source.train, source.test)

    folder = Path("data")
    for name, split in (("train", source.train), ("test", source.test)):
        with replacing(folder / f"{name}.npz", "wb") as file:
            write_split(file, split)
    write_json(folder / "dataset.json", asdict(info))
    print(
        f"{info.name}: {info.counts['train']:,} training and {info.counts['test']:,} test images, "
        f"{len(info.classes)} classes, {info.image_size}×{info.image_size}"
    )


def read_source(data: Data) -> sources.Source:
    path = Path(data.path).expanduser() if data.path else None
    match data.source:
        case "cifar10":
            return sources.cifar10(path, data.image_size, CACHE)
        case "images":
            return sources.images(path, data.image_size)
        case "digits":
            return sources.digits(data.image_size)


if __name__ == "__main__":
    cli.run(main, ArgumentParser(prog="download", description=__doc__.partition("\n")[0]))
