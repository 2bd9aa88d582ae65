"""The tests that need a GPU, and the core beside loops that people write by hand."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.session import ROOT, Session
from benchmarks.page import Row


def cuda_tests(session: Session) -> None:
    """Every test marked `cuda`, in one process."""
    if importlib.util.find_spec("pytest") is None:
        raise ModuleNotFoundError("pytest is not installed: no test ran; what follows needs none")
    # Only the files that hold such tests: others import what need not be installed here.
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text("utf-8")]
    report = Path("tests.xml").absolute()
    options = ["-m", "cuda", "-v", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"]
    import pytest

    status = pytest.main([*options, f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}", *map(str, files)])
    for case in ElementTree.parse(report).iter("testcase"):
        session.page.row(_row(case))
    if status == pytest.ExitCode.NO_TESTS_COLLECTED and session.rehearse:
        session.page.row({"test": "none: a rehearsal only collects them", "outcome": "", "s": ""})
    elif status:
        raise AssertionError(f"pytest ended with status {status}")


def _row(case: ElementTree.Element) -> Row:
    outcomes = [child for child in case if child.tag in ("failure", "error", "skipped")]
    outcome = f"{outcomes[0].tag}: {outcomes[0].get('message', '')[:200]}" if outcomes else "passed"
    name = f"{case.get('classname', '').rpartition('.')[2]}: {case.get('name')}"
    return {"test": name, "outcome": outcome, "s": float(case.get("time", 0))}


def speed(session: Session) -> None:
    """An epoch of ResNet-18 by the core, and by loops that people write by hand."""
    from benchmarks import loops, training_speed  # here, since they read params.yaml in the current folder

    variants, data = list(loops.VARIANTS), Path("data/train.npz")
    load = training_speed.Workload("resnet", data, images=50_000, epochs=3, variants=variants)
    if session.rehearse:
        load = replace(load, images=40, epochs=2, variants=[variants[0], variants[2]], start_method="fork")
    for row in training_speed.compare(load, say=session.page.write):
        session.page.row(row)
