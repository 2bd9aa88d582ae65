from pathlib import Path

import numpy as np
import torch

from stages.common.dataset import Counts, DatasetInfo
from stages.common.params import load_params
from stages.training.models import build_model
from stages.training.weights import Card, load_model, to_bytes
from tests.pipeline import DEFAULTS


def test_the_exported_program_gives_the_models_probabilities(tmp_path, monkeypatch, stage, request):
    monkeypatch.chdir(tmp_path)
    recipe = load_params(DEFAULTS).recipe("cnn", "cnn", "train.weight_decay")
    info = DatasetInfo(
        name="pets | more",
        source="images",
        sha256="0" * 64,
        classes=["cat", "dog`"],
        image_size=16,
        counts=Counts(train=4, test=2),
        mean=[0.4, 0.5, 0.6],
        std=[0.2, 0.25, 0.3],
    )
    model = build_model(recipe.settings, classes=2, seed=1)
    Path("cnn.safetensors").write_bytes(to_bytes(Card(recipe=recipe, data=info), model.state_dict()))
    done = stage("stages.commands.export", "cnn.safetensors", "--to", "cat-or-dog.pt2")
    assert done.returncode == 0, done.stderr

    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    program = torch.export.load("cat-or-dog.pt2").module()
    exported = program(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    expected = load_model("cnn.safetensors").probabilities(images)
    np.testing.assert_allclose(exported.detach().numpy(), expected, atol=1e-6)
    card = Path("cat-or-dog.md").read_text()
    assert "float32 N×3×16×16" in card
    assert "| weight_decay | `0.0005` |" in card
