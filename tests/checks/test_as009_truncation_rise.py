"""AS009: the rise of the share of responses that reach the limit of length."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.checks import truncation_rise
from known_logs import STEPS, falling, hacked, healthy


def test_it_is_the_difference_between_end_and_start() -> None:
    assert truncation_rise(healthy(truncated=np.linspace(0.1, 0.6, len(STEPS)))) == pytest.approx(0.5)
    assert truncation_rise(hacked(truncated=np.zeros(len(STEPS)))) == 0.0
    assert truncation_rise(healthy(truncated=falling())) < 0  # type: ignore[operator]
