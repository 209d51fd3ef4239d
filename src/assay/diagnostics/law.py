"""The power law by which a distilled student approaches its teacher, ``c + a·(t + t0)^-b``, fitted to one curve.

Window: the evaluations from the highest value on, so that a bump during warm-up is left out; no value after the window
is ever used. ``t0`` >= 0 is the plateau before the fall, ``c`` >= 0 a floor: it is kept at 0 unless an F test at 5 %
asks for it, because a free floor also absorbs a curve that flattens for worse reasons.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

MIN_POINTS = 6
"""Fewest evaluations that a law is fitted to: three parameters and three degrees of freedom."""
FLOOR_LEVEL = 0.05
"""Level of the F test of a floor against none."""
_EXPONENTS = np.geomspace(0.02, 4.0, 24)
_PLATEAUS = np.concatenate([[0.0], np.geomspace(1e-3, 3.0, 15)])
_LARGEST_LOG = 709.0
_ROBUST_SCALE = 2.0  # residuals beyond two standard deviations count linearly [Huber 1964]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """``c + a·(t + t0)^-b`` with the noise of one evaluation around it, in the units of the curve and of its steps.

    ``first`` is the index of the first evaluation of the window. Internally the law is ``scale·(floor +
    amplitude·((x + plateau)/(1 + plateau))^-b)`` with x = t / last step: scaling steps or values scales the law. What
    is *relative* is over ``scale``, so that no unit is too large or too small for it.
    """

    amplitude: float
    b: float
    floor: float
    plateau: float
    scale: float
    last_step: float
    relative_noise: float
    first: int
    num_points: int
    floor_p_value: float | None
    relative_residuals: Floats
    covariance: Floats
    free: Floats
    free_covariance: Floats

    @property
    def num_parameters(self) -> int:
        """Three, or four with a floor."""
        return 4 if self.floor > 0 else 3

    @property
    def degrees_of_freedom(self) -> int:
        """Points less parameters."""
        return self.num_points - self.num_parameters

    @property
    def noise(self) -> float:
        """Standard deviation of one evaluation around the law, in the units of the curve."""
        return self.scale * self.relative_noise

    def at(self, steps: Floats) -> Floats:
        """The law's value."""
        return self.scale * self.relative_at(steps)

    def relative_at(self, steps: Floats) -> Floats:
        """The law's value over ``scale``."""
        return _values(self._theta, self._shares(steps))

    def stderr(self, steps: Floats) -> Floats:
        """Standard error of a new evaluation: its own noise and the law's uncertainty, by the delta method."""
        return self.scale * self.relative_stderr(steps)

    def relative_stderr(self, steps: Floats) -> Floats:
        """That standard error over ``scale``."""
        jacobian_NK = _jacobian(self._theta, self._shares(steps))[:, : self.num_parameters]
        spread_N = np.einsum("nk,kl,nl->n", jacobian_NK, self.covariance, jacobian_NK)
        return np.sqrt(self.relative_noise**2 + np.maximum(spread_N, 0.0))

    def band(self, steps: Floats, confidence: float = 0.95) -> tuple[Floats, Floats]:
        """Where a new evaluation lies with this probability, if the law holds."""
        margin = stats.t.ppf(0.5 + confidence / 2, self.degrees_of_freedom) * self.stderr(steps)
        middle = self.at(steps)
        return middle - margin, middle + margin

    def parameters(self) -> dict[str, float]:
        """a, b, c and t0 in the units of the curve and of its steps."""
        return _natural(self._theta, self.scale, self.last_step)

    def intervals(self, num_draws: int = 2000) -> dict[str, list[float]]:
        """95 % intervals of a, b, c and t0, with the floor free whatever the F test says, within their bounds.

        From draws of the fit's multivariate t approximation, widened to hold the estimate (a floor that the F test has
        put to 0, say). With too few points for a free floor it is taken as 0.
        """
        rng, free = np.random.default_rng(0), len(self.free)
        draws = rng.multivariate_normal(np.zeros(free), self.free_covariance, size=num_draws, check_valid="ignore")
        degrees = self.num_points - free
        draws /= np.sqrt(rng.chisquare(degrees, size=(num_draws, 1)) / degrees)
        low, high = _bounds(free)
        named = [
            _natural(_padded(theta), self.scale, self.last_step) for theta in np.clip(self.free + draws, low, high)
        ]
        found = {}
        for name, estimate in self.parameters().items():
            low_limit, high_limit = np.quantile([one[name] for one in named], [0.025, 0.975])
            found[name] = [min(float(low_limit), estimate), max(float(high_limit), estimate)]
        return found

    def _shares(self, steps: Floats) -> Floats:
        with np.errstate(over="ignore"):
            return np.minimum(np.asarray(steps, dtype=float) / self.last_step, 1e100)

    @property
    def _theta(self) -> Floats:
        return np.array([self.amplitude, self.b, self.plateau, self.floor])


