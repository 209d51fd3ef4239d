"""value at the end = a + b · E^-c: what diversity buys, E being the effective number of distinct responses.

For training of a given length in steps. ``E = prompts · completions^γ · rewrites^δ · (1 + α · (f / (1 - f))^β)``, and ψ
times that where the student writes; f is the share of fresh responses in a mixture. γ and δ are at most 1: a second
response to a prompt is worth no more than a second prompt.

What worlds share, the *shape* (γ, δ, α, β, ψ, c), comes as a prior: mean and spread between worlds, fitted by
``benchmarks/planner.py fit``. Level a and size b belong to a world, and are fitted to a few small runs of it, together
with what these say about the shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from assay.errors import AssayError, unknown_name

Array = NDArray[np.float64]

PARAMETERS = ("completions", "rewrites", "fresh_size", "fresh_power", "student", "decay")
"""γ, δ, α, β, ψ and c, by the names under which ``Shape`` holds their logarithms."""
UPPER = np.array([0.0, 0.0, np.inf, np.inf, np.inf, np.inf])
"""Of the logarithms: γ, δ <= 1."""


@dataclass(frozen=True)
class Exposure:
    """What training sees: prompts, stored completions of each, how often a stored response is written (1: once).

    ``fresh`` is the share of rows whose response is new at every draw, in a mixture with stored ones.
    """

    prompts: float
    completions: float = 1.0
    rewrites: float = 1.0
    fresh: float = 0.0
    by_student: bool = False


@dataclass(frozen=True)
class Shape:
    """The prior of log(γ, δ, α, β, ψ, c): mean and standard deviation between worlds, by name.

    ``noise`` is the standard deviation of a run around its world's law, in units of what the small runs span.
    ``widening`` times the standard deviation of a prediction is half its interval: the factor that covered ``coverage``
    of the runs of tasks that were left out of the fit.
    """

    mean: Mapping[str, float]
    sd: Mapping[str, float]
    noise: float
    widening: float
    coverage: float

    def vector(self, which: str) -> Array:
        """Means or standard deviations in the order of ``PARAMETERS``."""
        return np.array([getattr(self, which)[name] for name in PARAMETERS])


@dataclass(frozen=True)
class Prediction:
    """Values of several exposures with the covariance of their errors; half an interval is ``widening`` sd."""

    values: Array
    covariance: Array
    widening: float

    def margins(self) -> Array:
        """Half the interval of each value."""
        return self.widening * np.sqrt(np.diag(self.covariance))

    def difference_margins(self, reference: int) -> Array:
        """Half the interval of each value less that of ``reference``; what both share drops out."""
        variances = np.diag(self.covariance)
        found = variances + variances[reference] - 2 * self.covariance[:, reference]
        return self.widening * np.sqrt(np.maximum(found, 0.0))


@dataclass(frozen=True)
class Law:
    """The fitted law of one world. ``theta`` is (a, b, logs of ``PARAMETERS``); b is at ``reference`` responses."""

    theta: Array
    covariance: Array
    reference: float
    noise: float
    widening: float

    def predict(self, exposures: Sequence[Exposure]) -> Prediction:
        """Values of runs of these exposures, with intervals for the runs, not for the law alone."""
        values = _curve(self.theta, exposures, self.reference)
        gradient = _gradient(self.theta, exposures, self.reference)
        covariance = gradient @ self.covariance @ gradient.T + self.noise**2 * np.eye(len(values))
        return Prediction(values, covariance, self.widening)


def effective_number(exposure: Exposure, logs: Array) -> float:
    """E, for the logarithms of ``PARAMETERS``. Grows with prompts, completions, rewrites and the fresh share."""
    completions, rewrites, fresh_size, fresh_power, student, _ = np.exp(logs)
    number = exposure.prompts * exposure.completions**completions * exposure.rewrites**rewrites
    if exposure.fresh > 0:
        number *= 1 + fresh_size * (exposure.fresh / (1 - exposure.fresh)) ** fresh_power
    return float(number * (student if exposure.by_student else 1.0))


def decays(exposures: Sequence[Exposure], logs: Array, reference: float) -> Array:
    """(E / reference)^-c of each exposure."""
    numbers = np.array([effective_number(exposure, logs) for exposure in exposures])
    return (numbers / reference) ** -np.exp(logs[PARAMETERS.index("decay")])


def span(values: Sequence[float]) -> float:
    """The unit of noise: what the small runs of a world span, in nats."""
    return float(max(values) - min(values))


def fit(exposures: Sequence[Exposure], values: Sequence[float], shape: Shape) -> Law:
    """The law of a world from its small runs: least squares with the shape as a Gaussian prior, error by Laplace.

    ``exposures`` go from the least to the most diverse one. Raises AssayError for fewer than three runs, or when the
    last is no better than the first: then more diversity does not help, and there is nothing to extrapolate.
    """
    if len(values) < 3 or len(exposures) != len(values):
        raise AssayError(f"the law has three free numbers, and {len(values)} small runs cannot give them: run more")
    if not np.isfinite(values).all():
        raise AssayError("a small run ends with a value that is not finite: lower the learning rate")
    if values[-1] >= values[0]:
        raise AssayError(
            f"the small runs end no better with more responses ({values[0]:.2f} → {values[-1]:.2f} nats): this world "
            "gains nothing from diversity, so there is nothing to plan; train for more steps, or spend nothing more"
        )
    prior, sd, target = shape.vector("mean"), shape.vector("sd"), np.array(values, np.float64)
    reference = effective_number(exposures[0], prior)
    noise = shape.noise * span(values)

    def residuals(theta: Array) -> Array:
        misfit = (target - _curve(theta, exposures, reference)) / noise
        return np.concatenate([misfit, (theta[2:] - prior) / sd])

    design = np.column_stack([np.ones(len(target)), decays(exposures, prior, reference)])
    start = np.linalg.lstsq(design, target, rcond=None)[0]
    start[1] = max(start[1], 0.01 * span(values))
    lower = np.concatenate([[-np.inf, 0.0], np.full(len(prior), -np.inf)])  # more responses never predict worse
    bounds = (lower, np.concatenate([[np.inf, np.inf], UPPER]))
    begin = np.concatenate([start, np.minimum(prior, UPPER - 1e-3)])  # within the bounds, as the solver asks
    found = optimize.least_squares(residuals, begin, bounds=bounds, x_scale="jac")
    precision = found.jac.T @ found.jac
    return Law(found.x, np.linalg.inv(precision), reference, noise, shape.widening)


@cache
def shipped(metric: str) -> Shape:
    """The shape that comes with the package, for "golden" or another metric of planner.json."""
    found = json.loads(resources.files("assay").joinpath("planner.json").read_text(encoding="utf-8"))
    if metric not in found["shapes"]:
        raise unknown_name("metric", metric, found["shapes"])
    return Shape(**found["shapes"][metric])


def _curve(theta: Array, exposures: Sequence[Exposure], reference: float) -> Array:
    return theta[0] + theta[1] * decays(exposures, theta[2:], reference)


def _gradient(theta: Array, exposures: Sequence[Exposure], reference: float) -> Array:
    """d value / d theta by central differences: [exposures, parameters]."""
    columns = []
    for i in range(len(theta)):
        step = 1e-5 * max(1.0, abs(theta[i]))
        above, below = theta.copy(), theta.copy()
        above[i] += step
        below[i] -= step
        columns.append((_curve(above, exposures, reference) - _curve(below, exposures, reference)) / (2 * step))
    return np.column_stack(columns)
