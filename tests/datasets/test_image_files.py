import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from stages.common.errors import UserError
from stages.datasets.image import decode
from stages.datasets.image_files import read

ROOT = Path(__file__).parents[2]
FILES = [
    f"{split}/{label}/{number}.png"
    for split in ("train", "test")
    for label in ("cat", "dög fish")
    for number in (2, 10)
]


def picture(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def contents() -> dict[str, bytes]:
    return {name: encoded(picture(seed)) for seed, name in enumerate(FILES)}


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def member(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write_tar(path: Path, files: dict[str, bytes], *more: tuple[tarfile.TarInfo, bytes]) -> Path:
    mode = {".gz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as tar:
        for info, content in [*(member(name, content) for name, content in files.items()), *more]:
            tar.addfile(info, io.BytesIO(content))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read(path, 8)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    source = read(write_folder(tmp_path / "toys", contents()), 8)
    assert source.name == "toys"
    assert source.classes == ["cat", "dög fish"]
    assert source.train.images.dtype == np.uint8
    assert source.train.labels.tolist() == [0, 0, 1, 1]
    assert source.test.labels.dtype == np.int64
    by_name = [1, 0, 3, 2]  # "10.png" before "2.png"
    np.testing.assert_array_equal(source.train.images, np.stack([picture(seed) for seed in by_name]))
    np.testing.assert_array_equal(source.test.images, np.stack([picture(4 + seed) for seed in by_name]))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
def test_a_tar_in_any_order_gives_the_arrays_of_the_folder(tmp_path, suffix):
    folder = read(write_folder(tmp_path / "toys", contents()), 8)
    backwards = dict(reversed(contents().items()))
    tar = read(write_tar(tmp_path / f"toys{suffix}", backwards), 8)
    assert (tar.name, tar.classes) == (folder.name, folder.classes)
    for split in ("train", "test"):
        for ours, other in zip(getattr(tar, split), getattr(folder, split), strict=True):
            np.testing.assert_array_equal(ours, other)


def test_a_folders_digest_follows_from_names_and_contents(tmp_path):
    def digest(name: str, files: dict[str, bytes]) -> str:
        return read(write_folder(tmp_path / name, files), 8).sha256

    renamed = {name.replace("10", "11"): content for name, content in contents().items()}
    repainted = {**contents(), FILES[0]: encoded(picture(99))}
    digests = [digest("a", contents()), digest("b", contents()), digest("c", renamed), digest("d", repainted)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_what_systems_and_editors_leave_behind_is_passed_over(tmp_path):
    extra = {".DS_Store": b"x", "train/cat/._2.png": b"x", "test/.thumbnails/2.png": b"x", "train/cat/Thumbs.db": b"x"}
    extra |= {"test/desktop.ini": b"x", "__MACOSX/train/cat/._1.png": b"x", "train/cat/1.png~": b"x"}
    plain = read(write_tar(tmp_path / "a.tar", contents()), 8)
    for path in (
        write_tar(tmp_path / "b.tar", {**{f"./{name}": c for name, c in contents().items()}, **extra}),
        write_folder(tmp_path / "c", {**contents(), **extra}),
    ):
        np.testing.assert_array_equal(read(path, 8).train.images, plain.train.images)


def test_one_enclosing_folder_is_accepted_in_a_folder_and_a_tar(tmp_path):
    enclosed = {f"toys-v2/{name}": content for name, content in contents().items()}
    plain = read(write_folder(tmp_path / "plain", contents()), 8)
    for path in (write_folder(tmp_path / "toys", enclosed), write_tar(tmp_path / "toys.tar", enclosed)):
        np.testing.assert_array_equal(read(path, 8).test.images, plain.test.images)


@pytest.mark.parametrize("enclosing", ["", "toys-v2/"])
def test_what_lies_beside_the_splits_is_named_and_not_read(tmp_path, capsys, enclosing):
    """As in the downloads of Roboflow, Kaggle and fast.ai: a third split, a readme, a table."""
    beside = {"valid/cat/1.png": b"no image", "README.txt": b"x", "labels.csv": b"x"}
    files = {f"{enclosing}{name}": content for name, content in (contents() | beside).items()}
    plain = read(write_folder(tmp_path / "plain", contents()), 8)
    capsys.readouterr()
    for path in (write_folder(tmp_path / "toys", files), write_tar(tmp_path / "toys.tar", files)):
        np.testing.assert_array_equal(read(path, 8).test.images, plain.test.images)
        said = f"note: {path}: not read, beside train/ and test/: README.txt; labels.csv; valid\n"
        assert capsys.readouterr().out == said


def test_a_readme_beside_the_enclosing_folder_is_named_too(tmp_path, capsys):
    files = {f"toys/{name}": content for name, content in contents().items()} | {"README": b"x"}
    for path in (write_folder(tmp_path / "toys", files), write_tar(tmp_path / "toys.tar", files)):
        read(path, 8)
        assert "beside train/ and test/: README\n" in capsys.readouterr().out


def test_a_class_name_is_the_same_composed_and_decomposed(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"  # as Linux and as a Mac's copy have it
    files = {name.replace("dög fish", composed): content for name, content in contents().items()}
    mixed = {name.replace(composed, decomposed) if "test" in name else name: c for name, c in files.items()}
    for path in (write_folder(tmp_path / "x", mixed), write_tar(tmp_path / "x.tar", mixed)):
        assert read(path, 8).classes == sorted([composed, "cat"])


def test_a_symlinked_class_folder_is_read(tmp_path):
    folder = write_folder(tmp_path / "toys", contents())
    (folder / "train" / "cat").rename(tmp_path / "elsewhere")
    (folder / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    assert read(folder, 8).train.labels.tolist() == [0, 0, 1, 1]


def test_a_tars_digest_is_that_of_the_file_and_a_size_is_honoured(tmp_path):
    path = write_tar(tmp_path / "toys.tar", contents())
    source = read(path, 12)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.train.images.shape == (4, 12, 12, 3)


def test_all_bad_files_are_named_at_once_the_first_few_and_their_number(tmp_path):
    bad = {f"train/cat/bad{number}.png": b"no image" for number in range(9)}
    message = refusal(write_folder(tmp_path / "x", contents() | bad))
    assert all(f"train/cat/bad{number}.png: not an image" in message for number in range(5))
    assert "bad5" not in message
    assert "and 4 more" in message
    misplaced = {f"train/note{number}.txt": b"x" for number in range(7)}
    message = refusal(write_tar(tmp_path / "x.tar", contents() | misplaced))
    assert "train/note0.txt: out of place" in message
    assert "and 2 more" in message


@pytest.mark.parametrize("path", ["/", "/dev/zero", "/proc/self"])
def test_a_path_that_is_no_data_set_ends_at_once(path):
    began = time.perf_counter()
    refusal(Path(path))
    assert time.perf_counter() - began < 5


def test_a_sparse_file_of_absurd_size_is_refused_without_reading_it(tmp_path):
    folder = write_folder(tmp_path / "toys", contents())
    with (folder / "train/cat/huge.png").open("wb") as file:
        file.truncate(200 * 2**30)
    assert "huge.png: 214,748,364,800 bytes are more than an image file may have" in refusal(folder)


def test_a_header_that_unpacks_to_gigabytes_is_refused_within_little_memory(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    header = tarfile.TarInfo("PaxHeaders/x")
    header.type, header.size = tarfile.XHDTYPE, 2**31
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(512):
            file.write(bytes(2**20))
    code = (
        "import sys; from pathlib import Path; from stages.datasets.image_files import read; read(Path(sys.argv[1]), 8)"
    )
    limited = ["sh", "-c", f'ulimit -v 3000000; exec {sys.executable} -c "{code}" {path}']
    done = subprocess.run(limited, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert "UserError" in done.stderr
    assert "a header of more than 262,144 bytes" in done.stderr


def test_a_member_that_stands_twice_is_refused(tmp_path):
    path = write_tar(tmp_path / "toys.tar", contents(), member(FILES[0], encoded(picture(1))))
    assert f"{FILES[0]}: is in it twice" in refusal(path)


@pytest.mark.skipif(not shutil.which("gs"), reason="no Ghostscript is installed")
def test_a_postscript_program_named_png_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({mark}) (w) file closefile showpage\n".encode()
    with pytest.raises(UserError, match="x: not an image that can be read"):
        decode(program, 8, "x")
    assert not mark.exists()


def test_a_phone_picture_of_several_frames_gives_its_first(tmp_path):
    first, second = picture(1, (16, 16)), picture(2, (16, 16))
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    expected = decode(encoded(first, "JPEG"), 16, "x")
    np.testing.assert_allclose(decode(content, 16, "x"), expected, atol=2)
    animated = encoded(flat("L", 7), "GIF", save_all=True, append_images=[flat("L", 255)])
    assert (decode(animated, 8, "x") == 7).all()


def test_a_path_that_does_not_exist_is_named(tmp_path):
    assert f"{tmp_path / 'nowhere'} does not exist" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("drop", "add", "named"),
    [
        (None, {"train/cat/notes.txt": b"no image"}, "train/cat/notes.txt: not an image"),
        (None, {"train/cat/cut.jpg": encoded(picture(1), "JPEG")[:200]}, "train/cat/cut.jpg: not an image"),
        (None, {"train/cat/deep/1.png": b""}, "deep"),
        (None, {"train/bird/1.png": encoded(picture(1))}, "classes in train/ that test/ lacks: bird"),
        (None, {"test/bird/1.png": encoded(picture(1))}, "classes in test/ that train/ lacks: bird"),
        ("test/", {}, "no test/ in it"),
        ("test/", {"val/cat/1.png": b""}, "no test/ in it; val/ is there: rename it to test"),
        ("train/", {"Training/cat/1.png": b""}, "no train/ in it; Training/ is there: rename it to train"),
        ("train/", {"a/x/1.png": b"", "b/x/1.png": b""}, "no train/ in it but a/; b/; test/; it must hold"),
        ("/cat/", {}, "one class, dög fish"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_what_is_wrong_with_the_files_is_named(tmp_path, kind, drop, add, named):
    files = {name: content for name, content in contents().items() if not (drop and drop in name)} | add
    path = write_folder(tmp_path / "x", files) if kind == "folder" else write_tar(tmp_path / "x.tar", files)
    assert named in refusal(path)


def test_a_link_to_nowhere_and_a_pipe_in_a_folder_are_named(tmp_path):
    folder = write_folder(tmp_path / "toys", contents())
    (folder / "train" / "cat" / "link.png").symlink_to("nowhere")
    assert "link.png: a special file or a broken link" in refusal(folder)
    (folder / "train" / "cat" / "link.png").unlink()
    os.mkfifo(folder / "train" / "cat" / "pipe.png")
    assert "pipe.png: a special file or a broken link" in refusal(folder)


@pytest.mark.parametrize("name", ["a b", "v1.2", "Æble 狗", 'say "x", <b>', "-x", "x" * 100])
def test_any_printable_name_is_a_class(tmp_path, name):
    for split in ("train", "test"):
        for label in (name, "cat"):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / "1.png").write_bytes(encoded(picture(1), "PNG"))
    assert read(tmp_path, 8).classes == sorted([name, "cat"])


@pytest.mark.parametrize("name", [b"\xff", b"two\nlines", b"\x1b[2J"])
def test_a_class_whose_name_cannot_be_printed_is_refused(tmp_path, name):
    for split in (b"/train/", b"/test/"):
        os.makedirs(bytes(tmp_path) + split + name)
    with pytest.raises(UserError, match=r"train/.*cannot be printed"):
        read(tmp_path, 8)


def test_an_empty_class_is_named(tmp_path):
    folder = write_folder(tmp_path / "toys", contents())
    (folder / "train" / "bird").mkdir()
    assert "classes without an image: train/bird" in refusal(folder)
    tar = write_tar(tmp_path / "toys.tar", contents(), member("test/bird", type=tarfile.DIRTYPE))
    assert "classes without an image: test/bird" in refusal(tar)


@pytest.mark.parametrize(
    "odd",
    [
        member("train/cat/x.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("train/cat/x.png", type=tarfile.LNKTYPE, linkname=FILES[0]),
        member("train/cat/x.png", type=tarfile.FIFOTYPE),
        member("train/cat/x.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("train/cat/../../../x.png", b"x"),
        member("/train/cat/x.png", b"x"),
        member("../train/cat/x.png", b"x"),
    ],
)
def test_a_member_that_is_no_plain_file_in_its_place_is_refused_by_name(tmp_path, odd):
    message = refusal(write_tar(tmp_path / "toys.tar", contents(), odd))
    assert odd[0].name in message
    assert sorted(os.listdir(tmp_path)) == ["toys.tar"]


@pytest.mark.parametrize("size", [2**26 + 1, 2**40])
def test_a_member_of_more_than_64_mib_is_refused_before_it_is_read(tmp_path, size):
    info, _ = member("train/cat/huge.png", size=size)
    path = tmp_path / "toys.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    assert f"huge.png: {size:,} bytes are more than an image file may have" in refusal(path)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz"])
def test_a_truncated_tar_is_named(tmp_path, suffix):
    path = write_tar(tmp_path / f"toys{suffix}", contents())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"toys{suffix}: not a whole .tar" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"this is no tar" * 100])
def test_a_file_that_is_no_tar_is_named(tmp_path, content):
    (tmp_path / "toys.tar").write_bytes(content)
    assert "toys.tar" in refusal(tmp_path / "toys.tar")


def decoded(image: Image.Image, size: int, format: str = "PNG", **options) -> np.ndarray:
    return decode(encoded(image, format, **options), size, "train/cat/x")


def flat(mode: str, colour) -> Image.Image:
    return Image.new(mode, (8, 8), colour)


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
    array = decoded(image, 8, format)
    assert array.shape == (8, 8, 3)
    np.testing.assert_array_equal(array.reshape(-1, 3), np.tile(np.array(pixel, np.uint8), (64, 1)))


@pytest.mark.parametrize("size", [(8, 8), (20, 20), (30, 10), (5, 17), (1, 1), (1, 40)])
def test_an_image_of_another_size_is_cropped_to_a_square_and_resized(size):
    image = picture(3, size)
    expected = ImageOps.fit(image, (8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(decoded(image, 8), np.asarray(expected))


def test_an_image_is_decoded_in_any_thread():
    with ThreadPoolExecutor(1) as pool:
        np.testing.assert_array_equal(pool.submit(decoded, picture(3), 8).result(), np.asarray(picture(3)))


def test_a_photograph_is_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image = picture(3)
    np.testing.assert_array_equal(decoded(image, 8, exif=exif), np.asarray(image)[::-1, ::-1])


@pytest.mark.parametrize(
    ("image", "format", "options", "reason"),
    [
        (flat("F", 0.5), "TIFF", {}, "32-bit pixels"),
        (flat("I", 70_000), "TIFF", {}, "32-bit pixels"),
    ],
)
def test_what_cannot_sensibly_be_converted_is_refused_by_name(image, format, options, reason):
    with pytest.raises(UserError, match=f"train/cat/x: {reason}"):
        decoded(image, 8, format, **options)


def test_an_image_of_absurd_size_is_refused_before_it_is_decoded():
    header = bytearray(encoded(picture(1), "BMP"))
    header[18:26] = (8_200).to_bytes(4, "little") * 2  # Pillow's own limit is higher
    with pytest.raises(UserError, match=r"train/cat/x: .*more than the 67,108,864 allowed"):
        decode(bytes(header), 8, "train/cat/x")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    start=st.sampled_from(
        [b"", *(encoded(picture(1), name) for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"))]
    ),
    place=st.floats(0, 1),
    noise=st.binary(max_size=30),
)
@example(encoded(picture(1), "TIFF"), 0.3984375, b"\x01")  # of a second frame without dimensions: a TypeError in Pillow
def test_any_bytes_end_in_an_image_or_in_one_clear_line(tried, start, place, noise):
    cut = int(place * len(start))
    try:
        array = decode(start[:cut] + noise + start[cut + len(noise) :], 8, "train/cat/x")
    except UserError as error:
        tried("any bytes as an image", "named in one line")
        outcome = str(error).partition(": ")[0]
    else:
        tried("any bytes as an image", "read as it is")
        outcome = array.shape, array.dtype
    assert outcome in ("train/cat/x", ((8, 8, 3), np.uint8))


WHOLE = [*contents().items(), ("train/cat", None), ("README", b"text"), ("../up/x.png", b""), ("/train/cat/1.png", b"")]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    suffix=st.sampled_from([".tar", ".tar.gz", ".tar.xz"]),
    names=st.permutations(range(len(WHOLE))),
    dropped=st.integers(0, 4),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=40)), max_size=3),
    end=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_any_damage_to_a_tar_ends_in_a_data_set_or_in_one_clear_line(
    tmp_path_factory, tried, suffix, names, dropped, cuts, end
):
    folder = tmp_path_factory.mktemp("damaged")
    entries = [WHOLE[i] for i in names[dropped:]]
    folders = [member(name, type=tarfile.DIRTYPE) for name, content in entries if content is None]
    files = {name: content for name, content in entries if content is not None}
    path = write_tar(folder / f"images{suffix}", files, *folders)
    damaged = bytearray(path.read_bytes())
    for place, noise in cuts:
        start = int(place * len(damaged))
        damaged[start : start + len(noise)] = noise
    path.write_bytes(damaged[: int(end * len(damaged))])
    try:
        outcome = read(path, 8).train.images.shape[1:]
        tried("any damage to a tar", "read as it is")
    except UserError as error:
        tried("any damage to a tar", "named in one line")
        outcome = str(error).splitlines()
    assert outcome == (8, 8, 3) or len(outcome) == 1
    assert [left.name for left in folder.rglob("*")] == [path.name]  # nothing was unpacked
