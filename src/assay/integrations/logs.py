"""Reading training logs: of assay, of transformers, TensorBoard, W&B and Trackio, or plain tables.

Every reader fills a ``_Sheet``: for each column that may be meant, the rows that have a value and what it is. What the
columns mean, which run is taken and how rows become evaluations is decided once, on that sheet.
"""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import json
import math
import reprlib
import sqlite3
import stat
from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from assay.diagnostics.trajectory import COLUMNS, Floats, Trajectory
from assay.errors import AssayError, unknown_name

if TYPE_CHECKING:
    import pyarrow as pa

STEP = "step"
NONE = "none"
"""The name that stands for: do not use this column."""

_ALIASES = {
    STEP: ("step", "global_step", "trainer/global_step", "_step", "steps", "iteration"),
    "proxy": ("proxy", "proxy_nats", "eval_proxy", "eval_loss", "val_loss", "validation_loss", "valid_loss"),
    "train_proxy": ("train_proxy", "train_proxy_nats", "loss", "train_loss", "train_loss_nats_per_token"),
    "reference_nll": ("reference_nll", "reference_nll_nats"),
    "golden": ("golden", "golden_nats"),
    "student_entropy": ("student_entropy", "student_entropy_nats_per_token"),
    "teacher_entropy": ("teacher_entropy", "teacher_entropy_nats_per_token"),
    "response_tokens": ("response_tokens", "response_tokens_mean", "completions/mean_length"),
    "truncated": ("truncated", "truncated_fraction", "completions/clipped_ratio"),
    "repetition": ("repetition", "repetition_fraction"),
    "distinct": ("distinct", "distinct_2"),
}
"""Names that are understood, best first. A column of COLUMNS that is not here has its own name only."""
_EPOCH = ("epoch", "epochs")
_ARMS = ("arm", "run_name")
"""Columns that name the run of a row: of assay, of Trackio."""
_HELD_OUT = ("eval/", "val/", "valid/", "validation/")
_ONLY_HELD_OUT = ("proxy", "reference_nll", "golden")
_INDEX = {alias: (name, rank) for name in (STEP, *COLUMNS) for rank, alias in enumerate(_ALIASES.get(name, (name,)))}
_INDEX |= {f"eval_{alias}": _INDEX[alias] for alias in ("completions/mean_length", "completions/clipped_ratio")}

_MOST_NAMES = 12
"""How many columns an error lists."""
_SNIFFED = 4096
_EVENTS = "tfevents"


@dataclass(frozen=True)
class Log:
    """A training log as aligned columns, and what was guessed to get there.

    ``arm`` is the run that was taken where the log holds runs by name; ``folder`` the run folder, if it is one.
    """

    trajectory: Trajectory
    guesses: list[str]
    arm: str | None
    folder: Path | None


def read_log(path: Path, columns: Mapping[str, str] = {}, arm: str | None = None) -> Log:
    """The log in ``path``: CSV, JSON, JSON lines, parquet, trainer_state.json, TensorBoard, Trackio or a run folder.

    ``columns`` maps "step" and names of ``trajectory.COLUMNS`` to names in the log ("none": leave it out); the others
    are guessed. One evaluation for each step at which the proxy has a value; ``train_proxy`` is its mean since the
    evaluation before, other columns their last value.

    Raises:
        AssayError: the log cannot be read, lacks a column, or says what no log can mean.
    """
    for name in columns:
        if name not in (STEP, *COLUMNS):
            raise unknown_name("column", name, (STEP, *COLUMNS))
    if "\0" in str(path):
        raise AssayError(f"cannot read {str(path)!r}: no path has a NUL in it")
    try:
        inside = {each.name for each in path.iterdir()} if stat.S_ISDIR(path.stat().st_mode) else set()
        if _is_run(inside):
            return _read_run(path, columns, arm)
        sheet = _read_file(path, columns)
    except OSError as error:
        raise AssayError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    chosen = _choose_arm(sheet, arm)
    names = _choose_columns(sheet, columns)
    return Log(_align(sheet, names), sheet.guesses, chosen, None)


def _is_run(names: Collection[str]) -> bool:
    # Other tools have a manifest too; a run whose first evaluation is still to come has nothing else.
    known = {"metrics.jsonl", "arms"} & set(names)
    return bool(known) or ("manifest.json" in names and not any(_EVENTS in name for name in names))


