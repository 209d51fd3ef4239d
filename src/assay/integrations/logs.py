"""Reading training logs: of assay, of transformers, TensorBoard, W&B and Trackio, or plain tables.

``log_files.py`` reads a format into the columns of ``log_sheet.py``; what the columns mean, which run is taken and how
rows become evaluations is decided here, once for all formats.
"""

from __future__ import annotations

import difflib
import math
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assay.diagnostics.trajectory import COLUMNS, Floats, Trajectory
from assay.errors import AssayError, unknown_name
from assay.integrations.log_files import EVENTS, read_file, read_lines
from assay.integrations.log_sheet import ARMS, MOST_NAMES, STEP, Sheet, is_epoch, meaning_of, run_of

NONE = "none"
"""The name that stands for: do not use this column."""


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
        raise AssayError(f"cannot read {str(path)!r}: no path has a NUL in it; give another")
    try:
        inside = {each.name for each in path.iterdir()} if stat.S_ISDIR(path.stat().st_mode) else set()
        if is_run(inside):
            return _read_run(path, columns, arm)
        sheet = read_file(path, columns)
    except OSError as error:
        raise AssayError(
            f"cannot read {str(path)!r}: {error.strerror or error}; see that it is there and may be read"
        ) from error
    chosen = _choose_arm(sheet, arm)
    names = _choose_columns(sheet, columns)
    return Log(_align(sheet, names), sheet.guesses, chosen, None)


def is_run(names: Collection[str]) -> bool:
    """Whether a folder in which these names are is a run folder of assay."""
    # Other tools have a manifest too; a run whose first evaluation is still to come has nothing else.
    known = {"metrics.jsonl", "arms"} & set(names)
    return bool(known) or ("manifest.json" in names and not any(EVENTS in name for name in names))


def _choose_arm(sheet: Sheet, arm: str | None) -> str | None:
    """Keeps the rows of one run, where the log says which row is whose."""
    column = next((sheet.columns[name] for name in ARMS if name in sheet.names and sheet.columns[name].texts), None)
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


def _choose_columns(sheet: Sheet, given: Mapping[str, str]) -> dict[str, str]:
    """The name in the log of each column that is to be used; the step and the proxy are among them."""
    if not sheet.names:
        raise AssayError(f"{str(sheet.path)!r} holds no records: wait for the first, or give another log")
    chosen = {meaning: _given(sheet, meaning, name) for meaning, name in given.items() if name.lower() != NONE}
    candidates: dict[str, list[tuple[tuple[int, int], str]]] = {}
    for name in sheet.columns:
        found = meaning_of(name)
        if found and found[0] not in given and sheet.has_values(name):
            candidates.setdefault(found[0], []).append((found[1], name))
    # The proxy first: where the log is of several runs, the other columns are those of its run.
    for meaning in ("proxy", STEP, *COLUMNS):
        run = run_of(chosen.get("proxy", ""))
        ranked = sorted(each for each in candidates.pop(meaning, ()) if not run or run_of(each[1]) in (run, ""))
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
        name = next((name for name in sheet.columns if is_epoch(name) and sheet.has_values(name)), None)
        if name is None:
            raise AssayError(
                f"{str(sheet.path)!r} has no column of steps: name it with --step; there are {sheet.listed()}"
            )
        chosen[STEP] = name
        sheet.guesses.append(f"step: took the column {name!r}, there is none of steps")
    return chosen


def _given(sheet: Sheet, meaning: str, name: str) -> str:
    if name not in sheet.names:
        near = difflib.get_close_matches(name, sheet.names, n=MOST_NAMES, cutoff=0.0)
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


def _best(sheet: Sheet, meaning: str, ranked: list[tuple[tuple[int, int], str]]) -> str:
    equal = [name for rank, name in ranked if rank == ranked[0][0]]
    if len({run_of(name) for name in equal}) > 1:
        shown = ", ".join(repr(name) for name in equal[:MOST_NAMES])
        raise AssayError(f"{str(sheet.path)!r} holds several runs: name one with {_flag(meaning)}: {shown}")
    return equal[0]


def _align(sheet: Sheet, names: Mapping[str, str]) -> Trajectory:
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
        raise AssayError(
            f"{names['proxy']!r} of {str(sheet.path)!r} has {found}: at least two are needed; "
            "wait for the next evaluation, or give another log"
        )
    columns = {"proxy": proxy}
    for meaning in COLUMNS:
        if meaning in series:
            average = _mean_since if meaning == "train_proxy" else _last_until
            columns[meaning] = average(*series[meaning], evaluations)
    return Trajectory(evaluations, columns)


def _numbers(sheet: Sheet, meaning: str, name: str) -> tuple[NDArray[np.int64], Floats]:
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
    sheet: Sheet, meaning: str, name: str, step_rows: NDArray[np.int64], steps: Floats
) -> tuple[Floats, Floats]:
    """Steps (ascending, each once) and values of a column."""
    rows, values = _numbers(sheet, meaning, name)
    place = np.searchsorted(step_rows, rows)
    lacking = np.flatnonzero((place == len(step_rows)) | (step_rows[np.minimum(place, len(step_rows) - 1)] != rows))
    if len(lacking):
        raise AssayError(
            f"{sheet.at(int(rows[lacking[0]]))} has a value of {name!r} but no step: give it one, or take it out"
        )
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


def _read_run(folder: Path, columns: Mapping[str, str], arm: str | None) -> Log:
    metrics = folder / "metrics.jsonl"
    guesses: list[str] = []
    if not metrics.exists():  # no arm of the run has finished yet
        arms = sorted(file.parent.name for file in folder.glob("arms/*/metrics.jsonl"))
        if not arms:
            raise AssayError(f"{str(folder)!r} holds no evaluation yet: wait for the first")
        metrics = folder / "arms" / _one_of(arms, arm, guesses) / "metrics.jsonl"
    sheet = read_lines(metrics, columns.values())
    arm = _choose_arm(sheet, arm)
    guesses += sheet.guesses
    # Which column of its own is which, assay does not guess.
    trajectory = _align(sheet, _choose_columns(sheet, columns))
    if arm is not None and (folder / "probe.parquet").exists():
        for metric in ("proxy", "golden"):
            name = f"{metric}_diff_stderr"
            if metric in trajectory.columns and metric not in columns and name not in columns:
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
