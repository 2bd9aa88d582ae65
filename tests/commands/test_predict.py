import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.commands import predict
from stages.common.dataset import Dataset, write_dataset
from stages.common.errors import UserError
from stages.training.weights import Card, load_model, to_bytes
from tests.training.toys import MEAN, STD, dataset, fresh, recipe

MODEL = "models/resnet.safetensors"


@pytest.fixture
def data(tmp_path, monkeypatch) -> Dataset:
    """A folder with data/ and a model."""
    monkeypatch.chdir(tmp_path)
    data = dataset()
    write_dataset(data.info, {"train": data.train, "test": data.held_out})
    Path("models").mkdir()
    Path(MODEL).write_bytes(to_bytes(Card(recipe=recipe(), data=data.info, history=[]), fresh(recipe()).state_dict()))
    return data


@torch.no_grad()
def by_hand(pixels: np.ndarray) -> dict[str, float]:
    x = torch.tensor((pixels / 255 - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1)[None]
    probabilities = fresh(recipe()).eval()(x).softmax(1)[0].tolist()
    return {f"class {number}": share for number, share in sorted(enumerate(probabilities), key=lambda of: -of[1])}


def line(pixels: np.ndarray) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in [*by_hand(pixels).items()][:3])


def test_a_file_and_an_image_of_any_mode_are_classified_as_their_pixels_are(data):
    pixels, classifier = data.held_out.images[3], load_model(MODEL)
    image, grey = Image.fromarray(pixels), np.full((8, 8, 3), 100, np.uint8)
    image.save("a.png")
    of = [(given, pixels) for given in ("a.png", Path("a.png"), image, image.convert("RGBA"))]
    for given, expected in [*of, (Image.new("L", (40, 20), 100), grey)]:
        found = classifier.classify(given)
        assert found == pytest.approx(by_hand(expected), abs=1e-5)
        assert [*found.values()] == sorted(found.values(), reverse=True)


def test_each_file_has_a_line_and_a_bad_one_loses_no_other_answer(data, stage):
    """In any order of arguments; a name that is no UTF-8 and one with an escape sequence among them."""
    expected = line(data.held_out.images[0])
    Image.fromarray(data.held_out.images[0]).save("a b.png")
    Path("text.png").write_text("this is no image")
    strange = ["red\x1b[31m.png", os.fsdecode(b"caf\xe9.png")]
    for name in strange:
        os.link("a b.png", name)
    arguments = "a b.png", "text.png", "--model", MODEL, strange[0], "missing.png", strange[1]
    done = stage("stages.commands.predict", *arguments)
    names = "a b.png", r"red\x1b[31m.png", r"caf\udce9.png"
    assert done.stdout.splitlines() == [f"{name}: {expected}" for name in names]
    bad = ["predict: text.png: not an image that can be read", "predict: missing.png: no such file; name an image"]
    assert [said.startswith(of) for said, of in zip(done.stderr.splitlines(), bad, strict=True)] == [True, True]
    assert done.returncode == 1


@pytest.mark.parametrize(("count", "chosen"), [(3, [0, 24, 49]), (1000, range(50))])
def test_examples_are_spread_over_the_test_images_and_come_with_names_and_answers(data, capsys, count, chosen):
    test = data.held_out
    with pytest.raises(SystemExit, match="0"):
        predict.main(Namespace(images=[], model=MODEL, examples=count))
    expected = [f"test image {i}, class {test.labels[i]}: {line(test.images[i])}" for i in chosen]
    assert capsys.readouterr().out.splitlines() == expected
    with pytest.raises(UserError, match=r"^name image files"):
        predict.main(Namespace(images=[], model=MODEL, examples=0))