# ---- what a file says ----------------------------------------------------------------------------------------------


@dataclass
class _Column:
    """The rows that have a value, and the values; ``texts`` when the values are places in it. ``bad``: no number."""

    rows: Any = field(default_factory=lambda: array("q"))
    values: Any = field(default_factory=lambda: array("d"))
    texts: dict[str, int] | None = None
    bad: tuple[int, str] | None = None

    def add(self, row: int, value: Any) -> None:
        kind = type(value)
        if value is None:
            return
        if self.texts is not None:
            value = self.texts.setdefault(str(value), len(self.texts))
        elif kind is not float and kind is not int:
            self.refuse(row, value)
            return
        try:
            self.values.append(value)
        except OverflowError:
            self.refuse(row, value)
        else:
            self.rows.append(row)

    def refuse(self, row: int, value: Any) -> None:
        if self.bad is None:
            self.bad = (row, reprlib.repr(value))

    def keep(self, rows: NDArray[np.int64]) -> _Column:
        """Without the rows that are not among ``rows``."""
        own = np.asarray(self.rows)
        kept = np.isin(own, rows)
        return _Column(own[kept], np.asarray(self.values)[kept], self.texts, self.bad)


@dataclass
class _Sheet:
    """A log as sparse columns. ``names`` are all of its columns, ``columns`` those that the user may mean.

    A row is a number that people can find again: ``word`` says of what.
    """

    path: Path
    word: str
    given: Collection[str]
    names: dict[str, None] = field(default_factory=dict)
    columns: dict[str, _Column] = field(default_factory=dict)
    guesses: list[str] = field(default_factory=list)

    def column(self, name: str) -> _Column | None:
        """The column of that name; None, and only the name is kept, where it cannot be meant."""
        if name not in self.names:
            self.names[name] = None
            if name in self.given or name in _ARMS or _is_epoch(name) or _meaning(name):
                self.columns[name] = _Column(texts={} if name in _ARMS else None)
        return self.columns.get(name)

    def add(self, row: int, record: Any) -> None:
        if not isinstance(record, dict):
            raise AssayError(f"{self.at(row)} is {reprlib.repr(record)}: every record must be an object with names")
        for name, value in record.items():
            column = self.columns.get(name) or self.column(name)
            if column is None:
                continue
            if type(value) is float and column.texts is None:  # as most are: a million calls less
                column.values.append(value)
                column.rows.append(row)
            else:
                column.add(row, value)

    def at(self, row: int) -> str:
        return f"{self.word} {row} of {str(self.path)!r}"

    def listed(self) -> str:
        names = [repr(name) for name in itertools.islice(self.names, _MOST_NAMES)]
        more = len(self.names) - len(names)
        return ", ".join(names) + (f" and {more} more" if more else "")

    def has_values(self, name: str) -> bool:
        return name in self.columns and (len(self.columns[name].rows) > 0 or self.columns[name].bad is not None)


def _read_file(path: Path, columns: Mapping[str, str]) -> _Sheet:
    if path.is_dir() or (_EVENTS in path.name and path.is_file()):
        return _read_events(path, columns.values())
    if not path.is_file():
        raise AssayError(f"{str(path)!r} is neither a file nor a folder")
    with path.open("rb") as file:
        start = file.read(_SNIFFED)
    suffix = path.suffix.lower()
    if not start:
        raise AssayError(f"{str(path)!r} is empty")
    given = columns.values()
    if start.startswith(b"PAR1"):
        return _read_parquet(path, given)
    if start.startswith(b"SQLite format 3\0"):
        return _read_trackio(path, given)
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if suffix in (".jsonl", ".ndjson"):
        return _read_lines(path, given)
    if suffix == ".json" or (suffix not in (".csv", ".tsv") and first in (b"[", b"{")):
        return _read_json(path, given)
    return _read_csv(path, given)


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _binary(path) from error
    if "\0" in text:
        raise _binary(path)
    if not text.strip():
        raise AssayError(f"{str(path)!r} is empty")
    return text


def _binary(path: Path) -> AssayError:
    return AssayError(f"{str(path)!r} is not UTF-8 text, nor any other format that is known: export it as CSV or JSON")


