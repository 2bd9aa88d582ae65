"""Small images, and folders and archives of them."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = ["folder", "tar", "tar.gz", "tar.xz", "zip"]
FILES = [f"{split}/{label}/{n}.png" for split in ("train", "test") for label in ("cat", "dög fish") for n in (2, 10)]


def picture(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def contents() -> dict[str, bytes]:
    return {name: encoded(picture(seed)) for seed, name in enumerate(FILES)}


def unsplit(images: int) -> dict[str, bytes]:
    """So many images of each of two classes, without train/ and test/."""
    return {f"{label}/{n}.png": encoded(picture(n)) for label in ("cat", "dog") for n in range(images)}


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info


def write(folder: Path, kind: str, files: dict[str, bytes], name: str = "toys", *more: tarfile.TarInfo) -> Path:
    """Write the files into a folder or an archive `name` in `folder`."""
    path = folder / (name if kind == "folder" else f"{name}.{kind}")
    if kind == "folder":
        for file, content in files.items():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_bytes(content)
        return path
    with zipfile.ZipFile(path, "w") if kind == "zip" else tarfile.open(path, f"w:{kind[4:]}") as archive:
        for file, content in files.items():
            if kind == "zip":
                archive.writestr(file, content)
            else:
                archive.addfile(member(file, content), io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    return path
