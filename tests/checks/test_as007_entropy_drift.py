"""AS007: how far the student's entropy has moved."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.checks import entropy_drift
from known_logs import STEPS, hacked, healthy


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_both_directions_count(factor: float) -> None:
    entropy = np.linspace(3, 3 * factor, len(STEPS))
    assert entropy_drift(healthy(student_entropy=entropy)) == pytest.approx(np.log(2))


def test_no_movement_is_zero() -> None:
    assert entropy_drift(hacked(student_entropy=np.full(len(STEPS), 2.5))) == 0.0
