"""AS010: the rise of the share of repeated 3-grams."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.checks import repetition_rise
from known_logs import STEPS, falling, hacked, healthy


def test_it_is_the_difference_between_end_and_start() -> None:
    assert repetition_rise(healthy(repetition=np.linspace(0.0, 0.3, len(STEPS)))) == pytest.approx(0.3)
    assert repetition_rise(hacked(repetition=np.full(len(STEPS), 0.2))) == 0.0
    assert repetition_rise(healthy(repetition=falling())) < 0  # type: ignore[operator]
