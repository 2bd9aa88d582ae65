"""The inputs of a stage: what is used is what was hashed, and nothing is written if they have changed meanwhile.

DVC records parameters, code and data when a stage ends. If params.yaml is edited during a training, DVC would record
values with which the model was not trained.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from stages import CODE
from stages.common.errors import UserError, listed, printable
from stages.common.files import read_bytes, sha256
from stages.common.params import MODELS

Settings = TypeVar("Settings")
ROOT = Path(__file__).parents[2]


class Inputs(Generic[Settings]):
    """The inputs of a stage as they are now.

    Args:
        load: returns the settings that the stage declares; called again by `check`.

    Attributes:
        settings: what `load` returned.
        files: the sha256 of each file that `read` returned, by path.
    """

    def __init__(self, load: Callable[[], Settings]):
        self.load, self.settings = load, load()
        self.files: dict[Path, str] = {}

    def read(self, path: Path) -> bytes:
        """Return the content of a file, and note its digest.

        Raises:
            UserError: there is no such file, or it cannot be read.
        """
        content = read_bytes(path)
        self.files[path] = sha256(content)
        return content

    def code(self) -> dict[Path, str]:
        """Return the sha256 of each module of this project that is loaded, as it was when Python began.

        Of the models, a training has its own alone, as in dvc.yaml, though it checks the settings of all.
        """
        loaded = {getattr(module, "__file__", None) for module in sys.modules.values()}
        model = getattr(self.settings, "model", None)
        loaded -= {str(path) for path in CODE if path.parent == MODELS and model not in (None, path.stem)}
        return {path: digest for path, digest in CODE.items() if str(path) in loaded}

    def check(self) -> None:
        """Raise a UserError if settings, code or files are no longer what they were."""
        noted = self.files | self.code()
        changed = [path for path, digest in noted.items() if not path.is_file() or sha256(path.read_bytes()) != digest]
        names = sorted(printable(path.relative_to(ROOT) if path.is_absolute() else path) for path in changed)
        if self.load() != self.settings:
            names.append("the parameters")
        if names:
            raise UserError(f"changed while this stage ran: {listed(names)}. Nothing was written; run this again")
