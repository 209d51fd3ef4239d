"""The formats of logs, each read into a ``Sheet``: nothing is decided here about what its columns mean."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import reprlib
import sqlite3
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from assay.errors import AssayError
from assay.file_kinds import refuse_stand_in
from assay.integrations.log_sheet import ARMS, MOST_NAMES, STEP, Column, Sheet

if TYPE_CHECKING:
    import pyarrow as pa

_SNIFFED = 4096
EVENTS = "tfevents"
"""What TensorBoard's event files have in their names."""


def read_file(path: Path, columns: Mapping[str, str]) -> Sheet:
    """The columns of ``path``, whose format shows in its first bytes or its name; those in ``columns`` are kept too."""
    if path.is_dir() or (EVENTS in path.name and path.is_file()):
        return _read_events(path, columns.values())
    if not path.is_file():
        raise AssayError(f"{str(path)!r} is neither a file nor a folder: give the path of a log, or of a run folder")
    with path.open("rb") as file:
        start = file.read(_SNIFFED)
    suffix = path.suffix.lower()
    if not start:
        raise AssayError(f"{str(path)!r} is empty: wait for its first evaluations, or give another log")
    refuse_stand_in(path, start)
    given = columns.values()
    if start.startswith(b"PAR1"):
        return _read_parquet(path, given)
    if start.startswith(b"SQLite format 3\0"):
        return _read_trackio(path, given)
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if suffix in (".jsonl", ".ndjson"):
        return read_lines(path, given)
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
        raise AssayError(f"{str(path)!r} is empty: wait for its first evaluations, or give another log")
    return text


def _binary(path: Path) -> AssayError:
    return AssayError(f"{str(path)!r} is not UTF-8 text, nor any other format that is known: export it as CSV or JSON")


def read_lines(path: Path, given: Collection[str]) -> Sheet:
    """JSON lines; a last line that is still being written is left out, and said so."""
    data = path.read_bytes()
    body, _, last = data.rpartition(b"\n")
    unfinished = body.strip() and last.strip() and not _is_json(last, path)
    if unfinished:
        data = body + b"\n"
    sheet = _read_lines_fast(data, path, given)
    if sheet is None:
        sheet = Sheet(path, "line", given)
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


def _record(line: bytes, number: int, sheet: Sheet) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except RecursionError as error:
        raise _too_deep(sheet.at(number)) from error
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError) or b"\0" in line:
            raise _binary(sheet.path) from error
        raise AssayError(f"{sheet.at(number)} is not valid JSON: {error}; mend it, or take it out") from error


def _read_lines_fast(data: bytes, path: Path, given: Collection[str]) -> Sheet | None:
    # None when anything is odd: reading it line by line then finds what, and where.
    import pyarrow as pa
    from pyarrow import json as pa_json

    if re.search(rb"(^|[}\n])\s*null", data):
        return None  # pyarrow takes such a record for one of nulls, and ends the process where it is the first
    try:
        data.decode()  # pyarrow lets the names of columns be any bytes
        table = pa_json.read_json(pa.BufferReader(data), pa_json.ReadOptions(use_threads=False))
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    sheet = Sheet(path, "line", given)
    for name in table.column_names:
        if sheet.column(name) is not None:
            kind = table[name].type
            if not (pa.types.is_string(kind) if name in ARMS else _is_number(kind)):
                return None
            sheet.columns[name] = _from_arrow(table[name], first_row=1)
    return sheet if table.num_rows == _num_lines(data) else None


def _num_lines(data: bytes) -> int:
    return data.count(b"\n") + (not data.endswith(b"\n"))


def _too_deep(where: str) -> AssayError:
    return AssayError(f"{where} is nested too deep to be a record of a log: write names with one value each")


def _read_json(path: Path, given: Collection[str]) -> Sheet:
    text = _text(path)
    try:
        # A whole record in the first of several lines: lines of records, whatever the file is called.
        first, _, rest = text.lstrip().partition("\n")
        if rest.strip() and first.rstrip().endswith("}") and isinstance(json.loads(first), dict):
            return read_lines(path, given)
        records = json.loads(text)
    except RecursionError as error:
        raise _too_deep(repr(str(path))) from error
    except json.JSONDecodeError as error:
        raise AssayError(
            f"line {error.lineno} of {str(path)!r} is not valid JSON: {error.msg}; mend it, or write the log anew"
        ) from error
    except ValueError as error:
        raise AssayError(f"{str(path)!r} is not valid JSON: {error}; mend it, or write the log anew") from error
    if isinstance(records, dict):
        records = records.get("log_history")
    if not isinstance(records, list):
        raise AssayError(
            f"{str(path)!r} is neither a list of records nor a trainer's state with 'log_history': "
            "write a list of records, or one a line (.jsonl)"
        )
    sheet = Sheet(path, "entry", given)
    for number, record in enumerate(records, start=1):
        sheet.add(number, record)
    return sheet