def fit_law(steps: Floats, values: Floats, noise_floor: float = 0.0) -> Law | str:
    """The law of a falling curve, by robust least squares; the reason, in words, when there is none.

    ``noise_floor`` is the least standard deviation to believe in, from paired standard errors of neighbouring
    evaluations where they are known; the residuals' own spread counts where it is larger.
    """
    first = int(np.argmax(values)) if len(values) else 0
    x, y = steps[first:] / steps[-1] if len(steps) and steps[-1] > 0 else steps[first:], values[first:]
    if len(x) < MIN_POINTS:
        return f"a law needs {MIN_POINTS} evaluations from the highest value on, and there are {len(x)}"
    if y.min() <= 0:
        return "the curve has values at or below 0, where no power law holds"
    scale = float(y[0])
    if y[0] <= y[-1] or np.ptp(y) < 1e-9 * scale:
        return "the curve does not fall"
    y = y / scale
    theta, floor_p = _fit(x, y, 3), None
    free = theta[:3]
    if len(x) > MIN_POINTS:
        free = _fit(x, y, 4)
        floor_p = _floor_p_value(_sum_of_squares(theta, x, y), _sum_of_squares(free, x, y), len(x) - 4)
        theta = free if floor_p < FLOOR_LEVEL and free[3] > 0 else theta
    noise, covariance = _spread(theta[: 4 if theta[3] > 0 else 3], x, y, noise_floor / scale)
    amplitude, b, plateau, floor = map(float, theta)
    free_covariance = _spread(free, x, y, noise_floor / scale)[1]
    return Law(amplitude, b, floor, plateau, scale, float(steps[-1]), noise, first, len(x), floor_p,
               y - _values(theta, x), covariance, free, free_covariance)  # fmt: skip


def _spread(theta: Floats, x: Floats, y: Floats, noise_floor: float) -> tuple[float, Floats]:
    """Noise of one evaluation, and the covariance of these parameters."""
    residuals, jacobian = y - _values(_padded(theta), x), _jacobian(_padded(theta), x)[:, : len(theta)]
    noise = max(math.sqrt(float(residuals @ residuals) / (len(x) - len(theta))), noise_floor, 1e-9)
    noise = min(noise, 1e50)  # such a law says nothing, and its square must be a number
    return noise, noise**2 * np.linalg.pinv(jacobian.T @ jacobian)


def _values(theta: Floats, x: Floats) -> Floats:
    amplitude, b, plateau, floor = theta
    return floor + amplitude * _base(x, plateau) ** -b


def _base(x: Floats, plateau: float) -> Floats:
    return np.maximum((x + plateau) / (1 + plateau), 1e-6)  # a law without plateau is not evaluated at step 0


def _jacobian(theta: Floats, x: Floats) -> Floats:
    """Derivatives by amplitude, exponent, plateau and floor, ``[N, 4]``."""
    amplitude, b, plateau, _ = theta
    base = _base(x, plateau)
    power = base**-b
    by_plateau = -b * amplitude * power / base * (1 - x) / (1 + plateau) ** 2
    return np.stack([power, -amplitude * power * np.log(base), by_plateau, np.ones_like(x)], axis=1)


def _bounds(num_parameters: int) -> tuple[list[float], list[float]]:
    low, high = [0.0, _EXPONENTS[0], 0.0, 0.0], [np.inf, _EXPONENTS[-1], _PLATEAUS[-1], 1.0]
    return low[:num_parameters], high[:num_parameters]


def _fit(x: Floats, y: Floats, num_parameters: int) -> Floats:
    """The best point of a grid, in which amplitude and floor are linear, refined by robust least squares."""
    start = _best_on_grid(x, y, with_floor=num_parameters == 4)
    typical = 1.4826 * float(np.median(np.abs(y - _values(start, x)))) + 1e-6
    low, high = _bounds(num_parameters)
    inside = np.clip(start[:num_parameters], np.add(low, 1e-9), np.subtract(high, 1e-9))
    found = optimize.least_squares(
        lambda theta: _values(_padded(theta), x) - y,
        inside,
        jac=lambda theta: _jacobian(_padded(theta), x)[:, :num_parameters],  # type: ignore[arg-type]
        bounds=(low, high),
        loss="huber",
        f_scale=_ROBUST_SCALE * typical,
        max_nfev=50,
    )
    return _padded(found.x)


def _padded(theta: Floats) -> Floats:
    return np.concatenate([theta, np.zeros(4 - len(theta))])


def _best_on_grid(x: Floats, y: Floats, with_floor: bool) -> Floats:
    b, plateau = (grid.ravel() for grid in np.meshgrid(_EXPONENTS, _PLATEAUS))
    power_GN = np.maximum((x + plateau[:, None]) / (1 + plateau[:, None]), 1e-6) ** -b[:, None]
    if with_floor:
        centred_GN = power_GN - power_GN.mean(axis=1, keepdims=True)
        amplitude = centred_GN @ (y - y.mean()) / np.maximum((centred_GN**2).sum(axis=1), 1e-12)
        floor = np.maximum(y.mean() - amplitude * power_GN.mean(axis=1), 0.0)
    else:
        floor = np.zeros(len(b))
    amplitude = np.maximum(((y - floor[:, None]) * power_GN).sum(axis=1) / (power_GN**2).sum(axis=1), 1e-9)
    errors = ((floor[:, None] + amplitude[:, None] * power_GN - y) ** 2).sum(axis=1)
    best = int(errors.argmin())
    return np.array([amplitude[best], b[best], plateau[best], floor[best]])


def _sum_of_squares(theta: Floats, x: Floats, y: Floats) -> float:
    return float(((_values(theta, x) - y) ** 2).sum())


def _floor_p_value(without: float, with_floor: float, degrees_of_freedom: int) -> float:
    """P(F(1, df) >= the fall of the sum of squares by one more parameter)."""
    if with_floor <= 0:
        return 0.0
    return float(stats.f.sf(max(without - with_floor, 0.0) / (with_floor / degrees_of_freedom), 1, degrees_of_freedom))


def _natural(theta: Floats, scale: float, last_step: float) -> dict[str, float]:
    amplitude, b, plateau, floor = map(float, theta)
    log_a = math.log(scale) + math.log(max(amplitude, 1e-300)) + b * (math.log1p(plateau) + math.log(last_step))
    return {
        "a": math.exp(min(log_a, _LARGEST_LOG)),  # JSON has no infinity
        "b": b,
        "c": scale * floor,
        "t0": min(plateau * last_step, sys.float_info.max),
    }
