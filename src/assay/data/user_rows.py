"""The rows of a user's file: read from .jsonl or .parquet, and checked line by line.

Nothing of the file is executed or unpickled. What cannot be used is refused by its line number, never skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from assay.data.chat import ROLES, Conversation, Message
from assay.data.shards import is_sharded, shard_paths
from assay.errors import AssayError, unknown_name
from assay.file_kinds import NUM_TELLING_BYTES, refuse_stand_in

SUFFIXES = (".jsonl", ".parquet")
PROMPTS = ("prompt", "messages")
"""Columns that hold what is asked; the first that a row has counts."""
REFERENCE = "reference"
SHOWN_PROBLEMS = 3
LONGEST_NAME = 200
"""Characters of an id or a group."""
LONGEST_LIST = 120
"""Characters of the columns that an error lists."""
MAX_TEXT_BYTES = 2_000_000_000
"""Of a parquet file once it is unpacked; a few kilobytes can hold more than any memory."""


def is_user_file(name: str) -> bool:
    """Whether a task's name is the path of a file, or of a folder that ``assay generate`` wrote."""
    return name.lower().endswith(SUFFIXES) or is_sharded(Path(name))


@dataclass(frozen=True)
class UserRow:
    """A checked row: its line (from 1), its id (its own, or made of the line), and its columns as they are.

    ``conversation`` is None where the prompt is a text. ``reference`` and ``responses`` are read from the columns that
    the task names for them; a final assistant message is the reference too.
    """

    line: int
    id: str
    columns: dict[str, Any]
    conversation: Conversation | None
    reference: str | None
    responses: tuple[str, ...]


def read_rows(path: Path, reference: str = REFERENCE, responses: str | None = None) -> list[UserRow]:
    """The checked rows of a file, in its order. Raises AssayError with the first lines that cannot be used.

    ``reference`` and ``responses`` name the columns with the human answer and with the teacher's responses. A final
    assistant message is left out where ``reference`` is another column than the usual one.
    """
    found = _found(path)
    if reference != REFERENCE and not any(reference in row for row, _ in found):
        raise unknown_name(
            f"column of references in {str(path)!r}", reference, {name for row, _ in found for name in row}
        )
    problems: list[tuple[int, str]] = []
    rows: list[UserRow] = []
    line_of_id: dict[str, int] = {}
    for number, (columns, problem) in enumerate(found, start=1):
        problem = problem or _problem(columns, reference, responses)
        if problem is None:
            row = _checked(number, columns, reference, responses)
            if row.id in line_of_id:
                problem = f"id {row.id!r} is already that of line {line_of_id[row.id]}"
            line_of_id.setdefault(row.id, number)
            rows.append(row)
        if problem is not None:
            problems.append((number, problem))
    refuse(path, problems, len(found))
    return rows


def stream_rows(path: Path) -> Iterator[UserRow]:
    """The checked rows of a file one after the other: in bounded memory, however many there are.

    An id that is given twice is not noticed. Raises AssayError at the first line that cannot be used.
    """
    number = 0
    with _readable(path):
        found = _jsonl(path) if path.suffix.lower() == ".jsonl" else _streamed_parquet(path)
        for number, (columns, problem) in enumerate(found, start=1):
            problem = problem or _problem(columns, REFERENCE, None)
            if problem is not None:
                raise AssayError(f"{str(path)!r}: line {number} {problem}; mend that line, or take it out")
            yield _checked(number, columns, REFERENCE, None)
    if number == 0:
        raise AssayError(f"{str(path)!r} holds no rows: give a file with at least one prompt")


