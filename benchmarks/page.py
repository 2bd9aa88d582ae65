"""Tables in Markdown, and a page that is written row by row, so that an interruption loses nothing."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

Row = Mapping[str, object]


def table(rows: Iterable[Row]) -> str:
    """A Markdown table: the first row's keys are its columns."""
    lines = []
    for row in rows:
        lines += _lines(row, head=not lines)
    return "\n".join(lines)


def _lines(row: Row, head: bool) -> list[str]:
    columns = [list(row), ["---"] * len(row)] if head else []
    return ["| " + " | ".join(map(_cell, line)) + " |" for line in (*columns, row.values())]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


class Page:
    """A Markdown file that is added to. All that is written is printed, too, and on the disk when the call returns."""

    def __init__(self, path: Path):
        self.path = path
        self.columns: list[str] = []  # of the table that is being written

    def write(self, text: str) -> None:
        """Add a paragraph."""
        self.columns = []
        self._append(f"\n{text}\n")

    def row(self, row: Row) -> None:
        """Add a row to the table above it, or begin a table where that has other columns."""
        head = list(row) != self.columns
        self._append(("\n" if head else "") + "\n".join(_lines(row, head)) + "\n")
        self.columns = list(row)

    def _append(self, text: str) -> None:
        print(text, end="", flush=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
