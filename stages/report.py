"""Say what the runs show: write report/index.html, report/report.md and report/figures/, and print the findings.

python -m stages.report
"""

import base64
import io
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from stages import cli, figures, findings, provenance
from stages.core.dataset import DatasetInfo, read_info, read_split
from stages.files import replacing, write_text
from stages.params import load_params
from stages.results import Run, read_runs, read_study
from stages.wording import duration, percent

REPORT = Path("report")
BASELINE, REFERENCE, ABLATION = "cnn", "resnet", "resnet_ablation"
GALLERY = 12  # images
THUMBNAIL = 192  # pixels at most, twice what the page shows


def main(args: Namespace) -> None:
    params = load_params()
    info = read_info(Path("data"))
    runs, pairs = read_runs([BASELINE, REFERENCE, ABLATION])
    study, foreign_study = read_study(runs, params.seed)
    charts = {
        "accuracy": (figures.accuracy, runs),
        "loss": (figures.loss, runs),
        "generalisation_gap": (figures.gap, runs),
        "learning_rate": (figures.learning_rate, runs),
        "per_class": (figures.per_class, runs),
        **{f"reliability_{run.name}": (figures.reliability, run, figures.colours(runs)[run.name]) for run in runs},
    }
    if study is not None:
        charts["seeds"] = (figures.seeds, study["accuracy"], runs)
    settings = provenance.flat(params.model_dump())
    content = {
        "data": info,
        "runs": runs,
        "caveats": findings.caveats(info, params, runs),
        "answers": [findings.answer(pair, study) for pair in pairs],
        "notes": findings.notes(params, study, foreign_study),
        "tables": {
            pair.subject.capitalize() or "Model comparison": findings.pair_table(pair, params.train.keep)
            for pair in pairs
        },
        "study": None if study is None else findings.study_tables(study, runs, pairs),
        "confusions": {run.name: findings.confusion(run, info.classes) for run in runs},
        "per_class": findings.per_class_table(runs),
        "params": settings,
        "revision": provenance.revision(),
        "changed": provenance.code_is_changed(),
        "repeat": provenance.repeat(settings),
    }
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name.startswith("index.html"),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    templates.filters |= {"duration": duration, "percent": percent, "code": backticks_to_code, "markdown": markdown}
    page = templates.get_template("index.html.j2").render(
        content,
        charts={name: figures.svg(name, *chart) for name, chart in charts.items()},
        palette=figures.COLOURS,
        colours={name: figures.VARIABLES[colour] for name, colour in figures.colours(runs).items()},
        galleries=galleries(pairs[0].first, pairs[0].second, info),
    )
    text = templates.get_template("report.md.j2").render(content, charts=list(charts))

    for name, chart in charts.items():
        with replacing(REPORT / "figures" / f"{name}.png", "wb") as file:
            file.write(figures.png(*chart))
    write_text(REPORT / "index.html", page)
    write_text(REPORT / "report.md", text)
    print(findings.run_table(runs).to_string(index=False), end="\n\n")
    for answer in content["answers"]:
        print(answer["verdict"] + ".", *answer["facts"], sep="\n  ")
    print(*content["notes"], f"Report: {REPORT / 'index.html'}", sep="\n")


def markdown(table: pd.DataFrame) -> str:
    escaped = table.map(str).map(escape_pipes).rename(index=escape_pipes, columns=escape_pipes)
    return escaped.to_markdown(index=table.index.name is not None, disable_numparse=True)


def escape_pipes(cell: str) -> str:
    return cell.replace("|", "\\|") if isinstance(cell, str) else cell


def backticks_to_code(text: str) -> Markup:
    return Markup(re.sub(r"`(.*?)`", r"<code>\1</code>", str(escape(text))))


def galleries(first: Run, second: Run, info: DatasetInfo) -> list[dict]:
    """The test images that the better of two runs has wrong with most confidence, and those on which the two differ
    with most confidence of both."""
    better, other = sorted((first, second), key=lambda run: -run.evaluation["accuracy"])
    images = read_split(Path("data"), "test", info).images
    one, two = better.predictions, other.predictions
    mistakes = one[one.predicted != one.actual].sort_values("confidence", ascending=False, kind="stable")
    differing = one[one.predicted != two.predicted]
    by_both = np.minimum(one.confidence, two.confidence)[differing.index].sort_values(ascending=False, kind="stable")

    def picture(index: int, lines: list[str]) -> dict:
        file, image = io.BytesIO(), Image.fromarray(images[index])
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(file, format="PNG", optimize=True)
        return {"png": base64.b64encode(file.getvalue()).decode(), "actual": one.actual[index], "lines": lines}

    def says(run: Run, index: int, who: str) -> str:
        return f"{who}{run.predictions.predicted[index]}, {run.predictions.confidence[index]:.1%}"

    return [
        {
            "title": f"What {better.architecture} gets wrong with most confidence",
            "count": len(mistakes),
            "pictures": [picture(index, [says(better, index, "taken for ")]) for index in mistakes.index[:GALLERY]],
        },
        {
            "title": f"What {better.architecture} and {other.architecture} disagree on with most confidence",
            "count": len(differing),
            "pictures": [
                picture(index, [says(run, index, f"{run.architecture}: ") for run in (better, other)])
                for index in by_both.index[:GALLERY]
            ],
        },
    ]


if __name__ == "__main__":
    cli.run(main, ArgumentParser(prog="report", description=__doc__.partition("\n")[0]))
