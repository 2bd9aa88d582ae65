"""Would the tests notice? Small faults, one at a time, in a copy of the project, and the tests that fail by each.

    python -m benchmarks.mutants                          training, models, evaluation and datasets: a night
    python -m benchmarks.mutants stages/training/step.py --limit 20 --jobs 2

A fault is tried with the tests that mirror its module, then with those of its folder and of its stage. The table names
the test that noticed it; `survived` asks for a test, or for the line to go.
"""

import ast
import copy
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from benchmarks.page import Page

ROOT = Path(__file__).parents[1]
STAGES = {"training": "train", "models": "train", "evaluation": "evaluate", "datasets": "download"}
SWAPS = [
    (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn),
    (ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div),
    ("min", "max"), ("any", "all"), ("argmax", "argmin"), ("zeros_like", "ones_like"),
]  # fmt: skip
SWAPPED = dict(SWAPS) | {second: first for first, second in SWAPS}


class Mutant(NamedTuple):
    path: str
    line: int
    change: str  # before → after
    content: bytes  # of the whole file


def mutants(path: str) -> list[Mutant]:
    """Return every fault of a file; annotations, decorators and what is raised or written in words stay as they are."""
    source = (ROOT / path).read_bytes()
    offsets = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
    imported = set(re.findall(r"\w+", str(re.findall(r"^(?:from .*)?import (.*)", source.decode(), re.M))))
    tree, found = ast.parse(source), []
    for old, new in (pair for node in nodes(tree) for pair in faults(node, imported)):
        begin, end = offsets[old.lineno - 1] + old.col_offset, offsets[old.end_lineno - 1] + old.end_col_offset
        before, after = ast.unparse(old), ast.unparse(new)
        code = after if isinstance(new, ast.stmt) else f"({after})"
        content = source[:begin] + code.encode() + source[end:]
        equal = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
        shown = slice(max(0, equal - 30), max(0, equal - 30) + 60)
        found.append(Mutant(path, old.lineno, f"`{before[shown]}` → `{after[shown]}`", content))
    return [mutant for mutant in found if ast.dump(ast.parse(mutant.content)) != ast.dump(tree)]


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes that run and compute."""
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.JoinedStr):
                    yield child
                    yield from nodes(child)


def faults(node: ast.AST, imported: set[str]) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield pairs of a part of the node and what stands there instead: one small fault each."""

    def changed(**fields: object) -> tuple[ast.AST, ast.AST]:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return node, other

    match node:
        case ast.Compare(ops=[op]) if type(op) in SWAPPED:
            yield changed(ops=[SWAPPED[type(op)]()])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPPED:
            yield changed(op=SWAPPED[type(op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield node, operand
        case ast.IfExp(body=body, orelse=orelse):
            yield changed(body=orelse, orelse=body)
        case ast.If(test=test):
            yield test, ast.UnaryOp(ast.Not(), test)
        case ast.Constant(value=bool() as value):
            yield node, ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield node, ast.Constant(value + 1)
            yield node, ast.Constant(value - 1)
        case ast.Name(id=name) if name in SWAPPED:
            yield changed(id=SWAPPED[name])
        case ast.Attribute(attr=name) if name in SWAPPED:
            yield changed(attr=SWAPPED[name])
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield node, ast.Pass()
        case ast.Call(func=func, args=args, keywords=keywords):
            if len(args) > 1:
                yield changed(args=[args[1], args[0], *args[2:]])
            for index in range(len(keywords)):
                yield changed(keywords=keywords[:index] + keywords[index + 1 :])
            if isinstance(func, ast.Attribute) and getattr(func.value, "id", "") not in imported:
                yield node, func.value  # x.method() → x
            elif args and not isinstance(args[0], ast.Starred):
                yield node, args[0]  # function(x) → x


def noticed(mutant: Mutant) -> str | None:
    """Return the first test that fails by the fault, in the copy of the project that is the current folder."""
    path = Path(mutant.path)
    original, (_, folder, _) = path.read_bytes(), path.parts
    mirrored, stage = f"tests/{folder}/test_{path.stem}.py", f"tests/test_{STAGES[folder]}.py"
    path.write_bytes(mutant.content)
    try:
        return failing(mirrored) or failing(f"tests/{folder}", stage)
    finally:
        path.write_bytes(original)


def failing(*tests: str) -> str | None:
    """Return the first test that fails, or what else went wrong; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    command += filter(os.path.exists, tests)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    # `timeout` ends what a test has started, too
    limited = ["timeout", "--signal=KILL", "900", *command]
    done = subprocess.run(limited, env=environment, capture_output=True, text=True)
    first = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    if done.returncode == 0 or not any(map(os.path.exists, tests)):
        return None
    return first[1] if first else f"pytest: status {done.returncode}"


def copy_project(parent: str) -> None:
    """Make a copy of the project, without results, the current folder."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    for name in ("stages", "tests", "benchmarks", ".dvc/plots"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(path, folder)
    os.chdir(folder)


def main(args: Namespace) -> None:
    page, files = Page(args.output), [path for name in args.paths for path in sorted(ROOT.glob(name))]
    names = [str(path.relative_to(ROOT)) for path in files]
    chosen = every = [mutant for name in names for mutant in mutants(name)]
    if args.limit and args.limit < len(every):
        chosen = sorted(random.Random(args.seed).sample(every, args.limit))
    page.write(f"{len(chosen)} of {len(every)} faults, seed {args.seed}")
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        ProcessPoolExecutor(args.jobs, initializer=copy_project, initargs=(folder,)) as processes,
    ):
        for name in {Path(mutant.path).parent: mutant.path for mutant in chosen}.values():
            unchanged = Mutant(name, 0, "", (ROOT / name).read_bytes())
            if failed := processes.submit(noticed, unchanged).result():
                raise SystemExit(f"{name}: {failed} fails without any fault")
        survived = 0
        for mutant, test in zip(chosen, processes.map(noticed, chosen), strict=True):
            row = {"file": mutant.path, "line": mutant.line, "change": mutant.change, "noticed by": test or ""}
            page.row({**row, "survived": "" if test else "survived"})
            survived += not test
    page.write(f"{survived} of {len(chosen)} survived.")


if __name__ == "__main__":
    parser = ArgumentParser(prog="benchmarks.mutants", description=__doc__.partition("\n")[0])
    everything = [f"stages/{folder}/*.py" for folder in STAGES]
    parser.add_argument("paths", nargs="*", default=everything, help="files of the project; default: %(default)s")
    parser.add_argument("--limit", type=int, help="draw so many of the faults")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of that draw; default: a new one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path(".cache/mutants.md"), help="default: %(default)s")
    main(parser.parse_args())
