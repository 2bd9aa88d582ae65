import copy
import functools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from stages.common.errors import UserError
from stages.common.params import Params, load_params
from tests.pipeline import PARAMS

ROOT = Path(__file__).parents[2]


def changed(changes: dict[str, Any]) -> dict:
    """The tests' parameters with other values under these dotted names, or without those whose value is `...`."""
    params = copy.deepcopy(PARAMS)
    for name, value in changes.items():
        *sections, key = name.split(".")
        section = functools.reduce(dict.__getitem__, sections, params)
        section.pop(key) if value is ... else section.update({key: value})
    return params


def loaded(params: dict, tmp_path: Path) -> Params:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return load_params(tmp_path / "params.yaml")


def test_the_projects_parameters_are_valid():
    assert len(load_params(ROOT / "params.yaml").runs) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": -(2**63)}, {"data.path": "~/photos"}, {"train.compile": True}, {"train.momentum": 0.0},
        {"augment.crop_padding": 4, "augment.cutout": 8}, {"study.margin": 0}, {"compare": {}}, {"torchvision": ...},
        {"ablation.2": 0.5, "runs.w-2": {"model": "cnn", "weight_decay": "ablation.2"}, "compare.x_1": ["w-2", "cnn"]},
    ],
)  # fmt: skip
def test_what_is_allowed_is_taken_as_it_is(tmp_path, changes):
    assert loaded(changed(changes), tmp_path).model_dump() == changed(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": True}, "seed = True: must be a valid integer"), ({"seed": ...}, "seed is missing"),
        ({"data.path": ""}, "at least 1 character"), ({"seed": 2**63}, "less"), ({"runs": {"../x": 1}}, "pattern"),
        ({"data.source": "mnist"}, "data.source = 'mnist': must be 'cifar10', 'cifar100', 'images' or 'digits'"),
        ({"train.batch_size": 1}, "greater than or equal to 2"), ({"train.learning_rate": math.inf}, "finite"),
        ({"train.compile": 2}, "'auto', True or False"), ({"train.nesterov": 1}, "boolean"), ({"runs": {}}, "1 item"),
        ({"augment.cutout": 9}, "at most 8"), ({"data.test_share": 0}, "than 0"), ({"train.learning_rate": 0}, "n 0"),
        ({"train.momentum": 1}, "than 1"), ({"data.validation": 1}, "than 1"), ({"train.label_smoothing": 1}, "than 1"),
        ({"compare.model": ["cnn", "cnn"]}, "compare.model = ['cnn', 'cnn']: must name two runs of cnn, "),
        ({"train.wait_decay": 1}, "train.wait_decay is unknown; known here: batch_size, learning_rate, momentum"),
        ({"data.source": "images"}, "data.path = None: must name a folder, a tar or a zip of images when data."),
        ({"train.nesterov": True, "train.momentum": 0.0}, "nesterov needs a momentum above 0"),
        ({"augment.crop_padding": 5}, "augment.crop_padding = 5: must be at most 4 where data.image_size is 8"),
        ({"runs.cnn.model": "seed"}, "runs.cnn.model = 'seed' is not there; there is cnn, resnet, t"),
        ({"runs.cnn.weight_decay": "train.momentum"}, "is train.weight_decay, ablation.weight_decay"),
        ({"compare.model": ["resnet", "vit"]}, "compare.model = ['resnet', 'vit']: must name two runs of cnn, "),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_file_key_value_and_what_is_allowed(tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        loaded(changed(changes), tmp_path)
    said = str(error.value)
    assert (said.startswith(f"{tmp_path}/params.yaml: "), message in said, said.isprintable()) == (True, True, True)


def test_a_weight_decay_set_by_dvc_is_the_number_that_python_reads(tmp_path):
    loaded(PARAMS, tmp_path)
    apply_overrides(tmp_path / "params.yaml", ["train.weight_decay=1e-5"])  # what `dvc exp run -S` does
    assert load_params(tmp_path / "params.yaml").train.weight_decay == 1e-5


@pytest.mark.parametrize("text", ["a: [", "\0", b"\xff", "a: !!bool x", "[" * 500, "a: !!python/name:os.x", "[]"])
def test_what_is_no_yaml_or_no_sections_or_is_missing_is_named_in_one_line(tmp_path, text):
    with pytest.raises(UserError, match=r"params\.yaml: no such file; run this in the folder of the project$"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    expected = "must be a valid dictionary" if text == "[]" else "not valid YAML: "
    with pytest.raises(UserError, match=rf"params\.yaml: {expected}[ -~]*$"):
        load_params(tmp_path / "params.yaml")


def test_what_needs_no_torch_does_not_import_it():
    code = "import sys, stages.download, stages.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