def _read_lines(path: Path, given: Collection[str]) -> _Sheet:
    data = path.read_bytes()
    body, _, last = data.rpartition(b"\n")
    unfinished = body.strip() and last.strip() and not _is_json(last, path)
    if unfinished:
        data = body + b"\n"
    sheet = _read_lines_fast(data, path, given)
    if sheet is None:
        sheet = _Sheet(path, "line", given)
        for number, line in enumerate(io.BytesIO(data), start=1):
            if line.strip():
                sheet.add(number, _record(line, number, sheet))
    if unfinished:
        sheet.guesses.append(f"left out line {_num_lines(data) + 1}, the last: it is not written to its end")
    return sheet


def _is_json(line: bytes, path: Path) -> bool:
    try:
        json.loads(line)
    except RecursionError as error:
        raise _too_deep(f"the last line of {str(path)!r}") from error
    except ValueError:
        return False
    return True


def _record(line: bytes, number: int, sheet: _Sheet) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except RecursionError as error:
        raise _too_deep(sheet.at(number)) from error
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError) or b"\0" in line:
            raise _binary(sheet.path) from error
        raise AssayError(f"{sheet.at(number)} is not valid JSON: {error}") from error


def _read_lines_fast(data: bytes, path: Path, given: Collection[str]) -> _Sheet | None:
    # None when anything is odd: reading it line by line then finds what, and where.
    import pyarrow as pa
    from pyarrow import json as pa_json

    try:
        table = pa_json.read_json(pa.BufferReader(data), pa_json.ReadOptions(use_threads=False))
    except pa.ArrowException:
        return None
    sheet = _Sheet(path, "line", given)
    for name in table.column_names:
        if sheet.column(name) is not None:
            kind = table[name].type
            if not (pa.types.is_string(kind) if name in _ARMS else _is_number(kind)):
                return None
            sheet.columns[name] = _from_arrow(table[name], first_row=1)
    return sheet if table.num_rows == _num_lines(data) else None


def _num_lines(data: bytes) -> int:
    return data.count(b"\n") + (not data.endswith(b"\n"))


def _too_deep(where: str) -> AssayError:
    return AssayError(f"{where} is nested too deep to be a record of a log")


def _read_json(path: Path, given: Collection[str]) -> _Sheet:
    text = _text(path)
    try:
        # A whole record in the first of several lines: lines of records, whatever the file is called.
        first, _, rest = text.lstrip().partition("\n")
        if rest.strip() and first.rstrip().endswith("}") and isinstance(json.loads(first), dict):
            return _read_lines(path, given)
        records = json.loads(text)
    except RecursionError as error:
        raise _too_deep(repr(str(path))) from error
    except json.JSONDecodeError as error:
        raise AssayError(f"line {error.lineno} of {str(path)!r} is not valid JSON: {error.msg}") from error
    except ValueError as error:
        raise AssayError(f"{str(path)!r} is not valid JSON: {error}") from error
    if isinstance(records, dict):
        records = records.get("log_history")
    if not isinstance(records, list):
        raise AssayError(f"{str(path)!r} is neither a list of records nor a trainer's state with 'log_history'")
    sheet = _Sheet(path, "entry", given)
    for number, record in enumerate(records, start=1):
        sheet.add(number, record)
    return sheet


def _read_csv(path: Path, given: Collection[str]) -> _Sheet:
    text = _text(path)
    header = text.lstrip().partition("\n")[0]
    tabs = "\t" in header and "," not in header
    delimiter = "\t" if tabs else ";" if ";" in header and "," not in header else ","
    sheet = _Sheet(path, "line", given)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=delimiter)
        try:
            names = next(cells for cells in lines if cells)
            for name in names:
                if name in sheet.names:
                    raise _twice(path, name)
                sheet.column(name)
            if lines.line_num == 1 and sheet.columns and _read_csv_fast(text, names, delimiter, sheet):
                return sheet
            for cells in lines:
                _add_cells(sheet, lines.line_num, names, cells)
        except (csv.Error, UnicodeDecodeError) as error:
            raise AssayError(f"{sheet.at(lines.line_num)} is not valid CSV: {error}") from error
    return sheet


def _twice(path: Path, name: str) -> AssayError:
    return AssayError(f"{str(path)!r} has two columns with the name {name!r}: rename one")


