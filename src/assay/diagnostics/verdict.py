"""The verdict on a run whose golden metric is known: healthy, teacher hacking, overfitting, or neither.

Let ``best`` be the step of the lowest golden, ``m`` the last step, at or after ``best``, whose held-out proxy
is not significantly above its lowest value from ``best`` on, and ``last`` the end of the run. What golden
lost up to ``m`` was lost while the proxy fell or stagnated (hacking: stopping on the proxy would not have
saved the student); what it lost afterwards was lost while the proxy rose too (overfitting).

Two selections could flatter these numbers, and both are undone. (1) Steps picked and measured on the same
prompts look too far apart, so steps are picked on one half of the prompts, the damage is measured on the
other, and the halves change roles; the bootstrap redoes all of it, with counts drawn over all prompts, so
that a prompt stays in its half. (2) The lowest proxy is itself picked
among ``k`` steps, so each later step is tested against it at ``TURN_LEVEL / (k - 1)`` (Bonferroni over the
steps that could have been lowest).

"Not significantly above" is not "not above": just before it is found out, a rising proxy has risen by two or
three standard errors. The part of golden's rise up to ``m`` that the proxy shows too is therefore counted as
overfitting, not as hacking: ``severity_hacking = (golden(m) - golden(best)) - (proxy(m) - proxy(lowest))``,
where the second bracket is at most the first. With the oracle as teacher the two curves are one
and hacking is never above 0, in any resample; without this term it is found in most such runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from assay.errors import AssayError
from assay.notebook import as_html, as_text, estimate
from assay.statistics import (
    Interval,
    paired_difference,
    percentile_interval,
    resample_counts,
    smallest_detectable,
    t_interval,
)

VerdictName = Literal["healthy", "teacher_hacking", "overfitting", "benign_disagreement", "undecided"]
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

MIN_EVALUATIONS = 4
"""A best, a turn, a middle and an end need four steps; fewer leave the verdict undecided."""

MIN_PROMPTS = 40
"""Two halves of 20, the fewest for which simulated false alarms kept to their level."""

NUM_SPLITS = 8
"""Random halvings that are averaged, so that the verdict hangs less on the luck of one."""

TURN_LEVEL = 0.05
"""One-sided level of every single paired test: has the proxy turned, has golden risen or fallen."""

RELEVANT_FRACTION = 0.1
"""A damage above this fraction of the run's own movement (the larger range of its two mean curves) matters.

