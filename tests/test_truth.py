"""The verdict from mean curves: the four cases of golden beside the proxy, transients, and unknown noise."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.truth import case_of
from known_logs import STEPS, falling

LATE = np.maximum(np.log(np.maximum(STEPS, 1) / 30), 0)
SMALL = np.full(len(STEPS), 0.02)
DOWN, FLAT, UP = falling(), np.maximum(falling(), falling()[8]), falling() + 2 * LATE


@pytest.mark.parametrize(
    ("truth", "proxy", "name"),
    [
        (DOWN, DOWN, "healthy"),
        (UP, DOWN, "teacher_hacking"),
        (UP, FLAT, "teacher_hacking"),
        (UP, UP, "overfitting"),
        (DOWN, UP, "benign_disagreement"),
    ],
)
@pytest.mark.parametrize("stderr", [SMALL, None])
def test_the_cases(truth: np.ndarray, proxy: np.ndarray, name: str, stderr: np.ndarray | None) -> None:
    noise = np.random.default_rng(0).normal(0, 0.005, (2, len(STEPS)))
    found = case_of(STEPS, truth + noise[0], proxy + noise[1], stderr, stderr)
    assert found.name == name, found.reason


def test_scales_do_not_matter() -> None:
    for proxy in (DOWN, UP):
        one, other = (
            case_of(STEPS, UP, proxy, SMALL, SMALL),
            case_of(STEPS * 9, UP * 5, proxy * 3, SMALL * 5, SMALL * 3),
        )
        assert (one.name, one.best_step * 9) == (other.name, other.best_step)


def test_the_best_step_and_the_onset_lie_on_both_sides_of_the_rise() -> None:
    found = case_of(STEPS, UP, DOWN, SMALL, SMALL)
    assert found.onset_step is not None
    assert found.best_step < found.onset_step <= 120
    assert case_of(STEPS, DOWN, DOWN, SMALL, SMALL).onset_step is None


def test_a_rise_that_is_being_undone_is_a_transient() -> None:
    hump = 5 + 3 * np.exp(-((np.log(np.maximum(STEPS, 1)) - np.log(100)) ** 2))
    assert case_of(STEPS, hump, DOWN, SMALL, SMALL).name == "undecided"


def test_a_rise_within_noise_is_none() -> None:
    wide = np.full(len(STEPS), 5.0)
    assert case_of(STEPS, UP, DOWN, wide, wide).name == "healthy"


def test_three_evaluations_have_no_noise_to_judge_by() -> None:
    assert case_of(STEPS[:3], np.array([3.0, 2, 4]), DOWN[:3]).name == "undecided"


def test_each_curve_is_judged_in_its_own_unit_by_the_errors_of_its_own_changes() -> None:
    """Rescaling one curve with its errors changes nothing; an error is that of the changes in between."""
    steps = np.arange(8.0)
    truth, proxy = np.array([9.0, 8, 7, 6, 5, 5, 5, 7]), np.array([9.0, 8, 7, 6, 5, 5, 5, 6.5])
    sure = np.full(8, 0.1)
    for unit in (1.0, 50.0, 0.02):
        assert case_of(steps, truth * unit, proxy, sure * unit, sure).name == "overfitting"
        assert case_of(steps, truth, proxy * unit, sure, sure * unit).name == "overfitting"
        held = proxy - 1.5 * (steps == 7)
        assert case_of(steps, truth, held * unit, sure, sure * unit).name == "teacher_hacking"
    late = np.where(steps == 7, 2.0, 0.0)
    assert case_of(steps, truth, proxy, late, sure).name != "overfitting"
    bit = proxy - 1.0 * (steps == 7)  # above its best by 0.5, within noise: of a rise by 2 that is a quarter
    assert case_of(steps, truth + 100, bit, sure, 4 * sure).name == "teacher_hacking"
    one = np.where(steps == 5, 2.0, 0.0)  # a change in the middle of the rise
    assert case_of(steps, truth, proxy, one, sure).name == "benign_disagreement"
    early = np.where(steps <= 4, 2.0, 0.0)  # what was unsure before the best says nothing of the rise
    assert case_of(steps, truth, proxy, early, sure).name == "overfitting"
