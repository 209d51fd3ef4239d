"""What holds for every check: not applicable is not a pass, and no scale matters."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.checks import CHECKS
from assay.diagnostics.trajectory import COLUMNS, Trajectory
from known_logs import STEPS, hacked

FULL = hacked(
    **{
        name: np.linspace(2, 3, len(STEPS)) + i / 7
        for i, name in enumerate(set_of for set_of in COLUMNS if set_of not in ("proxy", "train_proxy", "golden"))
    }
)


@pytest.mark.parametrize("code", list(CHECKS))
def test_without_its_columns_a_check_is_not_applicable(code: str) -> None:
    assert CHECKS[code].measure(FULL) is not None
    assert CHECKS[code].measure(Trajectory(STEPS, {"golden": FULL.columns["proxy"]})) is None


@pytest.mark.parametrize("code", list(CHECKS))
def test_a_gap_in_a_column_makes_it_missing(code: str) -> None:
    gaps = {name: np.where(np.arange(len(STEPS)) == 4, np.nan, values) for name, values in FULL.columns.items()}
    assert CHECKS[code].measure(Trajectory(STEPS, gaps)) is None


@pytest.mark.parametrize("code", [code for code in CHECKS if code not in ("AS005", "AS009", "AS010", "AS012")])
def test_rescaled_steps_and_columns_change_nothing(code: str) -> None:
    """Shares and counts (uses, truncation, repetition, overlap) have their own unit, which nobody rescales."""
    scaled = {name: values * 13.7 for name, values in FULL.columns.items()}
    before, after = CHECKS[code].measure(FULL), CHECKS[code].measure(Trajectory(STEPS * 250, scaled))
    assert after == pytest.approx(before, rel=2e-2 if code == "AS001" else 1e-6)


@pytest.mark.parametrize("code", list(CHECKS))
def test_two_evaluations_do_not_break_it(code: str) -> None:
    value = CHECKS[code].measure(FULL.until(1))
    assert value is None or np.isfinite(value)