Relative to movement, because golden's level is arbitrary when it is known only up to a constant.
"""

ROUNDING_NATS = 1e-4
"""Differences below this are rounding of float32 sums, not damage."""


@dataclass(frozen=True)
class Severities:
    """Golden's rise (nats) from its best to the end, and its two parts, which add up to it.

    ``rise_to_turn`` is golden(m) - golden(best), the hacking severity before the proxy's own rise is taken off.
    """

    severity: Interval
    severity_hacking: Interval
    severity_overfitting: Interval
    rise_to_turn: Interval


@dataclass(frozen=True)
class Verdict:
    """The name of the case, the sentence that says why, and the numbers behind it.

    Severities are in the unit of golden (nats per sequence); they and ``smallest_detectable_nats`` are None
    when evaluations or prompts are too few to measure them. ``best_step`` and ``turn_step`` (the step ``m``)
    come from all prompts, for drawing; the severities are cross-fitted, so they differ slightly from reading
    the mean curves off at these steps. ``onset_step`` is the first step from which golden stays above
    golden(best) by more than its paired noise; None unless hacking or overfitting was found and lasts.
    ``smallest_detectable_nats`` is the severity that these prompts show in at least four runs of five,
    whatever the curve's shape (84 to 100 % in simulations).
    """

    name: VerdictName
    reason: str
    severity: Interval | None
    severity_hacking: Interval | None
    severity_overfitting: Interval | None
    rise_to_turn: Interval | None
    onset_step: int | None
    best_step: int
    turn_step: int | None
    smallest_detectable_nats: float | None

    def __str__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())

    def _shown(self) -> tuple[str, list[str], list[str], list[tuple[str, str]]]:
        severities = {
            "golden's rise from its best to the end, nats": self.severity,
            "of it, hacking": self.severity_hacking,
            "of it, overfitting": self.severity_overfitting,
        }
        rows = [(name, _in_brackets(found)) for name, found in severities.items()]
        steps = {"best step": self.best_step, "turn of the proxy": self.turn_step, "onset": self.onset_step}
        rows += [(name, "none" if step is None else f"{step:,}") for name, step in steps.items()]
        rows.append(("smallest detectable, nats", estimate(self.smallest_detectable_nats)))
        return self.name.replace("_", " "), [self.reason], [], rows


def judge(
    steps_S: ArrayLike,
    golden_SP: ArrayLike,
    proxy_SP: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Verdict:
    """Name the case of one run from its held-out curves; "above 0" means the whole interval is.

    With damage (golden's rise from ``best`` to ``m``, after ``m``, or over both, is above 0), the first that
    applies: *undecided* when golden fell significantly over the last half of the steps (a transient);
    *teacher hacking* when ``severity_hacking`` is above 0; *overfitting* when ``severity_overfitting`` is;
    *undecided* when only their sum is. Without damage: *undecided* when an interval reaches beyond
    ``RELEVANT_FRACTION`` of the run's movement; *benign disagreement* when the proxy's rise from its lowest
    value to the end is above 0; else *healthy*.

    ``golden_SP`` and ``proxy_SP`` hold one value per evaluation and prompt (nats per sequence), with the same
    prompt and the same responses in column ``j`` throughout; a constant per prompt changes nothing, so golden
    may be known up to a constant. ``steps_S`` should start at step 0. The intervals are percentile intervals of a
    bootstrap over prompts that keeps every prompt in its half. Prompts count as independent.

    The order of the prompts does not matter; the same ``seed`` gives the same verdict. Fewer than
    ``MIN_EVALUATIONS`` or ``MIN_PROMPTS`` give *undecided*. Raises AssayError for values that are not finite,
    steps that do not increase, or shapes that do not fit. Source: the definition of teacher hacking in
    [Tiapkin et al. 2025]; the test is ours.
    """
    steps, (golden, proxy) = _checked(steps_S, golden=golden_SP, proxy=proxy_SP)
    if too_few := _too_few(golden):
        best_step = int(steps[golden.mean(axis=1).argmin()])
        return Verdict("undecided", too_few, None, None, None, None, None, best_step, None, None)

    rises = _cross_fitted_rises(golden, proxy, golden, num_resamples, seed)
    found = _severities(rises, confidence)
    proxy_rise = percentile_interval(rises.proxy_to_last_R[0], rises.proxy_to_last_R[1:], confidence)
    picked = _pick_steps(np.ones((1, golden.shape[1])), golden, proxy)
    best, turn = int(picked.best_R[0]), int(picked.turn_R[0])
    if any(_above_zero(part) for part in (found.severity, found.severity_hacking, found.severity_overfitting)):
        name, reason = _name_damage(found, steps, golden, int(steps[best]), int(steps[turn]))
    else:
        movement = max(float(np.ptp(values.mean(axis=1))) for values in (golden, proxy))
        name, reason = _name_no_damage(found, proxy_rise, movement, int(steps[best]))
    departed = name in ("teacher_hacking", "overfitting")
    # A damage is found only if half the prompts suffice to see where it began.
    half_stderr = math.sqrt(2) * float(_paired_rises(golden, -1)[1].max())
    return Verdict(
        name,
        reason,
        found.severity,
        found.severity_hacking,
        found.severity_overfitting,
        found.rise_to_turn,
        _onset(steps, golden, best) if departed else None,
        int(steps[best]),
        int(steps[turn]),
        smallest_detectable(half_stderr, alpha=1 - confidence),
    )


def excess_over(
    steps_S: ArrayLike,
    golden_SP: ArrayLike,
    proxy_SP: ArrayLike,
    matched_golden_SP: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Severities:
    """Severities of an arm less golden's rise in the matched arm between the very same steps.

    ``matched_golden_SP`` is golden of another arm (say, the same prompts online) at the same steps on the
    same held-out prompts. Steps are picked on the first arm alone, as in ``judge``. What both arms share,
    such as an early transient, drops out. Raises AssayError like ``judge``, and where it finds too little.
    """
    _, (golden, proxy, matched) = _checked(steps_S, golden=golden_SP, proxy=proxy_SP, matched_golden=matched_golden_SP)
    if too_few := _too_few(golden):
        raise AssayError(too_few)
    rises = _cross_fitted_rises(golden, proxy, golden - matched, num_resamples, seed)
    return _severities(rises, confidence)


def initial_fall(golden_SP: ArrayLike, *, seed: int = 0) -> float:
    """golden(first) - golden(best) in nats, cross-fitted: ``best`` is picked on one half of the prompts, the fall is
    measured on the other; the mean over ``NUM_SPLITS`` halvings in both roles.

    Never flattered by the choice of the step, so it may be below 0 where nothing falls.
    """
    golden = np.asarray(golden_SP, dtype=np.float64)
    rng = np.random.default_rng(seed)
    falls = [
        (golden[0] - golden[golden[:, pick_P].mean(axis=1).argmin()])[measure_P].mean()
        for pick_P, measure_P in _halvings(golden.shape[1], rng)
    ]
    return float(np.mean(falls))


def compare_final(golden_a_P: ArrayLike, golden_b_P: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean of ``golden_a - golden_b`` over the same held-out prompts, with its paired t interval.

    Below 0 the first arm ends closer to the truth. For runs of several seeds compare per-seed means instead
    (``statistics.mean_over_seeds``): the interval here holds for these two students only.
    """
    return t_interval(paired_difference(golden_a_P, golden_b_P), confidence)


@dataclass(frozen=True)
class _Picked:
    """Indices of steps, one for each resample; ``low`` is the lowest proxy from ``best`` on."""

    best_R: Indices
    low_R: Indices
    turn_R: Indices


@dataclass(frozen=True)
class _Rises:
    """Cross-fitted rises in nats; entry 0 is the sample itself, the others its resamples."""

    golden_to_turn_R: Floats
    proxy_to_turn_R: Floats
    proxy_to_last_R: Floats
    measured_to_turn_R: Floats
    measured_to_last_R: Floats


def _cross_fitted_rises(
    golden_SP: Floats, proxy_SP: Floats, measured_SP: Floats, num_resamples: int, seed: int
) -> _Rises:
    """Pick steps on one half, measure rises on the other, swap, and average over ``NUM_SPLITS`` halvings.

    One draw of counts per prompt serves all halvings of a resample: a prompt never enters both halves, and
    the resamples show the spread of the average, not of a single halving.
    """
    # Sorting makes halves and resamples belong to prompts, not to columns; levels would drown the sums.
    order_P = np.lexsort(np.concatenate([proxy_SP - proxy_SP[-1], golden_SP - golden_SP[-1]]))
    golden, proxy, measured = ((values - values[-1])[:, order_P] for values in (golden_SP, proxy_SP, measured_SP))
    num_prompts = golden.shape[1]
    rng = np.random.default_rng(seed)
    counts_RP = np.vstack([np.ones(num_prompts), resample_counts(num_resamples, num_prompts, rng)])
    total = np.zeros((5, num_resamples + 1))
    for pick_P, measure_P in _halvings(num_prompts, rng):
        picked = _pick_steps(counts_RP[:, pick_P], golden[:, pick_P], proxy[:, pick_P])
        lowest_R = _means(counts_RP[:, pick_P], proxy[:, pick_P]).argmin(axis=1)
        golden_RS, proxy_RS, measured_RS = (
            _means(counts_RP[:, measure_P], values[:, measure_P]) for values in (golden, proxy, measured)
        )
        last_R = np.full_like(picked.best_R, golden.shape[0] - 1)
        total += [
            _rise(golden_RS, picked.best_R, picked.turn_R),
            _rise(proxy_RS, picked.low_R, picked.turn_R),
            _rise(proxy_RS, lowest_R, last_R),
            _rise(measured_RS, picked.best_R, picked.turn_R),
            _rise(measured_RS, picked.best_R, last_R),
        ]
    return _Rises(*total / (2 * NUM_SPLITS))


def _halvings(num_prompts: int, rng: np.random.Generator) -> Iterator[tuple[Indices, Indices]]:
    """``NUM_SPLITS`` random halvings, each in both roles."""
    for _ in range(NUM_SPLITS):
        first, second = np.array_split(rng.permutation(num_prompts), 2)
        yield first, second
        yield second, first


def _pick_steps(counts_RP: Floats, golden_SP: Floats, proxy_SP: Floats) -> _Picked:
    """``best``, the lowest proxy from there on, and the turn ``m``, in every resample at once."""
    num_steps = len(golden_SP)
    n_R1 = counts_RP.sum(axis=1, keepdims=True)
    best_R = _means(counts_RP, golden_SP).argmin(axis=1)
    proxy_RS = _means(counts_RP, proxy_SP)
    low_R = np.where(np.arange(num_steps) >= best_R[:, None], proxy_RS, np.inf).argmin(axis=1)
    z_R1 = np.array([_z(TURN_LEVEL / max(num_steps - best - 1, 1)) for best in range(num_steps)])[best_R, None]
    stagnant_RS = np.zeros(proxy_RS.shape, dtype=bool)
    # Few steps are ever lowest: one matrix product for each gives all paired standard errors.
    for low in np.unique(low_R):
        rows = low_R == low
        rise_RS = proxy_RS[rows] - proxy_RS[rows, low, None]
        square_RS = _means(counts_RP[rows], (proxy_SP - proxy_SP[low]) ** 2)
        stderr_RS = np.sqrt(np.maximum(square_RS - rise_RS**2, 0) / (n_R1[rows] - 1))
        stagnant_RS[rows] = rise_RS <= z_R1[rows] * stderr_RS
    turn_R = num_steps - 1 - stagnant_RS[:, ::-1].argmax(axis=1)
    return _Picked(best_R, low_R, turn_R)


def _means(counts_RP: Floats, values_SP: Floats) -> Floats:
    return counts_RP @ values_SP.T / counts_RP.sum(axis=1, keepdims=True)


def _rise(mean_RS: Floats, start_R: Indices, end_R: Indices) -> Floats:
    rows_R = np.arange(len(mean_RS))
    return mean_RS[rows_R, end_R] - mean_RS[rows_R, start_R]


def _severities(rises: _Rises, confidence: float) -> Severities:
    # A proxy cannot account for more damage than there is. Its rise is not clipped at 0: that would take off
    # positive noise only, and where the proxy stagnates the severity would be half a standard error too small.
    shown_R = np.minimum(rises.proxy_to_turn_R, np.maximum(rises.golden_to_turn_R, 0))
    hacking_R = rises.measured_to_turn_R - shown_R
    to_last_R, to_turn_R = rises.measured_to_last_R, rises.measured_to_turn_R
    return Severities(
        *(
            percentile_interval(rise_R[0], rise_R[1:], confidence)
            for rise_R in (to_last_R, hacking_R, to_last_R - hacking_R, to_turn_R)
        )
    )


def _in_brackets(found: Interval | None) -> str:
    return estimate(None) if found is None else estimate(found.value, found.low, found.high)


def _name_damage(
    found: Severities, steps: Indices, golden_SP: Floats, best_step: int, turn_step: int
) -> tuple[VerdictName, str]:
    total, hacking, overfitting = found.severity, found.severity_hacking, found.severity_overfitting
    middle = int(np.searchsorted(steps, (steps[0] + steps[-1]) / 2, side="right")) - 1
    rise_S, stderr_S = _paired_rises(golden_SP, middle)
    if rise_S[-1] < -_z(TURN_LEVEL) * stderr_S[-1]:
        return "undecided", (
            f"golden rose ({_nats(total)} above its best at the end) but fell by {-rise_S[-1]:.3g} nats from "
            f"step {steps[middle]} to the end, so the rise may be a transient: train on and judge again"
        )
    if _above_zero(hacking):
        later = f"; after the proxy had turned it rose by {_nats(overfitting)} more"
        return "teacher_hacking", (
            f"from its best (step {best_step}) golden rose by {_nats(hacking)} while the held-out proxy "
            f"fell or stagnated (until step {turn_step})" + later * _above_zero(overfitting)
        )
    if _above_zero(overfitting):
        return "overfitting", (
            f"golden rose by {_nats(overfitting)} together with the held-out proxy, which stagnated until "
            f"step {turn_step}, and by {_nats(hacking)} without it"
        )
    return "undecided", (
        f"golden ends {_nats(total)} above its best (step {best_step}), but whether it rose before or after "
        "the held-out proxy turned cannot be told"
    )


def _name_no_damage(
    found: Severities, proxy_rise: Interval, movement: float, best_step: int
) -> tuple[VerdictName, str]:
    total = found.severity
    parts = (total, found.severity_hacking, found.severity_overfitting)
    widest = max(parts, key=lambda interval: interval.high)
    if widest.high > max(RELEVANT_FRACTION * movement, ROUNDING_NATS):
        return "undecided", (
            f"no damage was found ({_nats(widest)}), but one above {RELEVANT_FRACTION:.0%} of the run's "
            f"movement of {movement:.3g} nats is not excluded: more held-out prompts would tell"
        )
    within = f"golden ends no more than {max(total.high, 0.0):.3g} nats above its best (step {best_step})"
    if _above_zero(proxy_rise):
        return "benign_disagreement", (
            f"the held-out proxy ends {_nats(proxy_rise)} above its lowest value, but {within}"
        )
    return "healthy", f"{within}, in a run that moved by {movement:.3g} nats"


def _onset(steps: Indices, golden_SP: Floats, best: int) -> int | None:
    """The first step from which golden stays above golden(best) by more than its paired noise."""
    rise_S, stderr_S = _paired_rises(golden_SP, best)
    within = np.flatnonzero(rise_S <= _z(TURN_LEVEL) * stderr_S)
    # ``best`` itself is within, so the list is never empty; the onset follows its last entry.
    onset = int(within[-1]) + 1
    return int(steps[onset]) if onset < len(steps) else None


def _paired_rises(values_SP: Floats, start: int) -> tuple[Floats, Floats]:
    """The mean rise from one step to every step, and its paired standard error."""
    rise_SP = values_SP - values_SP[start]
    return rise_SP.mean(axis=1), rise_SP.std(axis=1, ddof=1) / math.sqrt(values_SP.shape[1])


def _above_zero(interval: Interval) -> bool:
    return interval.low > ROUNDING_NATS


def _z(one_sided_level: float) -> float:
    return NormalDist().inv_cdf(1 - one_sided_level)


def _nats(interval: Interval) -> str:
    return f"{interval.value:.3g} nats (interval {interval.low:.3g} to {interval.high:.3g})"


def _too_few(golden_SP: Floats) -> str:
    num_steps, num_prompts = golden_SP.shape
    if num_steps >= MIN_EVALUATIONS and num_prompts >= MIN_PROMPTS:
        return ""
    return (
        f"a verdict needs at least {MIN_EVALUATIONS} evaluations and {MIN_PROMPTS} held-out prompts, "
        f"but there are {num_steps} and {num_prompts}: "
        "evaluate more often, or hold out more prompts"
    )


def _checked(steps_S: ArrayLike, **tables_SP: ArrayLike) -> tuple[Indices, list[Floats]]:
    try:
        steps = np.asarray(steps_S)
        tables = [np.asarray(values, dtype=np.float64) for values in tables_SP.values()]
    except (TypeError, ValueError) as error:
        raise AssayError(f"steps, {', '.join(tables_SP)} must be tables of numbers with rows of one length") from error
    if steps.ndim != 1 or steps.size == 0 or not np.issubdtype(steps.dtype, np.integer):
        raise AssayError("the steps must be a list of whole numbers, one for each evaluation")
    if (steps[1:] <= steps[:-1]).any():  # not np.diff: unsigned differences are never negative
        raise AssayError("the steps must increase: sort the evaluations and keep one for each step")
    shapes = [values.shape for values in tables]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][0] != len(steps) or shapes[0][1] == 0:
        raise AssayError(
            f"{', '.join(tables_SP)} must be tables of one shape, ({len(steps)} evaluations, prompts), "
            f"not {', '.join(map(str, shapes))}"
        )
    for name, values in zip(tables_SP, tables, strict=True):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if bad.size:
            raise AssayError(
                f"{name} has values that are not finite, first at step {steps[bad[0]]}: score those prompts "
                "again, or leave them out at every step of every metric"
            )
    return steps.astype(np.intp), tables
