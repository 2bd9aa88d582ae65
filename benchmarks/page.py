"""Tables in Markdown, printed row by row and kept in a file, so that an interruption loses nothing."""

import os
from collections.abc import Mapping
from pathlib import Path

Row = Mapping[str, object]


class Page:
    """Print paragraphs and tables, and add them to a file.

    Args:
        path: of a Markdown file; None to print only.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self.columns: list[str] = []  # of the table that is being written

    def write(self, text: str) -> None:
        """Add a paragraph."""
        self.columns = []
        self._append(f"\n{text}\n")

    def row(self, row: Row) -> None:
        """Add a row to the table above it, or begin a table where that has other columns."""
        head = list(row) != self.columns
        lines = [list(row), ["---"] * len(row)] if head else []
        text = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in (*lines, row.values()))
        self.columns = list(row)
        self._append(f"\n{text}\n" if head else f"{text}\n")

    def _append(self, text: str) -> None:
        print(text, end="", flush=True)
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
