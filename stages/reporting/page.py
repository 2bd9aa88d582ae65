"""The report's form: its charts and pictures, its origin, and index.html and report.md from their templates."""

import base64
import io
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from stages.common.dataset import Split
from stages.common.errors import UserError, printable
from stages.common.params import PARAMS, flat, parse_yaml
from stages.evaluation.metrics import confusion
from stages.reporting import figures, findings, tables
from stages.reporting.results import Results
from stages.reporting.wording import markdown, percent, short

GALLERY, MOST_WRONG = 12, 1000  # images in a gallery, and in the folded list of all wrong ones
LARGE, SMALL = 192, 32  # pixels of their thumbnails, at most
SAFE = re.compile(r'[\w "+,./:;=@~\[\]{}()-]*')  # what shells and the grammar of `dvc exp run -S` leave as it is


def charts(results: Results) -> dict[str, tuple[bytes, bytes]]:
    """Draw each chart of the report once, as SVG and as PNG, by its name."""
    runs, held_out, draw, curves = results.runs, results.held_out, figures.draw, figures.curves
    title, gap = f"{held_out.capitalize()} accuracy", f"Training minus {held_out} accuracy"
    return {
        "accuracies": draw(figures.accuracies, runs, results.seed_accuracies, findings.is_cifar10(results)),
        "accuracy": draw(curves, runs, f"{held_out}_accuracy", title, figures.tick_percent),
        "loss": draw(figures.loss, runs, held_out),
        "generalisation_gap": draw(curves, runs, "generalization_gap", gap, figures.tick_points),
        "per_class": draw(figures.per_class, runs),
        **{f"reliability_{run.name}": draw(figures.reliability, run, number) for number, run in enumerate(runs)},
    }


def render(template: str, content: dict[str, Any]) -> bytes:
    """Return the report in the form of a template: the page, self-contained, or GitHub's Markdown, without pictures."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    finalize = markdown if template.startswith("report.md") else None  # what it has escaped in its own way stays so
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    templates = Environment(loader=loader, autoescape=True, finalize=finalize, undefined=StrictUndefined, **blocks)
    templates.globals |= {"tables": tables, "confusion": confusion}
    templates.filters |= {"short": short, "percent": percent}
    templates.filters["base64"] = lambda content: base64.b64encode(content).decode()
    templates.filters["text"] = lambda value: value if isinstance(value, str) else json.dumps(value)
    return f"{templates.get_template(template).render(content)}\n".encode()


def pictures(results: Results, test: Split) -> dict[str, Any]:
    """Return the test images that the page shows, the most confident answers first.

    Returns:
        `suspects`: most likely labelled wrong; `mistakes`: what the best run has wrong; `wrong`: small pictures of all
        that it has wrong, or of the first 1,000 of these `wrong_count`.
    """
    numbers = {name: number for number, name in enumerate(test.names.tolist())}
    suspects = results.suspects.set_index(results.suspects.image.map(numbers))
    wrong = results.best.predictions.query("actual != predicted")
    wrong = wrong.sort_values("confidence", ascending=False, kind="stable")
    return {
        "suspects": _pictures(suspects.head(GALLERY), test, LARGE),
        "mistakes": _pictures(wrong.head(GALLERY), test, LARGE),
        "wrong": _pictures(wrong.head(MOST_WRONG), test, SMALL),
        "wrong_count": len(wrong),
    }


def _pictures(answers: pd.DataFrame, test: Split, side: int) -> list[dict[str, Any]]:
    """Return the images that the index of a table numbers, at most so large, with what the table says of them."""
    found = []
    for number, predicted, confidence in zip(answers.index, answers.predicted, answers.confidence, strict=True):
        file, image = io.BytesIO(), Image.fromarray(test.images[number])
        image.thumbnail((side, side))
        image.save(file, format="PNG", optimize=True)
        says, name = f"{short(predicted)}, {confidence:.1%}", test.names[number]
        found.append({"png": file.getvalue(), "label": test.labels[number], "name": name, "says": says})
    return found


def provenance(parameters: dict[str, Any]) -> tuple[str, str]:
    """Say from which git revision this is, and with which shell commands to repeat it; none where a value is unusual.

    Args:
        parameters: of the models, by dotted names.
    """
    try:
        commit, by, date = _git("log", "-1", "--no-show-signature", "--abbrev=10", "--format=%h%n%an%n%as").split("\n")
        changed = ", with uncommitted changes" if _git("status", "--porcelain", "stages", "dvc.yaml") else ""
        committed = flat(parse_yaml(_git("show", f"HEAD:./{PARAMS}"), f"{PARAMS} of that revision"))
    except (OSError, subprocess.CalledProcessError, UserError) as error:
        return f"Git revision unknown: {printable(getattr(error, 'stderr', None) or error)}.", ""
    settings = [
        f"{'' if key in committed else '+'}{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in parameters.items()
        if committed.get(key, committed) != value
    ]
    gone = (key.split(".") for key in committed.keys() - parameters.keys() if key.startswith(("runs.", "compare.")))
    settings += sorted({f"~{section}.{name}" for section, name, *_ in gone})
    command = "".join(f" \\\n    -S {shlex.quote(setting)}" for setting in settings)
    repeat = f"git checkout {commit}\ndvc exp run{command}" if all(map(SAFE.fullmatch, settings)) else ""
    return f"Git revision {commit} of {date} by {by}{changed}.", repeat


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, check=True, encoding="utf-8", errors="replace")
    return done.stdout.strip()
