"""Data sets of the Hugging Face hub as tasks, through the ``datasets`` package (an extra); remote code is never run.

Rows are streamed, so a run needs a part of a large data set only. Of a named task the data set's own splits are kept:
its train split becomes ``oracle`` and ``distillation``, its validation and test splits ``held_out``. Of any other
data set one split is read as a user's file is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from assay.config import digest_of
from assay.data.splitting import Split, assign_splits, loose_key, row_keys
from assay.data.user_rows import check_columns
from assay.errors import AssayError

DATASET = "dataset:"
"""What the name of a task begins with that is a data set of the user's choice."""
MAX_ROWS = 250_000
"""Rows of such a data set that are read at most."""
MAX_SHARDS = 200
"""Files of one split that rows are taken from: a data set of many files is not downloaded whole."""


@dataclass(frozen=True)
class HubDataset:
    """Where a data set is and how its examples become rows.

    ``id`` is a hub id or a local folder. ``to_row`` gives the columns of a row, or None for an example without text.
    Rows with the same ``prompt`` columns stay in one split, and, if ``references_join``, those of one long reference.
    ``num_train`` rows are read at most; ``oracle_share`` of their groups serves stage 1, the rest distillation. Both
    leave room for what recipes/scales.py asks for.
    """

    id: str
    config: str | None
    revision: str | None
    to_row: Callable[[Mapping[str, Any]], dict[str, str] | None]
    prompt: tuple[str, ...]
    reference: str
    num_train: int
    num_held_out: int
    oracle_share: float
    references_join: bool = True


def xsum_row(example: Mapping[str, Any]) -> dict[str, str] | None:
    """``document`` → ``summary``, the document on one line."""
    return _texts(document=" ".join(example["document"].split()), summary=example["summary"])


def wmt_row(example: Mapping[str, Any]) -> dict[str, str] | None:
    """``german`` → ``english`` of a translation pair."""
    return _texts(german=example["translation"]["de"], english=example["translation"]["en"])


def instructions_row(example: Mapping[str, Any]) -> dict[str, str] | None:
    """``definition`` and ``inputs`` → ``targets``, with the name of the kind of task."""
    return _texts(
        task_name=example["task_name"],
        definition=example["definition"],
        inputs=" ".join(example["inputs"].split()),
        targets=example["targets"],
    )


def _texts(**columns: str) -> dict[str, str] | None:
    stripped = {name: text.strip() for name, text in columns.items()}
    return stripped if all(stripped.values()) else None


HUB: dict[str, HubDataset] = {
    "xsum": HubDataset(
        id="EdinburghNLP/xsum",
        config=None,
        revision="refs/convert/parquet",  # the hub's own conversion: readable even where a script is the main branch
        to_row=xsum_row,
        prompt=("document",),
        reference="summary",
        num_train=250_000,  # all of it
        num_held_out=10_000,
        oracle_share=0.14,
    ),
    "wmt14-de-en": HubDataset(
        id="wmt/wmt14",
        config="de-en",
        revision=None,
        to_row=wmt_row,
        prompt=("german",),
        reference="english",
        num_train=300_000,
        num_held_out=6_000,
        oracle_share=0.22,
    ),
    "natural-instructions": HubDataset(
        id="Muennighoff/natural-instructions",
        config=None,
        revision=None,
        to_row=instructions_row,
        prompt=("definition", "inputs"),
        reference="targets",
        num_train=400_000,
        num_held_out=10_000,
        oracle_share=0.36,
        references_join=False,  # most are labels, some of them long
    ),
}


def fetch_hub(dataset: HubDataset, name: str) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The rows of a data set with their splits, and what they came from.

    Raises AssayError without the ``datasets`` package, without network, or when the data set has another form.
    """
    with _readable(name, dataset.id):
        train = list(_streamed(dataset.id, dataset.config, "train", dataset.revision, dataset.num_train))
        held_out = [
            row
            for split in ("validation", "test")
            for row in _streamed(dataset.id, dataset.config, split, dataset.revision, ceil(dataset.num_held_out / 2))
        ]
    rows = split_rows(dataset, train, held_out)
    facts = {
        "dataset": dataset.id,
        "config": dataset.config,
        "revision": dataset.revision,
        "datasets": metadata.version("datasets"),
    }
    return rows, facts | {"num_read": len(train) + len(held_out)}


@dataclass(frozen=True)
class UserDataset:
    """A data set of the user's choice: a hub id or a local folder, and the one split of it that is read."""

    id: str
    config: str | None
    split: str

    @property
    def file(self) -> str:
        """The name of its file in the cache; that of a local folder changes with what is in the folder."""
        folder = Path(self.id)
        inside = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        state = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in inside]
        readable = "".join(letter if letter.isalnum() else "-" for letter in folder.name)
        return f"dataset-{readable}-{digest_of([self.id, self.config, self.split, state])}.parquet"


