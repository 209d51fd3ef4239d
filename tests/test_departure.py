"""The sequential test: a prefix gives a prefix, alarms are rare under the law and sure when the curve turns up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from assay.diagnostics import departure
from assay.diagnostics.departure import FALSE_ALARM_RATE, sequential_test, surprise
from assay.diagnostics.law import Law, fit_law
from known_logs import STEPS, falling


def test_a_prefix_of_the_curve_gives_a_prefix_of_the_evidence() -> None:
    values = falling() + np.random.default_rng(0).normal(0, 0.02, len(STEPS))
    whole = sequential_test(STEPS, values)
    part = sequential_test(STEPS[:11], values[:11])
    assert part.evidence == pytest.approx(whole.evidence[:11])


def test_the_expected_evidence_under_the_law_is_at_most_one() -> None:
    """Ville's inequality rests on it: the mean over lawful curves, at every look."""
    rng = np.random.default_rng(1)
    evidence = np.array(
        [sequential_test(STEPS, falling() + rng.normal(0, 0.05, len(STEPS))).evidence for _ in range(60)]
    )
    assert evidence.mean(axis=0).max() < 2.0
    assert np.median(evidence[:, -1]) < 1.0
    assert (evidence.max(axis=1) >= 1 / FALSE_ALARM_RATE).mean() <= 0.1


def test_a_curve_that_turns_up_raises_the_alarm_after_its_turn() -> None:
    rng = np.random.default_rng(2)
    rise = 40 * 0.02 * np.maximum(np.log(np.maximum(STEPS, 1) / 100), 0)
    found = [sequential_test(STEPS, falling() + rise + rng.normal(0, 0.02, len(STEPS))) for _ in range(20)]
    alarms = [f for f in found if f.alarm_index is not None]
    assert len(alarms) >= 18
    for one in alarms:
        assert STEPS[one.alarm_index] > 100  # type: ignore[index]
        assert one.onset_index is not None
        assert one.onset_index <= one.alarm_index  # type: ignore[operator]


def test_a_curve_that_falls_faster_raises_none() -> None:
    values = falling() * np.where(STEPS > 100, 0.6, 1.0) + np.random.default_rng(3).normal(0, 0.01, len(STEPS))
    assert sequential_test(STEPS, values).alarm_index is None


def test_without_a_law_there_is_no_evidence() -> None:
    assert sequential_test(STEPS[:5], falling()[:5]).strongest == 1.0
    assert sequential_test(STEPS, np.full(len(STEPS), 2.0)).alarm_index is None


def test_scales_do_not_matter() -> None:
    values = falling() + np.random.default_rng(4).normal(0, 0.02, len(STEPS))
    assert sequential_test(STEPS * 100, values * 9).evidence == pytest.approx(
        sequential_test(STEPS, values).evidence, rel=1e-3
    )


def test_the_bets_are_mixed_with_weights_that_sum_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With p = 1 at every look a bet is worth κ to the number of its looks: the mixture is known."""
    monkeypatch.setattr(departure, "surprise", lambda law, step, value: 1.0)
    found = sequential_test(STEPS, falling())
    assert (found.evidence[:6] == 1).all()
    kappas = departure._KAPPAS
    for n, evidence in enumerate(found.evidence[6:], 1):
        placed = sum((kappas ** (n - k + 1)).mean() / (k * (k + 1)) for k in range(1, n + 1))
        assert evidence == pytest.approx(placed + 1 / (n + 1))
    assert found.num_bets == len(STEPS) - 6


def test_a_prediction_follows_the_last_residual_as_far_as_residuals_correlate() -> None:
    law = fit_law(STEPS, falling() + np.random.default_rng(0).normal(0, 0.05, len(STEPS)))
    assert isinstance(law, Law)
    n, step = law.num_points, 400.0
    middle = float(law.at(np.array([step]))[0])
    alternating = replace(law, relative_residuals=0.01 * (-1.0) ** np.arange(n))
    assert surprise(alternating, step, middle) == pytest.approx(0.5)
    smooth = 0.01 * np.cos(2 * np.pi * np.arange(n) / n)
    raw = float(smooth[1:] @ smooth[:-1] / (smooth @ smooth))
    correlation = min((raw * n + 1) / (n - 3), 0.9)
    assert correlation > 0.5
    expected = middle + correlation * smooth[-1] * law.scale
    assert surprise(replace(law, relative_residuals=smooth), step, expected) == pytest.approx(0.5)
