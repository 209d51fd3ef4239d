"""AS003: how the log-log slope has changed towards the end."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.checks import bend
from known_logs import STEPS, hacked, healthy


def test_a_pure_power_law_does_not_bend() -> None:
    proxy = np.concatenate([[9.0], 9 * STEPS[1:] ** -0.4])
    assert bend(healthy(proxy=proxy)) == pytest.approx(0.0, abs=1e-9)


def test_a_stall_bends_upwards_and_the_end_of_a_plateau_downwards() -> None:
    assert bend(hacked()) > 0.1  # type: ignore[operator]
    assert bend(healthy()) < 0  # type: ignore[operator]
