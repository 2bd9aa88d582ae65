"""Files as the stages write and read them: whole under their name or not at all, and checked on reading."""

import csv
import fcntl
import hashlib
import io
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from stages.common.errors import UserError, explain, printable

MAX_BYTES = 2**30  # of a file that is read whole, by default

Content = TypeVar("Content", bound=BaseModel)


@contextmanager
def replacing(path: Path, synced: bool = True) -> Iterator[IO[bytes]]:
    """Open a new file beside `path` for writing; when the block ends without an error, rename it to `path`.

    The new file has a name of its own and follows no link. A leftover temporary file of a killed process is removed;
    git and DVC ignore its name. Missing folders are made.

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


def write_csv(path: Path, kind: type[BaseModel], rows: Sequence[BaseModel], synced: bool = True) -> None:
    """Write a line for each row, each of `kind`, with floats to eight significant digits."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns(kind), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = row.model_dump(by_alias=True)
        writer.writerow({name: f"{v:.8g}" if isinstance(v, float) else v for name, v in values.items()})
    write_bytes(path, file.getvalue().encode(), synced)


def read_bytes(path: Path, most: int = MAX_BYTES, missing: str = "no such file; make it with `dvc repro`") -> bytes:
    """The content of a regular file of at most `most` bytes. A device or a pipe is refused without waiting for it.

    Raises:
        UserError: there is no such file (`missing` says so), it is larger, it cannot be read, or it changes meanwhile.
    """
    where = printable(path)
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{where}: not a regular file")
            if status.st_size > most:
                raise UserError(f"{where}: larger than {most:,} bytes")
            content = file.read(status.st_size + 1)
            if len(content) != status.st_size:
                raise UserError(f"{where}: changed while it was read")
            return content
    except FileNotFoundError as error:
        raise UserError(f"{where}: {missing}") from error
    except (OSError, ValueError) as error:  # a ValueError is a NUL in the name
        raise UserError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_json(path: Path, kind: type[Content]) -> Content:
    """The content of a JSON file, checked against what its writer fills in.

    Raises:
        UserError: the file is missing, or holds something else.
    """
    try:
        return kind.model_validate_json(read_bytes(path))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}; make it again with `dvc repro`") from error


def read_csv(path: Path, kind: type[Content]) -> list[Content]:
    """The rows of a CSV file, checked against what its writer fills in: a column for each field of `kind`.

    Raises:
        UserError: the file is missing, or holds something else.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_bytes(path).decode(), newline=""), strict=True)
        if reader.fieldnames != columns(kind):
            raise UserError(f"{path}: its columns are not {', '.join(columns(kind))}; make it again with `dvc repro`")
        rows = TypeAdapter(list[kind])  # type: ignore[valid-type]
        return rows.validate_python(list(reader), strict=False)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}; make it again with `dvc repro`") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no table ({error}); make it again with `dvc repro`") from error


def columns(kind: type[BaseModel]) -> list[str]:
    """The names of the columns of a CSV file with rows of this kind."""
    return [field.alias or name for name, field in kind.model_fields.items()]


@contextmanager
def locked(path: Path, held: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of this file; it is released when the process ends, however it ends.

    Args:
        held: called if another process holds the lock. It may raise; otherwise this waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256(path: Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
