import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import modify_yaml
from hypothesis import given
from hypothesis import strategies as st

from stages.common.errors import UserError
from stages.common.params import Cnn, Resnet, load_params, load_runs
from tests.pipeline import DEFAULTS

ROOT = Path(__file__).parents[2]


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
        "compare": {"model": ["resnet", "cnn"], "weight_decay": ["resnet", "resnet_ablation"]},
        "launcher": "python",
    }


def test_a_recipe_holds_its_own_models_settings_and_weight_decay_and_no_others():
    params = load_params(DEFAULTS)
    cnn = params.recipe("cnn", "cnn", "train.weight_decay")
    assert cnn.settings == params.cnn
    assert "resnet" not in cnn.model_dump_json()
    ablation = params.recipe("resnet_ablation", "resnet", "ablation.weight_decay")
    assert (ablation.settings, ablation.train.weight_decay) == (params.resnet, 1e-4)
    assert params.recipe("resnet", "resnet", "train.weight_decay").train == params.train
    assert ablation.train == params.train.model_copy(update={"weight_decay": 1e-4})


@pytest.mark.parametrize(
    ("channels", "blocks", "title"),
    [
        (64, [2, 2, 2, 2], "ResNet-18"),
        (64, [3, 4, 6, 3], "ResNet-34"),
        (16, [1, 1, 1, 1], "ResNet-10, 16 channels"),
    ],
)
def test_a_networks_title_has_its_depth_and_an_unusual_width(channels, blocks, title):
    assert Resnet(epochs=1, base_channels=channels, blocks=blocks).title == title
    assert Cnn(epochs=1).title == "Simple CNN"


@pytest.mark.parametrize("name", ["less", "copy", "a-b", "2", "model_fields"])
def test_a_value_added_under_ablation_is_a_weight_decay_under_any_name(changed, name):
    params = changed("  weight_decay: 1.0e-4", f"  weight_decay: 1.0e-4\n  '{name}': 1.0e-5")
    assert params.recipe("x", "resnet", f"ablation.{name}").train.weight_decay == 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("../x", "cnn", "train.weight_decay"), r"run '\.\./x': run = '\.\./x': must match pattern"),
        (("", "cnn", "train.weight_decay"), "run = ''"),
        (("a" * 65, "cnn", "train.weight_decay"), "must match pattern"),
        (("x\n", "cnn", "train.weight_decay"), r"run = 'x\\n': must match pattern"),
        (("x", "seed", "train.weight_decay"), "model = 'seed': must be 'cnn' or 'resnet'"),
        (("x", "recipe", "train.weight_decay"), "model = 'recipe': must be 'cnn' or 'resnet'"),
        (("x", "cnn", "train.momentum"), "'train.momentum' is no weight decay .*; there is train.weight_decay, abl"),
        (("x", "cnn", "ablation.other"), "'ablation.other' is no weight decay in params.yaml"),
        (("x", "cnn", "5e-4"), "'5e-4' is no weight decay"),
    ],
)
def test_arguments_that_name_no_training_are_refused_by_name(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        load_params(DEFAULTS).recipe(*arguments)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("text", ["1e-5", "1.0e-05", "1E-5", "5e-324", "0", "0.00", "1e-1"])
def test_a_weight_decay_set_by_dvc_is_the_number_that_python_reads(tmp_path, text):
    (tmp_path / "params.yaml").write_bytes(DEFAULTS.read_bytes())
    apply_overrides(tmp_path / "params.yaml", [f"train.weight_decay={text}"])  # what `dvc exp run -S` does
    assert load_params(tmp_path / "params.yaml").train.weight_decay == float(text)


@given(value=st.floats(min_value=0, max_value=1, exclude_max=True), seed=st.integers(-(2**63), 2**63 - 1))
def test_any_number_that_dvc_writes_is_read_back(tmp_path_factory, value, seed):
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_bytes(DEFAULTS.read_bytes())
    with modify_yaml(path) as params:
        params["train"]["weight_decay"], params["seed"] = value, seed
    assert (load_params(path).train.weight_decay, load_params(path).seed) == (value, seed)


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("true", True), ("false", False)])
def test_compile_is_auto_or_a_boolean(changed, text, value):
    compile = changed("compile: auto", f"compile: {text}").train.compile
    assert (compile, type(compile)) == (value, type(value))


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
def test_seeds_that_differ_are_different_trainings(changed, seed):
    assert changed("seed: 42", f"seed: {seed}").seed == seed


