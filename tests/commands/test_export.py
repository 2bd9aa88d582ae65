import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

from stages.commands import export
from stages.training.weights import Card, load_model, to_bytes
from tests.training.toys import dataset, fresh, recipe


def test_the_exported_program_gives_the_models_probabilities_and_the_card_is_json_beside_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    classes = ["<script>alert(1)</script>", "dog` | \n# x", "ship", "\u202egnp"]
    data = dataset().info.model_copy(update={"classes": classes})
    Path("models").mkdir()
    card = Card(recipe=recipe(), data=data, history=[{"epoch": 1, "test_accuracy": 0.5}])
    Path("models/cnn.safetensors").write_bytes(to_bytes(card, fresh(recipe()).state_dict()))
    export.main(Namespace(model=Path("models/cnn.safetensors"), to=None))
    assert [path.name for path in Path("models").iterdir()] == ["cnn.safetensors"]  # what the pipeline reads
    assert sorted(path.name for path in Path("exported").iterdir()) == ["cnn.pt2", "cnn.pt2.json"]
    assert capsys.readouterr().out == "exported/cnn.pt2, and its card beside it: Simple CNN\n"
    program = torch.export.load("exported/cnn.pt2").module()
    for count in (1, 5):
        images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        exported = program(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        expected = load_model("models/cnn.safetensors").probabilities(images)
        np.testing.assert_allclose(exported.detach().numpy(), expected, atol=1e-6)
    written = json.loads(Path("exported/cnn.pt2.json").read_text())
    assert (written["data"]["classes"], written["recipe"]["train"]["weight_decay"]) == (classes, 5e-4)
    assert written["images"].startswith("float32 N×3×8×8, RGB in [0, 1]")
