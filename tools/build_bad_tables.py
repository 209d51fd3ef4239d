"""Builds those bad inputs of tests/bad_inputs/logs and rows that are no text: parquet, SQLite and TensorBoard's events.

python tools/build_bad_tables.py tests/bad_inputs
"""

from __future__ import annotations

import datetime
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

NO_PROXY = "no column with values that could be the proxy"
INFINITY = float("inf")
DAY = datetime.datetime(2024, 1, 1)


def parquet(columns: dict[str, Any] | pa.Table) -> bytes:
    """A parquet file of these columns."""
    sink = pa.BufferOutputStream()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def prompts_that_are_tables() -> dict[str, tuple[bytes, str]]:
    """Files of prompts that cannot be used: content, and what the error must hold."""
    whole = parquet({"prompt": ["Define dog.", "Define cat."]})
    arrow = pa.BufferOutputStream()
    feather.write_feather(pa.table({"prompt": ["Define dog."]}), arrow)
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    return {
        "no-rows.parquet": (parquet({"prompt": pa.array([], pa.string())}), "holds no rows"),
        "no-columns.parquet": (parquet({}), "no column 'prompt' or 'messages'"),
        "cut-off.parquet": (whole[:-40], "cannot be read as a file of prompts"),
        "cut-in-the-middle.parquet": (whole[:20] + whole[60:], "cut-in-the-middle.parquet"),
        "feather.parquet": (arrow.getvalue().to_pybytes(), "cannot be read as a file of prompts"),
        "whole.jsonl": (whole, "whole.jsonl"),
        "column-twice.parquet": (parquet(twice), "two columns of one name"),
        "other-columns.parquet": (
            parquet({"text": ["a"], "label": [1]}),
            "no column 'prompt' or 'messages': it has text",
        ),
        "prompts-that-are-numbers.parquet": (parquet({"prompt": [1, 2]}), "'prompt' is int"),
        "prompts-that-are-bytes.parquet": (parquet({"prompt": [b"a", b"\xff"]}), "'prompt' is bytes"),
        "prompts-that-are-dates.parquet": (parquet({"prompt": [DAY]}), "'prompt' is datetime"),
        "prompts-some-null.parquet": (parquet({"prompt": ["a", None]}), "line 2 has no 'prompt' or 'messages'"),
        "prompts-of-one-struct.parquet": (parquet({"prompt": [{"text": "a"}]}), "'prompt' is dict"),
        "ids-twice.parquet": (
            parquet({"prompt": ["a", "b"], "id": ["x", "x"]}),
            "line 2 id 'x' is already that of line 1",
        ),
        "ids-that-are-dates.parquet": (parquet({"prompt": ["a"], "id": [DAY]}), "'id' is datetime"),
    }


def logs_that_are_tables() -> dict[str, tuple[bytes, str]]:
    """Logs that cannot be used: content, and what the error must hold."""
    whole = parquet({"step": [1, 2, 3], "eval_loss": [3.0, 2.0, 1.0]})
    dates = [DAY, DAY + datetime.timedelta(1)]
    spans, nothing = [datetime.timedelta(1), datetime.timedelta(2)], pa.array([], pa.float64())
    return {
        "no-rows.parquet": (parquet({"step": nothing, "eval_loss": nothing}), NO_PROXY),
        "no-columns.parquet": (parquet({}), "no-columns.parquet"),
        "cut-off.parquet": (whole[:-30], "not a whole parquet file"),
        "only-the-first-bytes.parquet": (whole[:4], "not a whole parquet file"),
        "responses-instead-of-a-log.parquet": (parquet({"prompt": ["a"], "text": ["b"], "step": [0]}), NO_PROXY),
        "losses-as-text.parquet": (parquet({"step": [1, 2], "eval_loss": ["3.0", "2.0"]}), "'eval_loss' in row 1"),
        "losses-null.parquet": (parquet({"step": [1, 2], "eval_loss": [None, None]}), NO_PROXY),
        "losses-infinite.parquet": (parquet({"step": [1, 2], "eval_loss": [3.0, INFINITY]}), "'eval_loss' in row 2"),
        "steps-as-dates.parquet": (parquet({"step": dates, "eval_loss": [3.0, 2.0]}), "'step' in row 1"),
        "steps-as-durations.parquet": (parquet({"step": spans, "eval_loss": [3.0, 2.0]}), "'step' in row 1"),
        "steps-below-zero.parquet": (parquet({"step": [-1, 2], "eval_loss": [3.0, 2.0]}), "has the step -1"),
        "steps-twice.parquet": (parquet({"step": [1, 1, 2], "eval_loss": [3.0, 2.0, 1.0]}), "both at step 1"),
    }  # fmt: skip


def write_databases(folder: Path) -> dict[str, str]:
    """SQLite files that are no project of Trackio; what each error must hold."""
    schemas = {
        "database-of-mlflow.db": (
            "CREATE TABLE experiments (experiment_id INTEGER, name TEXT)",
            "no such table: metrics",
        ),
        "database-of-other-columns.db": ("CREATE TABLE metrics (key TEXT, value REAL)", "no such column"),
        "database-of-no-rows.db": (
            "CREATE TABLE metrics (run_name TEXT, step INTEGER, metrics TEXT)",
            "holds no records",
        ),
        "database-of-no-tables.db": ("PRAGMA user_version = 1", "no such table: metrics"),
    }
    for name, (statement, _) in schemas.items():
        (folder / name).unlink(missing_ok=True)
        connection = sqlite3.connect(folder / name)
        connection.execute(statement)
        connection.commit()
        connection.close()
    return {name: says for name, (_, says) in schemas.items()}


def write_events(folder: Path) -> dict[str, str]:
    """Event files without a curve; what each error must hold."""
    text = Event(wall_time=1.0, step=1)
    text.summary.value.add(tag="notes").metadata.plugin_data.plugin_name = "text"
    single = Event(wall_time=1.0, step=1)
    single.summary.value.add(tag="eval/loss", simple_value=2.0)
    other = Event(wall_time=1.0, step=1)
    other.summary.value.add(tag="gpu/temperature", simple_value=60.0)
    cases = {
        "events.out.tfevents.of-nothing": ([Event(wall_time=1.0, file_version="brain.Event:2")], "holds no scalars"),
        "events.out.tfevents.of-text": ([text], "holds no scalars"),
        "events.out.tfevents.of-one-point": ([single], "only one point"),
        "events.out.tfevents.of-other-curves": ([other], NO_PROXY),
    }
    for name, (events, _) in cases.items():
        with (folder / name).open("wb") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())
            writer.flush()
    return {name: says for name, (_, says) in cases.items()}


def build(root: Path) -> None:
    """Writes the files beside the others of ``root``/logs and ``root``/rows, and ``root``/tables.jsonl."""
    index: list[dict[str, str]] = []
    for kind, cases in (("rows", prompts_that_are_tables()), ("logs", logs_that_are_tables())):
        for name, (content, says) in cases.items():
            (root / kind / name).write_bytes(content)
            index.append({"input": f"{kind}/{name}", "says": says})
    for name, says in {**write_databases(root / "logs"), **write_events(root / "logs")}.items():
        index.append({"input": f"logs/{name}", "says": says})
    (root / "tables.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in index))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