@pytest.mark.parametrize(
    ("old", "new", "key", "value", "allowed"),
    [
        ("seed: 42", "seed: x", "seed", "'x'", "integer"),
        ("seed: 42", "seed: true", "seed", "True", "integer"),
        ("seed: 42", "seed: 1.5", "seed", "1.5", "integer"),
        ("seed: 42", f"seed: {2**63}", "seed", str(2**63), "less than"),
        ("seed: 42", f"seed: {-(2**63) - 1}", "seed", str(-(2**63) - 1), "greater than or equal to"),
        ("seed: 42", "seed: 0x" + "f" * 5000, "seed", "an integer of 20,000 bits", "less than"),
        ("source: cifar10", "source: mnist", "data.source", "'mnist'", "'cifar10', 'images' or 'digits'"),
        ("source: cifar10", "source: images", "data.path", "None", "folder or a tar"),
        ("path: null", "path: 3", "data.path", "3", "string"),
        ("path: null", "path: ''", "data.path", "''", "at least 1 character"),
        ("path: null", 'path: "a\\0b"', "data.path", r"'a\x00b'", "NUL character"),
        ("image_size: 32", "image_size: 7", "data.image_size", "7", "greater than or equal to 8"),
        ("image_size: 32", "image_size: 9999", "data.image_size", "9999", "less than or equal to 512"),
        ("batch_size: 128", "batch_size: 1", "train.batch_size", "1", "greater than or equal to 2"),
        ("batch_size: 128", "batch_size: 12.5", "train.batch_size", "12.5", "integer"),
        ("learning_rate: 0.1", "learning_rate: 0", "train.learning_rate", "0", "greater than 0"),
        ("learning_rate: 0.1", "learning_rate: .inf", "train.learning_rate", "inf", "finite"),
        ("learning_rate: 0.1", "learning_rate: 1e400", "train.learning_rate", "inf", "finite"),
        ("momentum: 0.9", "momentum: 1.0", "train.momentum", "1.0", "less than 1"),
        ("5.0e-4", "-1.0", "train.weight_decay", "-1.0", "greater than or equal to 0"),
        ("5.0e-4", ".nan", "train.weight_decay", "nan", "finite"),
        ("5.0e-4", "much", "train.weight_decay", "'much'", "number"),
        ("schedule: cosine", "schedule: linear", "train.schedule", "'linear'", "'cosine' or 'step'"),
        ("precision: auto", "precision: fp8", "train.precision", "'fp8'", "'auto', 'fp32', 'tf32' or 'bf16'"),
        ("compile: auto", "compile: maybe", "train.compile", "'maybe'", "'auto', True or False"),
        ("compile: auto", "compile: yes", "train.compile", "'yes'", "'auto', True or False"),
        ("compile: auto", "compile: 2", "train.compile", "2", "'auto', True or False"),
        ("keep: best", "keep: all", "train.keep", "'all'", "'best' or 'last'"),
        ("crop_padding: 4", "crop_padding: -1", "augment.crop_padding", "-1", "greater than or equal to 0"),
        ("flip: true", "flip: 1", "augment.flip", "1", "boolean"),
        ("epochs: 50", "epochs: 0", "cnn.epochs", "0", "greater than or equal to 1"),
        ("epochs: 50", "epochs: 1" + 400 * "0", "cnn.epochs", "an integer of 1,329 bits|1000", "less than or equal"),
        ("epochs: 100", "epochs: many", "resnet.epochs", "'many'", "integer"),
        ("base_channels: 64", "base_channels: 8", "resnet.base_channels", "8", "greater than or equal to 16"),
        ("[2, 2, 2, 2]", "[2, 0, 2, 2]", "resnet.blocks.1", "0", "greater than or equal to 1"),
        ("[2, 2, 2, 2]", "[2, 10000000, 2, 2]", "resnet.blocks.1", "10000000", "less than or equal to 100"),
        ("[2, 2, 2, 2]", "[]", "resnet.blocks", "[]", "at least 4 items"),
        ("[2, 2, 2, 2]", "[1, 1, 1, 1, 1]", "resnet.blocks", "[1, 1, 1, 1, 1]", "at most 4 items"),
        ("1.0e-4", "1.0", "ablation.weight_decay", "1.0", "less than 1"),
        ("1.0e-4", "1.0e-4\n  less: x", "ablation.less", "'x'", "number"),
        ("[resnet, cnn]", "[resnet]", "compare.model", "['resnet']", "at least 2 items"),
        ("[resnet, cnn]", "[resnet, ../x]", "compare.model.1", "'../x'", "match pattern"),
        ("launcher: python", "launcher: ''", "launcher", "''", "at least 1 character"),
    ],
)
def test_a_bad_value_is_refused_by_file_key_value_and_what_is_allowed(changed, old, new, key, value, allowed):
    with pytest.raises(UserError) as error:
        changed(old, new)
    message = str(error.value)
    assert "params.yaml: " in message
    assert any(f"{key} = {shown}" in message for shown in value.split("|"))
    assert allowed in message
    assert len(message) < 500


