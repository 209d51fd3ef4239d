"""The verdict from mean curves: a truth (golden, or the NLL of references) beside the held-out proxy.

The same cases as ``diagnostics.verdict``, which should be preferred where per-prompt values are at hand: here the noise
of a mean is known only from paired standard errors in the log, or guessed from the curve's own roughness.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from assay.diagnostics.curves import noise_of
from assay.diagnostics.verdict import VerdictName

Z = 2.33
"""Standard errors that a rise must exceed: one-sided 1 %."""

_ROUNDING = 1e-9
"""A change by less of the curve's largest value is none: means of equal values may differ in their last digits."""
_LARGEST = 1e100

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """The name of a case, why, the step of the best truth, and from where on it stays above that."""

    name: VerdictName
    reason: str
    best_step: float
    onset_step: float | None


def case_of(
    steps: Floats,
    truth: Floats,
    proxy: Floats,
    truth_diff_stderr: Floats | None = None,
    proxy_diff_stderr: Floats | None = None,
) -> Case:
    """Hacking: the truth rises from its best while the proxy falls or stagnates; overfitting: while the proxy rises.

    The hacking part ends at the last evaluation whose proxy is not above its lowest by more than noise. Nothing is
    taken off for the proxy's own rise by then: the two may have different units, and rescaling one must change no
    verdict. A fall over the last half of the steps that exceeds noise makes a rise *undecided*.
    """
    unit, proxy_unit = _unit_of(truth), _unit_of(proxy)
    truth, proxy = truth / unit, proxy / proxy_unit
    best, last = int(truth.argmin()), len(truth) - 1
    low = best + int(proxy[best:].argmin())
    error, proxy_error = (
        _errors(*three) for three in ((truth, truth_diff_stderr, unit), (proxy, proxy_diff_stderr, proxy_unit))
    )
    held = [i for i in range(best, last + 1) if proxy[i] - proxy[low] <= Z * proxy_error(low, i)]
    turn = max(held)
    hacking = truth[turn] - truth[best]
    total = truth[last] - truth[best]
    best_step = float(steps[best])
    if total > Z * error(best, last):
        half = int(np.flatnonzero(steps <= steps[-1] / 2)[-1]) if (steps <= steps[-1] / 2).any() else 0
        if truth[half] - truth[last] > Z * error(half, last):
            return Case("undecided", "it is above its best but falling: a transient", best_step, None)
        above = [i for i in range(best + 1, last + 1) if truth[i] - truth[best] <= Z * error(best, i)]
        onset = float(steps[max(above, default=best) + 1])
        rose = f"it rose by {float(total) * unit:.3g} from its best at step {best_step:g}"
        if hacking > Z * error(best, turn) and hacking >= total / 2:
            return Case("teacher_hacking", f"{rose}, mostly while the proxy fell or stagnated", best_step, onset)
        return Case("overfitting", f"{rose}, mostly while the proxy rose too", best_step, onset)
    if math.isinf(error(0, last)):
        return Case("undecided", "too few evaluations to know its noise", best_step, None)
    within = f"it ends {float(total) * unit:.3g} above its best (step {best_step:g}), within noise"
    lowest = int(proxy.argmin())
    if proxy[last] - proxy[lowest] > Z * proxy_error(lowest, last):
        return Case("benign_disagreement", f"{within}, while the proxy has turned up", best_step, None)
    return Case("healthy", within, best_step, None)


def _errors(values: Floats, diff_stderr: Floats | None, unit: float) -> Callable[[int, int], float]:
    """Standard error of a curve's change between two evaluations; changes between neighbours count as independent.

    ``values`` are already over ``unit``, the errors become so.
    """
    noise = max(noise_of(values) * math.sqrt(2), _ROUNDING)
    with np.errstate(over="ignore"):
        squares = None if diff_stderr is None else np.cumsum(np.minimum(diff_stderr / unit, _LARGEST) ** 2)

    def error(i: int, j: int) -> float:
        if i == j:
            return 0.0
        return noise if squares is None else max(math.sqrt(abs(float(squares[j] - squares[i]))), _ROUNDING)

    return error


def _unit_of(values: Floats) -> float:
    """A power of two near the largest value: divided by it, values keep their digits and their squares are numbers."""
    return 2.0 ** (math.frexp(float(np.abs(values).max()))[1] - 1)
