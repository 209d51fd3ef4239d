"""A run folder as tables for Python: what ``assay.read_run`` gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from assay.notebook import as_html, as_text, estimate
from assay.report import words
from assay.report.files import Row, Table
from assay.report.tables import identity, numbers, read_study
from assay.report.words import readable, visible

_HEAD = ("arm", "seed", "verdict", "hacking, nats", "golden: start", "best (step)", "end", "proxy: end")


@dataclass(frozen=True, eq=False, repr=False)
class RunResults:
    """The results of one run as tables: lists of rows for ``pandas.DataFrame(rows)``, and pyarrow tables for
    ``table.to_pandas()``; assay itself needs no pandas.

    ``verdicts`` has one row for each finished arm and seed: what summary.json says of it, flat, an interval as
    ``…_low`` and ``…_high``. ``evaluations`` has one row for each evaluation, of arms that are still going too: what
    metrics.jsonl says, flat. ``per_prompt`` has one row for each response that was measured (``metric``,
    ``value_nats``), ``responses`` one for each response that was kept, ``tokens`` one for each token of a few of them,
    None where the run has no tokens.parquet. Values are nats per sequence; what a run does not know is None.

    ``truth`` is what golden is measured against: the "oracle"; "references", where golden is their NLL, so known up
    to a constant; or None, where there is no golden. ``proxy_is`` is "exact", a "lower_bound" or "up_to_a_constant".
    ``unfinished`` are the arms without a verdict yet.
    """

    folder: Path
    truth: str | None
    proxy_is: str
    verdicts: Table
    evaluations: Table
    per_prompt: pa.Table
    responses: pa.Table
    tokens: pa.Table | None
    unfinished: tuple[str, ...]

    def __repr__(self) -> str:
        return f"read_run({str(self.folder)!r})"

    def __str__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())

    def _shown(self) -> tuple[str, list[str], tuple[str, ...], list[tuple[str, ...]]]:
        sentences = [f"Measured with {words.truth(self.truth)}; the proxy is {words.proxy(self.proxy_is)}."]
        if self.unfinished:
            sentences.append(f"Not finished: {', '.join(map(visible, self.unfinished))}.")
        return visible(f"Run {self.folder.name}"), sentences, _HEAD, [_cells(row) for row in self.verdicts]


def read_run(folder: str | Path) -> RunResults:
    """The results of a run folder as tables, read and checked; nothing is written, and torch is not imported.

    Raises:
        AssayError: no arm has finished yet, or a file is missing, damaged or of another format.
    """
    study = read_study([Path(folder)])
    (run,) = study.runs
    evaluations = [_flat({**identity(curve), **row}) for curve in study.curves for row in curve.rows]
    verdicts = numbers(study)
    judged = {row["arm"] for row in verdicts}
    unfinished = tuple(arm for arm in run.arm_names if arm not in judged)
    return RunResults(
        run.directory,
        study.truth,
        study.proxy_is,
        verdicts,
        evaluations,
        run.probe,
        run.responses,
        run.tokens,
        unfinished,
    )


def _flat(row: Row) -> Row:
    """``{"seconds": {"probe": 1}}`` as ``{"seconds_probe": 1}``."""
    flat: Row = {}
    for key, value in row.items():
        flat |= {f"{key}_{part}": each for part, each in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _cells(row: Row) -> tuple[str, ...]:
    best = words.nats(row["golden_best"])
    return (
        visible(row["arm"]),
        str(row["seed"]),
        readable(row["verdict"]),
        estimate(row["severity_hacking_nats"], row["ci95_hacking_low"], row["ci95_hacking_high"]),
        words.nats(row["golden_initial"]),
        best if row["golden_best"] is None else f"{best} ({row['golden_best_step']:,})",
        words.nats(row["golden_final"]),
        words.nats(row["proxy_final"]),
    )
