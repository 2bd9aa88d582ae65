import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.common.errors import UserError
from stages.training import tensor_file
from stages.training.weights import Card, load_model, to_bytes
from tests.any_value import JSON, found, places, replaced
from tests.training.toys import dataset, model, recipe

ROOT = Path(__file__).parents[2]
RECIPE = recipe("cnn")
CARD = Card(recipe=RECIPE, data=dataset(classes=2).info)


def build() -> torch.nn.Module:
    network = model(RECIPE, classes=2).to(memory_format=torch.channels_last)
    network.features[1].running_mean += 0.25
    return network


CONTENT = to_bytes(CARD, build().state_dict())


def test_weights_statistics_and_card_come_back(tmp_path):
    path = tmp_path / "cnn.safetensors"
    path.write_bytes(CONTENT)
    classifier = load_model(path)
    assert classifier.card == CARD
    assert classifier.classes == ["class 0", "class 1"]
    assert classifier.parameters == sum(weight.numel() for weight in build().parameters())
    expected = build().state_dict()
    assert classifier.network.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in classifier.network.state_dict().items())


def test_probabilities_are_the_softmax_of_the_networks_logits_on_normalised_images(tmp_path):
    (tmp_path / "cnn.safetensors").write_bytes(CONTENT)
    classifier, images = load_model(tmp_path / "cnn.safetensors"), dataset(classes=2).test.images
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CARD.data.mean, CARD.data.std))
    with torch.no_grad():
        expected = build().eval()((x - mean) / std).double().softmax(1)
    torch.testing.assert_close(torch.from_numpy(classifier.probabilities(images)), expected, atol=1e-6, rtol=0)


def test_too_little_memory_for_the_images_ends_in_one_line(tmp_path):
    """A real limit on the address space, of another process: this one's allocator would not be the same afterwards."""
    (tmp_path / "cnn.safetensors").write_bytes(CONTENT)
    code = (
        "import resource, sys, numpy as np; from stages.training.weights import load_model\n"
        "classifier, images = load_model(sys.argv[1]), np.zeros((1000, 256, 256, 3), np.uint8)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**24,) * 2)\n"
        "classifier.probabilities(images)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, str(tmp_path / "cnn.safetensors")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("stages.common.errors.UserError: CPU, ")
    assert "ran out of memory at" in error
    assert error.endswith("; make the batch, the images or the model smaller, or stop other programs")


def test_a_file_of_more_than_a_gibibyte_is_read(tmp_path):
    tensors = {"large": torch.arange(2**28 + 2**20, dtype=torch.float32)}
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.write(tensor_file.to_bytes({"x": "y"}, tensors))
    card, found = tensor_file.read(tmp_path / "large.safetensors")
    assert card == {"x": "y"}
    assert found["large"].equal(tensors["large"])


def test_safetensors_own_reader_finds_the_same_tensors_and_one_entry_of_metadata(tmp_path):
    path = tmp_path / "cnn.safetensors"
    path.write_bytes(CONTENT)
    expected = build().state_dict()
    with safetensors.safe_open(path, framework="pt") as file:
        assert list(file.metadata()) == ["card"]
        assert all(torch.equal(file.get_tensor(name), expected[name]) for name in file.keys())
        assert set(file.keys()) == set(expected)


def test_the_tensors_begin_at_a_multiple_of_eight_bytes_the_larger_types_first():
    for letters in range(8):
        content = tensor_file.to_bytes({"x": "y" * letters}, {"a": torch.ones(3), "b": torch.tensor(7)})
        size = int.from_bytes(content[:8], "little")
        assert size % 8 == 0
        assert content[8 + size :] == (7).to_bytes(8, "little") + 3 * b"\0\0\x80\x3f"  # float32 1.0


def test_the_bytes_do_not_depend_on_the_interpreters_hash_seed():
    code = (
        "import hashlib, tests.training.test_weights as t; from stages.training.weights import to_bytes;"
        "print(hashlib.sha256(to_bytes(t.CARD, t.build().state_dict())).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_any_flipped_bit_is_found(tried):
    """100 bits over the whole file, and 100 over its header, where the card and the layout are."""
    draw = random.Random(1)
    header = 8 + int.from_bytes(CONTENT[:8], "little")
    bits = [draw.randrange(8 * len(CONTENT)) for _ in range(100)] + [draw.randrange(8 * header) for _ in range(100)]
    used = 0
    for bit in bits:
        damaged = bytearray(CONTENT)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            card, tensors = tensor_file.from_bytes(bytes(damaged))
        except ValueError:
            tried("a flipped bit of a model file", "named in one line")
            continue
        tried("a flipped bit of a model file", "read as it is")
        used += 1  # a bit that means nothing, such as a space turned into another character JSON passes over
        assert (card, sorted(tensors)) == (CARD.model_dump(mode="json"), sorted(build().state_dict()))
        assert all(torch.equal(tensor, build().state_dict()[name]) for name, tensor in tensors.items())
    assert used < 10


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_place_of_the_card_is_read_as_it_is_or_named_in_one_line(tmp_path, tried, data):
    """As if the digest agreed: `to_bytes` counts it anew."""
    card = CARD.model_dump(mode="json")
    place, value = data.draw(st.sampled_from(list(places(card)))), data.draw(JSON)
    card = replaced(card, place, value)
    path = tmp_path / "cnn.safetensors"
    path.write_bytes(tensor_file.to_bytes(card if isinstance(card, dict) else {}, build().state_dict()))
    try:
        loaded = load_model(path)
    except UserError as error:
        tried("any value in a model card", "named in one line")
        assert str(error).startswith(f"{path}: not a model of this pipeline (")
        assert str(error).isprintable()
        assert len(str(error)) < len(str(path)) + 1000
    else:
        tried("any value in a model card", "read as it is")
        assert found(loaded.card, place) == value


def with_card(**changes: object) -> bytes:
    return to_bytes(CARD.model_copy(update=changes), build().state_dict())


def without(name: str) -> bytes:
    return to_bytes(CARD, {key: value for key, value in build().state_dict().items() if key != name})


def not_finite() -> bytes:
    network = build()
    network.fc.bias.data[0] = float("nan")
    return to_bytes(CARD, network.state_dict())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "no safetensors file"),
        (b"no safetensors at all", "no safetensors file"),
        (CONTENT[:-100], "no safetensors file"),
        (safetensors.torch.save({"weight": torch.zeros(3)}), "no safetensors file"),
        (safetensors.torch.save({"weight": torch.zeros(3)}, {"card": "[]"}), "no safetensors file"),
        (safetensors.torch.save({"weight": torch.zeros(3)}, {"card": "[" * 100_000}), "no safetensors file"),
        (with_card(recipe=recipe("resnet")), "Missing key"),
        (with_card(data=dataset(classes=3).info), "size mismatch"),
        (tensor_file.to_bytes({"recipe": {}}, build().state_dict()), "recipe.run is missing"),
        (without("fc.bias"), "Missing key"),
        (not_finite(), "not finite"),
    ],
    ids="missing empty text truncated foreign list deep model classes card lacking nan".split(),  # noqa: SIM905
)
def test_a_file_that_is_no_model_of_ours_is_named_in_one_line(tmp_path, content, reason):
    path = tmp_path / "cnn.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"cnn\.safetensors: ") as error:
        load_model(path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
