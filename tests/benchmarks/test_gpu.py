import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.gpu import parts
from benchmarks.gpu.evaluation import folded
from benchmarks.gpu.session import Session, prepare
from benchmarks.gpu.steps import PaddedStem
from stages.common.params import Resnet
from stages.training.models import build_model

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def sections(page: Path) -> dict[str, str]:
    """The text under each title of a page."""
    _, *rest = re.split(r"^## (.*)$", page.read_text(), flags=re.M)
    return dict(zip(rest[::2], rest[1::2], strict=True))


def test_machine_without_a_gpu_is_told_so_in_one_line(tmp_path):
    done = run("--output", tmp_path / "gpu.md")
    assert done.returncode == 1
    assert re.fullmatch(r"benchmarks.gpu: PyTorch \S+ finds no GPU here; --rehearse takes .*\n", done.stderr)
    assert not list(tmp_path.iterdir())


def test_rehearsal_writes_the_table_of_every_part(tmp_path):
    page = tmp_path / "gpu.md"
    done = run("--rehearse", "--output", page)
    assert done.returncode == 0, done.stdout + done.stderr
    found = sections(page)
    assert list(found) == [*(part.title for part in parts.PARTS.values()), "Parts"]
    for title, text in found.items():
        assert re.search(r"^\| .* \|\n\| --- .*\n\| .* \|$", text, re.M), f"{title}: no table in\n{text}"
    assert re.findall(r"^\| (\w+) \| done \|", found["Parts"], re.M) == list(parts.PARTS)
    digests = re.findall(r"\| ([0-9a-f]{16}) \|", found[parts.PARTS["bytes"].title])
    assert len(digests) == 3
    assert len(set(digests)) == 1


def test_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path):
    prepare(tmp_path, None, rehearse=True)
    (tmp_path / "data/train.npz").write_bytes(b"damaged")
    done = run("--rehearse", "--only", "replay", "stem", "--data", tmp_path / "data", "--output", tmp_path / "gpu.md")
    assert done.returncode == 1
    assert "not done: replay (failed), stem (failed); see" in done.stderr
    assert (tmp_path / "gpu.md").read_text().count("UserError: data/train.npz: cannot be read") == 2


def test_part_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    prepare(tmp_path, None, rehearse=True)
    session = Session(tmp_path, tmp_path / "gpu.md", rehearse=True, deadline=time.monotonic() + 0.1)
    assert parts.run("stage", session) == "stopped"
    assert "Stopped: no time was left." in session.output.read_text()
    assert not [path for path in Path("/proc").glob("[0-9]*/cwd") if tmp_path in _target(path).parents]


def _target(link: Path) -> Path:
    try:
        return link.resolve(strict=True)
    except OSError:  # ended meanwhile
        return Path()


@pytest.fixture
def resnet() -> nn.Module:
    return build_model(Resnet(epochs=1, base_channels=16, blocks=[1, 1, 1, 1]), classes=10, seed=0)


def test_padded_stem_gives_the_values_of_the_stem(resnet):
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(PaddedStem(resnet.conv1, 8)(x), resnet.conv1(x))


def test_folded_model_predicts_what_the_model_does(resnet):
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias)
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(folded(resnet)(x), resnet.eval()(x), rtol=1e-4, atol=1e-4)
    assert not [module for module in folded(resnet).modules() if isinstance(module, nn.BatchNorm2d)]
