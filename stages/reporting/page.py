"""The report's form: its charts and pictures, its origin, and index.html and report.md from their templates."""

import base64
import io
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from stages.common.dataset import Split
from stages.common.errors import UserError, printable
from stages.common.files import PREDICTIONS, SUSPECTS
from stages.common.params import PARAMS, flat, parse_yaml
from stages.evaluation.metrics import confusion
from stages.reporting import figures, findings, tables
from stages.reporting.results import Results
from stages.reporting.wording import capitalised, confidence, markdown, percent, short

GALLERY, MOST_WRONG = 12, 1000  # images in a gallery, and in the folded list of all wrong ones
LARGE, SMALL = 192, 32  # pixels of their thumbnails, at most
CODE = ["stages", "dvc.yaml"]
UNSAFE = re.compile(r"[\"'`\\\x00-\x1f\x7f\x85\u2028\u2029]|\$\{")  # in a value for a command line


def charts(results: Results) -> dict[str, tuple[bytes, bytes]]:
    """Draw each chart of the report once, as SVG and as PNG, by its name."""
    runs, held_out, draw, curves = results.runs, results.held_out, figures.draw, figures.curves
    title, gap, rate = f"{held_out.capitalize()} accuracy", f"Training minus {held_out} accuracy", "Learning rate"
    return {
        "accuracies": draw(figures.accuracies, runs, results.seed_accuracies, findings.is_cifar10(results)),
        "accuracy": draw(curves, runs, f"{held_out}_accuracy", title, figures.tick_percent),
        "loss": draw(figures.loss, runs, held_out),
        "generalisation_gap": draw(curves, runs, "generalization_gap", gap, figures.tick_points),
        "learning_rate": draw(curves, runs, "learning_rate", rate, "{:.3g}".format, False),
        "per_class": draw(figures.per_class, runs),
        **{f"reliability_{run.name}": draw(figures.reliability, run, number) for number, run in enumerate(runs)},
    }


def html(content: dict[str, Any], svgs: dict[str, bytes]) -> str:
    """Return the page, self-contained, with these charts."""
    return _template("index.html.j2").render(content, svgs=svgs)


def text(content: dict[str, Any]) -> str:
    """Return the report in GitHub's Markdown, without pictures, as a comment on a pull request may hold it."""
    return _template("report.md.j2", finalize=markdown).render(content)


def _template(name: str, finalize: Callable[[Any], Any] | None = None):
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # of HTML; what `finalize` has escaped in its own way stays as it is
        finalize=finalize,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {"tables": tables, "confusion": confusion}
    templates.filters |= {"short": short, "percent": percent, "capitalised": capitalised, "confidence": confidence}
    templates.filters["code"] = _code
    templates.filters["base64"] = lambda content: base64.b64encode(content).decode()
    templates.filters["text"] = lambda value: value if isinstance(value, str) else json.dumps(value)
    return templates.get_template(name)


def _code(sentence: str) -> Markup:
    """Show text between backticks as code."""
    parts = escape(sentence).split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else part for n, part in enumerate(parts))


def pictures(results: Results, test: Split) -> dict[str, Any]:
    """Return the test images that the page shows, the most confident answers first.

    Returns:
        `galleries`: what is most likely labelled wrong, what the best run has wrong, and what the first pair disagrees
        on; `wrong`: small pictures of all that the best run has wrong, by class.
    """
    rows = {name: number for number, name in enumerate(test.names.tolist())}
    suspects = results.suspects.set_index(results.suspects.image.map(rows).rename(None))
    answers, best = results.best.predictions, results.best.label
    wrong = _confident(answers[answers.predicted != answers.actual])
    galleries = [
        _gallery("Most likely labelled wrong: every run says otherwise", {"every run:": suspects}, test, str(SUSPECTS)),
        _gallery(f"What {best} gets wrong with most confidence", {"taken for": wrong}, test),
    ]
    for pair in results.pairs[:1]:
        first, second = pair.first.predictions, pair.second.predictions
        least = first.assign(confidence=first.confidence.clip(upper=second.confidence))
        order = _confident(least[first.predicted != second.predicted]).index
        answers = {f"{name}:": of.loc[order] for name, of in zip(pair.labels, (first, second), strict=True)}
        galleries.append(_gallery(f"What {' and '.join(pair.labels)} disagree on with most confidence", answers, test))
    few = wrong.head(MOST_WRONG)
    classes = {
        name: [_picture(index, {"": few}, test, SMALL) for index in few.index[few.actual == name]]
        for name in results.info.classes
        if (few.actual == name).any()
    }
    folded = {"title": f"All that {best} gets wrong", "count": len(wrong), "shown": len(few), "classes": classes}
    return {"galleries": galleries, "wrong": folded}


