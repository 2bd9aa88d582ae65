"""`pip install .`: the project's package without its folder."""

import os
import shutil
import subprocess
import sys
import zipfile

from PIL import Image

from stages.training.weights import Card, to_bytes
from tests.pipeline import ROOT
from tests.training.toys import dataset, fresh, recipe

USE = 'from stages.training.weights import load_model; print(load_model("cnn.safetensors").classify("photo.png"))'


def test_a_model_is_used_from_another_folder_and_with_types(tmp_path):
    project, elsewhere, installed = (tmp_path / name for name in ("project", "elsewhere", "installed"))
    shutil.copytree(ROOT / "stages", project / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    (project / "plots").mkdir()  # beside which setuptools finds no package by itself
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(installed)
    assert {path.name for path in installed.iterdir()} == {"stages", "cifar10_pipeline-0.1.0.dist-info"}
    assert all((installed / "stages" / name).exists() for name in ("reporting/templates/index.html.j2", "py.typed"))
    elsewhere.mkdir()
    card = Card(recipe=recipe(), data=dataset().info, history=[])
    (elsewhere / "cnn.safetensors").write_bytes(to_bytes(card, fresh(recipe()).state_dict()))
    Image.new("RGB", (300, 200), (200, 30, 30)).save(elsewhere / "photo.png")
    environment = os.environ | {"PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", USE], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{'class ")
