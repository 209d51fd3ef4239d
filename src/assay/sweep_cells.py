"""The cells of a sweep: one arm of one variant in one world over all its seeds, and what each cost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from assay.findings import Outcomes
from assay.results import at_step
from assay.statistics import mean_over_seeds, percentile_interval, resample_counts, t_interval

Row = dict[str, Any]

METRICS = {
    "severity": "severity of hacking",
    "golden_end": "golden at the end",
    "golden_best": "golden at its best",
    "proxy_end": "proxy at the end",
}
"""What the maps show, in nats per sequence; lower is better in all of them."""
_PLACES = {
    "severity": ("", ""),
    "golden_end": ("golden", "final"),
    "golden_best": ("golden", "best"),
    "proxy_end": ("proxy", "final"),
}
_NUM_RESAMPLES = 4_000


@dataclass(frozen=True)
class Level:
    """A mean over seeds with its 95 % interval (nats per sequence); bounds are None where they are unknown."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Cell:
    """One arm of one variant in one world. Its interval is Student's t over seeds; with one seed, over prompts."""

    outcomes: Outcomes
    world: str
    variant: str
    arm: str

    @property
    def seeds(self) -> list[int]:
        """The seeds whose runs this cell averages."""
        return self.outcomes.seeds

    @cached_property
    def entries(self) -> list[Row]:
        """The arm's entry in summary.json of each seed."""
        return [self.outcomes.arm(self.world, seed, self.variant, self.arm) for seed in self.seeds]

    @cached_property
    def records(self) -> list[list[Row]]:
        """The evaluations of each seed, at the steps that all seeds have."""
        by_seed = [self.outcomes.records(self.world, seed, self.variant, self.arm) for seed in self.seeds]
        common = set.intersection(*({row["step"] for row in rows} for rows in by_seed))
        return [[row for row in rows if row["step"] in common] for rows in by_seed]

    @property
    def steps(self) -> list[int]:
        """The steps of ``records``."""
        return [row["step"] for row in self.records[0]]

    def level(self, metric: str) -> Level | None:
        """One of ``METRICS``; None where a seed does not know it.

        With one seed the interval is over held-out prompts, for this student alone: that of summary.json for the
        severity, the percentile bootstrap for the others (the choice of the best step is not repeated in it).
        """
        curve, part = _PLACES[metric]
        found = [
            entry[curve] and entry[curve][part] if curve else entry["severity_hacking_nats"] for entry in self.entries
        ]
        values = [value for value in found if value is not None]
        if len(values) < len(found):
            return None
        if len(values) > 1:
            return _over_seeds(values)
        if not curve:
            return Level(values[0], *self.entries[0]["ci95_hacking"])
        step = self.entries[0]["golden"]["best_step"] if part == "best" else self.entries[0].get("kept_step")
        measured = "reference_nll" if (curve, self.outcomes.truth) == ("golden", "references") else curve
        by_prompt = self.outcomes.curve(self.world, self.seeds[0], self.variant, self.arm, measured)
        return _over_prompts(at_step(*by_prompt, step))

    def curve(self, metric: str) -> list[Level | None]:
        """ "golden" or "proxy" at ``steps``, means over seeds with pointwise intervals, none with one seed."""
        key = f"{'reference_nll' if (metric, self.outcomes.truth) == ('golden', 'references') else metric}_nats"
        found: list[Level | None] = []
        for rows in zip(*self.records, strict=True):
            values = [row[key] for row in rows]
            found.append(None if any(value is None for value in values) else _over_seeds(values))
        return found

    def tokens(self, kind: str) -> list[float]:
        """ "generated" or "teacher" tokens used up to each of ``steps``, means over seeds."""
        return [float(np.mean([row[f"{kind}_tokens"] for row in rows])) for rows in zip(*self.records, strict=True)]


def cells_of(o: Outcomes) -> list[Cell]:
    """All cells, in the order of worlds, variants and arms."""
    return [
        Cell(o, world, variant, arm["source"])
        for world in o.worlds
        for variant in o.variants
        for arm in o.arms(world, o.seeds[0], variant)
    ]


def cell_rows(cells: Sequence[Cell]) -> list[Row]:
    """One row for each cell: every metric with its interval, what the interval is over, and the tokens used."""
    rows = []
    for cell in cells:
        row: Row = {"world": cell.world, "variant": cell.variant, "arm": cell.arm, "num_seeds": len(cell.seeds)}
        row["interval_over"] = interval_is_over(len(cell.seeds))
        for metric in METRICS:
            level = cell.level(metric)
            bounds = (level.value, level.low, level.high) if level else (None, None, None)
            row |= dict(zip((f"{metric}_nats", f"{metric}_nats_low", f"{metric}_nats_high"), bounds, strict=True))
        rows.append(row | {f"{kind}_tokens": cell.tokens(kind)[-1] for kind in ("generated", "teacher")})
    return rows


def interval_is_over(num_seeds: int) -> str:
    """What the intervals of cells of so many seeds are over."""
    return "seeds" if num_seeds > 1 else "prompts"


def _over_seeds(values: Sequence[float]) -> Level:
    estimate = mean_over_seeds([[value] for value in values])
    if estimate.stderr is None:
        return Level(estimate.value, None, None)
    bounds = t_interval(estimate)
    return Level(bounds.value, bounds.low, bounds.high)


def _over_prompts(values_P: np.ndarray) -> Level:
    if len(values_P) < 2:
        return Level(float(values_P.mean()), None, None)
    counts_RP = resample_counts(_NUM_RESAMPLES, len(values_P), np.random.default_rng(0))
    bounds = percentile_interval(float(values_P.mean()), counts_RP @ values_P / len(values_P))
    return Level(bounds.value, bounds.low, bounds.high)
