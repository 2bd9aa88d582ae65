"""The report's form: which charts and pictures it has, and index.html and report.md from their templates."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from stages.reporting import drawing, figures
from stages.reporting.results import Results, Run
from stages.reporting.wording import capitalised, confidence, markdown, percent, short

GALLERY = 12  # images
THUMBNAIL = 192  # pixels at most, twice what the page shows


def charts(results: Results) -> dict[str, tuple]:
    """The charts of the report: by name, the function that draws each and its arguments."""
    runs, study = results.runs, results.study
    found = {
        "accuracies": (figures.accuracies, runs),
        "accuracy": (figures.accuracy, runs),
        "loss": (figures.loss, runs),
        "generalisation_gap": (figures.gap, runs),
        "learning_rate": (figures.learning_rate, runs),
        "per_class": (figures.per_class, runs, 11),
        "per_class_narrow": (figures.per_class, runs),
        **{f"reliability_{run.name}": (figures.reliability, run, number) for number, run in enumerate(runs)},
    }
    return found if study is None else found | {"seeds": (figures.seeds, runs, study["accuracy"])}


def html(content: dict[str, Any], light: dict[str, bytes], dark: dict[str, bytes], galleries: list[dict]) -> str:
    """The page, self-contained.

    Args:
        content: that of both forms of the report.
        light, dark: the charts as SVGs, by name.
    """
    return _template("index.html.j2").render(
        content, light=light, dark=dark, galleries=galleries, themes=(drawing.PAPER, drawing.NIGHT)
    )


def text(content: dict[str, Any]) -> str:
    """The report in GitHub's Markdown, without pictures, as a comment on a pull request may hold it."""
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
    templates.filters |= {
        "short": short,
        "percent": percent,
        "capitalised": capitalised,
        "confidence": confidence,
        "code": _code,
        "verbatim": _verbatim,
        "base64": lambda content: base64.b64encode(content).decode(),
    }
    return templates.get_template(name)


def _code(sentence: str) -> Markup:
    """Text between backticks as code."""
    parts = escape(sentence).split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else part for n, part in enumerate(parts))


def _verbatim(commands: str) -> Markup:
    """A block of commands in Markdown, between fences that they do not hold."""
    fence = "```"
    while fence in commands:
        fence += "`"
    return Markup(f"{fence}sh\n{commands}\n{fence}")


def galleries(results: Results, images: np.ndarray) -> list[dict]:
    """The test images that the best run has wrong with most confidence; and, of the first pair of runs, those on which
    the two differ with most confidence of both.

    Args:
        images: uint8, N×H×W×3.
    """
    best = max(results.runs, key=lambda run: run.tested.accuracy)
    answers = best.predictions
    mistakes = answers[answers.predicted != answers.actual].sort_values("confidence", ascending=False, kind="stable")
    title = f"What {best.label} gets wrong with most confidence"
    found = [_gallery(title, {"taken for": best}, mistakes.index, images)]
    for pair in results.pairs[:1]:
        one, two = pair.first.predictions, pair.second.predictions
        both = one.confidence.clip(upper=two.confidence)[one.predicted != two.predicted]
        title = f"What {' and '.join(pair.names)} disagree on with most confidence"
        by = dict(zip((f"{name}:" for name in pair.names), (pair.first, pair.second), strict=True))
        found.append(_gallery(title, by, both.sort_values(ascending=False, kind="stable").index, images))
    return found


def _gallery(title: str, answering: dict[str, Run], indices: pd.Index, images: np.ndarray) -> dict:
    actual = next(iter(answering.values())).predictions.actual
    pictures = [
        {
            "png": _thumbnail(images[index]),
            "actual": actual[index],
            "answers": [_answer(who, run.predictions.loc[index]) for who, run in answering.items()],
        }
        for index in indices[:GALLERY]
    ]
    return {"title": title, "count": len(indices), "pictures": pictures}


def _answer(who: str, prediction: pd.Series) -> str:
    return f"{who} {short(prediction.predicted)}, {prediction.confidence:.1%}"


def _thumbnail(pixels: np.ndarray) -> bytes:
    file, image = io.BytesIO(), Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()
