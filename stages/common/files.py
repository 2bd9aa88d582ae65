"""Files between the stages: where they are; written whole or not at all; JSON, CSV and locks.

Accuracies are fractions, losses mean cross-entropies in nats.
"""

import fcntl
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.common.errors import UserError, explain, printable

# Folders with a file for each split, run or figure
DATA, MODELS, REPORT = Path("data"), Path("models"), Path("report")
TIMING, HISTORY, PREDICTIONS = Path("metrics/timing"), Path("plots/history"), Path("plots/predictions")
ACCURACY, COMPARE, EVALUATION = (Path(f"metrics/{name}.json") for name in ("accuracy", "compare", "evaluation"))
CURVES, PER_CLASS, CALIBRATION = (Path(f"plots/{name}.csv") for name in ("curves", "per_class", "calibration"))
SUSPECTS, SEEDS = Path("plots/suspects.csv"), Path("plots/seeds.csv")

TEXTS = ("run", "class", "image", "label", "actual", "predicted", "correct", "recipe")  # columns that hold no numbers


class Record(BaseModel):
    """Named values of fixed types, as a JSON object on disk."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


RecordT = TypeVar("RecordT", bound=Record)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file beside `path` for writing; when the block ends without an error, rename it to `path`.

    Missing folders are made. git and DVC ignore the name of the new file, which a killed process leaves behind.

    Raises:
        OSError: with the name of the file, also where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        with open(beside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def read_bytes(path: Path, advice: str = "make it with `dvc repro`") -> bytes:
    """Return the content of a file.

    Raises:
        UserError: there is no such file, or a device or pipe, with this advice; or it cannot be read.
    """
    try:
        if path.is_file():
            return path.read_bytes()
    except (OSError, ValueError, MemoryError) as error:  # a ValueError is a NUL in the name
        raise UserError(f"{printable(path)}: cannot be read: {getattr(error, 'strerror', None) or error!r}") from error
    raise UserError(f"{printable(path)}: no such file; {advice}")


def write_json(path: Path, content: Record | dict) -> None:
    """Write a JSON object, one key a line."""
    values = content.model_dump(mode="json") if isinstance(content, Record) else content
    write_bytes(path, f"{json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode())


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table, floats to eight significant digits."""
    write_bytes(path, csv_bytes(table))


def csv_bytes(table: pd.DataFrame) -> bytes:
    """Return the content of a CSV file."""
    return table.to_csv(index=False, float_format="%.8g", lineterminator="\n").encode()


def parse_json(content: bytes, kind: type[RecordT], path: Path) -> RecordT:
    """Return the record in the content of a JSON file; `path` is for messages.

    Raises:
        UserError: the content is something else.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, kind)}; make it again with `dvc repro`") from error


def parse_csv(content: bytes, path: Path) -> pd.DataFrame:
    """Return the table in the content of a CSV file; the columns in TEXTS stay texts, whatever they look like.

    Raises:
        UserError: the content is no table.
    """
    try:
        return pd.read_csv(io.BytesIO(content), dtype=dict.fromkeys(TEXTS, object), keep_default_na=False)
    except ValueError as error:  # which pandas' ParserError is
        raise UserError(f"{path}: no table ({printable(error)}); make it again with `dvc repro`") from error


@contextmanager
def locked(path: Path, held: str) -> Iterator[None]:
    """Hold the lock of this file; it is released when the process ends, however it ends.

    Raises:
        UserError: another process holds it, which `held` says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(held) from error
        except OSError as error:  # a file system without locks, such as some home folders on NFS or Lustre
            print(f"{printable(path)}: no lock ({error.strerror}); start nothing twice in this folder", flush=True)
        yield


def sha256(content: bytes) -> str:
    """Return the digest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
