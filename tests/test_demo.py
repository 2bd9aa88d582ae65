"""`make demo`, and the first commands that a user of DVC types after it."""

import csv
import io
import re
import subprocess

import pytest

from tests.pipeline import Clone


@pytest.fixture
def demo(finished, tmp_path) -> Clone:
    """A clone in which `make demo` has run."""
    return finished.copy(tmp_path / "clone")


def make(clone: Clone, *targets: str) -> subprocess.CompletedProcess:
    return clone.attempt("make", "--no-print-directory", *targets, "DEMO=seed=43")


def test_it_ends_on_a_branch_of_its_own_with_the_results_committed_and_says_the_way_back(finished):
    assert finished.run("git", "branch", "--show-current") == "demo\n"
    assert finished.run("git", "status", "--porcelain") == ""
    assert finished.run("git", "rev-list", "--count", "main..demo") == "1\n"
    assert "dvc.lock" not in finished.run("git", "ls-tree", "--name-only", "main")
    assert finished.dvc("exp", "list", "--all-commits") == ""
    assert finished.said.splitlines()[-1] == "    git switch main"
    assert "WARNING" not in finished.said
    closing = finished.said.partition("The report is")[2].splitlines()
    assert max(map(len, closing)) <= 80
    assert "The models have other bytes than those published" in finished.said  # of the real demonstration
    assert (finished.folder / "report/index.html").stat().st_size > 50_000


def test_after_an_experiment_the_diffs_show_what_changed_without_arguments(demo):
    assert demo.experiment("cnn.epochs=2") == ["train@cnn", "evaluate", "report"]
    metrics = demo.dvc("metrics", "diff")
    assert {line.split()[0] for line in metrics.splitlines()[1:]} <= {"metrics/accuracy.json", "metrics/compare.json"}
    assert re.search(r"accuracy.json +cnn", metrics)
    assert max(map(len, metrics.splitlines())) <= 80
    experiments = demo.dvc("exp", "diff")
    assert re.search(r"params.yaml +cnn.epochs +1 +2 +1", experiments)
    assert "diff not supported" not in experiments
    shown = list(csv.DictReader(io.StringIO(demo.dvc("exp", "show", "--only-changed", "--csv"))))
    assert [row["Experiment"] or row["rev"] for row in shown][:2] == ["workspace", "demo"]
    assert [row["cnn.epochs"] for row in shown][:2] == ["2", "1"]
    assert not {"seed", "resnet.epochs"} & set(shown[0])
    assert not any("!" in row.values() for row in shown)
    demo.dvc("plots", "diff")
    page = demo.read("dvc_plots/index.html")
    assert '"rev": "HEAD"' in page
    assert '"rev": "workspace"' in page


def test_a_second_time_loses_nothing_and_trains_nothing(demo):
    demo.run("git", "switch", "--quiet", "main")
    before = demo.run("git", "rev-parse", "demo")
    for _ in range(2):
        again = make(demo, "demo")
        assert again.returncode == 0, again.stderr
        assert "epoch" not in again.stdout + again.stderr  # as a training says
        assert again.stdout.endswith("    git switch main\n")
    assert demo.run("git", "rev-parse", "demo") == before
    assert demo.run("git", "status", "--porcelain") == ""
    assert demo.dvc("status") == "Data and pipelines are up to date.\n"


def test_changes_of_the_user_are_never_committed_or_lost(demo):
    changed = {"README.md": "mine\n", "plots/mine.csv": "a\n1\n"}
    for name, content in changed.items():
        (demo.folder / name).write_text(content)
        before = demo.run("git", "rev-parse", "HEAD", "demo", "main")
        refused = make(demo, "demo")
        assert refused.returncode == 2
        assert refused.stdout.startswith("There are changes that are not committed")
        assert demo.run("git", "rev-parse", "HEAD", "demo", "main") == before
        assert demo.read(name) == content
        demo.run("git", "restore", ".")
    (demo.folder / "plots/mine.csv").unlink()
    (demo.folder / "notes.txt").write_text("mine\n")  # nothing that the demonstration could touch
    assert make(demo, "demo").returncode == 0
    assert demo.run("git", "status", "--porcelain") == "?? notes.txt\n"


def test_a_demonstration_of_other_code_is_kept(demo):
    demo.run("git", "switch", "--quiet", "main")
    (demo.folder / "stages/report.py").write_text(demo.read("stages/report.py") + "# changed\n")
    demo.commit("newer code")
    refused = make(demo, "demo")
    assert refused.returncode == 2
    assert "git branch --move demo old-demo" in refused.stdout
    assert demo.run("git", "branch", "--show-current") == "main\n"
