from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages import predict
from stages.core.errors import UserError
from stages.core.models import build_model
from stages.core.weights import Card, to_bytes

CLASSES = ["cat", "dog", "frog", "ship"]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder with a model as resnet; the model itself."""
    monkeypatch.chdir(tmp_path)
    card = Card("resnet", "simple_cnn", 64, [2, 2, 2, 2], CLASSES, 8, [0.4] * 3, [0.2] * 3, recipe={})
    model = build_model("simple_cnn", len(CLASSES), 64, [2, 2, 2, 2], seed=1)
    Path("models").mkdir()
    Path("models/resnet.safetensors").write_bytes(to_bytes(card, model.state_dict()))
    return model.eval()


def classify(*images: str) -> None:
    predict.main(Namespace(images=[Path(image) for image in images], model=Path("models/resnet.safetensors")))


def picture(name: str, **options) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(name, **options)
    return pixels


@torch.no_grad()
def test_the_likeliest_three_classes_are_printed_with_their_probabilities(model, capsys):
    x = torch.from_numpy((picture("a.png") / 255 - 0.4) / 0.2).float().permute(2, 0, 1)[None]
    probabilities = model(x).softmax(1)[0].tolist()
    likeliest = sorted(zip(probabilities, CLASSES, strict=True), reverse=True)[:3]
    classify("a.png")
    expected = ", ".join(f"{name} {probability:.1%}" for probability, name in likeliest)
    assert capsys.readouterr().out == f"a.png: {expected}\n"


def test_images_of_any_size_and_mode_are_taken_a_line_each(model, capsys):
    Image.new("L", (50, 31), 77).save("grey.jpg")
    Image.new("RGBA", (3, 3), (1, 2, 3, 4)).save("clear.png")
    Image.new("CMYK", (8, 8)).save("print.tiff")
    classify("grey.jpg", "clear.png", "print.tiff")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["grey.jpg", "clear.png", "print.tiff"]
    assert all(line.count("%") == 3 for line in lines)


@pytest.mark.parametrize("content", [None, b"", b"this is no image"])
def test_a_file_that_is_no_image_is_named_and_nothing_printed(model, content, capsys):
    picture("good.png")
    if content is not None:
        Path("bad.png").write_bytes(content)
    with pytest.raises(UserError, match=r"^bad\.png: "):
        classify("good.png", "bad.png")
    assert capsys.readouterr().out == ""


def test_a_model_that_is_missing_is_named(model):
    Path("models/resnet.safetensors").unlink()
    picture("a.png")
    with pytest.raises(UserError, match=r"models/resnet\.safetensors: "):
        classify("a.png")


def test_the_command_line(model, stage):
    picture("a b.png")
    done = stage("stages.predict", "a b.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a b.png: ")
    done = stage("stages.predict", "a b.png", "--model", "models/other.safetensors")
    assert done.returncode == 1
    assert done.stderr.startswith("predict: models/other.safetensors: ")
