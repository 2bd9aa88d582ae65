import os

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from stages.common.errors import UserError
from stages.common.image import decode, fitted
from tests.datasets.pictures import encoded, picture

FILM = b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 2_000 + os.urandom(20_000)


def decoded(image: Image.Image, size: int = 8, format: str = "PNG", **options) -> np.ndarray:
    return decode(encoded(image, format, **options), size, "train/cat/x")


def flat(mode: str, colour) -> Image.Image:
    return Image.new(mode, (8, 8), colour)


def bmp_with_alpha(*alpha: int) -> bytes:
    """A BMP of 8×8 pixels of colour (30, 20, 10) whose header names the fourth byte as alpha."""
    pixels = b"".join(bytes([10, 20, 30, value]) for value in (alpha * 64)[:64])
    masks = b"".join(mask.to_bytes(4, "little") for mask in (0xFF0000, 0xFF00, 0xFF, 0xFF000000))
    fields = [(108, 4), (8, 4), (8, 4), (1, 2), (32, 2), (3, 4), (256, 4), (0, 4), (0, 4), (0, 4), (0, 4)]
    info = b"".join(value.to_bytes(length, "little") for value, length in fields) + masks + b"BGRs" + bytes(48)
    return b"BM" + (378).to_bytes(4, "little") + bytes(4) + (122).to_bytes(4, "little") + info + pixels


@pytest.mark.parametrize(
    ("image", "format", "pixel"),
    [
        (flat("RGB", (1, 2, 3)), "PNG", (1, 2, 3)),
        (flat("L", 77), "PNG", (77, 77, 77)),
        (flat("1", 1), "PNG", (255, 255, 255)),
        (flat("RGB", (200, 0, 0)).convert("P", palette=Image.Palette.ADAPTIVE), "PNG", (200, 0, 0)),
        (flat("RGBA", (10, 20, 30, 0)), "PNG", (255, 255, 255)),
        (flat("RGBA", (0, 0, 0, 51)), "PNG", (204, 204, 204)),
        (flat("LA", (0, 0)), "PNG", (255, 255, 255)),
        (flat("CMYK", (0, 0, 0, 255)), "TIFF", (0, 0, 0)),
        (Image.fromarray(np.full((8, 8), 0x8000, np.uint16)), "PNG", (128, 128, 128)),
        (Image.fromarray(np.full((8, 8), 0xFFFF, np.uint16)), "TIFF", (255, 255, 255)),
    ],
)
def test_an_image_of_any_mode_becomes_rgb(image, format, pixel):
    np.testing.assert_array_equal(decoded(image, format=format), np.full((8, 8, 3), pixel, np.uint8))


def test_a_bitmap_whose_alpha_is_unset_is_opaque_and_one_with_some_is_not():
    np.testing.assert_array_equal(decode(bmp_with_alpha(0), 8, "x"), np.full((8, 8, 3), (30, 20, 10), np.uint8))
    half = decode(bmp_with_alpha(0, 255), 8, "x").reshape(-1, 2, 3)
    assert {*map(tuple, half[:, 0].tolist()), *map(tuple, half[:, 1].tolist())} == {(255, 255, 255), (30, 20, 10)}


@pytest.mark.parametrize("size", [(8, 8), (20, 20), (30, 10), (5, 17), (1, 1), (1, 40)])
def test_an_image_of_another_size_is_cropped_to_a_square_and_resized(size):
    expected = ImageOps.fit(picture(3, size), (8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(decoded(picture(3, size)), np.asarray(expected))


def test_a_photograph_is_turned_as_its_exif_says_and_the_callers_image_stays():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its left side
    image = picture(3)
    np.testing.assert_array_equal(decoded(image, exif=exif), np.rot90(np.asarray(image), -1))
    image.getexif()[0x0112] = 6
    np.testing.assert_array_equal(fitted(image, 8), np.rot90(np.asarray(picture(3)), -1))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture(3)))


def test_a_motion_photo_is_its_photograph():
    photo = encoded(picture(1, (64, 48)), "JPEG")
    np.testing.assert_array_equal(decode(photo + FILM, 32, "x"), decode(photo, 32, "x"))


def test_of_several_frames_the_first_counts():
    first, second = picture(1, (16, 16)), picture(2, (16, 16))
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_allclose(decode(content, 16, "x"), decode(encoded(first, "JPEG"), 16, "x"), atol=2)
    assert (decoded(flat("L", 7), format="GIF", save_all=True, append_images=[flat("L", 255)]) == 7).all()


@pytest.mark.parametrize("image", [flat("F", 0.5), flat("I", 70_000)])
def test_pixels_of_no_known_range_are_refused_by_name(image):
    with pytest.raises(UserError, match="train/cat/x: .*32-bit pixels"):
        decoded(image, format="TIFF")


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(100), "convert it to JPEG or PNG"),
        (b"no image", "convert it to JPEG or PNG"),
        (b"", "convert it to JPEG or PNG"),
        (encoded(picture(1), "JPEG")[:200], "Truncated"),
    ],
)
def test_what_is_no_image_is_named_with_advice(content, advice):
    with pytest.raises(UserError, match=f"^train/cat/x: not an image that can be read.*{advice}"):
        decode(content, 8, "train/cat/x")


@pytest.mark.filterwarnings("error")  # which Pillow gives from half its limit on, on the terminal
def test_an_image_beyond_pillows_limit_is_refused_before_it_is_decoded():
    header = bytearray(encoded(picture(1), "BMP"))
    header[18:26] = (14_000).to_bytes(4, "little") * 2
    with pytest.raises(UserError, match=r"train/cat/x: .*196000000 pixels\) exceeds limit of 178956970 pixels"):
        decode(bytes(header), 8, "train/cat/x")
    header[18:26] = (10_000).to_bytes(4, "little") * 2  # as many as a phone has
    with pytest.raises(UserError, match="truncated"):
        decode(bytes(header), 8, "train/cat/x")


def test_a_postscript_program_is_not_handed_to_ghostscript():
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(mark) (w) file closefile showpage\n"
    with pytest.raises(UserError, match="^x: not an image that can be read: convert it"):  # and no word of Ghostscript
        decode(program, 8, "x")


STARTS = [b"", *(encoded(picture(1), name) for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"))]


@settings(max_examples=300)
@given(start=st.sampled_from(STARTS), place=st.floats(0, 1), noise=st.binary(max_size=30))
@example(encoded(picture(1), "TIFF"), 0.3984375, b"\x01")  # of a second frame without dimensions: a TypeError in Pillow
def test_any_bytes_end_in_an_image_or_in_one_clear_line(start, place, noise):
    cut = int(place * len(start))
    try:
        array = decode(start[:cut] + noise + start[cut + len(noise) :], 8, "train/cat/x")
    except UserError as error:
        assert str(error).startswith("train/cat/x: ")
        assert "\n" not in str(error)
    else:
        assert (array.shape, array.dtype) == ((8, 8, 3), np.uint8)
