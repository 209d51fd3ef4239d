"""Run directories -> checked rows and curves: all that the page and the figures know of a run."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay.errors import AssayError, unknown_name
from assay.report import words
from assay.report.files import (
    BANDED,
    Row,
    Table,
    read_diversity,
    read_manifest,
    read_metrics,
    read_probe,
    read_responses,
    read_summary,
    read_tokens,
)
from assay.report.words import visible
from assay.statistics import paired_difference, t_interval

VERDICTS = ("healthy", "teacher_hacking", "overfitting", "benign_disagreement", "undecided", "hacking_suspected")


@dataclass(frozen=True)
class Run:
    """One run directory, read and checked; ``diversity`` by arm, where it was measured.

    ``tokens`` is tokens.parquet (``token_table``), None where an older version has left it out.
    ``golden`` is, in ``metrics`` and ``probe``, what the truth of the run gives: with references as the truth their
    NLL, which is golden up to a constant; without a truth it is null and not there.
    """

    directory: Path
    manifest: Row
    summary: Row
    metrics: Table
    probe: pa.Table
    responses: pa.Table
    diversity: dict[str, Row] = field(default_factory=dict)
    tokens: pa.Table | None = None

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

    @property
    def truth(self) -> str | None:
        """What golden is: a distance from the "oracle", the NLL of "references", or, for None, unknown."""
        return self.runs[0].summary["truth"]

    @property
    def proxy_is(self) -> str:
        """What proxy and train proxy are: "exact", a "lower_bound", or known "up_to_a_constant"."""
        return self.runs[0].summary["proxy_is"]

    @cached_property
    def judges(self) -> dict[str, bool]:
        """The columns of the judges that every evaluation of every curve has, and whether higher is better there."""
        judges = self.runs[0].manifest["config"].get("probe", {}).get("judges", [])
        better = {
            f"judge_{judge['name']}": judge["kind"] != "model"
            if judge["higher_is_better"] is None
            else judge["higher_is_better"]
            for judge in judges
        }
        rows = [row for curve in self.curves for row in curve.rows]
        return {column: higher for column, higher in better.items() if all(column in row for row in rows)}

    @cached_property
    def has_replicates(self) -> bool:
        """Whether any label has more than one seed."""
        return len({curve.label for curve in self.curves}) < len(self.curves)

    def references(self, key: str) -> list[float]:
        """A reference level (nats): one for each experiment, averaged over its seeds, without repeats."""
        levels: dict[str, list[float]] = {}
        for run in self.runs:
            if run.summary["references"][key] is not None:
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


def banded(truth: str | None) -> tuple[str, ...]:
    """The metrics whose curves carry a band: golden only where there is a truth."""
    return BANDED if truth is not None else tuple(metric for metric in BANDED if metric != "golden")


def identity(curve: Curve) -> Row:
    """The columns that say whose row it is, the same in every table."""
    return {"run": curve.run.directory.name, "arm": curve.arm, "seed": curve.seed}


def read_study(run_directories: Sequence[Path], names: Sequence[str] | None = None) -> Study:
    """Read and check run directories and join them over runs and seeds.

    Runs whose recipe and config agree up to the seed are replicates: their arms share a label. Otherwise the
    label of an arm names its run too, by its folder or by ``names``, one for each directory.

    Raises:
        AssayError: no directory is given, a file is missing, corrupt or of another format, the same arm and
            seed is there twice, or the prompts of the probe change along an arm.
    """
    if not run_directories:
        raise AssayError("no run directory was given: name at least one")
    runs = tuple(read_run(Path(os.path.realpath(directory))) for directory in run_directories)
    for measure, say in (("truth", words.truth), ("proxy_is", words.proxy)):
        kinds = {run.summary[measure]: run.directory.name for run in runs}
        if len(kinds) > 1:
            said = ", ".join(f"{name}: {say(kind)}" for kind, name in kinds.items())
            raise AssayError(
                f"these runs measure unlike things, which no figure can show on one axis: {said}; "
                "report them one by one"
            )
    experiments = list(dict.fromkeys(run.experiment for run in runs))
    if names is not None:
        name_of = {run.experiment: name for run, name in zip(runs, names, strict=True)}
    else:
        name_of = {run.experiment: run.directory.name for run in reversed(runs)}
    if len(set(name_of.values())) < len(name_of):
        name_of = {run.experiment: "/".join(run.directory.parts[-2:]) for run in reversed(runs)}
    curves: dict[tuple[str, int], Curve] = {}
    labels: list[str] = []
    for run in sorted(runs, key=lambda run: experiments.index(run.experiment)):
        for arm in run.arm_names:
            label = visible(arm if len(experiments) == 1 else f"{arm} ({name_of[run.experiment]})")
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
    manifest = read_manifest(directory / "manifest.json")
    summary = read_summary(directory / "summary.json")
    metrics = read_metrics(directory / "metrics.jsonl", running=manifest["status"] == "running")
    if not summary["arms"]:
        raise AssayError(f"no arm of {directory} has finished yet: ask for the report after the first one")
    for arm in summary["arms"]:
        if arm["verdict"] not in VERDICTS:
            raise unknown_name("verdict", arm["verdict"], VERDICTS)
        if not any(row["arm"] == arm["source"] and row["seed"] == arm["seed"] for row in metrics):
            raise AssayError(
                f"{directory / 'metrics.jsonl'} has no evaluation of {arm['source']!r}, seed {arm['seed']}, which "
                "summary.json calls finished: the files do not belong together; "
                "repeat the command that made the run in another folder"
            )
    probe = read_probe(directory / "probe.parquet")
    if summary["truth"] == "references":
        metrics = [{**row, "golden_nats": row["reference_nll_nats"]} for row in metrics]
        names = ["golden" if name == "reference_nll" else name for name in probe["metric"].to_pylist()]
        probe = probe.set_column(probe.schema.get_field_index("metric"), "metric", pa.array(names))
    if summary["truth"] is not None and any(row["golden_nats"] is None for row in metrics):
        raise AssayError(
            f"{directory / 'metrics.jsonl'} has evaluations without their truth: the file is damaged; "
            "repeat the command that made the run in another folder"
        )
    responses = read_responses(directory / "responses.parquet")
    sources = [arm["source"] for arm in summary["arms"]]
    measured = {name: read_diversity(directory / "arms" / name / "diversity.json") for name in sources}
    diversity = {name: found for name, found in measured.items() if found is not None}
    tokens = read_tokens(directory / "tokens.parquet")
    run = Run(directory, manifest, summary, metrics, probe, responses, diversity, tokens)
    for name in run.arm_names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise AssayError(f"{directory} has an arm {name!r}, which UTF-8 cannot hold: rename it and run again")
    return run


def paired_margins(probe: pa.Table, arm: str, seed: int, metric: str) -> dict[int, float]:
    """Half the width of the 95 % interval of (value at step - value at the first step), in nats, by step.

    Paired over prompts; several responses to one prompt count as their mean. NaN for a single prompt: unknown is
    not zero. Raises AssayError when the prompts change from step to step.
    """
    steps, values_SP = values_by_prompt(probe, arm, seed, metric)
    if values_SP.shape[1] < 2:
        return {int(step): np.nan for step in steps}
    changes = [t_interval(paired_difference(values_P, values_SP[0])) for values_P in values_SP]
    return {int(step): change.high - change.value for step, change in zip(steps, changes, strict=True)}


def values_by_prompt(probe: pa.Table, arm: str, seed: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [S] and values [S, P] (nats) of one metric of one arm; the same prompt in each column.

    Raises AssayError when the prompts change from step to step.
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
            "compared on one frozen set of prompts; repeat the command that made the run in another folder"
        )
    return steps, per_prompt["value_nats_mean"].to_numpy().reshape(len(steps), len(prompts))


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
            elif value is None and key == "golden":
                row |= {f"golden_{part}": None for part in curve.summary["proxy"]}
            elif isinstance(value, list) and key.startswith("ci95"):
                row |= dict(zip((f"{key}_low", f"{key}_high"), value, strict=True))
            else:
                row[key] = value
        rows.append(row)
    return rows


def to_csv(table: Table) -> str:
    """The table as CSV, numbers in full precision, null as an empty cell, control characters as symbols."""
    text = StringIO()
    columns = list(dict.fromkeys(key for row in table for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return visible(text.getvalue(), keep="\n\r\t")


def to_markdown(table: Sequence[Row]) -> list[str]:
    """The table's lines in Markdown, under the names of all columns; a cell that a row lacks is a dash."""
    columns = list(dict.fromkeys(key for row in table for key in row))
    return [
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(str(row.get(name, '–')) for name in columns)} |" for row in table),
    ]


