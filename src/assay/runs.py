"""One run directory: files that are written whole or not at all, and a log that is only ever appended to.

What a killed process leaves half done is put right by the next one and said, in ``repairs.jsonl`` and on stderr. Where
several processes go through one run together (``ranks``), one of them writes; in the others a call returns, or raises,
once that one has written.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from assay.errors import AssayError

LOCK = ".lock"
REPAIRS = "repairs.jsonl"
NUM_CHECKPOINTS = 2
"""How many a training loop keeps: a damaged one then costs no more than the steps since the one before."""
_UNFINISHED = ".unfinished"

SECONDS_TO_APPEAR = 60.0
"""How long a shared file system may take to show one machine what another has written."""

OneWriter = Callable[[str, Callable[[], None]], bool]


def _alone(what: str, write: Callable[[], None]) -> bool:
    write()
    return True


_one_writer: OneWriter = _alone


def let_one_write(one_writer: OneWriter | None) -> None:
    """From now on ``one_writer`` is given whatever is to be written; None: every process writes for itself.

    It is called with a few words on what is written and the writing itself, which it does or leaves to another
    process; it returns, or raises what that raised, once it is done, and says whether it was done here.
    """
    global _one_writer
    _one_writer = one_writer or _alone


def _write(path: Path, write: Callable[[], None]) -> None:
    """Writes ``path``, or waits until the process that does has written it and it can be seen here."""
    if _one_writer(f"writing {str(path)!r}", write):
        return
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while not path.exists():
        if time.monotonic() > deadline:
            raise AssayError(
                f"{str(path)!r} was written by another rank and is not to be seen here: all machines of a run need one "
                "file system that they share; choose a folder in it (--out)"
            )
        time.sleep(0.05)


def prepare_folder(folder: Path) -> None:
    """Makes the run folder; AssayError when that is not allowed or something else is in the way."""

    def make() -> None:
        with readable_errors(folder, "make the run folder"):
            _make_folder(folder)

    _write(folder, make)


@contextmanager
def locked(folder: Path, name: str = LOCK, elsewhere: str = "folder (--out, in a sweep --runs)") -> Iterator[None]:
    """Holds the run folder for this process; a second process is refused (the lock dies with its holder).

    ``name`` is the lock's file, and ``elsewhere`` what a second process is told to choose another of.
    """
    with ExitStack() as held:
        _one_writer(f"locking {str(folder)!r}", lambda: held.enter_context(_lock_of(folder, name, elsewhere)))
        yield


@contextmanager
def _lock_of(folder: Path, name: str, elsewhere: str) -> Iterator[None]:
    with readable_errors(folder, "write in"):
        file = (folder / name).open("a")
    with file:
        with readable_errors(folder, "lock"):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AssayError(
                    f"another process is working in {str(folder)!r}: wait for it, or choose another {elsewhere}"
                ) from error
        yield


def allow_open_files(number: int) -> None:
    """Raises this process's own limit so that ``number`` more files may be open; AssayError where that is forbidden."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + 256  # pipes of workers, libraries, tables that are being read
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise AssayError(
            f"{number} runs at once need {wanted} open files, and this system allows {hard}: raise `ulimit -Hn`, or "
            "sweep in several parts"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def put_in_order(folder: Path) -> None:
    """Takes away what killed processes have left of half-written files in a run, and a torn end of its repairs.

    Only for whoever holds the lock: what another process is writing now looks the same.
    """
    _one_writer(f"clearing up {str(folder)!r}", lambda: _clear_up(folder))


def _clear_up(folder: Path) -> None:
    with readable_errors(folder, "clear up"):
        for path in sorted(folder.rglob(f".*{_UNFINISHED}")):
            _remove_leftover(path)
    _cut_off_torn_line(folder / REPAIRS, say)


def put_in_order_if_alone(folder: Path) -> BinaryIO:
    """The same for a folder that processes share, if no other one is there: each holds on to the result while it is.

    For a process that has not begun to write: whoever is alone clears up, and those who come meanwhile wait for it.
    """
    with readable_errors(folder, "write in"):
        file = (folder / LOCK).open("ab")
    with suppress(OSError):  # others are there, or this file system has no locks: then nothing is taken away
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _clear_up(folder)
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH)
    return file


def remove_leftovers_of(path: Path) -> None:
    """Takes away what killed processes have left beside ``path`` when they wrote it; for whoever holds its lock."""
    with readable_errors(path.parent, "clear up"):
        for each in list(path.parent.iterdir()):
            if each.name.startswith(f".{path.name}."):
                _remove_leftover(each)


def _remove_leftover(path: Path) -> None:
    is_ours = re.fullmatch(rf"\..+\.[a-z0-9_]{{8}}{re.escape(_UNFINISHED)}", path.name) is not None
    if is_ours and path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)