def _add_cells(sheet: _Sheet, line: int, names: list[str], cells: list[str]) -> None:
    if not cells:
        return
    if len(cells) != len(names):
        raise AssayError(f"{sheet.at(line)} has {len(cells)} cells, but the header names {len(names)} columns")
    for name, cell in zip(names, cells, strict=True):
        column = sheet.columns.get(name)
        if column is None or not cell.strip():
            continue
        value: str | float = cell
        if column.texts is None and "_" not in cell:
            try:
                value = float(cell)
            except ValueError:
                value = cell
        column.add(line, value)


def _read_csv_fast(text: str, names: list[str], delimiter: str, sheet: _Sheet) -> bool:
    # False when anything is odd: reading it cell by cell then finds what, and where.
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    types = {name: pa.float64() if column.texts is None else pa.string() for name, column in sheet.columns.items()}
    data = text.encode()
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            pa_csv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
            pa_csv.ParseOptions(delimiter=delimiter),
            pa_csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[""], strings_can_be_null=True
            ),
        )
    except pa.ArrowException:
        return False
    if table.num_rows + 1 != _num_lines(data):
        return False
    for name in types:
        sheet.columns[name] = _from_arrow(table[name], first_row=2)
    return True


def _from_arrow(values: pa.ChunkedArray, first_row: int) -> _Column:
    import pyarrow as pa

    rows = np.flatnonzero(np.asarray(values.is_valid())) + first_row
    present = values.drop_null()
    if pa.types.is_string(values.type):
        # Combined chunks have one dictionary.
        codes = present.combine_chunks().dictionary_encode()
        texts = {text: code for code, text in enumerate(codes.dictionary.to_pylist())}
        return _Column(rows, codes.indices.to_numpy().astype(np.float64), texts)
    return _Column(rows, present.cast(pa.float64(), safe=False).to_numpy())


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    is_one = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    return any(check(kind) for check in is_one)


def _read_parquet(path: Path, given: Collection[str]) -> _Sheet:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sheet = _Sheet(path, "row", given)
    try:
        with pq.ParquetFile(path) as file:
            for name in file.schema_arrow.names:
                if name in sheet.names:
                    raise _twice(path, name)
                sheet.column(name)
            for name in sheet.columns:
                sheet.columns[name] = _from_parquet(file.read([name])[name], name)
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise AssayError(f"{str(path)!r} is not a whole parquet file: {reason}") from error
    return sheet


def _from_parquet(values: pa.ChunkedArray, name: str) -> _Column:
    import pyarrow as pa

    if name in _ARMS:
        return _from_arrow(values.cast(pa.string()), first_row=1)
    if _is_number(values.type):
        return _from_arrow(values, first_row=1)
    column = _Column()
    present = np.flatnonzero(np.asarray(values.is_valid()))
    if len(present):
        column.refuse(int(present[0]) + 1, values[int(present[0])].as_py())
    return column


def _read_trackio(path: Path, given: Collection[str]) -> _Sheet:
    # Without a write-ahead log there is nothing to wait for, and "immutable" leaves no file beside the database.
    mode = "mode=ro" if Path(f"{path}-wal").exists() else "immutable=1"
    sheet = _Sheet(path, "row", given)
    try:
        connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?{mode}", uri=True)
        try:
            rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY rowid")
            for number, (run, step, metrics) in enumerate(rows, start=1):
                sheet.add(number, {**_blob(metrics, sheet.at(number)), "run_name": run, STEP: step})
        finally:
            connection.close()
    except sqlite3.Error as error:
        reason = f"cannot be read as the database of a Trackio project: {error}"
        raise AssayError(f"{str(path)!r} {reason}") from error
    return sheet


