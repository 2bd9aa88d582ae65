"""The real dvc on a clone of this repository in a temporary folder, with data and models small enough for a test."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
from moto.server import ThreadedMotoServer
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.source=digits",
    "data.image_size=8",
    "train.batch_size=256",
    "cnn.epochs=1",
    "resnet.epochs=1",
    "resnet.base_channels=16",
    "resnet.blocks=[1,1]",
]
STAGES = ["download", "train@cnn", "train@resnet", "train@resnet_ablation", "evaluate", "report"]
OUTPUTS = [
    "data/dataset.json",
    "data/test.npz",
    "data/train.npz",
    "metrics/evaluation.json",
    "plots/calibration.csv",
    "plots/per_class.csv",
    *(
        f"report/figures/{name}.png"
        for name in ("accuracy", "generalisation_gap", "learning_rate", "loss", "per_class")
    ),
    "report/index.html",
    "report/report.md",
    *(
        file
        for run in ("cnn", "resnet", "resnet_ablation")
        for file in (
            f"metrics/timing/{run}.json",
            f"metrics/train/{run}.json",
            f"models/{run}.safetensors",
            f"plots/history/{run}.csv",
            f"plots/predictions/{run}.csv",
            f"report/figures/reliability_{run}.png",
        )
    ),
]


class Clone:
    """A clone of the repository's working tree, as a user would have it."""

    def __init__(self, folder: Path, **env: str):
        self.folder = folder
        home = folder.parent / "home"
        home.mkdir()
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "PYTEST", "DVC_"))}
        self.env = {**kept, "HOME": str(home), "PATH": tools, "GIT_CONFIG_NOSYSTEM": "1", **env}
        files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(files, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0"):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self.run("git", "init", "--quiet")
        self.run("git", "config", "user.name", "somebody")
        self.run("git", "config", "user.email", "somebody@example.org")
        self.commit("start")

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def dvc(self, *arguments: str) -> str:
        return self.run("dvc", *arguments)

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def results(self) -> dict[str, bytes]:
        """What invariant 1 promises to be the same in each run: all outputs, less times, speeds and git revision."""
        contents = {name: (self.folder / name).read_bytes() for name in OUTPUTS if "timing" not in name}
        del contents["report/index.html"]  # holds what report.md does, and pictures
        times = rb"[\d.,]+ (s|images/s|min [\d.]+ s)\b|Git revision `\w+`|git checkout \w+"
        contents["report/report.md"] = re.sub(times, b"", re.sub(rb" +|-+", b" ", contents["report/report.md"]))
        return contents

    def experiment(self, *params: str) -> list[str]:
        """Run an experiment in the workspace; the stages that really ran, in order."""
        settings = [part for param in params for part in ("--set-param", param)]
        return stages_run(self.dvc("exp", "run", *settings))


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    """A clone in which the small experiment has run and its parameters are committed."""
    clone = Clone(tmp_path_factory.mktemp("pipeline") / "clone")
    assert clone.experiment(*SMALL) == STAGES
    clone.commit("small experiment")
    return clone


@pytest.fixture(scope="module")
def expected(clone) -> dict[str, bytes]:
    """The results of the small experiment."""
    return clone.results()


def test_another_clone_in_another_folder_and_locale_gives_the_same_bytes(tmp_path, expected):
    other = Clone(tmp_path / "ein anderer Ordner", LC_ALL="C", PYTHONHASHSEED="7", TZ="Asia/Tokyo")
    assert other.experiment(*SMALL) == STAGES
    assert other.results() == expected
    assert stages_run(other.dvc("repro", "--force")) == STAGES
    assert other.results() == expected


@pytest.mark.slow
def test_an_experiment_in_a_temporary_folder_gives_the_same_bytes(tmp_path, expected):
    other = Clone(tmp_path / "clone")
    settings = [part for param in SMALL for part in ("--set-param", param)]
    assert stages_run(other.dvc("exp", "run", "--temp", "--name", "aside", *settings)) == STAGES
    other.dvc("exp", "apply", "aside")
    assert other.results() == expected


def test_a_run_writes_exactly_the_files_of_the_contract(clone):
    written = {
        str(path.relative_to(clone.folder))
        for name in ("data", "metrics", "models", "plots", "report")
        for path in (clone.folder / name).rglob("*")
        if path.is_file() and path.name not in ("README.md", ".gitignore", "seeds.csv")
    }
    assert written == set(OUTPUTS)


def test_large_outputs_are_left_to_dvc_and_small_ones_to_git(clone):
    tracked = set(clone.run("git", "ls-files", "data", "metrics", "models", "plots", "report").split())
    large = ("data/", "models/", "report/", "plots/predictions/")
    assert {name for name in OUTPUTS if not name.startswith(large)} | {
        "metrics/README.md",
        "plots/README.md",
        "plots/seeds.csv",
    } == tracked


def test_after_a_run_everything_is_up_to_date(clone):
    assert json.loads(clone.dvc("status", "--json")) == {}
    assert stages_run(clone.dvc("repro")) == []


def test_a_changed_weight_decay_trains_its_two_runs_and_shows_in_the_metrics(clone):
    ran = clone.experiment("train.weight_decay=1e-5")
    assert ran == ["train@cnn", "train@resnet", "evaluate", "report"]
    assert "weight_decay: 1e-05" in (clone.folder / "params.yaml").read_text()
    diff = json.loads(clone.dvc("metrics", "diff", "--json"))
    changed = {name: keys["weight_decay"] for name, keys in diff.items() if "weight_decay" in keys}
    assert {name: (values["old"], values["new"]) for name, values in changed.items()} == {
        "metrics/train/cnn.json": (0.0005, 1e-5),
        "metrics/train/resnet.json": (0.0005, 1e-5),
    }


@pytest.mark.parametrize(
    ("param", "stages"),
    [
        ("ablation.weight_decay=3e-5", ["train@resnet_ablation", "evaluate", "report"]),
        ("resnet.epochs=2", ["train@resnet", "train@resnet_ablation", "evaluate", "report"]),
    ],
)
def test_a_changed_parameter_runs_the_stages_it_concerns(clone, param, stages):
    assert clone.experiment(param) == stages


@pytest.mark.parametrize(
    ("module", "stages"), [("stages/report.py", ["report"]), ("stages/core/quality.py", ["evaluate"])]
)
def test_a_changed_module_runs_the_stages_that_import_it(clone, module, stages):
    with (clone.folder / module).open("a") as file:
        file.write("# changed\n")
    assert stages_run(clone.dvc("repro")) == stages


def test_experiments_can_be_listed(clone):
    table = clone.dvc("exp", "show", "--csv")
    assert "train.weight_decay" in table.splitlines()[0]
    assert "1e-05" in table


def test_a_study_collects_the_experiments_that_differ_in_the_seed_alone(tmp_path):
    clone = Clone(tmp_path / "clone")
    with pytest.raises(AssertionError, match=r"seeds: dvc\.lock: missing"):
        clone.run("python", "-m", "stages.seeds")
    accuracies = []
    for settings in (["seed=7"], ["seed=7", "train.momentum=0.5"], ["seed=9"]):
        clone.run("git", "restore", "params.yaml")
        clone.experiment(*SMALL, *settings)
        accuracies.append(json.loads((clone.folder / "metrics/evaluation.json").read_text())["cnn"]["accuracy"])
    assert "2 seeds of this experiment" in clone.run("python", "-m", "stages.seeds")
    study = pd.read_csv(clone.folder / "plots/seeds.csv")
    assert study["seed"].tolist() == [7] * 3 + [9] * 3
    assert study[study.run == "cnn"]["accuracy"].tolist() == accuracies[::2]
    assert stages_run(clone.dvc("repro")) == ["report"]
    assert "Over 2 seeds" in (clone.folder / "report/report.md").read_text()

    clone.dvc("exp", "run", "--set-param", "seed=11", "train")  # trained, but not evaluated
    assert "2 seeds of this experiment" in clone.run("python", "-m", "stages.seeds")


@pytest.mark.slow
def test_make_seeds_queues_the_experiments_and_reports_them(tmp_path):
    clone = Clone(tmp_path / "clone")
    clone.experiment(*SMALL)
    (clone.folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    clone.run("make", "--assume-old=.venv/installed", "seeds", "N=3")
    assert pd.read_csv(clone.folder / "plots/seeds.csv")["seed"].unique().tolist() == [42, 43, 44]
    assert "Over 3 seeds" in (clone.folder / "report/report.md").read_text()


@pytest.fixture(scope="module")
def s3_server():
    """The address of an S3 of our own with the bucket `experiments`."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    request = urllib.request.Request(f"{address}/experiments", method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
    yield address
    server.stop()


@pytest.mark.parametrize("storage", ["folder", "s3"])
def test_a_second_clone_pulls_everything_and_trains_nothing(tmp_path, request, storage):
    credentials = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "NO_PROXY": "127.0.0.1"}
    first = Clone(tmp_path / "first", **credentials)
    first.experiment(*SMALL)
    if storage == "folder":
        first.dvc("remote", "add", "--default", "storage", str(tmp_path / "storage"))
    else:
        first.dvc("remote", "add", "--default", "storage", "s3://experiments/cifar10")
        first.dvc("remote", "modify", "storage", "endpointurl", request.getfixturevalue("s3_server"))
    first.commit("small experiment")
    first.dvc("push")

    first.run("git", "clone", "--quiet", str(first.folder), str(tmp_path / "second"))
    second = copy.copy(first)
    second.folder = tmp_path / "second"
    assert not (second.folder / "models").exists()
    second.dvc("pull")
    assert second.results() == first.results()
    assert json.loads(second.dvc("status", "--json")) == {}
    assert stages_run(second.dvc("repro")) == []


def test_plots_show_draws_the_runs_in_every_curve_and_each_confusion_matrix(clone):
    clone.dvc("plots", "show")
    page = (clone.folder / "dvc_plots" / "index.html").read_text()
    specs = [json.loads(part.partition(";\n")[0]) for part in page.split("var spec = ")[1:]]
    curves = [spec for spec in specs if spec.get("encoding", {}).get("color", {}).get("field") == "run"]
    assert [spec["title"]["text"] for spec in specs] == [
        "Test accuracy",
        "Training accuracy",
        "Test loss",
        "Generalisation gap (training less test accuracy)",
        "Learning rate",
        "Confusion matrix, cnn",
        "Confusion matrix, resnet",
        "Confusion matrix, resnet_ablation",
    ]
    assert len(curves) == 5
    for spec in curves:
        assert {row["filename"] for row in spec["data"]["values"]} == {"cnn.csv", "resnet.csv", "resnet_ablation.csv"}


def pipeline() -> dict:
    return YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]


@pytest.mark.parametrize("stage", ["download", "train", "evaluate", "report"])
def test_the_deps_of_a_stage_are_the_modules_it_imports(stage):
    definition = pipeline()[stage]
    listed = {dep for dep in definition.get("do", definition)["deps"] if dep.endswith(".py")}
    ours = "(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'stages')"
    code = f"import sys, stages.{stage}; print(*{ours})"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    imported = {str(Path(file).relative_to(ROOT)) for file in output.split() if file != "None"}
    assert listed == imported


def test_a_training_depends_on_every_parameter_of_its_section():
    listed = {param for param in pipeline()["train"]["do"]["params"] if param.startswith("train.")}
    everything = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")["train"]
    assert listed | {"train.weight_decay"} == {f"train.{name}" for name in everything}


def test_make_says_what_is_missing_of_a_repository(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}

    def make() -> tuple[int, str]:
        done = subprocess.run(
            ["make", "--no-print-directory", "repository"], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        return done.returncode, done.stdout

    assert make()[0] == 2
    assert make()[1].startswith("This folder is no git repository")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    assert make()[1].startswith("The folder .dvc is missing: git restore .dvc")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()
    assert make()[0] == 0
