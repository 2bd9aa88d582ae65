"""The proof and the figures of the GPU path: every CUDA test, measurements, the benchmark, and whole stages.

    python -m benchmarks.gpu                              on a machine with a GPU: `make test-gpu`
    python -m benchmarks.gpu --data data                  on the images of the download stage, not on synthetic ones
    python -m benchmarks.gpu --only replay profile        some of its parts
    python -m benchmarks.gpu --rehearse                   the same path on the CPU, in small

What it finds is added to a Markdown file, row by row. It needs what the training stage needs, and pytest for the tests.
"""

import os
import platform
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

import torch
import torchvision

from benchmarks.gpu.meter import said
from benchmarks.gpu.parts import PARTS, run
from benchmarks.gpu.session import ROOT, Session, prepare
from stages.common import cli
from stages.common.errors import UserError
from stages.common.params import load_params


def main(args: Namespace) -> None:
    started = time.monotonic()
    if args.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA starts, which is later
    elif not torch.cuda.is_available():
        raise UserError(f"PyTorch {torch.__version__} finds no GPU here; --rehearse takes the same path on the CPU")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/cache"  # empty, so that a first compilation is one
        session = Session(Path(folder), args.output.absolute(), args.rehearse, started + 60 * args.minutes)
        write_head(session, args.data)
        outcomes = {name: run_part(name, session) for name in PARTS if name in (args.only or PARTS)}
    session.page.write("## Parts")
    for name, (outcome, seconds) in outcomes.items():
        session.page.row({"part": name, "outcome": outcome, "s": seconds})
    session.page.write(f"{time.monotonic() - started:.0f} s in all.")
    wrong = [f"{name} ({outcome})" for name, (outcome, _) in outcomes.items() if outcome != "done"]
    if wrong:
        raise UserError(f"not done: {', '.join(wrong)}; see {args.output}")


def write_head(session: Session, data: Path | None) -> None:
    """Prepare the folder, and state what the figures depend on."""
    info = prepare(session.folder, data, session.rehearse)
    recipe = load_params(session.folder / "params.yaml").recipe("resnet", "resnet", "train.weight_decay")
    session.page.write(f"# {'Rehearsal' if session.rehearse else 'GPU'}, {time.strftime('%Y-%m-%d %H:%M')}")
    facts = {
        **session.meter.facts(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "torchvision": torchvision.__version__,
        "revision": said("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "images": f"{info.name}, {info.counts.train:,} and {info.counts.test:,} for testing, {info.image_size} pixels",
        "recipe": f"{recipe.settings.title}, batches of {recipe.train.batch_size}, {recipe.train.precision}",
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
    }
    for name, fact in facts.items():
        session.page.row({"": name, "this run": fact})


def run_part(name: str, session: Session) -> tuple[str, float]:
    """The outcome of a part and the seconds that it took."""
    began = time.monotonic()
    if began >= session.deadline:
        return "not begun: no time was left", 0.0
    outcome = run(name, replace(session, deadline=min(session.deadline, began + PARTS[name].seconds)))
    return outcome, time.monotonic() - began


if __name__ == "__main__":
    parser = ArgumentParser(prog="benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder that the download stage wrote; default: synthetic images")
    parser.add_argument("--output", type=Path, default=Path(".cache/gpu.md"), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=9, help="that all parts may take; default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="the parts to run; default: all")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in small: its figures mean nothing")
    cli.run(main, parser)