def _confident(predictions: pd.DataFrame) -> pd.DataFrame:
    return predictions.sort_values("confidence", ascending=False, kind="stable")


def _gallery(
    title: str, answers: dict[str, pd.DataFrame], test: Split, file: str = f"{PREDICTIONS}/"
) -> dict[str, Any]:
    """Show the first images of these tables, which have the same ones, with what each says."""
    order = next(iter(answers.values())).index
    shown = [_picture(index, answers, test, LARGE) for index in order[:GALLERY]]
    return {"title": title, "count": len(order), "pictures": shown, "file": file}


def _picture(index: int, answers: dict[str, pd.DataFrame], test: Split, side: int) -> dict[str, Any]:
    file, image = io.BytesIO(), Image.fromarray(test.images[index])
    image.thumbnail((side, side))
    image.save(file, format="PNG", optimize=True)
    says = [f"{who} {short(of.predicted[index])}, {of.confidence[index]:.1%}".strip() for who, of in answers.items()]
    return {"png": file.getvalue(), "label": test.labels[index], "name": test.names[index], "says": says}


def origin(parameters: dict[str, Any]) -> dict[str, str]:
    """Return the sentence `revision`, shell commands as `repeat` where they are known, and as `lacking` what they lack.

    Args:
        parameters: of the models, by dotted names.
    """
    try:
        commit, date, author = _git("log", "-1", "--abbrev=10", "--format=%h%n%as%n%an").split("\n", 2)
        changed = ", with changes to the code that are not committed" if _git("status", "--porcelain", *CODE) else ""
        committed = flat(parse_yaml(_git("show", f"HEAD:./{PARAMS}"), f"{PARAMS} of that revision"))
    except (OSError, subprocess.CalledProcessError, UserError) as error:
        reason = printable((getattr(error, "stderr", b"") or b"").decode(errors="replace") or error)
        return {"revision": f"Git revision unknown: {reason}", "lacking": "The parameters below repeat this."}
    said = {"revision": f"Git revision {commit} of {date} by {author}{changed}."}
    differing = {key: value for key, value in parameters.items() if committed.get(key, committed) != value}
    unsafe = [key for key, value in differing.items() if UNSAFE.search(value if isinstance(value, str) else "")]
    settings = [f"{'' if k in committed else '+'}{k}={_override(v)}" for k, v in differing.items() if k not in unsafe]
    gone = [key.split(".") for key in committed.keys() - parameters.keys() if key.startswith(("runs.", "compare."))]
    settings += sorted({f"~{section}.{name}" for section, name, *_ in gone})
    if unsafe:
        said["lacking"] = f"Set by hand, since a command line may change them: {', '.join(unsafe)}; see below."
    command = "".join(f" \\\n    -S {shlex.quote(setting)}" for setting in settings)
    return said | {"repeat": f"git checkout {commit}\ndvc exp run{command}"}


def _override(value: Any) -> str:
    """Write a value in the grammar of Hydra, which reads `dvc exp run -S`."""
    if isinstance(value, str) and re.fullmatch(r"(?!(true|false|null|nan|inf)$)[a-z][\w.-]*", value, re.I | re.A):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _git(*arguments: str) -> str:
    """Return the output of a git command, in English."""
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(["git", *arguments], capture_output=True, check=True, env=environment)
    return done.stdout.decode(errors="replace").strip()
