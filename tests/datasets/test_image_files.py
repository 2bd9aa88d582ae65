import os
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stages.common.errors import UserError
from stages.datasets import cifar, digits
from stages.datasets.image_files import read
from stages.datasets.source import Source
from tests.datasets.pictures import FILES, KINDS, contents, encoded, member, picture, unsplit, write


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read(path, 8, 0.2)
    assert str(error.value).startswith(f"data.path: {path}: ")
    assert str(error.value).isprintable()
    return str(error.value)


def assert_same(path: Path, other: Source) -> None:
    source = read(path, 8, 0.2)
    assert (source.sha256, source.classes) == (other.sha256, other.classes)
    for split in ("train", "test"):
        for ours, theirs in zip(getattr(source, split), getattr(other, split), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def plain(tmp_path) -> Source:
    return read(write(tmp_path, "folder", contents(), "plain"), 8, 0.2)


def test_a_folder_is_read_in_the_order_of_names(plain):
    assert (plain.name, plain.classes, plain.test_share) == ("plain", ["cat", "dög fish"], None)
    assert plain.train.labels.tolist() == plain.test.labels.tolist() == [0, 0, 1, 1]
    assert (plain.train.images.dtype, plain.train.labels.dtype) == (np.uint8, np.int64)
    assert plain.test.names.tolist() == ["cat/10.png", "cat/2.png", "dög fish/10.png", "dög fish/2.png"]
    by_name = [1, 0, 3, 2]
    np.testing.assert_array_equal(plain.train.images, np.stack([picture(seed) for seed in by_name]))
    np.testing.assert_array_equal(plain.test.images, np.stack([picture(4 + seed) for seed in by_name]))


@pytest.mark.parametrize("kind", [*KINDS, "tar.bz2"])
@pytest.mark.parametrize(("files", "enclosing"), [(contents(), "toys-v2/"), (unsplit(9), "./"), (unsplit(5), "toys/")])
def test_a_folder_and_its_archives_in_any_order_give_the_same_data_set(tmp_path, kind, files, enclosing):
    folder = read(write(tmp_path, "folder", files, "plain"), 8, 0.2)
    backwards = {f"{enclosing}{name}": content for name, content in reversed(files.items())}
    assert_same(write(tmp_path, kind, backwards), folder)


@pytest.mark.parametrize(("images", "share", "tested"), [(10, 0.2, 2), (9, 0.01, 1), (3, 0.99, 2)])
def test_images_without_a_split_are_divided_class_by_class(tmp_path, images, share, tested):
    source = read(write(tmp_path, "folder", unsplit(images)), 8, share)
    assert source.test_share == share
    assert np.bincount(source.test.labels).tolist() == [tested, tested]
    assert sorted([*source.train.names, *source.test.names]) == sorted(unsplit(images))
    images, labels, names = (np.concatenate(both) for both in zip(source.train, source.test, strict=True))
    assert [source.classes[label] for label in labels] == [name.split("/")[0] for name in names]
    np.testing.assert_array_equal(images, [picture(int(Path(name).stem)) for name in names])


def test_other_contents_other_names_and_another_division_have_another_digest(tmp_path):
    renamed = {name.replace("10", "11"): content for name, content in contents().items()}
    repainted = contents() | {FILES[0]: encoded(picture(99))}
    cases = (contents(), 0.2), (renamed, 0.2), (repainted, 0.2), (unsplit(5), 0.2), (unsplit(5), 0.5)
    assert len({read(write(tmp_path, "zip", files), 8, share).sha256 for files, share in cases}) == 5


def test_another_name_of_a_split_is_taken_for_it_with_a_note(tmp_path, plain, capsys):
    path = write(tmp_path, "zip", {file.replace("test/", "Validation/"): c for file, c in contents().items()})
    assert_same(path, plain)
    assert capsys.readouterr().out == f"note: {path}: Validation/ is taken for test/\n"
    read(write(tmp_path, "tar", contents() | {"test/cat/copy.png": contents()["train/cat/2.png"]}), 8, 0.2)
    assert "note: 1 of 5 test images are training images too" in capsys.readouterr().out


SILENT = [".DS_Store", "train/cat/Thumbs.db", "test/desktop.ini", "train/cat/1.png~", "__MACOSX/train/cat/._1.png"]
FOLDERS = [".net/1.png", "train/.net/1.png", "train/.net/2.png", "a~/1.png"]
BESIDE = ["valid/cat/1.png", "README.txt", "labels.csv"]  # as in the downloads of Roboflow, Kaggle and fast.ai
OUTSIDE = ["../../x.png", "/train/cat/x.png", "train/cat/../../../x.png"]


@pytest.mark.parametrize(
    ("kinds", "names", "said"),
    [
        (["folder", "tar"], SILENT, ""),
        (["folder", "zip"], FOLDERS, ".net; a~; train/.net"),
        (["folder", "tar"], BESIDE, "README.txt; labels.csv; valid"),
        (["tar", "zip"], OUTSIDE, "..; /; train/cat/.."),
    ],
)
def test_what_is_passed_over_is_named_but_for_leftovers(tmp_path, plain, capsys, kinds, names, said):
    for kind in kinds:
        path = write(tmp_path, kind, contents() | dict.fromkeys(names, b"x"))
        assert_same(path, plain)
        assert capsys.readouterr().out == (f"note: {path}: not read: {said}\n" if said else "")


def test_of_members_of_one_name_the_last_one_counts_and_a_zip_may_come_from_windows(tmp_path, plain):
    path = write(tmp_path, "tar", contents() | {FILES[1]: b"no image"})
    with tarfile.open(path, "a") as archive:
        archive.add(tmp_path / "plain" / FILES[1], FILES[1])
    assert_same(path, plain)
    windows = {f"toys/{name}".replace("/", "\\"): content for name, content in contents().items()}
    assert_same(write(tmp_path, "zip", {"toys\\": b"", "toys\\test\\": b""} | windows), plain)


def test_a_class_name_is_the_same_composed_and_decomposed(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"  # as Linux and as a Mac's copy have it
    files = {name.replace("dög fish", composed): content for name, content in contents().items()}
    mixed = {name.replace(composed, decomposed) if "test" in name else name: c for name, c in files.items()}
    assert_same(write(tmp_path, "zip", mixed), read(write(tmp_path, "folder", files), 8, 0.2))
    both = files | {f"train/{decomposed}/2.png": encoded(picture(9))}
    assert f"there twice or a link: train/{decomposed}/2.png" in refusal(write(tmp_path, "tar", both))


def test_links_are_followed_in_a_folder_alone_and_broken_ones_and_devices_are_named(tmp_path, plain):
    folder = write(tmp_path, "folder", contents())
    for name in ("train/cat", "test/cat/2.png"):
        (folder / name).rename(tmp_path / Path(name).name)
        (folder / name).symlink_to(tmp_path / Path(name).name)
    assert_same(folder, plain)
    (folder / "test/cat/link.png").symlink_to("nowhere")
    os.mkfifo(folder / "test/cat/pipe.png")
    assert "or a link: test/cat/link.png; test/cat/pipe.png; it must be" in refusal(folder)
    for kind in tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE:
        path = write(tmp_path, "tar", contents(), "toys", member("train/cat/x.png", kind=kind, link="/etc/passwd"))
        assert "or a link: train/cat/x.png" in refusal(path)


def test_any_name_that_can_be_shown_is_a_class_and_none_opens_an_element_of_html(tmp_path):
    names = ["a b", "train", "Æble 狗", 'say "x", b>', "می\u200cروم", "👨\u200d👩\u200d👧", "犬\u3000猫", "x" * 100]
    for name in names:
        files = {file.replace("cat", name): content for file, content in unsplit(3).items()}
        for kind in "tar", "zip":
            assert read(write(tmp_path, kind, files), 8, 0.2).classes == sorted([name, "dog"])
    files = {name.replace("cat", "<!--<script>").replace("10", "<b>\udcff\r"): c for name, c in contents().items()}
    source = read(write(tmp_path, "folder", files), 8, 0.2)
    assert source.classes == ["dög fish", "‹!--‹script>"]
    assert source.test.names[2:].tolist() == ["‹!--‹script>/2.png", r"‹!--‹script>/‹b>\udcff\r.png"]


@pytest.mark.parametrize("name", ["\udcff", "\x1b[2J", "a\u202etac", "a\u2028b"])
def test_a_class_whose_name_would_garble_a_line_is_shown_in_escapes_and_once(tmp_path, name):
    files = {file.replace("cat", name): content for file, content in contents().items()}
    assert f"class {name!a} has a name that cannot be printed" in refusal(write(tmp_path, "folder", files))


GOOD, TABLES = encoded(picture(1)), dict.fromkeys(["a/x.PARQUET", "a/y.arrow", "b/z.csv", "b/w.json"], b"")
WRONG = [  # what is taken away, what is added, and what is said
    ("-", {"train/cat/1.HEIC": b"\0\0\0\x18ftypheic"}, "1.HEIC: not an image that can be read: convert it"),
    ("-", {"train/cat/deep/1.png": b""}, "or a link: train/cat/deep/1.png; it must be a folder"),
    ("-", {"train/bird/1.png": GOOD, "test/cow/1.png": GOOD}, "classes in one of train/ and test/ alone: bird; cow"),
    ("test/", {"test/1.png": b""}, "only train/ of train/ and test/ in it"),
    ("test/", {}, "only train/ of train/ and test/ in it"),
    ("/cat/", {}, "one class, dög fish"),
    ("/", {"cat/1.png": GOOD}, "class cat has one image"),
    ("/", TABLES, "<image file>; export tables such as .parquet"),
    ("-", {"train/\uff43a\u200bt/1.png": GOOD}, r"classes 'cat' and '\uff43a\u200bt' look alike"),
    ("-", {f"train/cat/{n}.gif": b"" for n in range(9)}, "remove it; and 4 more"),
]


@pytest.mark.parametrize(("drop", "add", "named"), WRONG)
def test_what_is_wrong_with_the_files_is_named(tmp_path, drop, add, named):
    files = {name: content for name, content in contents().items() if drop not in name} | add
    for kind in ("folder", "tar", "zip"):
        assert named in refusal(write(tmp_path, kind, files))


def test_images_beyond_the_memory_that_is_free_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**30))
    path = write(tmp_path, "zip", dict.fromkeys(contents(), b"no image"))
    with pytest.raises(UserError, match=r"8 images of 8000×8000 pixels need 1\.4 GiB of memory, 1\.0 GiB are free"):
        read(path, 8_000, 0.2)
    for other, count in ((lambda: cifar.read("cifar10", None, 512), "60,000"), (lambda: digits.read(512), "1,797")):
        with pytest.raises(UserError, match=f"^{count} images of 512×512 pixels need"):
            other()


def test_a_file_of_another_kind_is_named_with_what_to_do(tmp_path):
    (tmp_path / "toys.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(90))
    assert "toys.7z: cannot be read (File is not a zip file); it must be a folder, tar" in refusal(tmp_path / "toys.7z")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_cut_archive_ends_in_one_line_and_nothing_is_unpacked(tmp_path, kind):
    path = write(tmp_path, kind, contents() | {"../up/x.png": b""})
    os.truncate(path, 1500)
    refusal(path)
    assert [left.name for left in tmp_path.rglob("*")] == [path.name]