def note_repair(folder: Path, text: str) -> None:
    """Says what was put right in a run: on stderr, and in its ``repairs.jsonl``."""

    def note() -> None:
        say(text)
        append_record(folder / REPAIRS, {"repair": text})

    _one_writer(f"noting a repair of {str(folder)!r}", note)


def say(text: str) -> None:
    """One line on stderr."""
    print(f"assay: {text}", file=sys.stderr, flush=True)


@contextmanager
def readable_errors(path: Path, doing: str) -> Iterator[None]:
    """Turns an operating system's refusal (no space, no permission, no such folder) into one sentence."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free space; the same command then resumes" if full else "choose another folder"
        raise AssayError(f"cannot {doing} {str(path)!r}: {error.strerror or error}: {advice}") from error


def write_atomically(path: Path, write: Callable[[Path], None], *, by_each: bool = False) -> None:
    """Calls ``write`` on a temporary path beside ``path`` and renames it: readers see all of it or nothing.

    ``write`` may make a file or a folder; an old folder is moved away just before the new one takes its name. All of it
    is on the disk before it has its name, and the name before this returns. Nothing is left behind when it fails; what
    a kill leaves, ``put_in_order`` takes away. ``by_each``: every process writes a path of its own, whatever the
    others do.
    """
    if by_each:
        _write_atomically(path, write)
    else:
        _write(path, lambda: _write_atomically(path, write))


def _write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    with readable_errors(path, "write"):
        _make_folder(path.parent)
        holder = _holder(path)
        try:
            temporary = holder / path.name
            write(temporary)
            for part in [temporary, *(temporary.rglob("*") if temporary.is_dir() else ())]:
                _flush(part)
            if path.is_dir() and temporary.is_dir():
                os.replace(path, holder / "replaced")
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            shutil.rmtree(holder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

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
        raise AssayError(
            f"cannot read {str(path)!r}: {error.strerror}; see that it is there and may be read"
        ) from error
    except (ValueError, RecursionError) as error:
        raise AssayError(f"{str(path)!r} is not valid JSON ({error}): delete the run folder and run again") from error


def read_table(path: Path) -> pa.Table:
    """The table of a parquet file of a run; AssayError when it is missing or damaged."""
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise damaged(path, error) from error


def file_digest(*paths: Path) -> str:
    """SHA-256 of the bytes of files, one after the other, in 64 hex digits; a block at a time. OSError as it comes."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 16):
                total.update(block)
    return total.hexdigest()


def damaged(path: Path, error: Exception) -> AssayError:
    """The error for a file of a run that cannot be read."""
    cause = (str(error).splitlines() or [type(error).__name__])[0]
    return AssayError(
        f"{str(path)!r} is missing or damaged ({cause}): delete the folder it is in; the same command repeats it"
    )


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Appends one JSON line and flushes it to the disk."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"

    def append() -> None:
        with readable_errors(path, "write"):
            is_new = not path.exists()
            with path.open("ab", buffering=0) as file:  # one write: lines of several processes do not mix
                if file.write(content := line.encode()) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            if is_new:
                _flush(path.parent)

    _write(path, append)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a torn last line (the process was killed while writing) is left out."""
    if not path.exists():
        return []
    try:
        *lines, torn = path.read_bytes().split(b"\n")
        records = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    # the beginning of a record, or, after a power failure, room for one
    if not all(isinstance(record, dict) for record in records) or not (torn.startswith(b"{") or not torn.strip(b"\0")):
        raise damaged(path, ValueError("a line is no record"))
    return records


def repair_log(path: Path, said: Callable[[str], None]) -> None:
    """Cuts off a torn last line, and says so: a process was killed, or the disk was full, while it was written.

    Raises AssayError when anything else is wrong with the log.
    """
    _one_writer(f"repairing {str(path)!r}", lambda: _cut_off_torn_line(path, said))


def _cut_off_torn_line(path: Path, said: Callable[[str], None]) -> None:
    read_records(path)
    if not path.exists():
        return
    with readable_errors(path, "write"), path.open("r+b") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end == len(content):
            return
        file.truncate(end)
        os.fsync(file.fileno())
    torn = len(content) - end
    said(f"the last line of {str(path)!r} was torn ({torn} bytes, no end): cut off; its record is made again")


def keep_records(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrites a log with the records for which ``keep`` is true (a resumed run drops what it will repeat)."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in read_records(path) if keep(record))
    write_text(path, text)


def remove(path: Path) -> None:
    """Removes a folder by renaming it first, so that a half-removed folder is never taken for a whole one."""

    def rename_and_remove() -> None:
        with readable_errors(path, "remove"):
            holder = _holder(path)
            os.replace(path, holder / path.name)
            shutil.rmtree(holder)

    _one_writer(f"removing {str(path)!r}", rename_and_remove)


def _holder(path: Path) -> Path:
    """A folder of its own beside ``path``, whose name says that what is in it is unfinished."""
    return Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED))


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, so that they are there after a power failure too."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _flush(each.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
