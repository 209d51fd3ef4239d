"""Estimates with their uncertainty, paired comparisons, the bootstrap, and the seed as a level of its own.

Every prompt of a probe is scored at every step and in every arm, so differences are taken prompt by prompt:
what prompts have in common drops out, and what is left is far more precise than either level. Axis letters
(``P`` prompts, ``S`` evaluations) are those of ``assay.types``; ``R`` counts bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from assay.errors import AssayError


@dataclass(frozen=True)
class Estimate:
    """A mean of ``n`` independent values with its standard error; an unknown error is None, never 0."""

    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Interval:
    """A value between its confidence limits. The interval of a bootstrap need not be symmetric."""

    value: float
    low: float
    high: float


def mean_estimate(values_P: ArrayLike) -> Estimate:
    """Mean of independent values; standard error = sd / sqrt(n), None for a single value.

    Raises AssayError when there is no value, or one that is not finite.
    """
    values = _finite_vector("the values", values_P)
    n = values.size
    stderr = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return Estimate(float(values.mean()), stderr, n)


def paired_difference(a_P: ArrayLike, b_P: ArrayLike) -> Estimate:
    """Mean of ``a - b`` over pairs, with the standard error of the differences.

    Entry ``i`` of both arrays belongs to the same prompt. Raises AssayError when the lengths differ.
    """
    a, b = _finite_vector("the first values", a_P), _finite_vector("the second values", b_P)
    if a.size != b.size:
        raise AssayError(
            f"a paired difference needs the same prompts on both sides: {a.size} values against {b.size}; "
            "keep those that both have"
        )
    return mean_estimate(a - b)


def mean_over_seeds(values_by_seed: Sequence[ArrayLike]) -> Estimate:
    """Mean of the per-seed means; the standard error comes from the spread *between* seeds; n = seeds.

    One entry per seed: its values over prompts, or a single number. Prompts of one seed share the run that
    produced them, so only seeds count as independent: pooling all prompts would claim far too much. Feed
    the result to ``t_interval``. A single seed has no standard error (None).
    """
    return mean_estimate([mean_estimate(np.ravel(values)).value for values in values_by_seed])


def t_interval(estimate: Estimate, confidence: float = 0.95) -> Interval:
    """Two-sided ``value ± t(n - 1) · stderr`` [Student 1908]; near the normal one for many prompts.

    Raises AssayError when the standard error is unknown.
    """
    if estimate.stderr is None:
        raise AssayError("an interval needs a standard error: give at least two independent values")
    margin = t_quantile(0.5 + confidence / 2, estimate.n - 1) * estimate.stderr
    return Interval(estimate.value, estimate.value - margin, estimate.value + margin)


def t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """The ``t`` with P(T <= t) = ``probability`` for Student's T."""
    if not 0 < probability < 1 or degrees_of_freedom < 1:
        raise ValueError(f"no t quantile for probability {probability}, {degrees_of_freedom} degrees of freedom")
    return float(stdtrit(degrees_of_freedom, probability))


def t_tail_probability(t: float, degrees_of_freedom: int) -> float:
    """P(|T| >= |t|) for Student's T, precise far into the tail too."""
    if degrees_of_freedom < 1 or math.isnan(t):
        raise ValueError(f"no tail probability for t = {t}, {degrees_of_freedom} degrees of freedom")
    return float(2 * stdtr(degrees_of_freedom, -abs(t)))


def two_sided_p(estimate: Estimate) -> float:
    """p-value of Student's t test that the mean is 0: P(|T(n - 1)| >= |value / stderr|) [Student 1908].

    Differences that are 0 without any spread give 1, other ones without spread 0. It is at most ``1 - c`` exactly
    when ``t_interval`` at confidence ``c`` leaves out 0. Raises AssayError when the standard error is unknown.
    """
    if estimate.stderr is None:
        raise AssayError("a p-value needs a standard error: give at least two independent values")
    if estimate.stderr == 0:
        return float(estimate.value == 0)
    return t_tail_probability(estimate.value / estimate.stderr, estimate.n - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the given order [Holm 1979].

    The i-th smallest of m becomes the largest (m - j + 1) · p_(j) over j <= i, at most 1. Rejecting what stays at or
    below α makes any false rejection at most as likely as α, whatever the dependence between the tests.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def smallest_detectable(stderr: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """(z(1 - alpha/2) + z(power)) · stderr: the true effect a two-sided test finds with that power.

    In the units of ``stderr``; 2.80 standard errors by default.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * stderr


def sign_test(differences: ArrayLike) -> float:
    """Exact P(at least as many positive signs | either sign equally likely): one-sided, for "above 0".

    Meant for one difference per seed. Zeros carry no sign and are left out [Conover 1999]; without any sign
    the answer is 1. All signs agreeing give 1/8 with three seeds and 1/32 with five: three cannot reach
    5 %, five can. Negate the differences for the other direction; double it for two sides (which takes six).
    """
    values = _finite_vector("the differences", differences)
    positive, signs = int((values > 0).sum()), int((values != 0).sum())
    return sum(math.comb(signs, k) for k in range(positive, signs + 1)) / 2**signs


def resample_counts(num_resamples: int, num_items: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each item is drawn in each bootstrap resample [Efron 1979]: shape ``[R, P]``, rows sum to P.

    ``counts_RP @ values_P / P`` are the resampled means, all at once.
    """
    drawn_RP = rng.integers(num_items, size=(num_resamples, num_items))
    flat = drawn_RP + np.arange(num_resamples)[:, None] * num_items
    counts = np.bincount(flat.ravel(), minlength=num_resamples * num_items)
    return counts.reshape(num_resamples, num_items).astype(np.float64)


def percentile_interval(value: float, resampled_R: ArrayLike, confidence: float = 0.95) -> Interval:
    """``value`` between the percentiles of its bootstrap resamples [Efron and Tibshirani 1993, ch. 13]."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(_finite_vector("the resamples", resampled_R), [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def _finite_vector(what: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise AssayError(f"{what} must be a list of one or more numbers, not an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise AssayError(
            f"{what} must be finite, but {int((~np.isfinite(array)).sum())} of {array.size} are not: "
            "find out where they arise"
        )
    return array
