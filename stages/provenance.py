"""What a report was made from: the git revision, and the command that repeats the experiment."""

import json
import re
import shlex
import subprocess
from typing import Any

from ruamel.yaml import YAML

CODE = ["stages", "dvc.yaml"]


def revision() -> str | None:
    """The commit that is checked out, None outside of git."""
    return _git("rev-parse", "--short=10", "HEAD")


def code_is_changed() -> bool:
    """Whether the code differs from that commit."""
    return bool(_git("status", "--porcelain", "--", *CODE))


def repeat(params: dict[str, Any]) -> str:
    """The shell commands that run an experiment of these parameters again, in a clone of the project."""
    commit = revision()
    committed = flat(YAML(typ="safe", pure=True).load(_git("show", "HEAD:./params.yaml") or "") or {})
    changed = {key: value for key, value in params.items() if committed.get(key, ...) != value}
    settings = [" \\\n    -S " + shlex.quote(f"{key}={_override(value)}") for key, value in changed.items()]
    return (f"git checkout {commit}\n" if commit else "") + "dvc exp run" + "".join(settings)


def flat(params: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level of dotted names."""
    result = {}
    for key, value in params.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def _override(value: Any) -> str:
    """A value in Hydra's grammar, which `dvc exp run -S` reads."""
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z./][\w./-]*", value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _git(*arguments: str) -> str | None:
    """What git prints; None where there is no git, no repository, or no such thing in it."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8")
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
