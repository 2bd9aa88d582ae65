"""Image decoding, for the download stage and the predict command."""

import io
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.common.errors import UserError, printable

# Named, because Pillow would hand content of other formats, such as EPS, to external programs. JPEG includes MPO.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 2**26
MAX_SCANS = 2**30  # pixels × scans of a JPEG, each of which may touch every pixel
MAX_SECONDS = 20  # of processor time for an image


def decode(content: bytes, size: int, where: str) -> np.ndarray:
    """The content of an image file as size×size×3 uint8.

    An image of another size is cropped to a square and resized (bicubic), after it is turned as its EXIF data say. Of
    several pictures in a file (MPO, animations, pages of a TIFF) the first counts. Palette, grey, CMYK and 16-bit
    images become RGB of 8 bits a channel, of which 255 is the brightest that the format can hold; transparency becomes
    white.

    Raises:
        UserError: it is no image of these formats, damaged, or beyond a limit; the message begins with `where`.
    """
    try:
        with _bounds(), Image.open(_Content(content), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise UserError(f"{image.width}×{image.height} pixels are more than the {MAX_PIXELS:,} allowed")
            if image.format in ("JPEG", "MPO") and pixels * content.count(b"\xff\xda") > MAX_SCANS:
                raise UserError("a JPEG of too many scans for its size")
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _as_rgb(image)
            if rgb.size != (size, size):
                rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC)
            return np.asarray(rgb)
    except MemoryError:
        raise
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except UnidentifiedImageError as error:  # whose message holds an address in memory
        raise UserError(f"{where}: not an image that can be read ({', '.join(FORMATS)})") from error
    except Exception as error:  # bytes that are no image bring exceptions of any kind out of Pillow's readers
        raise UserError(f"{where}: not an image that can be read: {printable(error)}") from error


class _Content(io.BytesIO):
    """Content with a limit on repeated reads, which the tables of some formats can cause."""

    def __init__(self, content: bytes):
        super().__init__(content)
        self.left = 8 * len(content) + 2**20

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.left -= len(content)
        if self.left < 0:
            raise UserError("its tables refer to the same bytes too often")
        return content


@contextmanager
def _bounds() -> Iterator[None]:
    """Keep Pillow's remarks on metadata from the terminal, and interrupt what takes longer than MAX_SECONDS.

    Only a main thread can be interrupted, so in another one there is no limit of time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with _interrupted() if threading.current_thread() is threading.main_thread() else nullcontext():
            yield


@contextmanager
def _interrupted() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise UserError(f"decoding it takes more than {MAX_SECONDS} seconds")

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # 16-bit grey
        # Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UserError(f"32-bit pixels (mode {image.mode}) have no known range; save it with 8 bits a channel")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")
