import json
import random
import sys
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from stages.common.errors import UserError
from stages.common.params import PositiveInt, Section
from stages.training import checkpoint
from stages.training.recipe import Recipe, build_model
from stages.training.weights import Card, load_model, parse_model, to_bytes
from tests.training.toys import MEAN, STD, dataset, fresh, recipe

DATA = dataset()
HISTORY = [{"epoch": 1, "train_loss": 1 / 3, "test_accuracy": 0.1 + 0.2}]
CARD = Card(recipe=recipe(), data=DATA.info, history=HISTORY)


def trained(of: Recipe = CARD.recipe) -> nn.Module:
    network = fresh(of).to(memory_format=torch.channels_last)
    for name, buffer in network.named_buffers():
        buffer.add_(0.25 if "mean" in name else 1)
    return network.eval()


CONTENT = to_bytes(CARD, trained().state_dict())


def by_hand(network: nn.Module, images: np.ndarray) -> Tensor:
    """The logits of uint8 N×H×W×3 images."""
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    with torch.no_grad():
        return network(x).double()


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_card_weights_and_statistics_come_back_from_the_file(tmp_path, name):
    card = CARD.model_copy(update={"recipe": recipe(name)})
    expected = trained(card.recipe)
    (tmp_path / "x.safetensors").write_bytes(to_bytes(card, expected.state_dict()))
    for path in (tmp_path / "x.safetensors", str(tmp_path / "x.safetensors")):
        classifier = load_model(path)
        assert classifier.card == card
        assert classifier.classes == DATA.info.classes
        assert classifier.parameters == sum(p.numel() for p in expected.parameters())
        found = classifier.network.state_dict()
        assert found.keys() == expected.state_dict().keys()
        assert all(tensor.equal(found[key]) for key, tensor in expected.state_dict().items())


def test_probabilities_are_the_softmax_of_the_networks_logits_on_normalised_images_in_fp32():
    classifier, images = parse_model(CONTENT, "x"), DATA.held_out.images
    expected = by_hand(trained(), images)
    log = torch.from_numpy(classifier.log_probabilities(images))
    torch.testing.assert_close(log, expected.log_softmax(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.from_numpy(classifier.probabilities(images)), expected.softmax(1), atol=1e-6, rtol=0
    )


def test_the_logarithm_of_a_tiny_probability_is_exact():
    """No probability is 0 before its logarithm is taken: the loss of a wrong answer is -log p, not a limit of floats."""
    network = trained()
    network.fc.weight.data.zero_()
    network.fc.bias.data.copy_(torch.tensor([0.0, 2000.0, 0.0, 0.0]))
    log = parse_model(to_bytes(CARD, network.state_dict()), "x").log_probabilities(DATA.held_out.images[:1])
    assert log.dtype == np.float64
    assert log[0].tolist() == [-2000, 0, -2000, -2000]


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"ndarray float32 \(2, 8, 8, 3\)$"),
        (np.zeros((2, 9, 9, 3), np.uint8), r"ndarray uint8 \(2, 9, 9, 3\)$"),
        (np.zeros((8, 8, 3), np.uint8), r"ndarray uint8 \(8, 8, 3\)$"),
        (torch.zeros((2, 8, 8, 3), dtype=torch.uint8), r"Tensor torch\.uint8 \(2, 8, 8, 3\)$"),
        ([[1]], r"list \(\)$"),
    ],
)
def test_images_of_another_type_or_size_are_refused(images, found):
    with pytest.raises(UserError, match=rf"^images must be a numpy array of uint8, N×8×8×3, .*, not {found}"):
        parse_model(CONTENT, "x").probabilities(images)


def test_a_network_may_have_buffers_that_are_not_saved(monkeypatch):
    """As positions in a vision transformer: they are made when the network is built."""

    class Settings(Section):
        epochs: PositiveInt

    class Shifted(nn.Module):
        def __init__(self, classes: int):
            super().__init__()
            self.register_buffer("shift", torch.full((classes,), 2.0), persistent=False)
            self.fc = nn.Linear(3 * 8 * 8, classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1)) + self.shift

    module = ModuleType("stages.models.mine")
    module.Settings, module.build = Settings, lambda settings, classes: Shifted(classes)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    of = recipe().model_copy(update={"model": "mine", "settings": Settings(epochs=2)})
    network = build_model(of, 4)
    found = parse_model(to_bytes(CARD.model_copy(update={"recipe": of}), network.state_dict()), "x")
    expected = by_hand(network, DATA.held_out.images).softmax(1)
    torch.testing.assert_close(torch.from_numpy(found.probabilities(DATA.held_out.images)), expected, atol=1e-6, rtol=0)


def test_any_flipped_bit_is_found_or_means_nothing():
    draw, header = random.Random(1), 8 + int.from_bytes(CONTENT[:8], "little")
    for bit in [draw.randrange(8 * len(CONTENT)) for _ in range(100)] + [
        draw.randrange(8 * header) for _ in range(100)
    ]:
        damaged = bytearray(CONTENT)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            card, tensors = checkpoint.from_bytes(bytes(damaged))
        except ValueError:
            continue
        assert card == json.loads(CARD.model_dump_json()), f"bit {bit}"
        assert all(tensors[name].equal(tensor) for name, tensor in trained().state_dict().items()), f"bit {bit}"


def with_weights(change) -> bytes:
    weights = trained().state_dict()
    change(weights)
    return to_bytes(CARD, weights)


def with_card(**recipe: object) -> bytes:
    card = CARD.model_dump(mode="json")
    return checkpoint.to_bytes(card | {"recipe": card["recipe"] | recipe}, trained().state_dict())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no safetensors file"),
        (b"no safetensors at all", "no safetensors file"),
        (CONTENT[:-100], "no safetensors file"),
        (safetensors.torch.save({"weight": torch.zeros(3)}), "no safetensors file"),
        (safetensors.torch.save({"weight": torch.zeros(3)}, {"card": "[]"}), "no safetensors file"),
        (safetensors.torch.save({"weight": torch.zeros(3)}, {"card": "[" * 100_000}), "no safetensors file"),
        (CONTENT.replace(b"toys", b"toyz", 1), "damaged"),
        (with_card(seed="1"), "recipe.seed = '1': must be a valid integer"),
        (with_card(settings={"epochs": 0}), "recipe.settings"),
        (with_card(model="../x"), "recipe.model"),
        (with_card(model="gone"), "No module named 'stages.models.gone'"),
        (with_card(more=1), "recipe.more is unknown"),
        (checkpoint.to_bytes({"recipe": {}}, trained().state_dict()), "recipe.run is missing"),
        (with_weights(lambda w: w.pop("fc.bias")), "Missing key"),
        (with_weights(lambda w: w.update(more=torch.zeros(1))), "Unexpected key"),
        (with_weights(lambda w: w.update({"fc.bias": torch.zeros(5)})), "size mismatch"),
        (with_weights(lambda w: w["fc.bias"].fill_(float("nan"))), "not finite"),
        (with_weights(lambda w: w["features.1.running_var"].fill_(float("inf"))), "not finite"),
    ],
)
def test_a_file_that_is_no_model_of_ours_is_named_in_one_line(tmp_path, content, reason):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.safetensors: not a model of this pipeline \(") as error:
        load_model(tmp_path / "x.safetensors")
    assert reason in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"x\.safetensors: no such file; make it with `dvc repro`$"):
        load_model(tmp_path / "x.safetensors")
