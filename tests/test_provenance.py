import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from stages import provenance
from stages.params import load_params

ROOT = Path(__file__).parents[1]


def git(*command: str) -> str:
    settings = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    return subprocess.run(["git", *settings, *command], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with parameters, dvc.yaml and a stage, all committed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    Path("dvc.yaml").touch()
    Path("stages").mkdir()
    Path("stages/train.py").touch()
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "start")


def settings() -> dict:
    return provenance.flat(load_params().model_dump())


def test_an_experiment_as_committed_needs_no_settings(repository):
    assert provenance.repeat(settings()).splitlines() == [f"git checkout {provenance.revision()}", "dvc exp run"]
    assert git("rev-parse", "HEAD").startswith(provenance.revision())
    assert not provenance.code_is_changed()


def test_the_command_sets_what_differs_from_the_commit_in_hydras_grammar(repository):
    changed = {
        "data.path": "/my images/a.tar",
        "data.source": "2024",
        "train.weight_decay": 1e-5,
        "augment.flip": False,
        "resnet.blocks": [1, 2],
        "launcher": "torchrun --nproc-per-node=2",
    }
    lines = provenance.repeat(settings() | changed).splitlines()[1:]
    assert lines[0] == "dvc exp run \\"
    assert [shlex.split(line.removesuffix(" \\")) for line in lines[1:]] == [
        ["-S", "data.source='2024'"],
        ["-S", "data.path='/my images/a.tar'"],
        ["-S", "train.weight_decay=1e-05"],
        ["-S", "augment.flip=false"],
        ["-S", "resnet.blocks=[1,2]"],
        ["-S", "launcher='torchrun --nproc-per-node=2'"],
    ]


@pytest.mark.parametrize(
    ("file", "changed"), [("stages/new.py", True), ("dvc.yaml", True), ("params.yaml", False), ("metrics.json", False)]
)
def test_changed_code_is_told_from_changed_parameters_and_results(repository, file, changed):
    with open(file, "a") as opened:
        opened.write("# changed\n")
    assert provenance.code_is_changed() == changed


def test_outside_of_git_the_command_sets_everything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.revision() is None
    assert (
        provenance.repeat({"seed": 42, "data.path": None}) == "dvc exp run \\\n    -S seed=42 \\\n    -S data.path=null"
    )
