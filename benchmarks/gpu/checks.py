"""The tests that need a GPU, and the core beside loops that people write by hand: commands of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.session import ROOT, Session
from benchmarks.page import Row

NO_TESTS = 5  # pytest's exit status where it has selected none


def cuda_tests(session: Session) -> None:
    """Every test marked `cuda`, in one process."""
    if importlib.util.find_spec("pytest") is None:
        session.page.row({"test": "none: pytest is not installed", "outcome": "not run", "s": ""})
        return
    # Only the files that hold such tests: others import what need not be installed here.
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text("utf-8")]
    report = Path("tests.xml").absolute()
    options = ["-m", "cuda", "-v", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, check=False)
    for case in ElementTree.parse(report).iter("testcase"):
        session.page.row(_row(case))
    if done.returncode == NO_TESTS and session.rehearse:
        session.page.row({"test": "none: a rehearsal only collects them", "outcome": "", "s": ""})
    elif done.returncode:
        raise AssertionError(f"pytest ended with status {done.returncode}")


def _row(case: ElementTree.Element) -> Row:
    outcomes = [child for child in case if child.tag in ("failure", "error", "skipped")]
    outcome = f"{outcomes[0].tag}: {outcomes[0].get('message', '')[:200]}" if outcomes else "passed"
    name = f"{case.get('classname', '').rpartition('.')[2]}: {case.get('name')}"
    return {"test": name, "outcome": outcome, "s": float(case.get("time", 0))}


def training_speed(session: Session) -> None:
    """`benchmarks.training_speed` on ResNet-18."""
    images, epochs = session.size(50_000, 40), session.size(4, 2)
    command = ["-m", "benchmarks.training_speed", f"--images={images}", f"--epochs={epochs}", "--models", "resnet"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    with subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True) as process:
        output = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"the benchmark ended with status {process.returncode}")
    session.page.write(output.strip())