def _blob(metrics: Any, where: str) -> dict[str, Any]:
    try:
        record = json.loads(metrics)
    except RecursionError as error:
        raise _too_deep(where) from error
    except (TypeError, ValueError) as error:
        raise AssayError(f"'metrics' in {where} is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise AssayError(f"'metrics' in {where} is {reprlib.repr(record)}, but should be an object with names")
    return record


def _read_events(path: Path, given: Collection[str]) -> _Sheet:
    if path.is_dir() and not any(path.glob(f"*{_EVENTS}*")):
        inner = sorted({file.parent.name for file in path.glob(f"*/*{_EVENTS}*")})[:_MOST_NAMES]
        advice = f"give one of its folders: {', '.join(inner)}" if inner else "give the file of the log itself"
        raise AssayError(f"{str(path)!r} is no run folder of assay and holds no TensorBoard events: {advice}")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise AssayError(f"to read {str(path)!r} install tensorboard: pip install 'assay[logs]'") from error
    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    sheet = _Sheet(path, "event", given)
    numbers = itertools.count(1)
    tags = events.Tags()
    for tag in tags["scalars"]:
        for event in events.Scalars(tag):
            sheet.add(next(numbers), {tag: event.value, STEP: event.step})
    for tag in tags["tensors"]:  # where TensorFlow 2 and Keras write scalars
        for event in events.Tensors(tag):
            values = make_ndarray(event.tensor_proto)
            if values.size == 1 and values.dtype.kind in "fiu":
                sheet.add(next(numbers), {tag: float(values.item()), STEP: event.step})
    if not sheet.names:
        raise AssayError(f"{str(path)!r} holds no scalars: it is damaged, or nothing was logged yet")
    return sheet


# ---- what it means -------------------------------------------------------------------------------------------------


def _metric(name: str) -> str:
    # W&B exports "RUN - METRIC".
    return name.rpartition(" - ")[2]


def _run(name: str) -> str:
    return name.rpartition(" - ")[0]


def _is_epoch(name: str) -> bool:
    return _metric(name).strip().lower().rpartition("/")[2] in _EPOCH


def _meaning(name: str) -> tuple[str, tuple[int, int]] | None:
    """The column that a name stands for, and how well it does (less is better)."""
    key = _metric(name).strip().lower().removeprefix("assay/")
    held_out = next((prefix for prefix in _HELD_OUT if key.startswith(prefix)), None)
    if held_out:
        rest = key.removeprefix(held_out)
        forms = [f"eval_{rest}", rest]
    elif key.startswith("train/"):
        rest = key.removeprefix("train/")
        forms = [rest, f"train_{rest}"]
    else:
        forms = [key]
    for form in forms:
        meaning, rank = _INDEX.get(form, (None, 0))
        if meaning and not (held_out and meaning == "train_proxy"):
            if key.startswith("train/") and meaning in _ONLY_HELD_OUT:
                continue
            return meaning, (rank, len(key) - len(form))
    return None


def _choose_arm(sheet: _Sheet, arm: str | None) -> str | None:
    """Keeps the rows of one run, where the log says which row is whose."""
    column = next((sheet.columns[name] for name in _ARMS if name in sheet.names and sheet.columns[name].texts), None)
    if column is None or not column.texts:
        if arm is not None:
            raise AssayError(f"{str(sheet.path)!r} does not name arms or runs: leave out --arm {arm}")
        return None
    chosen = _one_of(list(column.texts), arm, sheet.guesses)
    if len(column.texts) > 1:
        rows = np.asarray(column.rows)[np.asarray(column.values) == column.texts[chosen]]
        sheet.columns = {name: each.keep(rows) for name, each in sheet.columns.items()}
    return chosen


def _one_of(arms: list[str], arm: str | None, guesses: list[str]) -> str:
    if arm is None:
        if len(arms) > 1:
            guesses.append(f"{len(arms)} arms: took {arms[0]!r} (--arm chooses another)")
        return arms[0]
    if arm not in arms:
        raise unknown_name("arm", arm, arms)
    return arm


def _choose_columns(sheet: _Sheet, given: Mapping[str, str]) -> dict[str, str]:
    """The name in the log of each column that is to be used; the step and the proxy are among them."""
    if not sheet.names:
        raise AssayError(f"{str(sheet.path)!r} holds no records")
    chosen = {meaning: _given(sheet, meaning, name) for meaning, name in given.items() if name.lower() != NONE}
    candidates: dict[str, list[tuple[tuple[int, int], str]]] = {}
    for name in sheet.columns:
        found = _meaning(name)
        if found and found[0] not in given and sheet.has_values(name):
            candidates.setdefault(found[0], []).append((found[1], name))
    # The proxy first: where the log is of several runs, the other columns are those of its run.
    for meaning in ("proxy", STEP, *COLUMNS):
        run = _run(chosen.get("proxy", ""))
        ranked = sorted(each for each in candidates.pop(meaning, ()) if not run or _run(each[1]) in (run, ""))
        if sheet.has_values(meaning) and meaning not in given:
            chosen[meaning] = meaning
        elif ranked:
            chosen[meaning] = _best(sheet, meaning, ranked)
            sheet.guesses.append(f"{meaning}: took the column {chosen[meaning]!r}")
    if "proxy" not in chosen:
        raise AssayError(
            f"{str(sheet.path)!r} has no column with values that could be the proxy: name it with --proxy; "
            f"there are {sheet.listed()}"
        )
    if STEP not in chosen:
        name = next((name for name in sheet.columns if _is_epoch(name) and sheet.has_values(name)), None)
        if name is None:
            raise AssayError(
                f"{str(sheet.path)!r} has no column of steps: name it with --step; there are {sheet.listed()}"
            )
        chosen[STEP] = name
        sheet.guesses.append(f"step: took the column {name!r}, there is none of steps")
    return chosen


def _given(sheet: _Sheet, meaning: str, name: str) -> str:
    if name not in sheet.names:
        near = difflib.get_close_matches(name, sheet.names, n=_MOST_NAMES, cutoff=0.0)
        raise unknown_name(f"column of {str(sheet.path)!r} ({_flag(meaning, name)})", name, near)
    if not sheet.has_values(name):
        raise AssayError(
            f"the column {name!r} of {str(sheet.path)!r} has no values: name another with {_flag(meaning)}"
        )
    return name


def _flag(meaning: str, column: str = "COLUMN") -> str:
    """How the command line names a column."""
    flags = {"train_proxy": "train", "reference_nll": "reference"}
    if meaning in ("step", "proxy", "golden", *flags):
        return f"--{flags.get(meaning, meaning)} {column}"
    return f"--columns {meaning}={column}"


def _best(sheet: _Sheet, meaning: str, ranked: list[tuple[tuple[int, int], str]]) -> str:
    equal = [name for rank, name in ranked if rank == ranked[0][0]]
    if len({_run(name) for name in equal}) > 1:
        shown = ", ".join(repr(name) for name in equal[:_MOST_NAMES])
        raise AssayError(f"{str(sheet.path)!r} holds several runs: name one with {_flag(meaning)}: {shown}")
    return equal[0]


# ---- rows to evaluations -------------------------------------------------------------------------------------------


def _align(sheet: _Sheet, names: Mapping[str, str]) -> Trajectory:
    """The evaluations: the steps at which the proxy has a value, and what the other columns said by then."""
    step_rows, steps = _numbers(sheet, STEP, names[STEP])
    negative = np.flatnonzero(steps < 0)
    if len(negative):
        first = negative[0]
        raise AssayError(f"{sheet.at(int(step_rows[first]))} has the step {steps[first]:g}: steps must not be negative")
    series = {
        meaning: _by_step(sheet, meaning, name, step_rows, steps) for meaning, name in names.items() if meaning != STEP
    }
    evaluations, proxy = series.pop("proxy")
    if len(evaluations) < 2:
        found = f"only one point, at step {evaluations[0]:g}" if len(evaluations) else "no point"
        raise AssayError(f"{names['proxy']!r} of {str(sheet.path)!r} has {found}: at least two are needed")
    columns = {"proxy": proxy}
    for meaning in COLUMNS:
        if meaning in series:
            average = _mean_since if meaning == "train_proxy" else _last_until
            columns[meaning] = average(*series[meaning], evaluations)
    return Trajectory(evaluations, columns)


def _numbers(sheet: _Sheet, meaning: str, name: str) -> tuple[NDArray[np.int64], Floats]:
    """Rows (ascending) and values of a column that is used: every one a finite number."""
    column = sheet.columns[name]
    rows, values = np.asarray(column.rows, dtype=np.int64), np.asarray(column.values, dtype=np.float64)
    is_needed = meaning in (STEP, "proxy")
    advice = f"name another with {_flag(meaning)}" if is_needed else f"{_flag(meaning, 'none')} leaves the column out"
    if column.texts is not None:
        raise AssayError(f"the column {name!r} of {str(sheet.path)!r} holds names, not numbers: {advice}")
    row, value = column.bad or (None, "")
    odd = np.flatnonzero(~np.isfinite(values))
    if len(odd) and (row is None or rows[odd[0]] < row):
        row, value = int(rows[odd[0]]), str(values[odd[0]])
    if row is not None:
        raise AssayError(f"{name!r} in {sheet.at(row)} is {value}, and not a finite number: {advice}")
    return rows, values


def _by_step(
    sheet: _Sheet, meaning: str, name: str, step_rows: NDArray[np.int64], steps: Floats
) -> tuple[Floats, Floats]:
    """Steps (ascending, each once) and values of a column."""
    rows, values = _numbers(sheet, meaning, name)
    place = np.searchsorted(step_rows, rows)
    lacking = np.flatnonzero((place == len(step_rows)) | (step_rows[np.minimum(place, len(step_rows) - 1)] != rows))
    if len(lacking):
        raise AssayError(f"{sheet.at(int(rows[lacking[0]]))} has a value of {name!r} but no step")
    own = steps[place]
    order = np.argsort(own, kind="stable")
    own, values, rows = own[order], values[order], rows[order]
    new = np.ones(len(own), dtype=bool)
    new[1:] = own[1:] != own[:-1]
    conflict = np.flatnonzero(~new[1:] & (values[1:] != values[:-1]))
    if len(conflict):
        i = conflict[0]
        raise AssayError(
            f"{name!r} is {values[i]:g} in {sheet.word} {rows[i]} and {values[i + 1]:g} "
            f"in {sheet.at(int(rows[i + 1]))}, both at step {own[i]:g}: keep one of them"
        )
    return own[new], values[new]


def _last_until(steps: Floats, values: Floats, evaluations: Floats) -> Floats:
    """The value at each evaluation, else the last before it, else NaN."""
    place = np.searchsorted(steps, evaluations, side="right")
    return np.concatenate([[math.nan], values])[place]


def _mean_since(steps: Floats, values: Floats, evaluations: Floats) -> Floats:
    """The mean of the values since the evaluation before (exclusive); where there is none, the last before."""
    means = _last_until(steps, values, evaluations)
    ends = np.searchsorted(steps, evaluations, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    counts = ends - starts
    some = counts > 0
    if some.any():
        # Shares first: sums of large values would overflow.
        shares = values[: ends[-1]] / np.repeat(counts[some], counts[some])
        means[some] = np.add.reduceat(shares, starts[some])
    return means


# ---- a run folder of assay -----------------------------------------------------------------------------------------


def _read_run(folder: Path, columns: Mapping[str, str], arm: str | None) -> Log:
    metrics = folder / "metrics.jsonl"
    guesses: list[str] = []
    if not metrics.exists():  # no arm of the run has finished yet
        arms = sorted(file.parent.name for file in folder.glob("arms/*/metrics.jsonl"))
        if not arms:
            raise AssayError(f"{str(folder)!r} holds no evaluation yet: wait for the first")
        metrics = folder / "arms" / _one_of(arms, arm, guesses) / "metrics.jsonl"
    sheet = _read_lines(metrics, columns.values())
    arm = _choose_arm(sheet, arm)
    guesses += sheet.guesses
    # Which column of its own is which, assay does not guess.
    trajectory = _align(sheet, _choose_columns(sheet, columns))
    if arm is not None and (folder / "probe.parquet").exists():
        for metric in ("proxy", "golden"):
            name = f"{metric}_diff_stderr"
            if metric not in columns and name not in columns:
                trajectory.columns[name] = _diff_stderr(folder, arm, metric, trajectory.steps)
    return Log(trajectory, guesses, arm, folder)


def _diff_stderr(folder: Path, arm: str, metric: str, evaluations: Floats) -> Floats:
    """Paired standard error of the change since the evaluation before; the first repeats the second."""
    from assay.report.files import read_probe
    from assay.results import per_prompt
    from assay.statistics import paired_difference

    steps, values_SP = per_prompt(read_probe(folder / "probe.parquet"), arm, metric)
    errors = np.full(len(evaluations), math.nan)
    if np.array_equal(steps, evaluations):
        for i in range(1, len(steps)):
            stderr = paired_difference(values_SP[i], values_SP[i - 1]).stderr
            errors[i] = math.nan if stderr is None else stderr
        errors[0] = errors[1]
    return errors
