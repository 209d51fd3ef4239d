"""How well a column of a log follows golden over one run, and summaries of that over many runs.

Every column is turned so that lower is better before it comes here. No number depends on a column's unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

TURNED_UP = 0.1
"""A column has turned up when it ends above its lowest value by this share of all that it moved."""
GRID = 64
MAX_SHIFT = GRID // 4
"""Points of the grid, even in log-step, on which curves are shifted, and how far they are shifted at most: two octaves
of runs of 300 steps."""
NUM_RESAMPLES = 500


@dataclass(frozen=True)
class Curves:
    """One run: its evaluations, golden and the columns beside it.

    ``turned_up`` is the verdict of golden's per-prompt values, None where that was undecided. ``cluster`` is shared by
    runs of one world and seed, which have models and prompts in common.
    """

    name: str
    task: str
    cluster: str
    turned_up: bool | None
    steps: np.ndarray
    golden: np.ndarray
    columns: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Following:
    """What one column of one run has to do with golden; a value that does not exist is NaN.

    ``spearman``, ``pearson``: correlations over the evaluations. ``lag_of_best``: log2 of (the step of the column's
    lowest value + 1) over (that of golden's + 1), positive where the column is later. ``lag``: by how many octaves of
    the step the column's changes have to be moved back to be most like golden's, positive where the column is later.
    ``is_near_best``: whether the two best evaluations are the same or neighbours. ``regret``: golden at the column's
    best evaluation less its lowest, in nats per sequence. ``turned_up``: what the column alone says.
    """

    spearman: float
    pearson: float
    lag_of_best: float
    lag: float
    is_near_best: float
    regret: float
    turned_up: float


def turned_up(values_S: np.ndarray) -> bool:
    """Whether a curve ends above its lowest value by more than ``TURNED_UP`` of all that it moved."""
    low, high = values_S.min(), values_S.max()
    return bool(values_S[-1] - low > TURNED_UP * (high - low))


def follow(steps_S: np.ndarray, column_S: np.ndarray, golden_S: np.ndarray) -> Following:
    """Compares one column with golden. A column that is missing or never moves gives NaN throughout."""
    if not np.isfinite(column_S).all() or np.ptp(column_S) == 0 or np.ptp(golden_S) == 0:
        return Following(*[math.nan] * 7)
    best, true_best = int(column_S.argmin()), int(golden_S.argmin())
    return Following(
        spearman=_correlation(rankdata(column_S), rankdata(golden_S)),
        pearson=_correlation(column_S, golden_S),
        lag_of_best=math.log2((steps_S[best] + 1) / (steps_S[true_best] + 1)),
        lag=lag(steps_S, column_S, golden_S),
        is_near_best=float(abs(best - true_best) <= 1),
        regret=float(golden_S[best] - golden_S[true_best]),
        turned_up=float(turned_up(column_S)),
    )


def lag(steps_S: np.ndarray, column_S: np.ndarray, golden_S: np.ndarray) -> float:
    """Where the cross-correlation of the two curves' changes per log-step is largest, in octaves of the step.

    Both are interpolated on a grid even in log(step + 1) first; at least three quarters of it overlap at every shift,
    and of equal correlations the one at the smallest shift is taken. A largest value at the edge of the shifts is no
    lag but a trend: NaN.
    """
    place_S = np.log2(steps_S + 1.0)
    grid = np.linspace(place_S[0], place_S[-1], GRID)
    column, golden = (np.diff(np.interp(grid, place_S, values_S)) for values_S in (column_S, golden_S))
    shifts = sorted(range(-MAX_SHIFT, MAX_SHIFT + 1), key=abs)
    found = [
        _correlation(column[max(k, 0) : len(column) + min(k, 0)], golden[max(-k, 0) : len(golden) + min(-k, 0)])
        for k in shifts
    ]
    if np.isnan(found).all():
        return math.nan
    shift = shifts[int(np.nanargmax(np.round(found, 9)))]
    return math.nan if abs(shift) == MAX_SHIFT else shift * float(grid[1] - grid[0])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def follow_all(runs: Sequence[Curves], column: str) -> dict[str, Following]:
    """One column of all runs that have it."""
    return {run.name: follow(run.steps, run.columns[column], run.golden) for run in runs if column in run.columns}


def summary(runs: Sequence[Curves], column: str, with_intervals: bool = True) -> dict[str, object]:
    """One row of the table: how a column follows golden over these runs; medians with 95 % intervals over clusters."""
    found = {name: one for name, one in follow_all(runs, column).items() if not math.isnan(one.spearman)}
    mine = [run for run in runs if run.name in found]
    if not mine:
        return {"column": column, "runs": 0}

    def median_of(field: str) -> Callable[[Sequence[Curves]], float]:
        def median(part: Sequence[Curves]) -> float:
            known = [value for run in part if not math.isnan(value := getattr(found[run.name], field))]
            return float(np.median(known)) if known else math.nan

        return median

    def mean_of(field: str) -> Callable[[Sequence[Curves]], float]:
        return lambda part: float(np.mean([getattr(found[run.name], field) for run in part]))

    def agreement(part: Sequence[Curves]) -> float:
        return float(np.mean([found[run.name].turned_up == run.turned_up for run in part]))

    spearman = [found[run.name].spearman for run in mine]
    low, high = bootstrap(median_of("spearman"), mine) if with_intervals else (math.nan, math.nan)
    return {
        "column": column,
        "runs": len(mine),
        "spearman": median_of("spearman")(mine),
        "spearman_low": low,
        "spearman_high": high,
        "spearman_q1": float(np.quantile(spearman, 0.25)),
        "spearman_q3": float(np.quantile(spearman, 0.75)),
        "pearson": median_of("pearson")(mine),
        "near_best": mean_of("is_near_best")(mine),
        "lag_of_best": median_of("lag_of_best")(mine),
        "lag": median_of("lag")(mine),
        "with_lag": sum(not math.isnan(found[run.name].lag) for run in mine) / len(mine),
        "agreement": agreement(mine),
        "regret": mean_of("regret")(mine),
    }


def bootstrap(statistic: Callable[[Sequence[Curves]], float], runs: Sequence[Curves]) -> tuple[float, float]:
    """The 95 % percentile interval over resamples of worlds and seeds, since runs of one share their models."""
    clusters: dict[str, list[Curves]] = {}
    for run in runs:
        clusters.setdefault(run.cluster, []).append(run)
    names, rng = sorted(clusters), np.random.default_rng(0)
    drawn = [[run for i in rng.integers(len(names), size=len(names)) for run in clusters[names[i]]]
             for _ in range(NUM_RESAMPLES)]  # fmt: skip
    low, high = np.quantile([statistic(part) for part in drawn], [0.025, 0.975])
    return float(low), float(high)