def parse_dataset(name: str) -> UserDataset:
    """``dataset:ID``, ``dataset:ID:SPLIT`` or ``dataset:ID:CONFIG:SPLIT``; the split is "train" unless said."""
    parts = name.removeprefix(DATASET).split(":")
    if len(parts) > 3 or not all(parts):
        raise AssayError(
            f"task {name!r} names no data set: write {DATASET}ID, {DATASET}ID:SPLIT or {DATASET}ID:CONFIG:SPLIT, as in "
            f"{DATASET}HuggingFaceTB/smoltalk:all:train"
        )
    split = parts[-1] if len(parts) > 1 else "train"
    return UserDataset(parts[0], parts[1] if len(parts) == 3 else None, split)


def fetch_dataset(dataset: UserDataset, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a data set as they are, at most MAX_ROWS, and what they came from.

    Raises AssayError without the ``datasets`` package, without network, and when no column holds prompts.
    """
    with _readable(name, dataset.id):
        rows = [dict(row) for row in _streamed(dataset.id, dataset.config, dataset.split, None, MAX_ROWS)]
    check_columns(f"the data set of task {name!r}", list(rows[0]) if rows else [])
    facts = {"dataset": dataset.id, "config": dataset.config, "split": dataset.split}
    return rows, facts | {"datasets": metadata.version("datasets"), "num_read": len(rows)}


@contextmanager
def _readable(name: str, dataset_id: str) -> Iterator[None]:
    """Turns what ``datasets`` raises for a data set that it cannot read, or its absence, into one sentence."""
    try:
        from datasets.exceptions import DatasetsError  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise AssayError(
            f"task {name!r} needs the package 'datasets', which is not installed: pip install 'assay[datasets]'"
        ) from error
    try:
        yield
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        source, advice = (
            "the hub's data set",
            "it needs network once; where there is none, give the path of a .jsonl file",
        )
        if Path(dataset_id).exists():
            source, advice = "the folder", "give a folder of .jsonl or .parquet files"
        raise AssayError(
            f"task {name!r} could not be read from {source} {dataset_id!r} ({cause}): {advice} instead"
        ) from error


def _streamed(
    dataset_id: str, config: str | None, split: str, revision: str | None, num_rows: int
) -> Iterator[Mapping[str, Any]]:
    import datasets  # pyright: ignore[reportMissingImports]

    stream = datasets.load_dataset(dataset_id, config, split=split, streaming=True, revision=revision)
    return _evenly(stream, num_rows)


def split_rows(
    dataset: HubDataset, train: Iterable[Mapping[str, Any]], held_out: Iterable[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Rows with their splits, without exact repeats; what a held-out row shares with training rows stays held out."""
    kept: list[dict[str, str]] = []
    keys_of_rows: list[list[str]] = []
    seen: set[str] = set()
    for row in _rows(dataset, held_out):
        keys = _keys(dataset, row)
        if keys[0] not in seen:
            kept.append({**row, "split": "held_out"})
        seen.update(keys)
    trained: list[dict[str, str]] = []
    pairs: set[str] = set()
    for row in _rows(dataset, train):
        keys = _keys(dataset, row)
        pair = f"{keys[0]}\n{loose_key(row[dataset.reference])}"
        if pair not in pairs and seen.isdisjoint(keys):
            trained.append(row)
            keys_of_rows.append(keys)
        pairs.add(pair)
    shares: dict[Split, float] = {"oracle": dataset.oracle_share, "distillation": 1 - dataset.oracle_share}
    splits, _ = assign_splits(keys_of_rows, shares)
    return kept + [{**row, "split": split} for row, split in zip(trained, splits, strict=True)]


def _rows(dataset: HubDataset, examples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    for example in examples:
        try:
            row = dataset.to_row(example)
        except (KeyError, TypeError, AttributeError) as error:
            raise AssayError(
                f"the hub's data set {dataset.id!r} has other columns than expected ({', '.join(map(str, example))}): "
                "it has changed; give the path of a .jsonl file instead"
            ) from error
        if row is not None:
            yield row


def _keys(dataset: HubDataset, row: Mapping[str, str]) -> list[str]:
    prompt = "\n".join(row[column] for column in dataset.prompt)
    return row_keys(prompt, row[dataset.reference] if dataset.references_join else None, None)


def _evenly(stream: Any, num_rows: int) -> Iterator[Mapping[str, Any]]:
    """At most ``num_rows`` rows, the same number from the head of each file (of up to MAX_SHARDS files)."""
    chosen = np.random.default_rng(0).permutation(stream.num_shards)[:MAX_SHARDS]
    for index in sorted(chosen.tolist()):
        yield from islice(stream.shard(stream.num_shards, index), ceil(num_rows / len(chosen)))
