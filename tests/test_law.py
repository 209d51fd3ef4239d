"""The convergence law: it finds what made a curve, scales with it, and says why it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from assay.diagnostics.law import MIN_POINTS, Law, fit_law
from known_logs import STEPS


def curve(steps: np.ndarray, a: float = 20.0, b: float = 0.6, c: float = 0.0, t0: float = 12.0) -> np.ndarray:
    return c + a * (steps + t0) ** -b


def fitted(steps: np.ndarray, values: np.ndarray) -> Law:
    law = fit_law(steps, values)
    assert isinstance(law, Law), law
    return law


@pytest.mark.parametrize("truth", [(20.0, 0.6, 0.0, 12.0), (50.0, 1.2, 0.0, 40.0), (9.0, 0.9, 1.5, 8.0)])
def test_it_finds_the_law_that_made_the_curve(truth: tuple[float, ...]) -> None:
    law = fitted(STEPS, curve(STEPS, *truth))
    found = law.parameters()
    assert [found[k] for k in ("a", "b", "c", "t0")] == pytest.approx(truth, rel=0.02, abs=0.02)
    assert law.at(STEPS) == pytest.approx(curve(STEPS, *truth), rel=1e-3)


def test_scaling_steps_and_values_scales_the_law() -> None:
    values = curve(STEPS) + np.random.default_rng(0).normal(0, 0.02, len(STEPS))
    one, other = fitted(STEPS, values), fitted(STEPS * 50, values * 7)
    assert other.at(STEPS * 50) == pytest.approx(7 * one.at(STEPS), rel=1e-6)
    assert other.parameters()["b"] == pytest.approx(one.parameters()["b"], rel=1e-4)
    assert other.parameters()["t0"] == pytest.approx(50 * one.parameters()["t0"], rel=1e-3, abs=1e-6)
    assert other.noise == pytest.approx(7 * one.noise, rel=1e-4)


def test_a_floor_is_kept_where_there_is_one_and_rarely_where_there_is_none() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.01, (60, len(STEPS)))
    with_floor = [fitted(STEPS, curve(STEPS, 9.0, 0.9, 1.5, 8.0) + n) for n in noise]
    without = [fitted(STEPS, curve(STEPS) + n) for n in noise]
    assert np.mean([law.floor > 0 for law in with_floor]) > 0.9
    assert np.mean([law.floor > 0 for law in without]) < 0.2


def test_the_band_holds_new_evaluations_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(200):
        values = curve(STEPS) + rng.normal(0, 0.03, len(STEPS))
        low, high = fitted(STEPS[:-1], values[:-1]).band(STEPS[-1:])
        inside.append(low[0] <= values[-1] <= high[0])
    assert 0.88 <= np.mean(inside) <= 1.0


def test_the_band_is_two_sided() -> None:
    law = fitted(STEPS, curve(STEPS) + np.random.default_rng(0).normal(0, 0.03, len(STEPS)))
    margin = stats.t.ppf(0.975, len(STEPS) - law.num_parameters) * law.stderr(STEPS)
    low, high = law.band(STEPS)
    assert high - law.at(STEPS) == pytest.approx(margin)
    assert law.at(STEPS) - low == pytest.approx(margin)


def test_the_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(60):
        limits = fitted(STEPS, curve(STEPS) + rng.normal(0, 0.01, len(STEPS))).intervals(500)
        inside.append(limits["b"][0] <= 0.6 <= limits["b"][1])
        assert limits["c"][0] <= limits["c"][1]
    assert np.mean(inside) > 0.85


def test_a_bump_during_warm_up_is_left_out() -> None:
    values = curve(STEPS)
    bumped = values.copy()
    bumped[0] = values[1] * 0.9
    law = fitted(STEPS, bumped)
    assert law.first == 1
    assert law.at(STEPS[1:]) == pytest.approx(values[1:], rel=1e-2)


def test_no_value_after_the_window_is_used() -> None:
    values = curve(STEPS)
    spoilt = values.copy()
    spoilt[12:] *= 3
    assert fitted(STEPS[:12], values[:12]).parameters() == fitted(STEPS[:12], spoilt[:12]).parameters()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (curve(STEPS)[: MIN_POINTS - 1], f"needs {MIN_POINTS} evaluations"),
        (np.arange(1.0, 11.0), "needs 6 evaluations from the highest value on"),
        (np.full(10, 3.0), "does not fall"),
        (5 - np.arange(10.0), "at or below 0"),
        (np.array([]), "needs 6 evaluations"),
    ],
)
def test_it_says_why_there_is_no_law(values: np.ndarray, words: str) -> None:
    reason = fit_law(STEPS[: len(values)], values)
    assert isinstance(reason, str)
    assert words in reason
