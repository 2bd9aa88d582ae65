"""The origin of a report: the git revision, and the commands that repeat the experiment."""

import json
import os
import re
import shlex
import subprocess
from typing import Any

from stages.common.errors import UserError, printable
from stages.common.params import PARAMS
from stages.common.yaml12 import parse_yaml

CODE = ["stages", "dvc.yaml"]


def origin(params: dict[str, Any]) -> dict[str, str]:
    """The sentence `revision`, and the shell commands `repeat`, or `no_repeat`, the reason why there are none.

    Args:
        params: the parameters of the experiment, by their dotted names.
    """
    try:
        commit = _git("rev-parse", "--short=10", "--verify", "HEAD")
        changed = ", with changes to the code that are not committed" if _git("status", "--porcelain", *CODE) else ""
    except UserError as error:
        return {"revision": f"Git revision unknown: {error}.", "repeat": _command(params, None)}
    revision = f"Git revision {commit}{changed}."
    try:
        committed = flat(_mapping(_git("show", f"HEAD:./{PARAMS}")))
    except UserError as error:
        return {"revision": revision, "no_repeat": f"No command to repeat this: {error}."}
    return {"revision": revision, "repeat": f"git checkout {commit}\n{_command(params, committed)}"}


def flat(params: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level of dotted names."""
    result: dict[str, Any] = {}
    for key, value in params.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def _mapping(text: str) -> dict[str, Any]:
    content = parse_yaml(text, f"{PARAMS} of that revision")
    if not isinstance(content, dict):
        raise UserError(f"{PARAMS} of that revision: no mapping of parameters")
    return content


def _command(params: dict[str, Any], committed: dict[str, Any] | None) -> str:
    """`dvc exp run` with the parameters that differ from the committed ones, or all if those are unknown."""
    known = params if committed is None else committed
    settings = [
        f"{'' if key in known else '+'}{key}={_override(value)}"
        for key, value in params.items()
        if committed is None or key not in known or known[key] != value
    ]
    settings += [f"~{key}" for key in known if key not in params]
    return "dvc exp run" + "".join(f" \\\n    -S {shlex.quote(setting)}" for setting in settings)


def _override(value: Any) -> str:
    """A value in the grammar of Hydra, which reads `dvc exp run -S`.

    In quotes a quote needs a backslash, and so does each backslash before a quote; others stand for themselves.
    """
    if not isinstance(value, str):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    quoted = re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), value)
    return f'"{quoted}"'


def _git(*arguments: str) -> str:
    """The output of a git command.

    Raises:
        UserError: git is not installed, or refuses; with its words.
    """
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, env=os.environ | {"LC_ALL": "C"})
    except OSError as error:
        raise UserError(f"git cannot be run ({error.strerror})") from error
    if done.returncode:
        raise UserError(f'git says "{printable(done.stderr.decode(errors="replace"), 1000)}"')
    return done.stdout.decode(errors="surrogateescape").strip()
