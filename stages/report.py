"""Write what the runs show as a page, report/index.html, as report/report.md and as report/figures/, and print it.

python -m stages.report
"""

import json
import textwrap
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from stages.common import cli
from stages.common.dataset import DatasetInfo, read_info, read_split
from stages.common.errors import shown
from stages.common.files import write_bytes
from stages.common.formats import DATA, REPORT
from stages.common.inputs import Inputs
from stages.common.params import Params, load_params
from stages.evaluation.metrics import confusion
from stages.reporting import drawing, findings, page, provenance, tables
from stages.reporting.results import Results, read_results

COLUMNS = 80  # of a terminal


def main(args: Namespace) -> None:
    inputs = Inputs(load_params, DATA, Path("metrics"), Path("plots"))
    params, info = inputs.settings, read_info()
    test = read_split("test", info)
    results = read_results(info, test, params.seed)
    content = gather(params, info, results)
    fonts, lacking = drawing.find_fonts(info.classes)
    draw, charts = partial(drawing.chart, fonts=fonts), page.charts(results)
    light, dark = ({name: draw(*chart, form="svg", dark=on) for name, chart in charts.items()} for on in (False, True))
    files = {f"figures/{name}.png": draw(*chart, form="png") for name, chart in charts.items()}
    files["index.html"] = page.html(content, light, dark, page.galleries(results, test.images)).encode()
    files["report.md"] = page.text(content).encode()

    inputs.check()
    for name, file in files.items():
        write_bytes(REPORT / name, file)
    print(tables.summary(results.runs), end="\n\n")
    for found in content["answers"]:
        print(textwrap.fill(" ".join([f"{found['verdict']}.", *found["facts"][:1]]), COLUMNS), end="\n\n")
    if lacking:
        print(f"No installed font has {shown(lacking)}: boxes take their place in the figures; install one.")
    print(f"Report: {REPORT / 'index.html'}")


def gather(params: Params, info: DatasetInfo, results: Results) -> dict[str, Any]:
    """The content of both forms of the report."""
    runs, pairs, study, keep = results.runs, results.pairs, results.study, params.train.keep
    settings = provenance.flat(params.model_dump())
    return {
        "title": f"{' against '.join(pairs[0].names) if pairs else f'{len(runs)} runs'} on {info.name}",
        "data": info,
        "runs": runs,
        "caveats": "; ".join(findings.caveats(info, params, runs)),
        "answers": [findings.answer(pair, study) for pair in pairs],
        "notes": findings.notes(params, results),
        "run_table": tables.run_table(runs, keep),
        "pairs": [(pair.title, tables.pair_table(pair, keep)) for pair in pairs if not pair.same_recipe],
        "study": None if study is None else tables.study_tables(study, results),
        "confusions": [
            confusion(run.predictions.actual, run.predictions.predicted, info.classes)
            for run in (runs if tables.few(info.classes) else [])
        ],
        "confused": [tables.confused(run) for run in runs],
        "classes": tables.class_table(runs, range(len(info.classes))),
        "extremes": tables.class_table(runs, tables.extremes(runs)),
        "params": {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()},
        "origin": provenance.origin(settings),
    }


if __name__ == "__main__":
    cli.run(main, cli.parser("report", __doc__))
