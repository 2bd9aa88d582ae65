"""Write the images in data/ as a tar of image files, {train,test}/<class>/<number>, as data.source=images reads it.

python -m stages.commands.pack --to cifar10-png.tar
python -m stages.commands.pack --to cifar10-jpeg.tar --jpeg 75
"""

import io
import tarfile
from argparse import Namespace
from pathlib import Path

from PIL import Image

from stages.common import cli
from stages.common.dataset import read_dataset
from stages.common.errors import UserError
from stages.common.files import replacing


def main(args: Namespace) -> None:
    """Write PNG files, which keep every pixel, or JPEG files; the bytes depend on data/ and the arguments alone."""
    if args.jpeg is not None and not 1 <= args.jpeg <= 95:
        raise UserError(f"--jpeg {args.jpeg}: choose a quality from 1 to 95")
    dataset = read_dataset()
    jpeg = {"quality": args.jpeg, "subsampling": "4:2:0"}
    form, format, options = ("png", "PNG", {}) if args.jpeg is None else ("jpg", "JPEG", jpeg)
    with replacing(args.to) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for split, (images, labels) in (("train", dataset.train), ("test", dataset.test)):
            for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
                content = io.BytesIO()
                Image.fromarray(pixels).save(content, format, **options)
                member = tarfile.TarInfo(f"{split}/{dataset.info.classes[label]}/{number:05}.{form}")
                member.size = content.tell()
                content.seek(0)
                tar.addfile(member, content)
    print(f"{args.to}: {len(dataset.train.labels):,} training and {len(dataset.test.labels):,} test images")


if __name__ == "__main__":
    parser = cli.parser("pack", __doc__)
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="such as cifar10-png.tar")
    parser.add_argument("--jpeg", type=int, metavar="QUALITY", help="JPEG files of this quality in place of PNG")
    cli.run(main, parser)
