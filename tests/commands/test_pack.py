import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.common.dataset import read_dataset
from stages.datasets import image_files


def by_class(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """In the order in which a folder is read."""
    return images[np.argsort(labels, kind="stable")]


def test_png_files_read_back_are_the_images(workspace, stage):
    done = stage("stages.commands.pack", "--to", "out/images.tar")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "out/images.tar: 40 training and 20 test images\n"
    dataset, source = read_dataset(), image_files.read(Path("out/images.tar"), 8)
    assert source.classes == dataset.info.classes
    for split in ("train", "test"):
        expected, read = getattr(dataset, split), getattr(source, split)
        np.testing.assert_array_equal(read.labels, sorted(expected.labels))
        np.testing.assert_array_equal(read.images, by_class(*expected))


def test_jpeg_files_have_the_quality_and_the_same_bytes_each_time(workspace, stage):
    for name in ("a.tar", "b.tar"):
        assert stage("stages.commands.pack", "--to", name, "--jpeg", "75").returncode == 0
    assert Path("a.tar").read_bytes() == Path("b.tar").read_bytes()
    source = image_files.read(Path("a.tar"), 8)
    first = by_class(*read_dataset().test)[0]
    file = io.BytesIO()
    Image.fromarray(first).save(file, "JPEG", quality=75, subsampling=2)
    np.testing.assert_array_equal(source.test.images[0], np.asarray(Image.open(file)))


@pytest.mark.parametrize("quality", ["0", "96"])
def test_a_quality_that_is_none_is_refused(workspace, stage, quality):
    done = stage("stages.commands.pack", "--to", "a.tar", "--jpeg", quality)
    assert (done.returncode, done.stderr) == (1, f"pack: --jpeg {quality}: choose a quality from 1 to 95\n")
    assert not Path("a.tar").exists()
