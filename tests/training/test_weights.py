import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from stages.core.errors import UserError
from stages.core.models import build_model
from stages.core.weights import Card, load_model, to_bytes

ROOT = Path(__file__).parents[2]
CARD = Card(
    run="resnet",
    model="resnet18",
    base_channels=16,
    blocks=[1, 1],
    classes=["cat", "dög"],
    image_size=32,
    mean=[0.5, 0.5, 0.5],
    std=[0.2, 0.2, 0.2],
    recipe={"epochs": 3, "weight_decay": 5e-4},
)


def build() -> torch.nn.Module:
    model = build_model("resnet18", 2, base_channels=16, blocks=[1, 1], seed=5).to(memory_format=torch.channels_last)
    model.bn1.running_mean += 0.25
    return model


def test_weights_statistics_and_card_come_back(tmp_path):
    path = tmp_path / "resnet.safetensors"
    path.write_bytes(to_bytes(CARD, build().state_dict()))
    card, model = load_model(path)
    assert card == CARD
    expected = build().state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_the_bytes_do_not_depend_on_the_interpreters_hash_seed():
    code = (
        "import hashlib, tests.core.test_weights as t; from stages.core.weights import to_bytes;"
        "print(hashlib.sha256(to_bytes(t.CARD, t.build().state_dict())).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"model": "simple_cnn"}, "Simple CNN"),
        ({"base_channels": 64, "blocks": [2, 2, 2, 2]}, "ResNet-18"),
        ({"base_channels": 16, "blocks": [2, 2, 2, 2]}, "ResNet-18 (16 channels)"),
        ({"base_channels": 64, "blocks": [3, 4, 6, 3]}, "ResNet-34"),
    ],
)
def test_a_models_title_names_its_depth_and_an_unusual_width(changes, title):
    assert dataclasses.replace(CARD, **changes).title == title


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"no safetensors at all",
        to_bytes(CARD, build().state_dict())[:-100],
        safetensors.torch.save({"weight": torch.zeros(3)}),
        safetensors.torch.save({"weight": torch.zeros(3)}, {"card": "[]"}),
        to_bytes(dataclasses.replace(CARD, base_channels=32), build().state_dict()),
        to_bytes(dataclasses.replace(CARD, model="simple_cnn"), build().state_dict()),
    ],
    ids=["missing", "empty", "text", "truncated", "foreign", "foreign card", "other width", "other model"],
)
def test_what_is_no_model_of_ours_is_named(tmp_path, content):
    path = tmp_path / "resnet.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"resnet\.safetensors: not a model of this pipeline") as error:
        load_model(path)
    assert "\n" not in str(error.value)
