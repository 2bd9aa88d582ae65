import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.core import Core
from benchmarks.gpu import parts
from benchmarks.gpu.steps import VARIANTS, LeavesStep, PaddedStem, folded
from stages.models.resnet import Settings, build
from stages.training.step import Step
from tests.training import toys

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("names", [["replay", "evaluation"], pytest.param(list(parts.PARTS), marks=pytest.mark.slow)])
def test_each_part_of_a_rehearsal_without_dvc_is_done_and_writes_a_table(tmp_path, names):
    (tmp_path / "without").mkdir()
    (tmp_path / "without/dvc.py").write_text("raise ModuleNotFoundError('there is no dvc here')")
    command = [sys.executable, "-m", "benchmarks.gpu", "--output", str(tmp_path / "gpu.md"), "--rehearse"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{tmp_path / 'without'}{os.pathsep}{ROOT}"}
    command += ["--minutes", "30", "--only", *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    _, *sections, outcomes = re.split(r"^## .*$", (tmp_path / "gpu.md").read_text(), flags=re.M)
    assert re.findall(r"^\| (\w+) \| done \|", outcomes, re.M) == names
    assert len(sections) == len(names)
    for text in sections:
        assert re.search(r"^\| .* \|\n\| --- .*\n\| .* \|$", text, re.M), f"no table in\n{text}"
    for name in VARIANTS:
        assert re.search(rf"^\| {name} \|.*\| [0-9a-f]{{8}} \|$", done.stdout, re.M), done.stdout
    digests = re.findall(r"^\| (?:again|killed and resumed) \|.*\| ([0-9a-f]{16}) \|$", done.stdout, re.M)
    assert (len(digests), len(set(digests))) == ((2, 1) if "bytes" in names else (0, 0))


def test_padded_stem_and_folded_model_give_the_values_of_the_model():
    resnet = build(Settings(epochs=1, base_channels=16, blocks=[1, 1, 1, 1]), classes=10)
    for name, tensor in resnet.state_dict().items():
        if "bn" in name and tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2)
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(PaddedStem(resnet.conv1, 8)(x), resnet.conv1(x))
    with torch.no_grad():
        torch.testing.assert_close(folded(resnet)(x), resnet.eval()(x), rtol=1e-4, atol=1e-4)
    assert not [module for module in folded(resnet).modules() if isinstance(module, nn.BatchNorm2d)]


def test_leaves_beside_masters_train_to_the_bytes_of_the_step():
    data = toys.dataset()
    of = toys.recipe("resnet"), (data.info, data.train), toys.CPU
    plain, leaves = (Core(*of, step=step) for step in (Step, LeavesStep))
    for core in (plain, leaves):
        core.epoch(1)
    assert all(torch.equal(plain.step.parameters[name], p) for name, p in leaves.step.parameters.items())
    assert torch.equal(plain.model.conv1.weight, leaves.model.conv1.weight)
    assert len(leaves.step.masters) == len(leaves.step.leaves) == 13
