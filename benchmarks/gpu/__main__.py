"""The proof and the figures of the GPU path: every CUDA test, whole stages, and measurements.

    python -m benchmarks.gpu --only tests bytes stage                           what proves
    python -m benchmarks.gpu --only replay profile speed precision              what measures
    python -m benchmarks.gpu --data data --output gpu.md    on real images, which the download stage wrote
    python -m benchmarks.gpu --rehearse                     the same path on the CPU, in small

What it finds is added to a Markdown file, row by row. docs/performance.md lists the packages that it needs.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from contextlib import chdir
from pathlib import Path

import torch
import torchvision

from benchmarks.core import recipe_for
from benchmarks.gpu.parts import PARTS, run
from benchmarks.gpu.session import ROOT, Session, prepare
from stages.common import cli
from stages.common.errors import UserError


def main(args: Namespace) -> None:
    started = time.monotonic()
    if args.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA starts, which is later
    elif not torch.cuda.is_available():
        raise UserError(f"PyTorch {torch.__version__} finds no GPU here; --rehearse takes the same path on the CPU")
    output, data = args.output.absolute(), args.data and args.data.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    # One folder of compiled kernels for all parts, and for the next call
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(output.with_suffix(".compiled"))
    with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as folder:
        session = Session(Path(folder), output, args.rehearse, started + 60 * args.minutes)
        write_head(session, data)
        outcomes = {name: run(name, session) for name in PARTS if name in args.only}
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
    with chdir(session.folder):
        recipe = recipe_for("resnet")
    session.page.write(f"# {'Rehearsal' if session.rehearse else 'GPU'}, {time.strftime('%Y-%m-%d %H:%M')}")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader", "--id=0"]
    facts = {
        "device": f"CPU ({platform.machine()}), a rehearsal" if session.rehearse else said(*query),
        "Python, PyTorch": f"{platform.python_version()}, {torch.__version__} (torchvision {torchvision.__version__})",
        "CUDA, cuDNN": f"{torch.version.cuda}, {torch.backends.cudnn.version()}",
        "revision": said("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "images": f"{info.name}, {info.counts.train:,} and {info.counts.test:,} for testing, {info.image_size} pixels",
        "recipe": f"{recipe.title}, batches of {recipe.train.batch_size}, {recipe.train.precision}",
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
    }
    for name, fact in facts.items():
        session.page.row({"": name, "this run": fact})


def said(*command: str) -> str:
    """Return the output of a command, or why there is none."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"not known ({error})"


if __name__ == "__main__":
    parser = ArgumentParser(prog="benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder that the download stage wrote; default: synthetic images")
    parser.add_argument("--output", type=Path, default=Path(".cache/gpu.md"), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=9, help="that all parts may take; default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], help="the parts to run; default: all")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in small: its figures mean nothing")
    cli.run(main, parser)
