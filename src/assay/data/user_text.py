"""A user's own text: a .jsonl or .parquet file of prompts, checked line by line, split without leaks.

Nothing of the file is executed or unpickled. What cannot be used is refused by its line number, never skipped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from assay.data.splitting import SHARES, assign_splits, loose_key, near_duplicates, row_keys
from assay.errors import AssayError, unknown_name
from assay.validation import template_columns

SUFFIXES = (".jsonl", ".parquet")
DEFAULT_TEMPLATE = "{prompt}"
RESERVED = ("reference", "split")
"""Columns that a template may not show: the answer, and what assay itself decides."""
SHOWN_PROBLEMS = 3
SHOWN_EXAMPLES = 5
MAX_TEXT_BYTES = 2_000_000_000
"""Of a parquet file once it is unpacked; a few kilobytes can hold more than any memory."""


def is_user_file(name: str) -> bool:
    """Whether a task's name is the path of a file."""
    return name.lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class UserRow:
    """A checked row: its line (from 1), its id (its own, or made of the line), and its columns as they are."""

    line: int
    id: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class SplitText:
    """The rows of a user's file that remain, each with its split, and what was found on the way.

    ``rows`` hold ``id``, ``prompt_text`` (the template filled), ``content`` (the columns that it shows, by which
    prompts are compared), ``reference`` (None without one), ``group``, ``line`` (from 1) and ``split``. ``duplicates``
    are pairs of lines: the one left out and the one kept.
    """

    rows: list[dict[str, Any]]
    num_read: int
    duplicates: list[tuple[int, int]]
    num_groups: int
    largest_group: int


