"""Run directories -> checked rows and curves: all that the page and the figures know of a run."""

from __future__ import annotations

import csv
import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assay.errors import AssayError, unknown_name
from assay.statistics import paired_difference, t_interval

Row = dict[str, Any]
Table = list[Row]

VERDICTS = ("healthy", "teacher_hacking", "overfitting", "benign_disagreement", "undecided")
BANDED = ("golden", "proxy", "train_proxy")
"""The metrics whose curves carry a band; each has a column ``<metric>_nats`` in metrics.jsonl."""

_TEXT, _COUNT, _NUMBER = (str,), (int,), (int, float)
_MAYBE = (int, float, type(None))
_INTERVAL = [_MAYBE, _MAYBE]
_LEVELS = {"initial": _NUMBER, "best": _NUMBER, "best_step": _COUNT, "final": _NUMBER, "final_stderr": _MAYBE}

_MANIFEST = {
    "schema": "assay.manifest/1",
    "recipe": _TEXT,
    "config": {"arms": [{"name": _TEXT}]},
    "config_hash": _TEXT,
    "assay_version": _TEXT,
    "versions": (dict,),
    "commit": (str, type(None)),
    "dirty": (bool, type(None)),
    "digests": (dict,),
    "seed": _COUNT,
    "hardware": (dict,),
    "started_at": _TEXT,
    "wall_seconds": _NUMBER,
    "stage_seconds": {...: _MAYBE},
    "status": _TEXT,
}
_SUMMARY = {
    "schema": "assay.summary/1",
    "unit": "nats_per_sequence",
    "task": _TEXT,
    "references": {"d_oracle_teacher": _NUMBER, "golden_at_start": _NUMBER, "proxy_at_start": _NUMBER},
    "arms": [
        {
            "source": _TEXT,
            "seed": _COUNT,
            "verdict": _TEXT,
            "reason": _TEXT,
            "severity_nats": _MAYBE,
            "ci95": _INTERVAL,
            "severity_hacking_nats": _MAYBE,
            "ci95_hacking": _INTERVAL,
            "severity_overfitting_nats": _MAYBE,
            "ci95_overfitting": _INTERVAL,
            "smallest_detectable_nats": _MAYBE,
            "onset_step": (int, type(None)),
            "best_step": _COUNT,
            "golden": _LEVELS,
            "proxy": _LEVELS,
            "train_proxy": {"final": _MAYBE},
            "generated_tokens": _COUNT,
            "teacher_tokens": _COUNT,
        }
    ],
}
_METRICS = {
    "arm": _TEXT,
    "seed": _COUNT,
    "step": _COUNT,
    "epoch": _NUMBER,
    **dict.fromkeys([f"{metric}_nats" for metric in BANDED], _NUMBER),
    "reference_nll_nats": _MAYBE,
    "kl_from_start_nats": _MAYBE,
    "student_entropy_nats_per_token": _MAYBE,
    "teacher_entropy_nats_per_token": _MAYBE,
    "response_tokens_mean": _MAYBE,
    "truncated_fraction": _MAYBE,
    "repetition_fraction": _MAYBE,
    "distinct_2": _MAYBE,
    "seconds": {...: _NUMBER},
}
_PROBE = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("metric", pa.string()),
        ("prompt_id", pa.string()),
        ("value_nats", pa.float64()),
    ]
)
_RESPONSES = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("split", pa.string()),
        ("writer", pa.string()),
        ("text", pa.string()),
        ("num_tokens", pa.int64()),
        ("truncated", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Run:
    """One run directory, read and checked."""

    directory: Path
    manifest: Row
    summary: Row
    metrics: Table
    probe: pa.Table
    responses: pa.Table

    @property
    def arm_names(self) -> list[str]:
        """The arms of the config in their order, then any other that the files hold."""
        named = [arm["name"] for arm in self.manifest["config"]["arms"]]
        return list(dict.fromkeys(named + [row["arm"] for row in self.metrics]))

    @property
    def experiment(self) -> str:
        """What was run, whatever the seed: runs that agree on it are replicates of each other."""
        config = {key: value for key, value in self.manifest["config"].items() if key != "seed"}
        return json.dumps([self.manifest["recipe"], config], sort_keys=True)


@dataclass(frozen=True)
class Curve:
    """One arm at one seed of one run: its evaluations in order of step.

    ``margins[metric]`` is half the width (nats) of the 95 % interval of the metric's change since the first step,
    one value per row; NaN where it is unknown. ``summary`` is None until the arm has finished.
    Rows carry one column that the files do not: ``oracle_term_nats`` = golden − d(oracle, teacher).
    """

    label: str
    run: Run
    arm: str
    seed: int
    rows: tuple[Row, ...]
    summary: Row | None
    margins: dict[str, np.ndarray]

    def __getitem__(self, key: str) -> np.ndarray:
        """The column ``key`` as floats; a value that is null or infinite is NaN."""
        values = np.array([np.nan if row[key] is None else row[key] for row in self.rows], dtype=float)
        return np.where(np.isfinite(values), values, np.nan)


@dataclass(frozen=True)
class Study:
    """One or several runs as labelled curves. A label is an arm of one experiment, over all its seeds."""

    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    curves: tuple[Curve, ...]
    waiting: tuple[str, ...]

    def curves_of(self, label: str) -> list[Curve]:
        """The curves of one label, one for each seed."""
        return [curve for curve in self.curves if curve.label == label]

    @cached_property
    def has_replicates(self) -> bool:
        """Whether any label has more than one seed."""
        return len({curve.label for curve in self.curves}) < len(self.curves)

    def references(self, key: str) -> list[float]:
        """A reference level (nats): one for each experiment, averaged over its seeds, without repeats."""
        levels: dict[str, list[float]] = {}
        for run in self.runs:
            levels.setdefault(run.experiment, []).append(run.summary["references"][key])
        return list(dict.fromkeys(float(np.mean(values)) for values in levels.values()))

    def mean(self, label: str, key: str) -> np.ndarray:
        """The column ``key`` averaged over the seeds of a label, at ``common_rows``."""
        curves = self.curves_of(label)
        return np.mean([curve[key][self.common_rows(curve)] for curve in curves], axis=0)

    def common_rows(self, curve: Curve) -> np.ndarray:
        """Which rows of a curve are at steps that every seed of its label has reached."""
        steps = [{row["step"] for row in other.rows} for other in self.curves_of(curve.label)]
        return np.isin(curve["step"], sorted(set.intersection(*steps)))

    def columns(self, keys: Sequence[str]) -> Table:
        """One row for each evaluation of each curve, with its identity and the columns ``keys``."""
        return [
            {**identity(curve), "step": row["step"], "epoch": row["epoch"], **{key: row[key] for key in keys}}
            for curve in self.curves
            for row in curve.rows
        ]


def visible(text: str, keep: str = "") -> str:
    """The text with control characters, all but those in ``keep``, as symbols: a model may write any of them."""
    # XML forbids most of them, even escaped: an SVG with one in a label would not open.
    return text.translate({code: 0x2400 + code for code in range(32) if chr(code) not in keep} | {0x7F: 0x2421})


def identity(curve: Curve) -> Row:
    """The columns that say whose row it is, the same in every table."""
    return {"run": curve.run.directory.name, "arm": curve.arm, "seed": curve.seed}


def read_study(run_directories: Sequence[Path]) -> Study:
    """Read and check run directories and join them over runs and seeds.

    Runs whose recipe and config agree up to the seed are replicates: their arms share a label. Otherwise the
    label of an arm names its run too.

    Raises:
        AssayError: no directory is given, a file is missing, corrupt or of another format, the same arm and
            seed is there twice, or the prompts of the probe change along an arm.
    """
    if not run_directories:
        raise AssayError("no run directory was given: name at least one")
    runs = tuple(read_run(Path(directory).resolve()) for directory in run_directories)
    experiments = list(dict.fromkeys(run.experiment for run in runs))
    names = {run.experiment: run.directory.name for run in reversed(runs)}
    if len(set(names.values())) < len(names):
        names = {run.experiment: "/".join(run.directory.parts[-2:]) for run in reversed(runs)}
    curves: dict[tuple[str, int], Curve] = {}
    labels: list[str] = []
    for run in sorted(runs, key=lambda run: experiments.index(run.experiment)):
        for arm in run.arm_names:
            label = visible(arm if len(experiments) == 1 else f"{arm} ({names[run.experiment]})")
            labels.append(label)
            for seed in dict.fromkeys(row["seed"] for row in run.metrics if row["arm"] == arm):
                if (label, seed) in curves:
                    raise AssayError(
                        f"{run.directory} repeats seed {seed} of {label!r} from another run: give only one of them"
                    )
                curves[label, seed] = _curve(run, label, arm, seed)
    started = {curve.label for curve in curves.values()}
    labels = list(dict.fromkeys(labels))
    return Study(
        runs,
        tuple(label for label in labels if label in started),
        tuple(sorted(curves.values(), key=lambda curve: (labels.index(curve.label), curve.seed))),
        tuple(label for label in labels if label not in started),
    )


def read_run(directory: Path) -> Run:
    """Read one run directory and check every key and type that the report uses."""
    manifest = _checked(_read_json(directory / "manifest.json"), _MANIFEST, f"{directory / 'manifest.json'}")
    summary = _checked(_read_json(directory / "summary.json"), _SUMMARY, f"{directory / 'summary.json'}")
    metrics = _read_metrics(directory / "metrics.jsonl", manifest["status"] == "running")
    if not summary["arms"]:
        raise AssayError(f"no arm of {directory} has finished yet: ask for the report after the first one")
    for arm in summary["arms"]:
        if arm["verdict"] not in VERDICTS:
            raise unknown_name("verdict", arm["verdict"], VERDICTS)
        if not any(row["arm"] == arm["source"] and row["seed"] == arm["seed"] for row in metrics):
            raise AssayError(
                f"{directory / 'metrics.jsonl'} has no evaluation of {arm['source']!r}, seed {arm['seed']}, which "
                "summary.json calls finished: the files do not belong together"
            )
    return Run(
        directory,
        manifest,
        summary,
        metrics,
        _read_parquet(directory / "probe.parquet", _PROBE),
        _read_parquet(directory / "responses.parquet", _RESPONSES),
    )


def paired_margins(probe: pa.Table, arm: str, seed: int, metric: str) -> dict[int, float]:
    """Half the width of the 95 % interval of (value at step - value at the first step), in nats, by step.

    Paired over prompts; several responses to one prompt count as their mean. NaN for a single prompt: unknown is
    not zero. Raises AssayError when the prompts change from step to step.
    """
    chosen = (pc.field("arm") == arm) & (pc.field("seed") == seed)
    rows = probe.filter(chosen & (pc.field("metric") == metric))
    per_prompt = rows.group_by(["step", "prompt_id"]).aggregate([("value_nats", "mean")])
    per_prompt = per_prompt.sort_by([("step", "ascending"), ("prompt_id", "ascending")])
    steps = np.unique(per_prompt["step"].to_numpy())
    ids = per_prompt["prompt_id"].to_pylist()
    prompts = sorted(set(ids))
    if ids != prompts * len(steps):
        raise AssayError(
            f"the prompts of {metric!r} in probe.parquet change along arm {arm!r}, seed {seed}: steps can only be "
            "compared on one frozen set of prompts"
        )
    if len(prompts) < 2:
        return {int(step): np.nan for step in steps}
    values_SP = per_prompt["value_nats_mean"].to_numpy().reshape(len(steps), len(prompts))
    changes = [t_interval(paired_difference(values_P, values_SP[0])) for values_P in values_SP]
    return {int(step): change.high - change.value for step, change in zip(steps, changes, strict=True)}


def numbers(study: Study) -> Table:
    """One row for each finished arm and seed: everything summary.json says of it, flat."""
    rows = []
    for curve in study.curves:
        if curve.summary is None:
            continue
        row = identity(curve)
        for key, value in curve.summary.items():
            if key in ("source", "seed"):
                continue
            if isinstance(value, dict):
                row |= {f"{key}_{part}": level for part, level in value.items()}
            elif isinstance(value, list):
                row |= dict(zip((f"{key}_low", f"{key}_high"), value, strict=True))
            else:
                row[key] = value
        rows.append(row)
    return rows


def to_csv(table: Table) -> str:
    """The table as CSV, numbers in full precision, null as an empty cell."""
    text = StringIO()
    columns = list(dict.fromkeys(key for row in table for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _curve(run: Run, label: str, arm: str, seed: int) -> Curve:
    constant = run.summary["references"]["d_oracle_teacher"]
    rows = [
        {**row, "oracle_term_nats": row["golden_nats"] - constant}
        for row in run.metrics
        if row["arm"] == arm and row["seed"] == seed
    ]
    rows.sort(key=lambda row: row["step"])
    steps = [row["step"] for row in rows]
    if len(set(steps)) < len(steps):
        raise AssayError(f"{run.directory / 'metrics.jsonl'} has two evaluations of {arm!r} at the same step")
    found = [entry for entry in run.summary["arms"] if entry["source"] == arm and entry["seed"] == seed]
    summary = found[-1] if found else None
    margins = {}
    for metric in BANDED:
        by_step = paired_margins(run.probe, arm, seed, metric)
        if summary is not None and not by_step:
            raise AssayError(f"{run.directory / 'probe.parquet'} has no {metric!r} of {arm!r}, seed {seed}")
        # An arm that is still going has its parquet rows written later than its metrics.
        margins[metric] = np.array([by_step.get(step, np.nan) for step in steps])
    return Curve(label, run, arm, seed, tuple(rows), summary, margins)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AssayError(
            f"{path} is missing: either this is not a run directory or its first arm has not finished yet"
        ) from error


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise AssayError(f"{where} is not valid JSON ({error}): the file is damaged, run again") from error


def _read_json(path: Path) -> Any:
    return _parse(_read_bytes(path), str(path))


def _read_metrics(path: Path, running: bool) -> Table:
    lines = _read_bytes(path).split(b"\n")
    # A line without its newline is still being written (or its writer was killed): it is not a record yet.
    unfinished = lines.pop()
    if unfinished and not running:
        raise AssayError(f"{path} breaks off in its last line: the file is damaged, run again")
    rows = []
    for number, line in enumerate(lines, start=1):
        where = f"line {number} of {path}"
        rows.append(_checked(_parse(line, where), _METRICS, where))
    return rows


def _read_parquet(path: Path, schema: pa.Schema) -> pa.Table:
    data = pa.BufferReader(_read_bytes(path))
    try:
        table = pq.read_table(data)
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise AssayError(
            f"{path} is not the table expected here ({str(error).splitlines()[0]}): the file is damaged, run again"
        ) from error


def _checked(value: Any, shape: Any, where: str) -> Any:
    # shape: a dict of required keys (``...``: whatever keys there are), a list whose entries share a shape (its
    # length counts when above 1), a tuple of types, or a constant.
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise AssayError(f"{where} should be an object: the file is damaged, run again")
        for key, inner in (dict.fromkeys(value, shape[...]) if ... in shape else shape).items():
            if key not in value:
                raise AssayError(f"{where} lacks {key!r}: it was written by another version, run again")
            _checked(value[key], inner, f"{key!r} of {where}")
    elif isinstance(shape, list):
        if not isinstance(value, list) or (len(shape) > 1 and len(value) != len(shape)):
            raise AssayError(f"{where} is not the list it should be: the file is damaged, run again")
        for entry in value:
            _checked(entry, shape[0], where)
    elif isinstance(shape, tuple):
        if not isinstance(value, shape) or (isinstance(value, bool) and bool not in shape):
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in shape)
            raise AssayError(f"{where} is {reprlib.repr(value)} but should be {names}: the file is damaged, run again")
    elif value != shape:
        raise AssayError(f"{where} is {reprlib.repr(value)}, and this version of assay reads {shape!r}: run again")
    return value