def _read_csv(path: Path, given: Collection[str]) -> Sheet:
    text = _text(path)
    header = text.lstrip().partition("\n")[0]
    tabs = "\t" in header and "," not in header
    delimiter = "\t" if tabs else ";" if ";" in header and "," not in header else ","
    sheet = Sheet(path, "line", given)
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
            raise AssayError(f"{sheet.at(lines.line_num)} is not valid CSV: {error}; mend that line") from error
    return sheet


def _twice(path: Path, name: str) -> AssayError:
    return AssayError(f"{str(path)!r} has two columns with the name {name!r}: rename one")


def _add_cells(sheet: Sheet, line: int, names: list[str], cells: list[str]) -> None:
    if not cells:
        return
    if len(cells) != len(names):
        raise AssayError(
            f"{sheet.at(line)} has {len(cells)} cells, but the header names {len(names)} columns: mend that line"
        )
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


def _read_csv_fast(text: str, names: list[str], delimiter: str, sheet: Sheet) -> bool:
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


def _from_arrow(values: pa.ChunkedArray, first_row: int) -> Column:
    import pyarrow as pa

    rows = np.flatnonzero(np.asarray(values.is_valid())) + first_row
    present = values.drop_null()
    if pa.types.is_string(values.type):
        # Combined chunks have one dictionary.
        codes = present.combine_chunks().dictionary_encode()
        texts = {text: code for code, text in enumerate(codes.dictionary.to_pylist())}
        return Column(rows, codes.indices.to_numpy().astype(np.float64), texts)
    return Column(rows, present.cast(pa.float64(), safe=False).to_numpy())


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    is_one = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    return any(check(kind) for check in is_one)


def _read_parquet(path: Path, given: Collection[str]) -> Sheet:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sheet = Sheet(path, "row", given)
    try:
        with pq.ParquetFile(path) as file:
            for name in file.schema_arrow.names:
                if name in sheet.names:
                    raise _twice(path, name)
                sheet.column(name)
            for name in sheet.columns:
                sheet.columns[name] = _from_parquet(file.read([name])[name], name)
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise AssayError(f"{str(path)!r} is not a whole parquet file: {reason}; write it anew") from error
    return sheet


def _from_parquet(values: pa.ChunkedArray, name: str) -> Column:
    import pyarrow as pa

    if name in ARMS:
        return _from_arrow(values.cast(pa.string()), first_row=1)
    if _is_number(values.type):
        return _from_arrow(values, first_row=1)
    column = Column()
    present = np.flatnonzero(np.asarray(values.is_valid()))
    if len(present):
        column.refuse(int(present[0]) + 1, values[int(present[0])].as_py())
    return column


def _read_trackio(path: Path, given: Collection[str]) -> Sheet:
    # Without a write-ahead log there is nothing to wait for, and "immutable" leaves no file beside the database.
    mode = "mode=ro" if Path(f"{path}-wal").exists() else "immutable=1"
    sheet = Sheet(path, "row", given)
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
        raise AssayError(f"{str(path)!r} {reason}; export it as CSV or JSON") from error
    return sheet


def _blob(metrics: Any, where: str) -> dict[str, Any]:
    try:
        record = json.loads(metrics)
    except RecursionError as error:
        raise _too_deep(where) from error
    except (TypeError, ValueError) as error:
        raise AssayError(
            f"'metrics' in {where} is not valid JSON: {error}; export the project as CSV or JSON"
        ) from error
    if not isinstance(record, dict):
        raise AssayError(f"'metrics' in {where} is {reprlib.repr(record)}, but should be an object with names")
    return record


def _read_events(path: Path, given: Collection[str]) -> Sheet:
    if path.is_dir() and not any(path.glob(f"*{EVENTS}*")):
        inner = sorted({file.parent.name for file in path.glob(f"*/*{EVENTS}*")})[:MOST_NAMES]
        advice = f"give one of its folders: {', '.join(inner)}" if inner else "give the file of the log itself"
        raise AssayError(f"{str(path)!r} is no run folder of assay and holds no TensorBoard events: {advice}")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise AssayError(f"to read {str(path)!r} install tensorboard: pip install 'assay[logs]'") from error
    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    sheet = Sheet(path, "event", given)
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
        raise AssayError(
            f"{str(path)!r} holds no scalars: it is damaged, or nothing was logged yet; "
            "wait for the first evaluations, or give another log"
        )
    return sheet
