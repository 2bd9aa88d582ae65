"""Writing results: a file appears whole under its name, or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open a file beside `path` for writing; when the block ends without an error, sync it and rename it to `path`.

    Text is UTF-8 with newlines as written. Missing folders are made. What a killed process left beside is overwritten
    by the next; .gitignore and .dvcignore know its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(beside, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, table) -> None:
    """Write a pandas DataFrame without its index, floats to eight significant digits."""
    write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.8g"))
