import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from stages.common.errors import UserError
from stages.training import checkpoint
from stages.training.recipe import Recipe
from stages.training.weights import Card, load_model, parse_model, to_bytes
from tests.training.toys import MEAN, STD, dataset, fresh, recipe

DATA = dataset()
CARD = Card(recipe=recipe(), data=DATA.info, history=[{"epoch": 1, "train_loss": 1 / 3, "test_accuracy": 0.1 + 0.2}])


def trained(of: Recipe = CARD.recipe) -> nn.Module:
    network = fresh(of).to(memory_format=torch.channels_last)
    for name, buffer in network.named_buffers():
        buffer.add_(0.25 if "mean" in name else 1)
    return network.eval()


def changed(change=lambda weights: None, **recipe_changes: object) -> bytes:
    """The content of a model file with other weights or another recipe, and the digest that belongs to them."""
    weights, card = trained().state_dict(), CARD.model_dump(mode="json")
    change(weights)
    return checkpoint.to_bytes(card | {"recipe": card["recipe"] | recipe_changes}, weights)


CONTENT = changed()


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_card_weights_and_statistics_come_back_from_the_file(tmp_path, name):
    card = CARD.model_copy(update={"recipe": recipe(name)})
    expected = trained(card.recipe)
    (tmp_path / "x.safetensors").write_bytes(to_bytes(card, expected.state_dict()))
    classifier = load_model(str(tmp_path / "x.safetensors"))
    assert (classifier.card, classifier.classes) == (card, DATA.info.classes)
    torch.testing.assert_close(classifier.network.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_probabilities_are_the_softmax_of_the_networks_logits_on_normalised_images_in_fp32():
    classifier, x = parse_model(CONTENT, "x"), torch.from_numpy(DATA.held_out.images) / 255
    x = (x - torch.tensor(MEAN)) / torch.tensor(STD)
    expected = trained()(x.permute(0, 3, 1, 2)).detach().double()
    log, shares = (f(DATA.held_out.images) for f in (classifier.log_probabilities, classifier.probabilities))
    torch.testing.assert_close(torch.from_numpy(log), expected.log_softmax(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.from_numpy(shares), expected.softmax(1), atol=1e-6, rtol=0)
    assert shares.sum(1) == pytest.approx(1, abs=1e-14)
    far = {"fc.weight": torch.zeros(4, 256), "fc.bias": torch.tensor([0, 2000.0, 0, 0])}  # less than floats can hold
    log = parse_model(changed(lambda weights: weights.update(far)), "x").log_probabilities(DATA.held_out.images[:1])
    assert (log.dtype, log[0].tolist()) == (np.float64, [-2000, 0, -2000, -2000])


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 9, 9, 3), np.uint8), [[1]]])
def test_images_of_another_type_or_size_are_refused(images):
    with pytest.raises(UserError, match=r"^images must be a numpy array of uint8, N×8×8×3, not (ndarray|list).*$"):
        parse_model(CONTENT, "x").probabilities(images)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (CONTENT[:-100], "no safetensors file"), (CONTENT.replace(b"toys", b"toyz", 1), "damaged"),
        (safetensors.torch.save({"weight": torch.zeros(3)}), "no safetensors file"),
        (changed(seed="1"), "recipe.seed = '1': must be"), (changed(more=1), "recipe.more is unknown"),
        (changed(model="../x"), "recipe.model"), (changed(model="gone"), "No module named 'stages.models.gone'"),
        (changed(lambda w: w.update({"fc.bias": torch.zeros(5)})), "size mismatch"),
        (changed(lambda w: w["features.1.running_var"].fill_(float("inf"))), "not finite"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_model_of_ours_is_named_in_one_line(tmp_path, content, reason):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.safetensors: not a model of this pipeline \(") as error:
        load_model(tmp_path / "x.safetensors")
    assert reason in str(error.value)
    assert (str(error.value).isprintable(), len(str(error.value)) < 1000) == (True, True)