def _curve(run: Run, label: str, arm: str, seed: int) -> Curve:
    constant = run.summary["references"]["d_oracle_teacher"]
    rows = [
        {**row, "oracle_term_nats": None if constant is None else row["golden_nats"] - constant}
        for row in run.metrics
        if row["arm"] == arm and row["seed"] == seed
    ]
    rows.sort(key=lambda row: row["step"])
    steps = [row["step"] for row in rows]
    if len(set(steps)) < len(steps):
        raise AssayError(
            f"{run.directory / 'metrics.jsonl'} has two evaluations of {arm!r} at the same step; "
            "repeat the command that made the run in another folder"
        )
    found = [entry for entry in run.summary["arms"] if entry["source"] == arm and entry["seed"] == seed]
    summary = found[-1] if found else None
    margins = {}
    for metric in banded(run.summary["truth"]):
        by_step = paired_margins(run.probe, arm, seed, metric)
        if summary is not None and not by_step:
            raise AssayError(
                f"{run.directory / 'probe.parquet'} has no {metric!r} of {arm!r}, seed {seed}; "
                "repeat the command that made the run in another folder"
            )
        # An arm that is still going has its parquet rows written later than its metrics.
        margins[metric] = np.array([by_step.get(step, np.nan) for step in steps])
    return Curve(label, run, arm, seed, tuple(rows), summary, margins)