@dataclass(frozen=True)
class LeakageReport:
    """What the splits of a user's file share, and how large they are.

    ``near_duplicates`` counts, per split, the rows that nearly repeat a row of a split before it (oracle,
    distillation, held_out); ``examples`` are a few of them: Jaccard index and the two prompts.
    """

    path: str
    num_read: int
    duplicates: list[tuple[int, int]]
    num_groups: int
    largest_group: int
    num_references: int
    rows_per_split: dict[str, int]
    near_duplicates: dict[str, int]
    examples: list[tuple[str, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as text, a fact a line."""
        kept = self.num_read - len(self.duplicates)
        shown = ", ".join(f"line {left} repeats line {kept}" for left, kept in self.duplicates[:SHOWN_EXAMPLES])
        near = sum(self.near_duplicates.values())
        per_split = ", ".join(f"{count} in {split}" for split, count in self.near_duplicates.items() if count)
        return [
            f"{self.path}: {self.num_read} rows, {self.num_references} of the {kept} kept have a reference",
            f"exact duplicates left out: {len(self.duplicates)}" + (f" ({shown})" if shown else ""),
            f"groups that stay together: {self.num_groups}, the largest of {self.largest_group} rows",
            *(f"{split}: {count} rows" for split, count in self.rows_per_split.items()),
            f"near-duplicates across splits: {near} rows ({near / kept:.1%})" + (f", {per_split}" if near else ""),
            *(f"  {_short(one)}  ~  {_short(other)}" for one, other in self.examples),
            *self._sizes(),
        ]

    def _sizes(self) -> Iterator[str]:
        sizes = self.rows_per_split
        if not all(sizes.values()):
            empty = next(split for split, count in sizes.items() if not count)
            yield f"too few groups for an experiment: no row fell into {empty}; add rows"
            return
        yield (
            f"possible at most: --stage-one.num-oracle-prompts {sizes['oracle']} --distillation.num-prompts "
            f"{sizes['distillation']} --probe.num-prompts {sizes['held_out']} (less the prompts of more than "
            "task.max_prompt_tokens tokens)"
        )
        if sizes["held_out"] < 16:
            yield "a probe needs 16 held-out prompts or more: add rows"


def read_split(path: Path, template: str | None) -> SplitText:
    """The rows of a file with their splits; exact duplicates of (prompt, reference) are left out, the first kept.

    Rows that share a group, a prompt, or (without a group) a long reference are of one split.
    Raises AssayError for lines that cannot be used, for a template that cannot be filled, and when more than half of
    the rows chain into one group.
    """
    numbered = _prompts(path, read_rows(path), template or DEFAULT_TEMPLATE)
    kept: list[dict[str, Any]] = []
    first_line: dict[tuple[str, str | None], int] = {}
    duplicates: list[tuple[int, int]] = []
    for row in numbered:
        reference = None if row["reference"] is None else loose_key(row["reference"])
        key = (loose_key(row["content"]), reference)
        if key in first_line:
            duplicates.append((row["line"], first_line[key]))
        else:
            first_line[key] = row["line"]
            kept.append(row)
    keys_of_rows = [row_keys(row["content"], row["reference"], row["group"]) for row in kept]
    splits, groups = assign_splits(keys_of_rows)
    sizes = Counter(groups)
    largest = max(sizes.values())
    if largest > 1 and largest > len(kept) / 2:
        example = next(row for row, group in zip(kept, groups, strict=True) if sizes[group] == largest)
        raise AssayError(
            f"{str(path)!r}: {largest} of {len(kept)} rows hang together as one group (such as line {example['line']}) "
            "by the same prompt, 'group' or long reference: they cannot be split; give rows that may be apart a "
            "'group' each, or show more columns in --template"
        )
    rows = [{**row, "split": split} for row, split in zip(kept, splits, strict=True)]
    return SplitText(rows, len(numbered), duplicates, len(sizes), largest)


def leakage_report(path: Path, template: str | None = None) -> LeakageReport:
    """What ``assay tasks check`` prints: rows, duplicates, groups, splits, and what the splits still share."""
    text = read_split(path, template)
    order = {split: place for place, split in enumerate(SHARES)}
    rows = sorted(text.rows, key=lambda row: order[row["split"]])
    splits = [row["split"] for row in rows]
    pairs = near_duplicates([row["content"] for row in rows], splits)
    found = Counter(splits[i] for i, _ in pairs)
    return LeakageReport(
        path=str(path),
        num_read=text.num_read,
        duplicates=text.duplicates,
        num_groups=text.num_groups,
        largest_group=text.largest_group,
        num_references=sum(row["reference"] is not None for row in rows),
        rows_per_split={split: splits.count(split) for split in SHARES},
        near_duplicates={split: found[split] for split in SHARES},
        examples=[(_named(rows[i]), _named(rows[j])) for i, j in pairs[:SHOWN_EXAMPLES]],
    )


def read_rows(path: Path) -> list[UserRow]:
    """The checked rows of a file, in its order. Raises AssayError with the first lines that cannot be used."""
    if not is_user_file(path.name):
        raise AssayError(f"{str(path)!r}: a file of prompts ends in .jsonl or .parquet")
    try:
        found = list(_jsonl(path) if path.suffix.lower() == ".jsonl" else _parquet(path))
    except OSError as error:
        raise AssayError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (pa.ArrowException, ValueError, OverflowError) as error:  # of values that Python cannot hold
        raise AssayError(f"{str(path)!r} cannot be read as a file of prompts: {str(error).splitlines()[0]}") from error
    if not found:
        raise AssayError(f"{str(path)!r} holds no rows")
    problems: list[tuple[int, str]] = []
    rows: list[UserRow] = []
    line_of_id: dict[str, int] = {}
    for number, (row, problem) in enumerate(found, start=1):
        problem = problem or _problem(row)
        if problem is None:
            name = str(row["id"]) if row.get("id") is not None else f"line-{number:06d}"
            if name in line_of_id:
                problem = f"id {name!r} is already that of line {line_of_id[name]}"
            line_of_id.setdefault(name, number)
            rows.append(UserRow(number, name, row))
        if problem is not None:
            problems.append((number, problem))
    _refuse(path, problems, len(found))
    return rows


def _jsonl(path: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Each line as a row and what is wrong with it, if anything."""
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for line in lines[:-1] if lines[-1] == b"" else lines:
        try:
            value = json.loads(line.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
        except UnicodeDecodeError as error:
            yield {}, f"byte {error.start + 1} is not UTF-8"
        except (ValueError, RecursionError) as error:
            yield {}, f"is not JSON ({str(error).split(': line 1')[0]})" if line.strip() else "is empty"
        else:
            yield (value, None) if isinstance(value, dict) else ({}, "is not a JSON object with a 'prompt'")


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
    if "prompt" not in table.column_names:
        raise AssayError(f"{str(path)!r} has no column 'prompt': it has {', '.join(table.column_names) or 'none'}")
    if len(set(table.column_names)) < len(table.column_names):
        raise AssayError(f"{str(path)!r} has two columns of one name: rename one")
    for row in table.to_pylist():
        yield row, None


def _plain(column: pa.Array) -> pa.Array:
    """A column whose size is that of its values: a dictionary may repeat one long text a million times."""
    return column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column


def _problem(row: dict[str, Any]) -> str | None:
    """What makes a row useless, or None."""
    if not all(map(_is_unicode, row)):
        return "has a column whose name holds half of a surrogate pair"
    if row.get("prompt") is None:
        return "has no 'prompt'"
    for column in ("prompt", "reference"):
        value = row.get(column)
        if value is None:
            continue
        if not isinstance(value, str):
            return f"{column!r} is {type(value).__name__}, not text"
        if not value.strip():
            return f"{column!r} is empty" + (": leave it out, or null" if column == "reference" else "")
        if not _is_unicode(value):
            return f"{column!r} holds half of a surrogate pair, which is no character"
    for column in ("id", "group"):
        value = row.get(column)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            return f"{column!r} is {type(value).__name__}, neither text nor a whole number"
        if isinstance(value, str) and not (value.strip() and _is_unicode(value)):
            return f"{column!r} is empty or no text"
    return None


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _prompts(path: Path, rows: Sequence[UserRow], template: str) -> list[dict[str, Any]]:
    """Rows with their prompt text: the template filled with columns that must be text in every row."""
    columns = template_columns(template)
    known = {column for row in rows for column in row.columns}.difference(RESERVED)
    for column in columns:
        if column in RESERVED:
            raise AssayError(f"the template shows {column!r}, which the model must not see: take it out")
        if column not in known:
            raise unknown_name("column in the template", column, known)
    problems = [
        (row.line, f"column {column!r} of the template is {_kind(row.columns.get(column))}, not text")
        for row in rows
        for column in columns
        if not (isinstance(row.columns.get(column), str) and _is_unicode(row.columns[column]))
    ]
    _refuse(path, problems, len(rows))
    prompts = [
        {
            "id": row.id,
            "prompt_text": template.format(**{column: row.columns[column] for column in columns}),
            "content": "\n".join(row.columns[column] for column in sorted(set(columns))),
            "reference": row.columns.get("reference"),
            "group": None if row.columns.get("group") is None else str(row.columns["group"]),
            "line": row.line,
        }
        for row in rows
    ]
    empty = [(prompt["line"], "gives an empty prompt") for prompt in prompts if not prompt["prompt_text"].strip()]
    _refuse(path, empty, len(rows))
    return prompts


def _kind(value: object) -> str:
    return "missing" if value is None else type(value).__name__


def _refuse(path: Path, problems: Sequence[tuple[int, str]], num_rows: int) -> None:
    if problems:
        first = "; ".join(f"line {number} {problem}" for number, problem in problems[:SHOWN_PROBLEMS])
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise AssayError(f"{str(path)!r}: {len(problems)} of {num_rows} lines cannot be used: {first}{more}")


def _named(row: dict[str, Any]) -> str:
    return f"line {row['line']} ({row['split']}): {row['prompt_text']}"


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else f"{flat[:59]}…"
