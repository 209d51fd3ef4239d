"""A log as it was written: sparse columns, rows that people can find again, and what a column's name may mean."""

from __future__ import annotations

import itertools
import reprlib
from array import array
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.diagnostics.trajectory import COLUMNS
from assay.errors import AssayError

STEP = "step"

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
ARMS = ("arm", "run_name")
"""Columns that name the run of a row: of assay, of Trackio."""
_HELD_OUT = ("eval/", "val/", "valid/", "validation/")
_ONLY_HELD_OUT = ("proxy", "reference_nll", "golden")
_INDEX = {alias: (name, rank) for name in (STEP, *COLUMNS) for rank, alias in enumerate(_ALIASES.get(name, (name,)))}
_INDEX |= {f"eval_{alias}": _INDEX[alias] for alias in ("completions/mean_length", "completions/clipped_ratio")}

MOST_NAMES = 12
"""How many columns an error lists."""


@dataclass
class Column:
    """The rows that have a value, and the values; ``texts`` when the values are places in it. ``bad``: no number."""

    rows: Any = field(default_factory=lambda: array("q"))
    values: Any = field(default_factory=lambda: array("d"))
    texts: dict[str, int] | None = None
    bad: tuple[int, str] | None = None

    def add(self, row: int, value: Any) -> None:
        """Takes the value of a row; None is no value, what is no number is refused."""
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
        """Remembers the first value that is no number: it matters only if the column is used."""
        if self.bad is None:
            self.bad = (row, reprlib.repr(value))

    def keep(self, rows: NDArray[np.int64]) -> Column:
        """Without the rows that are not among ``rows``."""
        own = np.asarray(self.rows)
        kept = np.isin(own, rows)
        return Column(own[kept], np.asarray(self.values)[kept], self.texts, self.bad)


@dataclass
class Sheet:
    """A log as sparse columns. ``names`` are all of its columns, ``columns`` those that the user may mean.

    A row is a number that people can find again: ``word`` says of what.
    """

    path: Path
    word: str
    given: Collection[str]
    names: dict[str, None] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    guesses: list[str] = field(default_factory=list)

    def column(self, name: str) -> Column | None:
        """The column of that name; None, and only the name is kept, where it cannot be meant."""
        if name not in self.names:
            self.names[name] = None
            if name in self.given or name in ARMS or is_epoch(name) or meaning_of(name):
                self.columns[name] = Column(texts={} if name in ARMS else None)
        return self.columns.get(name)

    def add(self, row: int, record: Any) -> None:
        """Takes a record, an object of names and values."""
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
        """Where a row is, in words."""
        return f"{self.word} {row} of {str(self.path)!r}"

    def listed(self) -> str:
        """The names of the columns, not too many of them."""
        names = [repr(name) for name in itertools.islice(self.names, MOST_NAMES)]
        more = len(self.names) - len(names)
        return ", ".join(names) + (f" and {more} more" if more else "")

    def has_values(self, name: str) -> bool:
        """Whether any row has a value there, were it a wrong one."""
        return name in self.columns and (len(self.columns[name].rows) > 0 or self.columns[name].bad is not None)


def _metric(name: str) -> str:
    # W&B exports "RUN - METRIC".
    return name.rpartition(" - ")[2]


def run_of(name: str) -> str:
    """The run that a column of W&B belongs to; "" for any other column."""
    return name.rpartition(" - ")[0]


def is_epoch(name: str) -> bool:
    """Whether a column counts passes over the data."""
    return _metric(name).strip().lower().rpartition("/")[2] in _EPOCH


def meaning_of(name: str) -> tuple[str, tuple[int, int]] | None:
    """The column that a name stands for, and how well it does (less is better)."""
    # transformers' trackers put "train/" before whatever is no evaluation of their own
    key = _metric(name).strip().lower().removeprefix("train/assay/").removeprefix("assay/")
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