@pytest.mark.parametrize(("padding", "size", "allowed"), [(4, 8, True), (5, 8, False), (16, 32, True), (64, 16, False)])
def test_a_padding_that_would_make_most_crops_black_is_refused(changed, padding, size, allowed):
    text = DEFAULTS.read_text()[DEFAULTS.read_text().index("image_size") :]
    new = text.replace("image_size: 32", f"image_size: {size}").replace("crop_padding: 4", f"crop_padding: {padding}")
    if allowed:
        assert changed(text, new).augment.crop_padding == padding
    else:
        with pytest.raises(UserError, match=f"augment.crop_padding = {padding} .* data.image_size = {size}"):
            changed(text, new)


def test_an_unknown_key_is_refused_with_those_that_exist(changed):
    with pytest.raises(UserError, match=r"train\.wait_decay is unknown; known here: batch_size, .*weight_decay"):
        changed("  momentum:", "  wait_decay: 1\n  momentum:")
    with pytest.raises(UserError, match=r"speed is unknown; known here: seed, data, train"):
        changed("seed: 42", "seed: 42\nspeed: 1")


def test_a_missing_key_is_named(changed):
    with pytest.raises(UserError, match=r"cnn\.epochs is missing; cnn\.epoch is unknown"):
        changed("epochs: 50", "epoch: 50")


def test_the_runs_are_the_items_under_foreach_in_their_order(tmp_path):
    assert load_runs(ROOT / "dvc.yaml") == ["cnn", "resnet", "resnet_ablation"]
    path = tmp_path / "dvc.yaml"
    path.write_text("stages: {train: {foreach: {b: {}, a: {}}}}")
    assert load_runs(path) == ["b", "a"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "stages: 3", "stages: {train: {cmd: x}}", "stages: {train: {foreach: }}",
     "stages: {train: {foreach: {}}}", "stages: {train: {foreach: {../x: {}}}}",
     "stages: {train: {foreach: {1: {}}}}", "a: ["],
)  # fmt: skip
def test_a_pipeline_without_runs_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "dvc.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_runs(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("module", ["stages.download", "stages.report"])
def test_what_needs_no_torch_does_not_import_it(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
