import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from stages.common.errors import UserError
from stages.common.image import decode, fitted
from tests.datasets.pictures import encoded, picture


def decoded(image: Image.Image, size: int = 8, format: str = "PNG", **options) -> np.ndarray:
    return decode(encoded(image, format, **options), size, "train/cat/x")


def flat(mode: str, colour) -> Image.Image:
    return Image.new(mode, (8, 8), colour)


# Of 8×8 pixels with a fourth byte, which most programs leave unset
HEADER = struct.pack("<2s8xIIiiHHI20x4I52x", b"BM", 122, 108, 8, 8, 1, 32, 3, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
UNSET = HEADER + bytes([10, 20, 30, 0]) * 64


@pytest.mark.parametrize(
    ("content", "pixel"),
    [
        (encoded(flat("RGBA", (0, 0, 0, 51))), (204, 204, 204)),
        (encoded(flat("LA", (0, 0))), (255, 255, 255)),
        (b"P5 8 8 65535\n" + b"\x80\x00" * 64, (128, 128, 128)),
        (encoded(flat("CMYK", (0, 0, 0, 255)), "TIFF"), (0, 0, 0)),
        (encoded(Image.fromarray(np.full((8, 8), 0x8000, np.uint16))), (128, 128, 128)),
        (encoded(Image.fromarray(np.full((8, 8), 0xFFFF, np.uint16)), "TIFF"), (255, 255, 255)),
        (UNSET, (30, 20, 10)),
    ],
)
def test_an_image_of_any_mode_becomes_rgb(content, pixel):
    np.testing.assert_array_equal(decode(content, 8, "x"), np.full((8, 8, 3), pixel, np.uint8))


def test_an_image_of_another_size_is_cropped_to_a_square_and_resized():
    for image in (picture(3, (20, 20)), picture(3, (30, 10)), picture(3, (1, 40))):
        expected = ImageOps.fit(image, (8, 8), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(decoded(image), np.asarray(expected))


def test_a_photograph_is_turned_as_its_exif_says_and_the_callers_image_stays():
    image, turned = picture(3), np.rot90(np.asarray(picture(3)), -1)
    image.getexif()[0x0112] = 6  # the camera lay on its side
    np.testing.assert_array_equal(decoded(image, exif=image.getexif()), turned)
    np.testing.assert_array_equal(fitted(image, 8), turned)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture(3)))


def test_a_motion_photo_is_its_photograph_and_of_several_frames_the_first_counts():
    first, second = picture(1, (16, 16)), picture(2, (16, 16))
    photo = decoded(first, 16, "JPEG")
    film = b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 2_000 + bytes(range(256)) * 80
    np.testing.assert_array_equal(decode(encoded(first, "JPEG") + film, 16, "x"), photo)
    np.testing.assert_allclose(decoded(first, 16, "MPO", save_all=True, append_images=[second]), photo, atol=2)
    assert (decoded(flat("L", 7), format="GIF", save_all=True, append_images=[flat("L", 255)]) == 7).all()


PNG, BITMAP = encoded(picture(1)), encoded(picture(1), "BMP")


@pytest.mark.filterwarnings("error")  # which Pillow gives from half its limit on, on the terminal
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BITMAP[:21] + b"\xff" + BITMAP[22:], r".*exceeds limit of 178956970 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "convert it"),  # and no word of Ghostscript
        (encoded(picture(1), "JPEG")[:200], "Truncated"),
        (PNG[:36] + b"\x01" + PNG[37:], "broken PNG file"),  # a SyntaxError in Pillow
        (encoded(flat("F", 0.5), "TIFF"), "32-bit pixels"),
    ],
)
def test_what_is_no_image_is_named_with_the_reason_or_advice(content, reason):
    with pytest.raises(UserError, match=f"^train/cat/x: not an image that can be read: {reason}"):
        decode(content, 8, "train/cat/x")
