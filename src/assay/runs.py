"""One run directory: files that are written whole or not at all, and a log that is only ever appended to."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assay.errors import AssayError

LOCK = ".lock"


def prepare_folder(folder: Path) -> None:
    """Makes the run folder; AssayError when that is not allowed or something else is in the way."""
    with readable_errors(folder, "make the run folder"):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run folder for this process; a second process is refused (the lock dies with its holder)."""
    with readable_errors(folder, "write in"):
        file = (folder / LOCK).open("a")
    with file:
        with readable_errors(folder, "lock"):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AssayError(
                    f"another process is working in {str(folder)!r}: wait for it, or choose another folder (--out, "
                    "in a sweep --runs)"
                ) from error
        yield


@contextmanager
def readable_errors(path: Path, doing: str) -> Iterator[None]:
    """Turns an operating system's refusal (no space, no permission, no such folder) into one sentence."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free space; the same command then resumes" if full else "choose another folder"
        raise AssayError(f"cannot {doing} {str(path)!r}: {error.strerror or error}: {advice}") from error


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls ``write`` on a temporary path beside ``path`` and renames it: readers see all of it or nothing.

    ``write`` may make a file or a folder. Nothing is left behind when it fails.
    """
    with readable_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            temporary = holder / path.name
            write(temporary)
            for file in [temporary] if temporary.is_file() else temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            if path.is_dir() and temporary.is_dir():
                os.replace(path, holder / "replaced")
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            shutil.rmtree(holder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a parquet file atomically."""
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, refusing NaN and infinity."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def read_json(path: Path) -> Any:
    """The value in a JSON file; AssayError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise AssayError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise AssayError(f"{str(path)!r} is not valid JSON ({error}): delete the run folder and run again") from error


def read_table(path: Path) -> pa.Table:
    """The table of a parquet file of a run; AssayError when it is missing or damaged."""
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> AssayError:
    """The error for a file of a run that cannot be read."""
    cause = (str(error).splitlines() or [type(error).__name__])[0]
    return AssayError(
        f"{str(path)!r} is missing or damaged ({cause}): delete the folder it is in; the same command repeats it"
    )


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Appends one JSON line and flushes it to the disk."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    with readable_errors(path, "write"), path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a torn last line (the process was killed while writing) is left out."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not all(isinstance(record, dict) for record in records):
        raise damaged(path, ValueError("a line is no record"))
    return records


def keep_records(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrites a log with the records for which ``keep`` is true (a resumed run drops what it will repeat)."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in read_records(path) if keep(record))
    write_text(path, text)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a folder by renaming it first, so that a half-removed folder is never taken for a whole one."""
    with readable_errors(path, "remove"):
        doomed = path.with_name(f".{path.name}.removed")
        os.replace(path, doomed)
        shutil.rmtree(doomed)
