import os
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from stages.common.params import load_params
from stages.reporting import provenance
from tests.pipeline import DEFAULTS


def git(*command: str) -> str:
    settings = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    return subprocess.run(["git", *settings, *command], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with parameters, dvc.yaml and a stage, all committed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    shutil.copy(DEFAULTS, tmp_path)
    Path("dvc.yaml").touch()
    Path("stages").mkdir()
    Path("stages/train.py").touch()
    git("init", "--quiet")
    commit("start")


def commit(message: str) -> None:
    git("add", ".")
    git("commit", "--quiet", "--message", message)


def settings() -> dict:
    return provenance.flat(load_params().model_dump())


def overrides(commands: str) -> list[str]:
    """What a shell passes to `dvc exp run` after each -S."""
    words = shlex.split(commands.replace("\\\n", " "))
    return [word for flag, word in pairwise(words) if flag == "-S"]


def test_an_experiment_as_committed_needs_no_settings(repository):
    commit = git("rev-parse", "--short=10", "HEAD")
    assert provenance.origin(settings()) == {
        "revision": f"Git revision {commit}.",
        "repeat": f"git checkout {commit}\ndvc exp run",
    }


VALUES = [
    "python",
    "torchrun --nproc-per-node=2",
    "it's",
    'a "quoted" word',
    "ends in a backslash \\",
    "\\'",
    '\\\\"',
    "C:\\images\\new",
    "2024",
    "true",
    "null",
    "a,b",
    "[1, 2]",
    "key: value",
    "x=y",
    "~user",
    "$HOME `id` ; touch X",
    " leading and trailing ",
    "猫",
]


@pytest.mark.parametrize("value", VALUES)
def test_dvc_reads_back_any_text_that_the_command_sets(repository, value):
    changed = settings() | {"launcher": value, "data.path": value, "train.weight_decay": 1e-5, "augment.flip": False}
    apply_overrides("params.yaml", overrides(provenance.origin(changed)["repeat"]))
    assert settings() == changed


def test_the_command_sets_what_differs_from_the_commit_adds_what_is_new_and_drops_what_is_gone(repository):
    changed = settings() | {"resnet.blocks": [1, 2, 1, 1], "ablation.other": 1e-3}
    del changed["compare.model"]
    found = overrides(provenance.origin(changed)["repeat"])
    assert found == ["resnet.blocks=[1,2,1,1]", "+ablation.other=0.001", "~compare.model"]
    apply_overrides("params.yaml", found)
    assert settings() == changed


@pytest.mark.parametrize(
    ("file", "changed"), [("stages/new.py", True), ("dvc.yaml", True), ("params.yaml", False), ("metrics.json", False)]
)
def test_changed_code_is_told_from_changed_parameters_and_results(repository, file, changed):
    with open(file, "a") as opened:
        opened.write("# changed\n")
    assert ("changes to the code that are not committed" in provenance.origin(settings())["revision"]) == changed


def test_outside_of_git_the_command_sets_everything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = provenance.origin({"seed": 42, "data.path": None})
    assert "not a git repository" in found["revision"]
    assert found["repeat"] == "dvc exp run \\\n    -S seed=42 \\\n    -S data.path=null"


def test_without_git_it_says_so(repository, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = provenance.origin({"seed": 42})
    assert found["revision"] == "Git revision unknown: git cannot be run (No such file or directory)."


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_in_another_owners_clone_git_says_what_is_wrong_and_what_helps(repository, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for path in (Path(), *Path(".git").rglob("*"), Path(".git")):
        os.chown(path, 65534, 65534)
    found = provenance.origin(settings())
    assert found["revision"].startswith('Git revision unknown: git says "fatal: detected dubious ownership')
    assert f"git config --global --add safe.directory {Path.cwd()}" in found["revision"]
    assert found["repeat"].startswith("dvc exp run \\\n    -S seed=42")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [\n", "not valid YAML"),
        (b"launcher: caf\xe9\n", "not valid YAML"),
        (b"- 1\n", "no mapping"),
        (None, "fatal: path 'params.yaml' "),
    ],
)
def test_where_the_committed_parameters_cannot_be_read_there_is_no_command_but_a_reason(repository, content, reason):
    now = settings()
    Path("params.yaml").unlink() if content is None else Path("params.yaml").write_bytes(content)
    commit("broken")
    found = provenance.origin(now)
    assert found["revision"] == f"Git revision {git('rev-parse', '--short=10', 'HEAD')}."
    assert reason in found["no_repeat"]
    assert "\n" not in found["no_repeat"]
    assert "repeat" not in found
