"""What a comparison of runs looks like in a terminal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from assay.comparison import ArmRow, Comparison, Contrast, Difference, as_text
from assay.report.words import brackets, nats
from assay.statistics import Interval
from assay.terminal import coloured, open_console, print_rows


def print_comparison(comparison: Comparison) -> None:
    """The comparison on stdout: tables where they fit without wrapping, else short lines."""
    console = open_console()
    print_rows(console, _ARM_COLUMNS, [_arm_cells(row) for row in comparison.rows], _ARM_LINES)
    console.print("best → end in nats per sequence, on held-out prompts; golden: to the oracle, proxy: to the teacher")
    for field in comparison.fields:
        console.print(escape(f"{field}: {_values(comparison.rows, field)}"))
    if len({row.run for row in comparison.rows}) > 1 and not comparison.fields:
        console.print("the configs differ in nothing but seed, recipe, task and choice of arms")
    _print_contrasts(
        console,
        f"\nevery arm less {comparison.reference} at the end, over the same held-out prompts",
        comparison.paired,
    )
    _print_contrasts(
        console, f"\nevery arm less {comparison.reference} and its replicates, over seeds", comparison.over_seeds
    )
    if comparison.unfinished:
        console.print(escape(f"\nnot finished, left out: {', '.join(comparison.unfinished)}"))


def comparison_document(comparison: Comparison, table: Path | None = None) -> dict[str, Any]:
    """The comparison as plain JSON values, schema ``assay.comparison/1``; all values in nats per sequence.

    Where two arms cannot be compared, a word that says why stands instead of the difference.
    """
    found = _finite(dataclasses.asdict(comparison))
    path = {} if table is None else {"path": str(table.resolve())}
    return {"schema": "assay.comparison/1", "unit": "nats_per_sequence", **found, **path}


def _finite(value: Any) -> Any:
    """JSON has neither infinities nor NaN."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_ARM_COLUMNS = ("arm", "seed", "verdict", "hacking [95 %]", "golden", "proxy", "train proxy", "generated")
_ARM_LINES = (
    "[bold]{0}[/bold], seed {1}: {2}, hacking {3}\n  golden {4}   proxy {5}   train proxy {6}\n  {7} tokens generated"
)
_CONTRAST_COLUMNS = ("arm", "reference", "seed", "golden [95 %]", "p", "proxy [95 %]", "p")
_CONTRAST_LINES = "[bold]{0} − {1}[/bold], seed {2}\n  golden {3}   p {4}\n  proxy {5}   p {6}"


def _print_contrasts(console: Console, title: str, contrasts: Sequence[Contrast]) -> None:
    if not contrasts:
        return
    console.print(escape(f"{title}: below 0 is closer than the reference"))
    print_rows(console, _CONTRAST_COLUMNS, [_contrast_cells(contrast) for contrast in contrasts], _CONTRAST_LINES)


def _arm_cells(row: ArmRow) -> tuple[str, ...]:
    severity = row.severity_hacking
    hacking = "–" if severity is None else _with_bounds(severity)
    golden = f"{nats(row.golden_best)} → {nats(row.golden_final)}"
    ends = (golden, nats(row.proxy_final), nats(row.train_proxy_final), f"{row.generated_tokens:,}")
    # Rich takes brackets for markup, in names from files and in intervals alike.
    name, seed, *others = map(escape, (row.name, str(row.seed), hacking, *ends))
    return (name, seed, coloured(row.verdict), *others)


def _contrast_cells(contrast: Contrast) -> tuple[str, ...]:
    cells = [contrast.name, contrast.reference, " ".join(map(str, contrast.seeds))]
    for difference in (contrast.golden, contrast.proxy):
        if isinstance(difference, str):
            cells += [difference, "–"]
        else:
            cells += [_with_bounds(difference.interval, signed=True), _p_values(difference)]
    return tuple(map(escape, cells))


def _p_values(difference: Difference) -> str:
    def text(p: float) -> str:
        return f"{p:.4f}" if p >= 0.0001 else "<0.0001"

    holm = difference.p_holm
    return text(difference.p_value) if holm is None else f"{text(difference.p_value)} (Holm {text(holm)})"


def _with_bounds(interval: Interval, signed: bool = False) -> str:
    return f"{nats(interval.value, signed)} {brackets([interval.low, interval.high])}"


def _values(rows: Sequence[ArmRow], field: str) -> str:
    """Each value of a config field with the runs that have it; with their arms where the field is the arms' own."""
    holders: dict[str, list[str]] = {}
    for row in rows:
        value = as_text(row.config[field]) if field in row.config else "–"
        holders.setdefault(value, []).append(row.name if field.startswith("sources.") else row.run)
    return "; ".join(f"{value} in {', '.join(dict.fromkeys(names))}" for value, names in holders.items())
