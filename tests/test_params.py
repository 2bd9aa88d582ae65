import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages.core.errors import UserError
from stages.params import load_params

DEFAULTS = Path(__file__).parents[1] / "params.yaml"
KEYS = [
    (section, *rest)
    for section, value in YAML(typ="safe", pure=True).load(DEFAULTS).items()
    for rest in ([(name,) for name in value] if isinstance(value, dict) else [()])
]


@pytest.fixture
def changed(tmp_path):
    """Read the defaults with one piece of their text replaced."""

    def read(old: str, new: str):
        text = DEFAULTS.read_text()
        assert old in text
        path = tmp_path / "params.yaml"
        path.write_text(text.replace(old, new, 1))
        return load_params(path)

    return read


def test_the_defaults_are_the_notebooks_experiment():
    assert load_params(DEFAULTS).model_dump() == {
        "seed": 42,
        "data": {"source": "cifar10", "path": None, "image_size": 32},
        "train": {
            "batch_size": 128,
            "learning_rate": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "cosine",
            "precision": "auto",
            "compile": "auto",
            "keep": "best",
            "sync_batchnorm": False,
        },
        "augment": {"crop_padding": 4, "flip": True},
        "cnn": {"epochs": 50},
        "resnet": {"epochs": 100, "base_channels": 64, "blocks": [2, 2, 2, 2]},
        "ablation": {"weight_decay": 1e-4},
        "launcher": "python",
    }


def test_a_number_that_yaml_1_1_takes_for_a_string_is_read(changed):
    assert changed("5.0e-4", "1e-05").train.weight_decay == 1e-5


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("true", True), ("false", False)])
def test_compile_is_auto_or_a_boolean(changed, text, value):
    compile = changed("compile: auto", f"compile: {text}").train.compile
    assert (compile, type(compile)) == (value, type(value))


@pytest.mark.parametrize(
    ("old", "new", "key", "value", "allowed"),
    [
        ("seed: 42", "seed: x", "seed", "'x'", "integer"),
        ("seed: 42", "seed: true", "seed", "True", "integer"),
        ("seed: 42", "seed: 1.5", "seed", "1.5", "integer"),
        ("source: cifar10", "source: mnist", "data.source", "'mnist'", "'cifar10', 'images' or 'digits'"),
        ("source: cifar10", "source: images", "data.path", "None", "folder or a tar"),
        ("path: null", "path: 3", "data.path", "3", "string"),
        ("image_size: 32", "image_size: 7", "data.image_size", "7", "greater than or equal to 8"),
        ("image_size: 32", "image_size: 9999", "data.image_size", "9999", "less than or equal to 512"),
        ("batch_size: 128", "batch_size: 0", "train.batch_size", "0", "greater than or equal to 1"),
        ("batch_size: 128", "batch_size: 12.5", "train.batch_size", "12.5", "integer"),
        ("learning_rate: 0.1", "learning_rate: 0", "train.learning_rate", "0", "greater than 0"),
        ("learning_rate: 0.1", "learning_rate: .inf", "train.learning_rate", "inf", "finite"),
        ("momentum: 0.9", "momentum: 1.0", "train.momentum", "1.0", "less than 1"),
        ("5.0e-4", "-1.0", "train.weight_decay", "-1.0", "greater than or equal to 0"),
        ("5.0e-4", ".nan", "train.weight_decay", "nan", "finite"),
        ("5.0e-4", "much", "train.weight_decay", "'much'", "number"),
        ("schedule: cosine", "schedule: linear", "train.schedule", "'linear'", "'cosine' or 'step'"),
        ("precision: auto", "precision: fp8", "train.precision", "'fp8'", "'auto', 'fp32', 'tf32' or 'bf16'"),
        ("compile: auto", "compile: maybe", "train.compile", "'maybe'", "'auto', True or False"),
        ("keep: best", "keep: all", "train.keep", "'all'", "'best' or 'last'"),
        ("crop_padding: 4", "crop_padding: -1", "augment.crop_padding", "-1", "greater than or equal to 0"),
        ("flip: true", "flip: 1", "augment.flip", "1", "boolean"),
        ("epochs: 50", "epochs: 0", "cnn.epochs", "0", "greater than or equal to 1"),
        ("epochs: 100", "epochs: many", "resnet.epochs", "'many'", "integer"),
        ("base_channels: 64", "base_channels: 8", "resnet.base_channels", "8", "greater than or equal to 16"),
        ("[2, 2, 2, 2]", "[2, 0]", "resnet.blocks.1", "0", "greater than or equal to 1"),
        ("[2, 2, 2, 2]", "[]", "resnet.blocks", "[]", "at least 1 item"),
        ("[2, 2, 2, 2]", "[1, 1, 1, 1, 1]", "resnet.blocks", "[1, 1, 1, 1, 1]", "at most 4 items"),
        ("1.0e-4", "1.0", "ablation.weight_decay", "1.0", "less than 1"),
        ("launcher: python", "launcher: ''", "launcher", "''", "at least 1 character"),
    ],
)
def test_a_bad_value_is_refused_by_file_key_value_and_what_is_allowed(changed, old, new, key, value, allowed):
    with pytest.raises(UserError) as error:
        changed(old, new)
    message = str(error.value)
    assert "params.yaml: " in message
    assert f"{key} = {value}: " in message
    assert allowed in message


def test_an_unknown_key_is_refused_with_those_that_exist(changed):
    with pytest.raises(UserError, match=r"train\.wait_decay is unknown; known here: batch_size, .*weight_decay"):
        changed("  momentum:", "  wait_decay: 1\n  momentum:")
    with pytest.raises(UserError, match=r"speed is unknown; known here: seed, data, train"):
        changed("seed: 42", "seed: 42\nspeed: 1")


def test_a_missing_key_is_named(changed):
    with pytest.raises(UserError, match=r"cnn\.epochs is missing; cnn\.epoch is unknown"):
        changed("epochs: 50", "epoch: 50")


@pytest.mark.parametrize("text", ["", "[1, 2]", "seed: [", "seed: 1\nseed: 2\n", "\x00"])
def test_a_file_that_is_not_a_mapping_of_parameters_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_params(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        load_params(tmp_path / "nowhere.yaml")


@given(value=st.floats(min_value=0, max_value=1, exclude_max=True))
def test_any_weight_decay_that_dvc_writes_is_read_back(tmp_path_factory, value):
    yaml = YAML()  # as DVC writes it
    document = yaml.load(DEFAULTS)
    document["train"]["weight_decay"] = value
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    yaml.dump(document, path)
    assert load_params(path).train.weight_decay == value


@pytest.mark.parametrize("module", ["stages.params", "stages.download", "stages.report"])
def test_what_needs_no_torch_does_not_import_it(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=DEFAULTS.parent).returncode == 0


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["auto", "digits"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_under_any_key_is_allowed_or_refused_by_name(tmp_path_factory, key, value):
    document = YAML(typ="safe", pure=True).load(DEFAULTS)
    *sections, name = key
    section = document
    for part in sections:
        section = section[part]
    section[name] = value
    path = tmp_path_factory.mktemp("any") / "params.yaml"
    YAML(typ="safe", pure=True).dump(document, path)
    try:
        outcome = load_params(path)
    except UserError as error:
        (line,) = str(error).splitlines()
        outcome = line.startswith(f"{path}: {'.'.join(key)}")
    else:
        for part in key:
            outcome = getattr(outcome, part)
        outcome = outcome == value
    assert outcome


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_refused_in_one_line(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "params.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(UserError) as error:
        load_params(path)
    assert "\n" not in str(error.value)
