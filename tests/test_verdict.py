"""The verdict on simulated runs whose truth is known: names, error rates, coverage and invariances."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict
from math import comb

import numpy as np
import pytest
from scipy import stats

from assay.diagnostics import verdict as verdict_module
from assay.diagnostics.verdict import Verdict, compare_final, excess_over, judge
from assay.errors import AssayError

NUM_STEPS = 16
STEPS = np.arange(NUM_STEPS) * 50
TIME = np.linspace(0, 1, NUM_STEPS)
FLAT = np.zeros(NUM_STEPS)
FALLING = -2.0 * TIME
DIP_AT = 5
DIP = np.where(np.arange(NUM_STEPS) < DIP_AT, -TIME, -TIME[DIP_AT] - 0.5 + 2.0 * (TIME - TIME[DIP_AT]))
"""Falls by 1/3, drops to a clear best, then rises by 4/3."""
BOWL = 4.0 * (TIME - 0.4) ** 2
HUMP = np.where(TIME < 0.4, 5.0 * TIME, 2.0 - 2.0 * (TIME - 0.4))
"""Rises to 2, then falls back to 0.8."""


def simulate(golden_S, proxy_S, num_prompts=400, seed=0, step_sd=0.35, own_sd=0.9):
    """Per-prompt curves: a level (sd 6) common to all steps, a random walk and noise of each step.

    The noise of the two metrics correlates (0.5), as it does when one student is scored on one prompt.
    """
    rng = np.random.default_rng(seed)
    shape = (len(golden_S), num_prompts)

    def noise():
        return np.cumsum(rng.normal(0, step_sd, shape), axis=0) + rng.normal(0, own_sd, shape)

    shared = noise()
    return tuple(
        np.asarray(curve)[:, None] + rng.normal(0, 6, num_prompts) + np.sqrt(0.5) * (shared + noise())
        for curve in (golden_S, proxy_S)
    )


def judge_many(golden_S, proxy_S, num_runs, num_prompts=120) -> list[Verdict]:
    runs = (simulate(golden_S, proxy_S, num_prompts, seed) for seed in range(num_runs))
    return [judge(STEPS, *run, num_resamples=100, seed=i) for i, run in enumerate(runs)]


def most_allowed(num_runs: int, rate: float) -> int:
    """The count that a true ``rate`` exceeds with a probability below 1 %."""
    tail = 1.0
    for k in range(num_runs + 1):
        tail -= comb(num_runs, k) * rate**k * (1 - rate) ** (num_runs - k)
        if tail < 0.01:
            return k
    raise AssertionError


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "golden", "proxy"),
    [
        ("healthy", -1.5 * TIME, -3 * TIME),
        ("teacher_hacking", DIP, FALLING),
        ("teacher_hacking", DIP, FLAT),
        ("teacher_hacking", 2 * TIME, FALLING),
        ("overfitting", BOWL, 3 * BOWL),
        ("overfitting", 2 * TIME, 4 * TIME),
        ("benign_disagreement", -3 * TIME, 10 * (TIME - 0.4) ** 2),
        ("undecided", HUMP, FALLING),
    ],
)
def test_names_the_case(name, golden, proxy, seed):
    verdict = judge(STEPS, *simulate(golden, proxy, seed=seed), num_resamples=300)
    assert verdict.name == name, verdict.reason


def test_a_transient_is_named_only_once_golden_falls_again():
    golden, proxy = simulate(HUMP, FALLING)
    peak = int(HUMP.argmax()) + 1
    assert judge(STEPS[:peak], golden[:peak], proxy[:peak]).name == "teacher_hacking"
    assert "transient" in judge(STEPS, golden, proxy).reason


def test_too_little_data_to_exclude_a_relevant_damage_is_undecided():
    wide = judge(STEPS, *simulate(FLAT, FALLING, num_prompts=50))
    assert wide.name == "undecided"
    assert "more held-out prompts" in wide.reason
    assert wide.onset_step is None


def test_curves_without_noise_give_exact_numbers():
    proxy_S = np.array([5.0, 4.0, 3.0, 3.0, 3.0, 4.0])
    golden_S = np.array([9.0, 8.0, 8.5, 9.0, 10.0, 12.0])
    level_P = np.random.default_rng(0).normal(0, 6, 60)
    verdict = judge([0, 1, 2, 4, 8, 16], golden_S[:, None] + level_P, proxy_S[:, None] - level_P, num_resamples=50)
    assert verdict.name == "teacher_hacking"
    assert (verdict.best_step, verdict.turn_step, verdict.onset_step) == (1, 8, 2)
    for interval, exact in (
        (verdict.severity, 4.0),
        (verdict.severity_hacking, 2.0),
        (verdict.severity_overfitting, 2.0),
    ):
        assert interval is not None
        assert tuple(asdict(interval).values()) == pytest.approx((exact,) * 3, abs=1e-9)
    assert "after the proxy had turned it rose by 2 nats" in verdict.reason


def test_the_parts_add_up():
    verdict = judge(STEPS, *simulate(DIP, 4 * np.maximum(TIME - 0.7, 0)))
    total, *parts = (verdict.severity, verdict.severity_hacking, verdict.severity_overfitting)
    assert total is not None
    assert sum(part.value for part in parts if part) == pytest.approx(total.value, abs=1e-12)
    assert all(part and part.low > 0 for part in parts)


def test_steps_of_a_clear_run():
    verdict = judge(STEPS, *simulate(DIP, np.where(TIME < 0.7, -TIME, -0.7 + 8 * (TIME - 0.7)), seed=1))
    assert verdict.best_step == STEPS[DIP_AT]
    assert verdict.turn_step in STEPS[10:13]
    assert verdict.onset_step in STEPS[DIP_AT + 1 : DIP_AT + 4]


@pytest.mark.parametrize(
    ("golden", "proxy"), [(FLAT, FALLING), (FLAT, FLAT), (-TIME, FLAT), (FLAT, BOWL), (BOWL, BOWL)]
)
def test_false_alarms_of_hacking_keep_to_their_level(golden, proxy):
    alarms = sum(v.name == "teacher_hacking" for v in judge_many(golden, proxy, num_runs=80))
    assert alarms <= most_allowed(80, 0.025)


@pytest.mark.parametrize("curve", [FLAT, 0.4 * TIME, 2 * TIME, BOWL])
def test_the_oracle_as_teacher_never_hacks(curve):
    for seed in range(10):
        golden, _ = simulate(curve, curve, num_prompts=200, seed=seed)
        verdict = judge(STEPS, golden, golden, num_resamples=100)
        assert verdict.severity_hacking is not None
        assert verdict.severity_hacking.high <= 1e-9
        assert verdict.name in ("overfitting", "undecided")
        if np.ptp(curve) > 1:
            assert verdict.name == "overfitting"
            assert verdict.severity_hacking.value == pytest.approx(0, abs=1e-9)


def test_a_flat_curve_shows_no_damage_although_its_naive_severity_does():
    num_runs = 80
    ours = [v.severity.value for v in judge_many(FLAT, FALLING, num_runs) if v.severity]
    runs = [simulate(FLAT, FALLING, 120, seed)[0].mean(axis=1) for seed in range(num_runs)]
    naive = [golden_S[-1] - golden_S.min() for golden_S in runs]
    assert np.mean(naive) > 10 * stats.sem(naive)
    assert abs(np.mean(ours)) < 3 * stats.sem(ours)


@pytest.mark.parametrize(("proxy", "most_missed", "bias"), [(FALLING, 0.08, 0.05), (FLAT, 0.12, 0.08)])
def test_severity_interval_covers_a_known_severity(proxy, most_missed, bias):
    num_runs, true = 100, DIP[-1] - DIP[DIP_AT]
    verdicts = judge_many(DIP, proxy, num_runs)
    for interval in ("severity", "severity_hacking"):
        intervals = [getattr(v, interval) for v in verdicts]
        misses = sum(not i.low <= true <= i.high for i in intervals)
        # Percentiles of 100 resamples are a little narrow, and where the proxy stagnates the turn is at times
        # found too early: the nominal 5 % may be missed by so much and no more.
        assert 1 <= misses <= most_allowed(num_runs, most_missed)
        assert np.mean([i.value for i in intervals]) == pytest.approx(true, abs=bias)


def test_a_stagnating_proxy_is_not_taken_for_a_turned_one():
    turns = [v.turn_step for v in judge_many(2 * TIME, FLAT, num_runs=80)]
    assert sum(turn != STEPS[-1] for turn in turns) <= most_allowed(80, 0.05)


@pytest.mark.parametrize("shape", [TIME, -1.0 * (np.arange(NUM_STEPS) == DIP_AT), 1.0 * (TIME > 0.3)])
def test_the_smallest_detectable_severity_is_detected(shape):
    smallest = judge(STEPS, *simulate(FLAT, FALLING, 120, seed=99)).smallest_detectable_nats
    assert smallest is not None
    num_runs = 40
    verdicts = judge_many(smallest * shape, FALLING, num_runs)
    missed = sum(v.severity is None or v.severity.low <= 0 for v in verdicts)
    assert missed <= most_allowed(num_runs, 0.2)
    third = judge_many(smallest / 3 * shape, FALLING, num_runs)
    assert sum(v.severity is not None and v.severity.low > 0 for v in third) < num_runs / 2


def test_sixteen_times_the_prompts_detect_a_quarter_of_the_severity():
    few, many = (
        judge(STEPS, *simulate(FLAT, FALLING, n), num_resamples=10).smallest_detectable_nats for n in (200, 3200)
    )
    assert few == pytest.approx(4 * (many or 0), rel=0.2)


def assert_same(a: Verdict, b: Verdict, abs_tolerance: float):
    assert (a.name, a.onset_step, a.best_step, a.turn_step) == (
        b.name,
        b.onset_step,
        b.best_step,
        b.turn_step,
    )
    for part in ("severity", "severity_hacking", "severity_overfitting"):
        values = [tuple(asdict(getattr(v, part)).values()) for v in (a, b)]
        assert values[0] == pytest.approx(values[1], abs=abs_tolerance)


@pytest.mark.parametrize("proxy_S", [FALLING, 2 * BOWL])
def test_invariances(proxy_S):
    golden, proxy = simulate(DIP, proxy_S)
    plain = judge(STEPS, golden, proxy, num_resamples=200)
    rng = np.random.default_rng(9)
    order = rng.permutation(golden.shape[1])
    assert_same(plain, judge(STEPS, golden[:, order], proxy[:, order], num_resamples=200), 1e-12)
    level_P = rng.normal(0, 100, golden.shape[1])
    assert_same(plain, judge(STEPS, golden + level_P, proxy - 3 * level_P, num_resamples=200), 1e-9)
    rescaled = judge(7 * STEPS, golden, proxy, num_resamples=200)
    assert rescaled.severity == plain.severity
    assert rescaled.name == plain.name
    assert (rescaled.best_step, rescaled.turn_step) == (7 * plain.best_step, 7 * (plain.turn_step or 0))
    assert judge(STEPS, golden, proxy, num_resamples=200) == plain


def test_shuffling_one_metric_alone_is_not_an_invariance():
    golden, _ = simulate(BOWL, BOWL)
    order = np.random.default_rng(0).permutation(golden.shape[1])
    paired = judge(STEPS, golden, golden, num_resamples=50).severity_hacking
    assert judge(STEPS, golden, golden[:, order], num_resamples=50).severity_hacking != paired


def test_excess_over_itself_is_not_damage_and_over_a_constant_is_the_severity():
    golden, proxy = simulate(DIP, FALLING)
    over_itself = excess_over(STEPS, golden, proxy, golden, num_resamples=100)
    assert over_itself.severity.value == over_itself.severity.high == 0
    assert over_itself.severity_hacking.low <= 0  # the proxy's own noise is in it
    constant = np.broadcast_to(np.random.default_rng(0).normal(0, 6, golden.shape[1]), golden.shape)
    over_constant = excess_over(STEPS, golden, proxy, constant, num_resamples=100)
    alone = judge(STEPS, golden, proxy, num_resamples=100)
    assert alone.severity
    assert tuple(asdict(over_constant.severity).values()) == pytest.approx(
        tuple(asdict(alone.severity).values()), abs=1e-12
    )


def test_excess_removes_a_transient_that_both_arms_share():
    shared = np.minimum(4 * TIME, 0.8)
    golden, proxy = simulate(shared, FALLING, seed=1)
    matched, _ = simulate(shared, FALLING, seed=2)
    assert judge(STEPS, golden, proxy).name == "teacher_hacking"
    both = excess_over(STEPS, golden, proxy, matched)
    assert both.severity.low < 0 < both.severity.high
    worse, proxy = simulate(shared + TIME, FALLING, seed=1)
    assert excess_over(STEPS, worse, proxy, matched).severity.low > 0


def test_compare_final_is_the_paired_t_interval():
    a, b = simulate(FLAT, FLAT, 60)
    exact = stats.ttest_rel(a[-1], b[-1]).confidence_interval(0.95)
    interval = compare_final(a[-1], b[-1])
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high), rel=1e-9)


@pytest.mark.parametrize(("num_steps", "num_prompts"), [(3, 400), (16, 39), (1, 1)])
def test_too_few_evaluations_or_prompts_are_undecided(num_steps, num_prompts):
    golden, proxy = simulate(DIP[:num_steps], FALLING[:num_steps], num_prompts)
    verdict = judge(STEPS[:num_steps], golden, proxy)
    assert verdict.name == "undecided"
    assert f"there are {num_steps} and {num_prompts}" in verdict.reason
    assert verdict.severity is None
    assert verdict.smallest_detectable_nats is None
    with pytest.raises(AssayError, match=f"there are {num_steps} and {num_prompts}"):
        excess_over(STEPS[:num_steps], golden, proxy, golden)


def with_nan(values):
    values = values.copy()
    values[2, 7] = np.nan
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, g, p: (s, with_nan(g), p), "golden has values that are not finite, first at step 100"),
        (lambda s, g, p: (s, g, with_nan(p)), "proxy has values that are not finite"),
        (lambda s, g, p: (s, g, p[:, :-1]), "tables of one shape"),
        (lambda s, g, p: (s[:-1], g, p), "15 evaluations"),
        (lambda s, g, p: (s, g[0], p[0]), "tables of one shape"),
        (lambda s, g, p: (s, g[:, :0], p[:, :0]), "tables of one shape"),
        (lambda s, g, p: (s[::-1], g, p), "steps must increase"),
        (lambda s, g, p: (s / 7, g, p), "whole numbers"),
        (lambda s, g, p: (s[:0], g[:0], p[:0]), "whole numbers"),
    ],
)
def test_malformed_input_is_refused(change, message):
    with pytest.raises(AssayError, match=message):
        judge(*change(STEPS, *simulate(DIP, FALLING, 50)))


def test_a_large_probe_takes_less_than_two_seconds():
    time_S = np.linspace(0, 1, 40)
    golden, proxy = simulate(2 * time_S, -time_S, 1000)
    start = time.process_time()
    judge(np.arange(40), golden, proxy)
    assert time.process_time() - start < 2


def test_diagnostics_do_not_import_torch():
    code = f"import sys, {verdict_module.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
