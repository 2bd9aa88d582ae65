"""Print the experiments of this commit side by side: what each changes, accuracy of each run, each comparison.

python -m stages.commands.compare --commits 3
"""

import json
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from stages.common import cli
from stages.common.errors import UserError, listed, printable
from stages.common.formats import COMPARISONS, TRAIN_METRICS, Comparison, Metrics
from stages.common.params import PARAMS
from stages.reporting.provenance import flat

LONGEST = 400  # characters of the changes of an experiment
NAMES, CHANGES = 14, 18  # characters that these columns have at least


@dataclass(frozen=True)
class Experiment:
    name: str
    changes: str  # of parameters, against the commit that it started from
    figures: dict[str, str]  # of each run and each comparison by its file, as a person reads them


def main(args: Namespace) -> None:
    experiments, passed_over, unsaved = read_experiments(exp_show(args.commits))
    console = Console(width=args.width, markup=False, highlight=False, emoji=False)
    for table in tables(experiments, args.width):
        console.print(table)
        print()
    print("Test accuracies in percent, comparisons (first minus second) in points.")
    if passed_over:
        print(f"Passed over, because their results have another layout ({len(passed_over)}): {listed(passed_over)}")
    if unsaved:
        print("Not shown: the results in the workspace; `dvc exp save` makes them an experiment.")


def exp_show(commits: int) -> list[dict[str, Any]]:
    """The last commits and their experiments as `dvc exp show --json` has them, the workspace first."""
    # dvc.api.exp_show would leave out the file of a metric wherever the name of the metric tells it
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", "--num", str(commits)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        errors = re.findall(r"^ERROR: (.*)", done.stderr, re.MULTILINE) or ["gave neither experiments nor a reason"]
        raise UserError(f"dvc exp show: {printable(errors[0])}") from error


def read_experiments(shown: list[dict[str, Any]]) -> tuple[list[Experiment], list[str], bool]:
    """Each commit, and its experiments after it.

    Returns:
        The experiments; the names of those whose results have another layout; true if the results in the workspace are
        none of these.
    """
    workspace, *commits = shown
    found, passed_over, known = [], [], []
    for commit in commits:
        base = parameters(commit)
        name = commit["name"] or commit["rev"][:7]
        found.append(Experiment(printable(name), "", figures(commit) or {}))
        known.append(metrics(commit))
        for of_commit in commit["experiments"] or []:
            experiment = of_commit["revs"][0]
            state = (of_commit["executor"] or {}).get("state") or "success"
            name = printable(experiment["name"] or experiment["rev"][:7])
            # What has not finished has the files of its commit
            values = figures(experiment) if state == "success" else {}
            known.append(metrics(experiment))
            if values is None:
                passed_over.append(name)
            else:
                name += f" ({state})" if state != "success" else ""
                found.append(Experiment(name, changes(base, parameters(experiment)), values))
    return found, passed_over, figures(workspace) is not None and metrics(workspace) not in known


def metrics(revision: dict[str, Any]) -> dict[str, Any]:
    """The content of each metrics file that is there."""
    files = (revision["data"] or {}).get("metrics") or {}
    return {path: file["data"] for path, file in files.items() if file.get("data")}


def figures(revision: dict[str, Any]) -> dict[str, str] | None:
    """Accuracy of each run in percent, difference of each comparison in points; None where the files are others."""
    found = {}
    try:
        for path, content in metrics(revision).items():
            if Path(path).parent == TRAIN_METRICS:
                found[path] = f"{100 * Metrics.model_validate(content).accuracy:.2f}"
            elif Path(path).parent == COMPARISONS:
                found[path] = f"{100 * Comparison.model_validate(content).difference:+.2f}"
    except ValidationError:
        return None
    return found or None


def parameters(revision: dict[str, Any]) -> dict[str, str]:
    """Every parameter by its dotted name, as a person writes it."""
    content = ((revision["data"] or {}).get("params") or {}).get(str(PARAMS), {}).get("data")
    return {name: written(value) for name, value in flat(content).items()} if isinstance(content, dict) else {}


def written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def changes(before: dict[str, str], after: dict[str, str]) -> str:
    """The parameters that are others: `train.weight_decay 0.001, seed 43`."""
    changed = [f"{name} {value}" for name, value in after.items() if before.get(name) != value]
    changed += [f"{name} removed" for name in before if name not in after]
    return printable(", ".join(changed), LONGEST)


def tables(experiments: list[Experiment], width: int) -> list[Table]:
    """The experiments in so many tables that no figure is cut off."""
    names = {name for experiment in experiments for name in experiment.figures}
    columns = sorted(names, key=lambda path: (Path(path).parent == COMPARISONS, path))  # DVC's order varies
    parts: list[list[str]] = [[]]
    room = width - NAMES - CHANGES - 2
    for column in columns:
        need = 2 + max(7, *map(len, heading(column).split("\n")))
        if need > room and parts[-1]:
            parts.append([])
            room = width - NAMES
        parts[-1].append(column)
        room -= need
    return [table(experiments, part, with_changes=part is parts[0]) for part in parts]


def heading(path: str) -> str:
    """The name of a run or comparison in lines of up to 12 characters, broken at its underscores."""
    return "\n".join(re.findall(r"[^_]{0,11}_|[^_]{1,12}", Path(path).stem))


def table(experiments: list[Experiment], columns: list[str], with_changes: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("experiment", overflow="fold", min_width=NAMES - 2)
    if with_changes:
        table.add_column("changes", overflow="fold", min_width=CHANGES - 2)
    for column in columns:
        table.add_column(heading(column), justify="right", no_wrap=True)
    for experiment in experiments:
        first = [experiment.name, experiment.changes] if with_changes else [experiment.name]
        table.add_row(*first, *(experiment.figures.get(column, "-") for column in columns))
    return table


if __name__ == "__main__":
    parser = cli.parser("compare", __doc__)
    parser.add_argument("--commits", type=int, default=1, metavar="N", help="of the last N commits; default: 1")
    parser.set_defaults(width=shutil.get_terminal_size().columns)
    cli.run(main, parser)
