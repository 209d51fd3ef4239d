"""Shapes of a curve that do not change when its steps or its values are rescaled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LATE = 4.0
"""The late part of a curve: steps above the last one over this."""
EARLIER = 24.0
"""The part before it: down to the last step over this."""
MIN_POINTS = 3

Floats = NDArray[np.float64]


def late_line(steps: Floats, values: Floats) -> tuple[float | None, float]:
    """Slope of log value over log step in the late part, and the line's value (log) at the end.

    The slope is None where there are fewer than two positive steps.
    """
    return _line(steps, values, steps[-1] / LATE, steps[-1])


def earlier_slope(steps: Floats, values: Floats) -> float | None:
    """The slope of the part before the late one; None where there are fewer than two positive steps."""
    return _line(steps, values, steps[-1] / EARLIER, steps[-1] / LATE)[0]


def fall(steps: Floats, values: Floats) -> float:
    """log(first value / value at the end of the late line): how far a curve has fallen, in e-foldings."""
    return float(np.log(values[0])) - late_line(steps, values)[1]


def _line(steps: Floats, values: Floats, low: float, high: float) -> tuple[float | None, float]:
    """Least squares in log-log over the steps in (low, high], at least the last ``MIN_POINTS`` of them."""
    usable = (steps > 0) & (steps <= high)
    chosen = usable & (steps > low * (1 + 1e-9))  # a step on the border stays out in every unit
    if chosen.sum() < MIN_POINTS:
        chosen = usable & (np.cumsum(usable[::-1])[::-1] <= MIN_POINTS)
    if chosen.sum() < 2:
        return None, float(np.log(values[-1]))
    x, y = np.log(steps[chosen]), np.log(values[chosen])
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return slope, float(y.mean() + slope * (x[-1] - x.mean()))


def noise_of(values: Floats) -> float:
    """Standard deviation of one evaluation around a smooth curve, from second differences (robust).

    For independent noise the second difference has variance 6σ²; curvature makes it too large, never too small.
    """
    if len(values) < 4:
        return float("inf")
    scale = float(np.abs(values).max()) or 1.0  # twice a large value may be more than a number can be
    relative = values / scale
    second = relative[2:] - 2 * relative[1:-1] + relative[:-2]
    return scale * (1.4826 * float(np.median(np.abs(second))) / 6**0.5)
