"""Image files in a folder or a tar as a data set: {train,test}/<class>/<image file>."""

import hashlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from stages.core.dataset import Source, Split
from stages.core.errors import UserError

MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 2**26
LAYOUT = "{train,test}/<class>/<image file>"


class ImageFile(NamedTuple):
    split: str
    label: str
    name: str
    content: bytes


def read_image_files(path: Path, image_size: int) -> Source:
    """A folder or tar of {train,test}/<class>/<image file>; classes and files in the order of their names.

    A tar is read as a stream and never unpacked. Files whose name starts with a dot are passed over. An image of
    another size is cropped to a square and resized; palette, grey, CMYK and 16-bit grey images become RGB, transparency
    becomes white.

    Raises:
        UserError: the path does not exist, or something in it is not an image, out of place, or a class without
            images; the message names it.
    """
    if path.is_dir():
        files, digest = _folder_files(path), None
    elif path.is_file():
        files, digest = _tar_files(path), file_sha256(path)
    else:
        raise UserError(f"data.path: {path} does not exist; it must be a folder or a tar of {LAYOUT}")

    found: dict[str, dict[str, list[tuple[str, np.ndarray]]]] = {"train": {}, "test": {}}
    contents = hashlib.sha256()
    for file in files:
        of_class = found[file.split].setdefault(file.label, [])
        if file.name:  # an entry without one is the folder of the class
            where = f"{file.split}/{file.label}/{file.name}"
            of_class.append((file.name, decode(file.content, image_size, where)))
            contents.update(f"{where}\0".encode("utf-8", "surrogateescape"))
            contents.update(hashlib.sha256(file.content).digest())
    classes = _common_classes(path, found)

    def split(name: str) -> Split:
        pixels, labels = [], []
        for label, of_class in enumerate(classes):
            named = sorted(found[name].pop(of_class), key=lambda item: item[0])
            pixels += [array for _, array in named]
            labels += [label] * len(named)
        return Split(np.stack(pixels), np.array(labels, dtype=np.int64))

    return Source(path.name.partition(".")[0], digest or contents.hexdigest(), classes, split("train"), split("test"))


def file_sha256(path: Path) -> str:
    """The digest of a file that data.path names, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"data.path: {path} cannot be read: {error.strerror}") from error


def _folder_files(root: Path) -> Iterator[ImageFile]:
    for path in tqdm(sorted(root.rglob("*")), unit=" files", disable=None):
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"{path}: neither a file nor a folder")
        entry = _placed(str(path), path.relative_to(root).parts, path.is_dir())
        if entry:
            yield entry._replace(content=path.read_bytes() if entry.name else b"")


def _tar_files(path: Path) -> Iterator[ImageFile]:
    try:
        with (
            open(path, "rb") as file,
            tqdm.wrapattr(file, "read", total=path.stat().st_size, disable=None) as stream,
            tarfile.open(fileobj=stream, mode="r|*") as tar,
        ):
            for member in tar:
                where = f"{path}: {member.name}"
                if not (member.isfile() or member.isdir()):
                    raise UserError(f"{where}: neither a file nor a folder; links and devices are not read")
                if member.size > MAX_FILE_BYTES:
                    raise UserError(f"{where}: {member.size:,} bytes are more than an image file may have")
                entry = _placed(where, PurePosixPath(member.name).parts, member.isdir())
                if entry:
                    yield entry._replace(content=tar.extractfile(member).read() if entry.name else b"")
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path}: not a whole .tar, .tar.gz or .tar.xz: {error}") from error


def _placed(where: str, parts: tuple[str, ...], is_folder: bool) -> ImageFile | None:
    """The split, class and name that a path stands for, the name empty for a class's folder; None if it has none."""
    if any(part.startswith(".") and part != ".." for part in parts) or (is_folder and len(parts) < 2):
        return None
    if parts[0] not in ("train", "test") or len(parts) != (2 if is_folder else 3):
        raise UserError(f"{where}: out of place; data.path must hold {LAYOUT}")
    if not parts[1].isprintable():  # nor can it be written as UTF-8 where it holds bytes that are none
        raise UserError(f"{where!a}: the name of the class {parts[1]!a} cannot be printed; rename it")
    return ImageFile(parts[0], parts[1], "" if is_folder else parts[2], b"")


def _common_classes(path: Path, found: dict[str, dict[str, list]]) -> list[str]:
    for split, by_class in found.items():
        if not by_class:
            raise UserError(f"{path}: no {split}/ in it; data.path must hold {LAYOUT}")
        for label, of_class in by_class.items():
            if not of_class:
                raise UserError(f"{path}: class {split}/{label} has no image")
    for one, other in (("train", "test"), ("test", "train")):
        alone = sorted(found[one].keys() - found[other].keys())
        if alone:
            raise UserError(f"{path}: classes in {one}/ that {other}/ lacks: {', '.join(alone)}")
    if len(found["train"]) < 2:
        raise UserError(f"{path}: one class, {', '.join(found['train'])}; a classifier needs two or more")
    return sorted(found["train"])


def decode(content: bytes, size: int, where: str) -> np.ndarray:
    """The content of an image file as size×size×3 uint8.

    Raises:
        UserError: it is no image that can be read as one; the message begins with `where`.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{where}: {image.width}×{image.height} pixels are more than the {MAX_PIXELS:,} allowed"
                )
            if getattr(image, "n_frames", 1) > 1:
                raise UserError(f"{where}: has {image.n_frames} frames; only still images can be read")
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _as_rgb(image, where)
            if rgb.size != (size, size):
                rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC)
            return np.asarray(rgb)
    except UserError:
        raise
    except Exception as error:  # bytes that are no image bring exceptions of any kind out of Pillow's readers
        raise UserError(f"{where}: not an image that can be read: {error}") from error


def _as_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UserError(
            f"{where}: 32-bit pixels (mode {image.mode}) have no known range; save it with 8 bits a channel"
        )
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")
