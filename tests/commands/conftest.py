import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from tests.pipeline import DEFAULTS

RUNS = ["resnet", "cnn"]
DIGEST = "0123456789abcdef0123456789abcdef"


class Project:
    """A repository of git and DVC in the current folder, with finished results of seed 42 in its one commit."""

    def __init__(self):
        self.git("init", "--quiet", "--initial-branch", "main")
        Repo.init(".").close()
        files = [f"metrics/train/{run}.json" for run in RUNS] + ["metrics/compare"]
        metrics = [{file: {"cache": False}} for file in files]
        self.write(
            "dvc.yaml", {"stages": {"all": {"cmd": "true", "params": [{"params.yaml": None}], "metrics": metrics}}}
        )
        self.finish()
        self.commit("baseline")
        self.baseline = self.git("rev-parse", "HEAD")

    def git(self, *arguments: str) -> str:
        person = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        return subprocess.run(["git", *person, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)

    def keep(self, name: str) -> None:
        """Make the workspace an experiment, where DVC has its experiments, and go back."""
        self.commit(name)
        self.git("update-ref", f"refs/exps/{self.baseline[:2]}/{self.baseline[2:]}/{name}", "HEAD")
        self.git("reset", "--quiet", "--hard", self.baseline)

    def write(self, path: str, content: Any) -> None:
        text = json.dumps(content) if path.endswith("json") else yaml.safe_dump(content, sort_keys=False)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)

    def finish(self, accuracy: float = 0.9, **params: object) -> None:
        """Write what a finished pipeline leaves to git, in the layout of the real dvc.

        Args:
            accuracy: of the ResNet; the CNN's is 0.1 less.
            params: keys of params.yaml that are not the default.
        """
        values = yaml.safe_load((DEFAULTS).read_text()) | params
        self.write("params.yaml", values)
        for run, of_run in zip(RUNS, (accuracy, accuracy - 0.1), strict=True):
            figures = {"accuracy": of_run, "loss": 0.5, "last_accuracy": of_run - 0.01, "gap": 0.05, "best_epoch": 7}
            self.write(f"metrics/train/{run}.json", figures)
        self.write("metrics/compare/model.json", {"difference": 0.1, "p": 0.001})
        self.write(
            "dvc.lock", {"schema": "2.0", "stages": {f"train@{run}": self.training(run, values) for run in RUNS}}
        )

    def training(self, run: str, params: dict[str, Any]) -> dict[str, Any]:
        digest = hashlib.md5(Path(f"metrics/train/{run}.json").read_bytes()).hexdigest()
        outs = {f"metrics/train/{run}.json": digest, f"models/{run}.safetensors": digest[::-1]}
        return {
            "cmd": f"python -m stages.train {run} --model {run} --weight-decay train.weight_decay",
            "deps": [{"path": "data", "hash": "md5", "md5": f"{DIGEST}.dir", "size": 360856, "nfiles": 3}],
            "params": {"params.yaml": {run: params[run], "seed": params["seed"], "train.momentum": 0.9}},
            "outs": [{"path": path, "hash": "md5", "md5": md5, "size": 117} for path, md5 in outs.items()],
        }


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return Project()