def refuse(path: Path, problems: Sequence[tuple[int, str]], num_rows: int) -> None:
    """Raises AssayError when there are problems: pairs of a line and what is wrong with it."""
    if problems:
        first = "; ".join(f"line {number} {problem}" for number, problem in problems[:SHOWN_PROBLEMS])
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise AssayError(
            f"{str(path)!r}: {len(problems)} of {num_rows} lines cannot be used: {first}{more}; "
            "mend these lines, or take them out"
        )


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _found(path: Path) -> list[tuple[dict[str, Any], str | None]]:
    """Each row and what is wrong with its line, if anything."""
    with _readable(path):
        if is_sharded(path):
            found = [row for shard in shard_paths(path) for row in _parquet(shard)]
        else:
            found = list(_jsonl(path) if path.suffix.lower() == ".jsonl" else _parquet(path))
    if not found:
        raise AssayError(f"{str(path)!r} holds no rows: give a file with at least one prompt")
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what reading a file of prompts raises into one sentence."""
    if not is_user_file(str(path)):
        raise AssayError(f"{str(path)!r}: a file of prompts ends in .jsonl or .parquet: write it as one of these")
    try:
        if not is_sharded(path):
            with path.open("rb") as file:
                refuse_stand_in(path, file.read(NUM_TELLING_BYTES))
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]  # pyarrow's have no errno
        raise AssayError(f"cannot read {str(path)!r}: {reason}; see that the file is there and may be read") from error
    except (pa.ArrowException, ValueError, OverflowError) as error:  # of values that Python cannot hold
        raise AssayError(
            f"{str(path)!r} cannot be read as a file of prompts: {str(error).splitlines()[0]}; "
            "write it anew as JSON lines in UTF-8, or as parquet"
        ) from error


def _jsonl(path: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Each line as a row and what is wrong with it, if anything."""
    for line in _lines(path):
        try:
            value = json.loads(line.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
        except UnicodeDecodeError as error:
            yield {}, f"byte {error.start + 1} is not UTF-8"
        except (ValueError, RecursionError) as error:
            yield {}, f"is not JSON ({str(error).split(': line 1')[0]})" if line.strip() else "is empty"
        else:
            yield (value, None) if isinstance(value, dict) else ({}, "is not a JSON object with a 'prompt'")


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            yield (line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line).removesuffix(b"\n")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("an object names a column twice")
    return dict(pairs)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _parquet(path: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    with path.open("rb") as file:
        parquet = pq.ParquetFile(file)
        batches, size = [], 0
        for batch in parquet.iter_batches(batch_size=1024):
            plain = pa.RecordBatch.from_arrays([_plain(column) for column in batch.columns], names=batch.schema.names)
            batches.append(plain)
            size += plain.nbytes
            if size > MAX_TEXT_BYTES:
                raise AssayError(f"{str(path)!r} unpacks to more than {MAX_TEXT_BYTES:,} bytes: give a part of it")
        names = parquet.schema_arrow.names
        table = pa.Table.from_batches(batches) if batches else pa.table({name: [] for name in names})
    _check_names(path, table.column_names)
    for row in table.to_pylist():
        yield row, None


def _streamed_parquet(path: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    with path.open("rb") as file:
        parquet = pq.ParquetFile(file)
        _check_names(path, parquet.schema_arrow.names)
        for batch in parquet.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield row, None


def _check_names(path: Path, names: Sequence[str]) -> None:
    check_columns(repr(str(path)), names)
    if len(set(names)) < len(names):
        raise AssayError(f"{str(path)!r} has two columns of one name: rename one")


def check_columns(source: str, names: Sequence[str]) -> None:
    """Raises AssayError when no column holds prompts."""
    if not set(PROMPTS).intersection(names):
        raise AssayError(
            f"{source} has no column 'prompt' or 'messages': it has {', '.join(names) or 'none'}; "
            "rename the one that holds the prompts"
        )


def _plain(column: pa.Array) -> pa.Array:
    """A column whose size is that of its values: a dictionary may repeat one long text a million times."""
    return column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column


def _checked(line: int, columns: dict[str, Any], reference: str, responses: str | None) -> UserRow:
    said = columns[_asked_in(columns)]
    conversation = None
    answer = columns.get(reference)
    if isinstance(said, list):
        conversation = tuple(Message(message["role"], message["content"]) for message in said)
        if conversation[-1].role == "assistant":
            answer = conversation[-1].content if reference == REFERENCE else answer
            conversation = conversation[:-1]
    given = [] if responses is None else columns[responses]
    return UserRow(
        line=line,
        id=str(columns["id"]) if columns.get("id") is not None else f"line-{line:06d}",
        columns=columns,
        conversation=conversation,
        reference=answer,
        responses=(given,) if isinstance(given, str) else tuple(given),
    )


def _asked_in(row: dict[str, Any]) -> str:
    return next((column for column in PROMPTS if row.get(column) is not None), PROMPTS[0])


def _problem(row: dict[str, Any], reference: str, responses: str | None) -> str | None:
    """What makes a row useless, or None."""
    if not all(map(is_unicode, row)):
        return "has a column whose name holds half of a surrogate pair"
    asked_in = _asked_in(row)
    said, answer = row.get(asked_in), row.get(reference)
    if said is None:
        others = ", ".join(repr(name) for name in row if name not in PROMPTS)
        return "has no 'prompt' or 'messages'" + (
            f", but {others[:LONGEST_LIST]}: rename the right one" if others else ""
        )
    if isinstance(said, list):
        problem = _conversation_problem(said, may_be_answered=asked_in == "messages")
        if problem is not None:
            return f"{asked_in!r} {problem}"
        if said[-1]["role"] == "assistant" and reference == REFERENCE and answer is not None:
            return "has a final assistant message and a 'reference': leave one of them out"
    elif asked_in == "messages":
        return f"'messages' is {type(said).__name__}, not a list of messages"
    else:
        problem = _text_problem(said, "text or a list of messages")
        if problem is not None:
            return f"{asked_in!r} {problem}"
    if answer is not None and (problem := _text_problem(answer)) is not None:
        return f"{reference!r} {problem}" + (": leave it out, or null" if problem == "is empty" else "")
    if responses is not None and (problem := _responses_problem(row.get(responses))) is not None:
        return f"{responses!r} {problem}"
    for column in ("id", "group"):
        value = row.get(column)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            return f"{column!r} is {type(value).__name__}, neither text nor a whole number"
        if isinstance(value, str) and not (value.strip() and is_unicode(value)):
            return f"{column!r} is empty or no text"
        if (problem := _name_problem(str(value))) is not None:
            return f"{column!r} {problem}"
    return None


def _name_problem(name: str) -> str | None:
    """What keeps a name from tables, logs and file names of whoever reads them, or None."""
    if len(name) > LONGEST_NAME:
        return f"has {len(name):,} characters: use {LONGEST_NAME} at most"
    if not name.isprintable():
        return "holds control characters: take them out"
    if name.startswith(("/", "\\", "~")) or ".." in re.split(r"[/\\]", name):
        return f"is {name!r}, a path that leads out of its folder: name it otherwise"
    return None


def _text_problem(value: object, wanted: str = "text") -> str | None:
    if not isinstance(value, str):
        return f"is {type(value).__name__}, not {wanted}"
    if not value.strip():
        return "is empty"
    return None if is_unicode(value) else "holds half of a surrogate pair, which is no character"


def _conversation_problem(messages: list[Any], may_be_answered: bool) -> str | None:
    """What is wrong with a list of messages, or None."""
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            return f"message {number} is {type(message).__name__}, not an object with 'role' and 'content'"
        if message.get("role") not in ROLES:
            return f"message {number} has the role {message.get('role')!r}: it must be one of {', '.join(ROLES)}"
        if (problem := _text_problem(message.get("content"))) is not None:
            return f"message {number} 'content' {problem}"
        others = [key for key, value in message.items() if value is not None and key not in ("role", "content")]
        if others:
            return f"message {number} has {others[0]!r}: only 'role' and 'content' are supported"
    asked = messages[:-1] if may_be_answered and messages and messages[-1]["role"] == "assistant" else messages
    if not asked or asked[-1]["role"] != "user":
        return "does not end with a message of the user" + (" (and an answer to it)" if may_be_answered else "")
    return None


def _responses_problem(value: object) -> str | None:
    """What is wrong with a teacher's responses, or None: a text, or a list of them."""
    if value is None:
        return "holds no response of the teacher"
    if isinstance(value, list):
        if not value:
            return "holds no response of the teacher"
        problems = (_text_problem(text) for text in value)
        return next((f"response {i} {problem}" for i, problem in enumerate(problems, 1) if problem is not None), None)
    return _text_problem(value, "text or a list of texts")
