"""AS011: the fall of distinct 2-grams, in e-foldings."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.checks import diversity_fall
from known_logs import STEPS, falling, hacked, healthy


def test_it_is_the_log_ratio_of_start_and_end() -> None:
    assert diversity_fall(healthy(distinct=np.linspace(0.8, 0.4, len(STEPS)))) == pytest.approx(np.log(2))
    assert diversity_fall(hacked(distinct=np.linspace(0.4, 0.8, len(STEPS)))) == pytest.approx(-np.log(2))
    assert diversity_fall(healthy(distinct=falling())) > 0  # type: ignore[operator]
