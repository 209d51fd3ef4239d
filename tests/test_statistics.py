"""Estimates, intervals, the sign test and the bootstrap against exact references."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import special, stats

from assay.errors import AssayError
from assay.statistics import (
    Estimate,
    holm,
    mean_estimate,
    mean_over_seeds,
    paired_difference,
    percentile_interval,
    resample_counts,
    sign_test,
    smallest_detectable,
    t_interval,
    t_quantile,
    t_tail_probability,
    two_sided_p,
)


def test_mean_has_the_standard_error_of_a_mean():
    values = np.random.default_rng(0).normal(3.0, 2.0, 57)
    estimate = mean_estimate(values)
    assert estimate.n == 57
    assert estimate.value == pytest.approx(values.mean(), rel=1e-14)
    assert estimate.stderr == pytest.approx(stats.sem(values), rel=1e-14)


def test_unknown_error_is_none_and_known_zero_is_zero():
    assert mean_estimate([4.0]) == Estimate(4.0, None, 1)
    assert mean_estimate([4.0, 4.0]) == Estimate(4.0, 0.0, 2)


def test_paired_difference_drops_what_pairs_share():
    rng = np.random.default_rng(1)
    a, b, shared = rng.normal(size=50), rng.normal(size=50), 100 * rng.normal(size=50)
    alone, with_shared = paired_difference(a, b), paired_difference(a + shared, b + shared)
    assert alone.stderr is not None
    assert with_shared.value == pytest.approx(alone.value, abs=1e-12)
    assert with_shared.stderr == pytest.approx(alone.stderr, rel=1e-10)
    assert paired_difference(b, a).value == -alone.value
    assert paired_difference(a, a) == Estimate(0.0, 0.0, 50)


@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 3, 4, 5, 9, 10, 31, 255, 4000])
@pytest.mark.parametrize("probability", [0.001, 0.3, 0.5, 0.9, 0.975, 0.9995])
def test_t_quantile_is_exact(degrees_of_freedom: int, probability: float):
    # df / (df + t²) has the distribution Beta(df/2, 1/2)
    x = special.betaincinv(degrees_of_freedom / 2, 0.5, 2 * min(probability, 1 - probability))
    exact = math.copysign(math.sqrt(degrees_of_freedom * (1 / x - 1)), probability - 0.5)
    assert t_quantile(probability, degrees_of_freedom) == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_t_quantile_refuses_what_has_none():
    for probability, degrees_of_freedom in ((0.0, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="no t quantile"):
            t_quantile(probability, degrees_of_freedom)


@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 3, 10, 31, 383, 4000, 200_001])
@pytest.mark.parametrize("t", [0.0, 1e-3, 0.7, 1.999, 2.001, -2.5, 5.0, 12.0, 1e4])
def test_t_tail_probability_is_exact_far_into_the_tail(degrees_of_freedom: int, t: float):
    # df / (df + t²) has the distribution Beta(df/2, 1/2); its complement where that is the smaller
    df, whole = degrees_of_freedom, degrees_of_freedom + t * t
    tail, centre = special.betainc(df / 2, 0.5, df / whole), special.betaincc(0.5, df / 2, t * t / whole)
    exact = tail if t * t > df else centre
    assert t_tail_probability(t, degrees_of_freedom) == pytest.approx(exact, rel=1e-9, abs=1e-300)


def test_t_tail_probability_inverts_the_quantile_and_refuses_what_has_none():
    assert t_tail_probability(t_quantile(0.975, 4), 4) == pytest.approx(0.05, rel=1e-9)
    assert t_tail_probability(1e200, 1) == t_tail_probability(math.inf, 9) == 0.0
    for t, degrees_of_freedom in ((math.nan, 3), (1.0, 0)):
        with pytest.raises(ValueError, match="no tail probability"):
            t_tail_probability(t, degrees_of_freedom)


def test_two_sided_p_is_the_paired_t_test_and_defined_without_spread():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=12), rng.normal(0.5, 1, size=12)
    assert two_sided_p(paired_difference(a, b)) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
    assert two_sided_p(paired_difference(a, b)) == two_sided_p(paired_difference(b, a))
    assert two_sided_p(Estimate(0.0, 0.0, 5)) == 1.0
    assert two_sided_p(Estimate(0.1, 0.0, 5)) == 0.0
    with pytest.raises(AssayError, match="at least two"):
        two_sided_p(mean_estimate([1.0]))


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.30 times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.30; ties and 1 are kept in place."""
    assert holm([0.03, 0.01, 0.30, 0.02]) == pytest.approx([0.06, 0.04, 0.30, 0.06])
    assert holm([0.02, 0.021]) == pytest.approx([0.04, 0.04])
    assert holm([0.6, 0.5, 0.9]) == [1.0, 1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_t_interval_of_a_paired_difference_is_the_paired_t_test():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=12), rng.normal(0.5, 1, size=12)
    exact = stats.ttest_rel(a, b).confidence_interval(0.9)
    interval = t_interval(paired_difference(a, b), confidence=0.9)
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high), rel=1e-9)
    assert interval.value == pytest.approx((a - b).mean())


