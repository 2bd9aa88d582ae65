"""Inputs of a stage, checked for changes before it writes its results.

DVC records parameters, code and data when a stage ends. If params.yaml is edited during a training, DVC would record
values with which the model was not trained.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from stages.common.errors import UserError, listed, printable
from stages.common.files import sha256

Settings = TypeVar("Settings")
IGNORED = (".*", "*~", "Thumbs.db", "desktop.ini", "README.md")  # that .dvcignore names, and hidden files


class Inputs(Generic[Settings]):
    """The inputs of a stage as they are now.

    Args:
        read: returns the settings that the stage declares; called again by `check`.
        paths: the files and folders that the stage reads; a missing one counts as empty.

    Attributes:
        settings: what `read` returned.
        code, data: the sha256 of each file of the modules imported so far, and of each file in `paths`.
    """

    def __init__(self, read: Callable[[], Settings], *paths: Path):
        self.read, self.paths = read, paths
        self.settings = read()
        modules, files = _modules(), _files(paths)
        self.states = {path: _state(path) for path in (*modules, *files)}
        self.code, self.data = ({str(path): sha256(path) for path in found} for found in (modules, files))

    def check(self) -> None:
        """Raise a UserError if settings, code or data are no longer what they were."""
        changed = [
            str(path)
            for path in {*self.states, *_files(self.paths)}
            if not path.is_file()
            or (_state(path) != self.states.get(path) and sha256(path) != {**self.code, **self.data}.get(str(path)))
        ]
        if self.read() != self.settings:
            changed.append("the parameters")
        if changed:
            names = printable(listed(sorted(os.path.relpath(name) if os.sep in name else name for name in changed)))
            raise UserError(
                f"changed while this stage ran: {names}. Nothing was written, since DVC would credit the results to "
                "the changed inputs; restore them for these results, or leave them for new ones, and run this again"
            )


def _modules() -> list[Path]:
    loaded = (getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("stages."))
    main = getattr(sys.modules["__main__"], "__file__", None)
    root = Path(__file__).parents[1]
    return sorted({Path(file) for file in (*loaded, main) if file and root in Path(file).parents})


def _files(paths: tuple[Path, ...]) -> list[Path]:
    """The files in `paths`, less what .dvcignore passes over."""
    found = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    return sorted(file for file in found if file.is_file() and not any(map(file.match, IGNORED)))


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
