"""Write what the runs show as a page, report/index.html, as report/report.md and as report/figures/, and print it.

python -m stages.report
"""

import textwrap
from argparse import Namespace
from typing import Any

from stages.common import cli
from stages.common.dataset import read_info, read_split
from stages.common.files import REPORT, write_bytes
from stages.common.inputs import Inputs
from stages.reporting import findings, page, tables
from stages.reporting.results import Results, read_results

COLUMNS = 80  # of a terminal


def main(args: Namespace) -> None:
    """Read the results, write the report, and print its summary."""
    inputs = Inputs(lambda: None)  # parameters are those of the models
    info = read_info(inputs.read)
    test = read_split("test", info, inputs.read)
    results = read_results(info, test, inputs.read)
    charts, content = page.charts(results), gather(results) | page.pictures(results, test)
    content["svgs"] = {name: svg for name, (svg, _) in charts.items()}
    forms = {name: page.render(f"{name}.j2", content) for name in ("index.html", "report.md")}

    inputs.check()
    for name, form in forms.items():
        write_bytes(REPORT / name, form)
    for name, (_, png) in charts.items():
        write_bytes(REPORT / "figures" / f"{name}.png", png)
    print(tables.summary(results.runs), end="\n\n")
    for answer in content["answers"]:
        print(textwrap.fill(f"{answer['verdict']}. {answer['facts'][0]}", COLUMNS), end="\n\n")
    print(textwrap.fill(content["next_step"], COLUMNS), end="\n\n")
    print(f"Report: {REPORT / 'index.html'}")


def gather(results: Results) -> dict[str, Any]:
    """Return the content of both forms of the report but its pictures; they add the tables themselves."""
    pairs, margin, name = results.pairs, results.parameters["study.margin"], results.info.name
    revision, repeat = page.provenance(results.parameters)
    return {
        "title": f"{' against '.join(pairs[0].labels) if pairs else 'Image classifiers'} on {name}",
        "results": results,
        "caveats": findings.caveats(results),
        "answers": [findings.answer(pair, margin, len(pairs)) for pair in pairs],
        "next_step": findings.next_step(results),
        "notes": findings.notes(results),
        "revision": revision,
        "repeat": repeat,
    }


if __name__ == "__main__":
    cli.run(main, cli.parser("report", __doc__))