def test_an_unknown_error_has_no_interval():
    with pytest.raises(AssayError, match="at least two"):
        t_interval(mean_estimate([1.0]))


def test_seeds_and_not_prompts_are_independent():
    rng = np.random.default_rng(3)
    seed_effect = rng.normal(0, 1, 5)
    by_seed = [effect + rng.normal(0, 0.1, 100 + 50 * i) for i, effect in enumerate(seed_effect)]
    estimate = mean_over_seeds(by_seed)
    means = [values.mean() for values in by_seed]
    assert estimate.n == 5
    assert estimate.value == pytest.approx(np.mean(means))
    assert estimate.stderr == pytest.approx(stats.sem(means))
    pooled = mean_estimate(np.concatenate(by_seed))
    assert pooled.stderr is not None
    assert estimate.stderr > 5 * pooled.stderr


def test_seeds_may_be_single_numbers_and_one_seed_has_no_error():
    assert mean_over_seeds([1.0, 2.0, 6.0]) == mean_estimate([1.0, 2.0, 6.0])
    assert mean_over_seeds([[1.0, 2.0, 3.0]]) == Estimate(2.0, None, 1)


def test_smallest_detectable_is_detected_with_its_power():
    normal = NormalDist()
    for alpha, power in ((0.05, 0.8), (0.01, 0.9)):
        effect = smallest_detectable(0.5, alpha, power)
        found = 1 - normal.cdf(normal.inv_cdf(1 - alpha / 2) - effect / 0.5)
        assert found == pytest.approx(power, abs=1e-12)
    assert smallest_detectable(1.0) == pytest.approx(2.8015852, abs=1e-7)


def test_three_seeds_cannot_reach_five_percent_and_five_can():
    assert sign_test([0.1, 0.2, 0.3]) == 1 / 8
    assert sign_test([0.1, 0.2, 0.3, 0.1, 9.0]) == 1 / 32


def test_sign_test_is_the_exact_binomial_test():
    rng = np.random.default_rng(4)
    for n in (1, 4, 9, 20):
        differences = rng.normal(0.3, 1, n)
        exact = stats.binomtest(int((differences > 0).sum()), n, alternative="greater").pvalue
        assert sign_test(differences) == pytest.approx(exact, rel=1e-12)


def test_zeros_carry_no_sign():
    assert sign_test([1.0, 0.0, 2.0, 0.0]) == sign_test([1.0, 2.0]) == 1 / 4
    assert sign_test([0.0, 0.0]) == 1.0


def test_resample_counts_draw_with_replacement():
    counts = resample_counts(4000, 30, np.random.default_rng(5))
    assert counts.shape == (4000, 30)
    assert (counts.sum(axis=1) == 30).all()
    # Binomial(30, 1/30): mean 1, variance 29/30; prompt by prompt within five standard errors.
    assert np.abs(counts.mean(axis=0) - 1).max() < 5 / math.sqrt(4000)
    assert counts.var() == pytest.approx(29 / 30, rel=0.03)
    again = resample_counts(4000, 30, np.random.default_rng(5))
    assert (counts == again).all()


def test_bootstrap_recovers_the_standard_error_of_a_mean():
    rng = np.random.default_rng(6)
    values = rng.exponential(size=200)
    resampled = resample_counts(4000, 200, rng) @ values / 200
    assert resampled.std() == pytest.approx(values.std() / math.sqrt(200), rel=0.05)


def test_percentile_interval_cuts_equal_tails():
    interval = percentile_interval(50.0, np.random.default_rng(7).permutation(101), confidence=0.9)
    assert (interval.value, interval.low, interval.high) == pytest.approx((50.0, 5.0, 95.0), abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_estimate([]), "one or more numbers"),
        (lambda: mean_estimate([[1.0, 2.0]]), "one or more numbers"),
        (lambda: mean_estimate([1.0, math.nan]), "1 of 2 are not"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "2 values against 1"),
        (lambda: mean_over_seeds([]), "one or more numbers"),
        (lambda: sign_test([math.inf]), "finite"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(AssayError, match=message):
        call()
