import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.commands import predict
from stages.common.dataset import Counts, DatasetInfo, Split, write_dataset
from stages.common.errors import UserError
from stages.common.params import load_params
from stages.training.models import build_model
from stages.training.weights import Card, to_bytes
from tests.pipeline import DEFAULTS

ROOT = Path(__file__).parents[2]
CLASSES = ["cat", "dog", "frog", "ship"]
MODEL = "models/cnn.safetensors"


def dataset_info(classes: list[str]) -> DatasetInfo:
    return DatasetInfo(
        name="noise", source="images", sha256="ab" * 32, classes=classes, image_size=8,
        counts=Counts(train=1, test=6), mean=[0.4] * 3, std=[0.2] * 3,
    )  # fmt: skip


def write_model(path: str, classes: list[str]) -> torch.nn.Module:
    recipe = load_params(DEFAULTS).recipe("cnn", "cnn", "train.weight_decay")
    network = build_model(recipe.settings, len(classes), seed=1)
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(to_bytes(Card(recipe=recipe, data=dataset_info(classes)), network.state_dict()))
    return network.eval()


@pytest.fixture
def network(tmp_path, monkeypatch) -> torch.nn.Module:
    """A folder with a model; its network."""
    monkeypatch.chdir(tmp_path)
    return write_model(MODEL, CLASSES)


def picture(name: str) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(name)
    return pixels


@torch.no_grad()
def likeliest(network: torch.nn.Module, pixels: np.ndarray, classes: list[str]) -> str:
    """The three likeliest classes of an image as the command prints them."""
    x = torch.from_numpy((pixels / 255 - 0.4) / 0.2).float().permute(2, 0, 1)[None]
    probabilities = zip(network(x).softmax(1)[0].tolist(), classes, strict=True)
    return ", ".join(f"{name} {share:.1%}" for share, name in sorted(probabilities, reverse=True)[:3])


def test_each_image_has_a_line_and_a_bad_file_loses_no_other_answer(network, stage):
    """Read in any order of arguments, a name that is no UTF-8 and one with an escape sequence among them."""
    expected = likeliest(network, picture("a b.png"), CLASSES)
    Path("text.png").write_text("this is no image")
    os.mkdir("folder.png")
    os.mkfifo("pipe.png")
    escape, latin = "red\x1b[31m.png", os.fsdecode(b"caf\xe9.png")
    for name in (escape, latin):
        os.link("a b.png", name)
    bad = ["text.png", "/dev/zero", "folder.png", "pipe.png", "missing.png"]
    done = stage("stages.commands.predict", "a b.png", *bad[:2], "--model", MODEL, escape, *bad[2:], latin)
    assert done.stdout.splitlines() == [
        f"a b.png: {expected}",
        rf"red\x1b[31m.png: {expected}",
        rf"caf\udce9.png: {expected}",
    ]
    lines = done.stderr.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["predict", name] for name in bad]
    assert done.returncode == 1


def test_a_model_of_two_classes_names_them_and_test_images_come_with_their_answer(network, stage):
    network = write_model(MODEL, ["no", "yes"])
    images = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    labels = np.array([0, 0, 0, 1, 1, 1])
    write_dataset(dataset_info(["no", "yes"]), Split(images[:1], labels[:1]), Split(images, labels))
    done = stage("stages.commands.predict", "--examples", "3", "--model", MODEL)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"test image {index}, {answer}: {likeliest(network, images[index], ['no', 'yes'])}"
        for index, answer in ((0, "no"), (2, "no"), (5, "yes"))
    ]


def test_it_runs_as_a_file_from_any_folder(network, tmp_path):
    expected = likeliest(network, picture("a.png"), CLASSES)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, ROOT / "stages/commands/predict.py", tmp_path / "a.png", "--model", tmp_path / MODEL]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'a.png'}: {expected}\n", "")


def test_more_images_than_a_batch_holds_are_all_answered_in_order(network, monkeypatch, capsys):
    monkeypatch.setattr(predict, "BATCH_PIXELS", 2 * 8 * 8)
    for number in range(5):
        Image.new("RGB", (9, 7), (50 * number, 0, 0)).save(f"{number}.png")
    paths = [Path(f"{number}.png") for number in range(5)]
    predict.main(Namespace(images=paths, model=Path(MODEL), examples=None))
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "--model", "models/other.safetensors"], "models/other.safetensors: no such file"),
        ([], "name image files to classify"),
        (["--examples", "0"], "--examples 0: choose from 1 to 6"),
        (["--examples", "7"], "--examples 7: choose from 1 to 6"),
    ],
)
def test_a_mistake_ends_in_one_line(network, arguments, message):
    images, labels = np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 4
    write_dataset(dataset_info(CLASSES), Split(images[:1], labels[:1]), Split(images, labels))
    with pytest.raises(UserError, match=f"^{message}"):
        predict.main(predict.parser().parse_intermixed_args(["--model", MODEL, *arguments]))


def test_examples_of_other_classes_than_the_models_are_refused(network):
    images, labels = np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 2
    write_dataset(dataset_info(["no", "yes"]), Split(images[:1], labels[:1]), Split(images, labels))
    with pytest.raises(UserError, match=r"^--examples: data/ holds other classes"):
        predict.main(predict.parser().parse_intermixed_args(["--model", MODEL, "--examples", "2"]))
