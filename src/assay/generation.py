"""``assay generate``: responses to any number of prompts, in numbered files, each written whole or not at all.

Prompts are read one after the other and never held together: the memory taken is that of a few shards, however many
prompts there are. A response has a seed made of the run's seed and the position of its prompt, so it depends neither on
the size of a shard nor on the process that writes it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assay import runs, workers
from assay.config import digest_of
from assay.data.shards import MANIFEST, shard_path
from assay.data.user_rows import UserRow, stream_rows
from assay.errors import AssayError
from assay.text_writers import Generation, LeftOut, TextWriter, open_writer

COLUMN = "responses"
_MESSAGE = pa.struct({"role": pa.string(), "content": pa.string()})
SHARD_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "prompt": pa.string(),
        "messages": pa.list_(_MESSAGE),
        "reference": pa.string(),
        "group": pa.string(),
        "split": pa.string(),
        COLUMN: pa.list_(pa.string()),
    }
)
"""A row of a file of prompts (docs/tasks.md) with the teacher's responses; ``messages`` where it is a conversation."""


MakeWriter = Callable[[Generation], TextWriter]


def generate(
    request: Generation,
    prompts: Path,
    out: Path,
    num_processes: int | None = None,
    make_writer: MakeWriter = open_writer,
    announce: Callable[[str], None] = lambda line: None,
    make_executor: Callable[[int], Executor] = workers.local_executor,
) -> Path:
    """Writes ``out``, a folder of parquet files that ``assay distill`` takes for a file of prompts; returns its path.

    Killed at any moment, the same call writes the shards that are missing; a finished folder answers at once.
    ``make_writer`` is called in each process (one per core by default) of ``make_executor``. Raises AssayError, before
    anything is written, for a line that cannot be used and for a folder that holds something else; and when the model
    cannot be used.
    """
    num_processes = workers.num_workers(num_processes)
    runs.prepare_folder(out)
    with runs.locked(out):
        num_prompts, digest = _survey(prompts)
        num_shards = -(-num_prompts // request.shard_size)
        manifest = _open_manifest(out, dataclasses.asdict(request) | {"prompts": digest})
        missing = [index for index in range(num_shards) if not shard_path(out, index).exists()]
        if manifest["status"] == "finished" and not missing:
            return out
        for stale in out.glob(".shard-*"):  # of a process that was killed while it wrote
            shutil.rmtree(stale, ignore_errors=True)
        executor = make_executor(min(num_processes, max(len(missing), 1)))
        try:
            found = workers.submit(executor, model_digest, make_writer, request).result()
            if manifest.setdefault("model_digest", found) != found:
                raise AssayError(f"the model has changed since {str(out)!r} was begun: choose another folder (--out)")
            runs.write_json(out / MANIFEST, manifest)
            _write_shards(request, prompts, out, missing, num_shards, executor, num_processes, make_writer, announce)
        except BrokenProcessPool as error:
            raise AssayError(workers.WORKER_WAS_KILLED) from error
        finally:
            workers.end(executor)
        num_rows, left_out = _totals(out, num_shards)
        counts = {"num_prompts": num_prompts, "num_shards": num_shards, "num_rows": num_rows, "left_out": left_out}
        if num_rows == 0:
            raise AssayError(f"no prompt has a response that can be used ({left_out}): raise the limits of lengths")
        runs.write_json(out / MANIFEST, manifest | counts | {"status": "finished"})
    announce(f"{num_rows:,} of {num_prompts:,} prompts have their responses; left out: {left_out or 'none'}")
    return out


def _survey(prompts: Path) -> tuple[int, str]:
    """How many rows a file has, all of which can be used, and the digest of its bytes."""
    return sum(1 for _ in stream_rows(prompts)), runs.file_digest(prompts)[:16]


def _open_manifest(out: Path, config: dict[str, Any]) -> dict[str, Any]:
    path, key = out / MANIFEST, digest_of(config)
    if path.exists():
        manifest = runs.read_json(path)
        if not isinstance(manifest, dict) or manifest.get("config_hash") != key:
            raise AssayError(f"{str(out)!r} holds responses to something else: choose another folder (--out)")
        return manifest
    if any(child.name != runs.LOCK and not child.name.startswith(f".{MANIFEST}.") for child in out.iterdir()):
        raise AssayError(f"{str(out)!r} is not empty and holds no responses: choose another folder (--out)")
    return {"schema": "assay.generation/1", "config": config, "config_hash": key, "status": "running"}


def _write_shards(
    request: Generation,
    prompts: Path,
    out: Path,
    missing: Iterable[int],
    num_shards: int,
    executor: Executor,
    num_processes: int,
    make_writer: MakeWriter,
    announce: Callable[[str], None],
) -> None:
    """Hands out a shard for each process and no more: what is handed out is in memory."""
    running: set[Future[None]] = set()
    wanted = set(missing)
    num_written = num_shards - len(wanted)

    def settle(until: int) -> None:
        nonlocal running, num_written
        while len(running) > until:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                num_written += 1
                announce(f"{num_written:,} of {num_shards:,} shards written")

    for index, rows in enumerate(_chunks(stream_rows(prompts), request.shard_size)):
        if index in wanted:
            settle(num_processes - 1)
            running.add(workers.submit(executor, write_shard, make_writer, request, out, index, rows))
    settle(0)


def _chunks(rows: Iterator[UserRow], size: int) -> Iterator[list[UserRow]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


_writer = functools.lru_cache(maxsize=1)(lambda make_writer, request: make_writer(request))
"""The writer of this process, made once."""


def model_digest(make_writer: MakeWriter, request: Generation) -> str:
    """In a worker: which model it is."""
    return _writer(make_writer, request).digest


def write_shard(make_writer: MakeWriter, request: Generation, out: Path, index: int, rows: Sequence[UserRow]) -> None:
    """In a worker: the responses to some prompts, as one file; how many were left out is in its metadata."""
    found = _writer(make_writer, request).write(rows)
    left_out = Counter(texts.value for texts in found if isinstance(texts, LeftOut))
    kept = [_line(row, texts) for row, texts in zip(rows, found, strict=True) if not isinstance(texts, LeftOut)]
    schema = SHARD_SCHEMA.with_metadata({"left_out": json.dumps(left_out, sort_keys=True)})
    runs.write_table(shard_path(out, index), pa.Table.from_pylist(kept, schema))


def _line(row: UserRow, texts: list[str]) -> dict[str, Any]:
    said = row.conversation
    named = {name: row.columns.get(name) for name in ("group", "split")}
    return {
        "id": row.id,
        "prompt": row.columns["prompt"] if said is None else None,
        "messages": None if said is None else [{"role": m.role, "content": m.content} for m in said],
        "reference": row.reference,
        **{name: None if value is None else str(value) for name, value in named.items()},
        COLUMN: texts,
    }


def _totals(out: Path, num_shards: int) -> tuple[int, dict[str, int]]:
    num_rows, left_out = 0, Counter[str]()
    for index in range(num_shards):
        path = shard_path(out, index)
        try:
            footer = pq.read_metadata(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise runs.damaged(path, error) from error
        num_rows += footer.num_rows
        left_out.update(json.loads(footer.metadata[b"left_out"]))
    return num_rows, dict(sorted(left_out.items()))
