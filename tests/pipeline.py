"""The pipeline in a folder of its own, run by the real make and dvc, with data and models small enough for a test."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]

# Parameters of the tests' own, small enough for each training to take a second: a user may have changed params.yaml
PARAMS = yaml.safe_load("""
seed: 42
data: {source: digits, path: null, image_size: 8, test_share: 0.2, validation: 0}
train: {batch_size: 256, learning_rate: 0.1, momentum: 0.9, nesterov: false, weight_decay: 5.0e-4, schedule: cosine,
  warmup_epochs: 0, label_smoothing: 0, precision: auto, compile: auto, keep: best, sync_batchnorm: false}
augment: {crop_padding: 1, flip: false, cutout: 0}
cnn: {epochs: 1}
resnet: {epochs: 1, base_channels: 16, blocks: [1, 1, 1, 1]}
torchvision: {name: mobilenet_v2, epochs: 1}
ablation: {weight_decay: 1.0e-4}
runs:
  cnn: {model: cnn, weight_decay: train.weight_decay}
  resnet: {model: resnet, weight_decay: train.weight_decay}
  resnet_ablation: {model: resnet, weight_decay: ablation.weight_decay}
compare: {model: [resnet, cnn], weight_decay: [resnet, resnet_ablation]}
study: {seeds: 2, margin: 0.003}
launcher: python
""")
RUNS = ["cnn", "resnet", "resnet_ablation"]
TRAININGS = [f"train@{run}" for run in RUNS]
STAGES = ["download", *TRAININGS, "evaluate", "report"]


class Clone:
    """A git repository with the pipeline in it, as a user would have it, and what runs there; `env` is its own."""

    def __init__(self, folder: Path, **env: str):
        self.folder = folder
        self.said = ""  # what `make demo` printed here
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        theirs = ("GIT_", "PYTEST", "DVC_", "MAKE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
        home = folder.with_name(f"{folder.name}-home")
        home.mkdir(exist_ok=True)
        self.env = {
            **kept,
            "HOME": str(home),
            "PATH": tools,
            "GIT_CONFIG_NOSYSTEM": "1",
            "DVC_SITE_CACHE_DIR": str(home / "site"),
            "OMP_NUM_THREADS": "1",
            "ATEN_CPU_CAPABILITY": "avx2",  # as `make demo` sets them
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_CBWR": "COMPATIBLE",
            **env,
        }

    @classmethod
    def of_work_tree(cls, folder: Path, **env: str) -> "Clone":
        """The files of this work tree, without results of its own, committed on the branch main."""
        clone = cls(folder, **env)
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0"):
            result = name == "dvc.lock" or re.match(r"(metrics|plots)/.*\.(json|csv)$", name)
            if (ROOT / name).is_file() and not result:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        write_params(folder)
        (folder / ".venv").symlink_to(sys.prefix)  # a link, which make leaves alone
        clone.run("git", "init", "--quiet", "--initial-branch", "main")
        clone.run("git", "config", "user.name", "somebody")
        clone.run("git", "config", "user.email", "somebody@example.org")
        (folder / ".git/info/exclude").write_text(".venv\n")
        clone.commit("start")
        return clone

    def copy(self, folder: Path, **env: str) -> "Clone":
        """The same in another folder, with DVC's cache."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Clone(folder, **env)

    def start(self, *command: str) -> subprocess.Popen:
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=pipe, stderr=pipe, text=True)

    def attempt(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True)

    def run(self, *command: str) -> str:
        done = self.attempt(*command)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def dvc(self, *arguments: str) -> str:
        return self.run("dvc", *arguments)

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def experiment(self, *params: str) -> list[str]:
        """Run an experiment in the work tree; the stages that really ran, in order."""
        return stages_run(self.dvc("exp", "run", *set_params(params)))

    def repro(self) -> list[str]:
        return stages_run(self.dvc("repro"))

    def stale(self) -> set[str]:
        """The stages that `dvc status` names."""
        from dvc.repo import Repo  # here: the tests of the training core need no DVC

        with Repo(str(self.folder), config={"core": {"site_cache_dir": self.env["DVC_SITE_CACHE_DIR"]}}) as repo:
            return {name.rpartition(":")[2] for name in repo.status()}  # which have a path before them from elsewhere

    def replace(self, name: str, old: str, new: str) -> None:
        """Change a file as an editor does."""
        content = self.read(name)
        assert old in content
        (self.folder / name).write_text(content.replace(old, new, 1), encoding="utf-8")

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    def json(self, name: str) -> dict:
        return json.loads(self.read(name))

    def charts(self) -> dict[str, dict]:
        """The specification of each chart of `dvc plots show`, by title."""
        self.dvc("plots", "show")
        parts = self.read("dvc_plots/index.html").split("var spec = ")[1:]
        specs = [json.loads(part.partition(";\n")[0]) for part in parts]
        return {spec["title"]["text"]: spec for spec in specs}

    def outputs(self) -> set[str]:
        """The names of all files that stages have written; plots/seeds.csv is a command's."""
        folders = [self.folder / name for name in ("data", "metrics", "models", "plots", "report")]
        files = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
        others = ("README.md", ".gitignore", "seeds.csv")
        return {str(path.relative_to(self.folder)) for path in files if path.name not in others}

    def results(self) -> dict[str, bytes]:
        """What is the same in each run: all outputs, less times, speeds and the revision with its date."""
        names = {name for name in self.outputs() if "timing" not in name} - {"report/index.html"}  # report.md as a page
        contents = {name: (self.folder / name).read_bytes() for name in names}
        varying = rb"[\d,]+ \| CPU|[\d.,]+ (s|min [\d.]+ s)\b|revision [\w ]+ by|git checkout \w+"
        contents["report/report.md"] = re.sub(varying, b"", re.sub(rb" +|-+", b" ", contents["report/report.md"]))
        return contents


def write_params(folder: Path, **changes: object) -> None:
    """Write params.yaml; a change is `section__key=value` or `section=value`."""
    params = copy.deepcopy(PARAMS)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        (params[section] if key else params)[key or section] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def set_params(params: list[str] | tuple[str, ...]) -> list[str]:
    return [part for param in params for part in ("--set-param", param)]


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]


def append(clone: Clone, name: str) -> None:
    """Add a comment to a file."""
    clone.replace(name, clone.read(name), clone.read(name) + "# changed\n")
