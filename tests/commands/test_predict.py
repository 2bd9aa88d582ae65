import os
import re
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


def write_model(data: Dataset) -> torch.nn.Module:
    network = fresh(recipe())
    if len(data.info.classes) != 4:
        network.fc = torch.nn.Linear(256, len(data.info.classes))
    card = Card(recipe=recipe(), data=data.info, history=[])
    Path(MODEL).parent.mkdir(exist_ok=True)
    Path(MODEL).write_bytes(to_bytes(card, network.state_dict()))
    return network.eval()


@pytest.fixture
def data(tmp_path, monkeypatch) -> Dataset:
    """A folder with data/."""
    monkeypatch.chdir(tmp_path)
    data = dataset()
    write_dataset(data.info, {"train": data.train, "test": data.held_out})
    return data


@torch.no_grad()
def by_hand(network: torch.nn.Module, pixels: np.ndarray, classes: list[str]) -> dict[str, float]:
    x = torch.tensor((pixels / 255 - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1)[None]
    probabilities = dict(zip(classes, network(x).softmax(1)[0].tolist(), strict=True))
    return dict(sorted(probabilities.items(), key=lambda item: -item[1]))


def line(probabilities: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in [*probabilities.items()][:3])


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        predict.main(predict.parser().parse_intermixed_args(arguments))
    return ended.value.code


def test_a_file_and_an_image_of_any_mode_are_classified_as_their_pixels_are(data):
    network, pixels = write_model(data), data.held_out.images[3]
    expected = by_hand(network, pixels, data.info.classes)
    image = Image.fromarray(pixels)
    image.save("a.png")
    classifier = load_model(MODEL)
    for given in (
        "a.png",
        Path("a.png"),
        image,
        image.convert("RGBA"),
        image.resize((16, 16), Image.Resampling.NEAREST),
    ):
        found = classifier.classify(given)
        tolerance = 0.2 if getattr(given, "size", None) == (16, 16) else 1e-5
        assert found == pytest.approx(expected, abs=tolerance)
        assert [*found.values()] == sorted(found.values(), reverse=True)
    grey = Image.new("L", (40, 20), 100)
    white = by_hand(network, np.full((8, 8, 3), 100, np.uint8), data.info.classes)
    assert classifier.classify(grey) == pytest.approx(white, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("missing.png", "missing.png: no such file"),
        (".", ".: cannot be read: Is a directory"),
        ("text.png", "text.png: not an image that can be read"),
        (Image.new("F", (8, 8)), "not an image that can be classified: 32-bit pixels"),
    ],
)
def test_what_is_no_image_is_refused_in_a_line(data, given, message):
    write_model(data)
    Path("text.png").write_text("this is no image")
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        load_model(MODEL).classify(given)


def test_each_file_has_a_line_and_a_bad_one_loses_no_other_answer(data, stage):
    """In any order of arguments; a name that is no UTF-8 and one with an escape sequence among them."""
    expected = line(by_hand(write_model(data), data.held_out.images[0], data.info.classes))
    Image.fromarray(data.held_out.images[0]).save("a b.png")
    Path("text.png").write_text("this is no image")
    os.mkdir("folder.png")
    for name in ("red\x1b[31m.png", os.fsdecode(b"caf\xe9.png")):
        os.link("a b.png", name)
    bad = ["text.png", "folder.png", "missing.png"]
    done = stage("stages.commands.predict", "a b.png", *bad[:2], "--model", MODEL, "red\x1b[31m.png", *bad[2:],
                 os.fsdecode(b"caf\xe9.png"))  # fmt: skip
    assert done.stdout.splitlines() == [
        f"a b.png: {expected}",
        rf"red\x1b[31m.png: {expected}",
        rf"caf\udce9.png: {expected}",
    ]
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [["predict", name] for name in bad]
    assert done.returncode == 1


def test_examples_are_spread_over_the_test_images_and_come_with_names_and_answers(data, capsys):
    network, test = write_model(data), data.held_out
    assert run("--examples", "3") == 0
    answers = {index: line(by_hand(network, test.images[index], data.info.classes)) for index in (0, 24, 49)}
    expected = [f"test image {index}, class {test.labels[index]}: {answer}" for index, answer in answers.items()]
    assert capsys.readouterr().out.splitlines() == expected


def test_a_model_of_two_classes_names_them(data, capsys):
    data = dataset(classes=2)
    write_dataset(data.info, {"train": data.train, "test": data.held_out})
    write_model(data)
    run("--examples", "1")
    assert re.fullmatch(r"test image 0, class \d: class \d [\d.]+%, class \d [\d.]+%\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "--model", "models/other.safetensors"], "models/other.safetensors: no such file"),
        ([], "name image files to classify"),
        (["--examples", "0"], "--examples 0: choose from 1 to 50"),
        (["--examples", "51"], "--examples 51: choose from 1 to 50"),
    ],
)
def test_a_mistake_ends_in_one_line(data, arguments, message):
    write_model(data)
    with pytest.raises(UserError, match=f"^{message}"):
        predict.main(predict.parser().parse_intermixed_args(arguments))


def test_examples_of_other_classes_than_the_models_are_refused(data):
    write_model(dataset(classes=5))
    with pytest.raises(UserError, match=r"^--examples: data/ holds other classes"):
        predict.main(predict.parser().parse_intermixed_args(["--examples", "2"]))
