"""Files as the stages write and read them: whole under their name or not at all, and checked on reading."""

import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import pandas as pd
from pydantic import BaseModel, TypeAdapter, ValidationError

from stages.common.errors import UserError, explain, printable
from stages.common.formats import *  # noqa: F403 TRANSITION

MAX_BYTES = 2**30  # of a file that is read whole

Content = TypeVar("Content", bound=BaseModel)


@contextmanager
def replacing(path: Path, synced: bool = True) -> Iterator[IO[bytes]]:
    """Open a new file beside `path` for writing; when the block ends without an error, rename it to `path`.

    The new file has a name of its own and follows no link. What a killed process left beside is removed; git and DVC
    ignore its name. Missing folders are made.

    Raises:
        OSError: with the name of the file, also where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, "xb") as file:
            yield file
            file.flush()
            if synced:
                os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, synced: bool = True) -> None:
    try:
        with replacing(path, synced) as file:
            file.write(content)
    except OSError as error:
        error.filename2 = f"{len(content) / 2**20:,.0f} MiB are needed"
        raise


def write_json(path: Path, content: BaseModel) -> None:
    text = json.dumps(content.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def write_csv(path: Path, rows: Sequence[BaseModel] | pd.DataFrame, synced: bool = True) -> None:
    """Write a row for each of `rows`, with floats to eight significant digits."""
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame([row.model_dump(by_alias=True) for row in rows])
    write_bytes(path, table.to_csv(index=False, lineterminator="\n", float_format="%.8g").encode(), synced)


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most MAX_BYTES.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        if not path.is_file():
            raise UserError(f"{printable(path)}: no such file; make it with `dvc repro`")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{printable(path)}: larger than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read: {error.strerror}") from error


def read_json(path: Path, kind: type[Content]) -> Content:
    """The content of a JSON file, checked against what its writer fills in.

    Raises:
        UserError: the file is missing, or holds something else.
    """
    try:
        return kind.model_validate_json(read_bytes(path))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}; make it again with `dvc repro`") from error


def read_csv(path: Path, kind: type[Content]) -> pd.DataFrame:
    """The rows of a CSV file, checked against what its writer fills in: a column for each field of `kind`.

    Raises:
        UserError: the file is missing, or holds something else.
    """
    columns = [field.alias or name for name, field in kind.model_fields.items()]
    reader = TypeAdapter(list[kind])  # type: ignore[valid-type]
    try:
        texts = pd.read_csv(io.BytesIO(read_bytes(path)), dtype=str, keep_default_na=False)
        rows = reader.validate_python(texts.to_dict("records"), strict=False)
        if not rows and list(texts) != columns:  # nothing that the types could refuse
            raise ValueError(f"its columns are not {', '.join(columns)}")
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}; make it again with `dvc repro`") from error
    except ValueError as error:  # pandas' errors of a file that is no table, and bytes that are no text
        raise UserError(f"{path}: no table ({printable(error)}); make it again with `dvc repro`") from error
    return pd.DataFrame(reader.dump_python(rows, by_alias=True), columns=columns)


def sha256(path: Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
