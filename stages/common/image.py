"""Image decoding: the download stage and `Classifier.classify` see an image file alike."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.common.errors import UserError, printable

# Named, because Pillow would hand content of other formats, such as EPS, to external programs. JPEG includes MPO.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")


def decode(content: bytes, size: int, where: str) -> np.ndarray:
    """Return the content of an image file as size×size×3 uint8; see `fitted`. Of several pictures the first counts.

    Raises:
        UserError: it is no image of these formats, damaged, or beyond Pillow's limit of pixels; the message begins with
            `where`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on metadata, and on half its limit
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return fitted(image, size)
    except MemoryError:
        raise
    except Exception as error:  # bytes that are no image bring exceptions of any kind out of Pillow's readers
        unknown = isinstance(error, UnidentifiedImageError)  # whose message holds an address in memory
        reason = "convert it to JPEG or PNG, or remove it" if unknown else printable(error)
        raise UserError(f"{where}: not an image that can be read: {reason}") from error


def fitted(image: Image.Image, size: int) -> np.ndarray:
    """Return an image as size×size×3 uint8: turned as its EXIF data say, cropped to a square and resized (bicubic).

    Palette, grey, CMYK and 16-bit images become RGB of 8 bits a channel, of which 255 is the brightest that the format
    can hold; transparency becomes white.

    Raises:
        UserError: its pixels have 32 bits, and so no known range.
    """
    rgb = _as_rgb(ImageOps.exif_transpose(image), image.format)
    return np.asarray(ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC))


def _as_rgb(image: Image.Image, format: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and format in ("PNG", "PPM")):  # 16-bit grey
        # Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UserError(f"32-bit pixels (mode {image.mode}) have no known range; save it with 8 bits a channel")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if format == "BMP" and not rgba.getchannel("A").getbbox():  # whose fourth byte most programs leave unset
            return rgba.convert("RGB")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
    return image.convert("RGB")
