"""AS005: how often a training response has been used."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.checks import reuse
from known_logs import STEPS, hacked, healthy


def test_it_is_the_logarithm_of_the_uses_at_the_end() -> None:
    assert reuse(healthy(response_uses=STEPS / 3)) == pytest.approx(2.0)
    assert reuse(healthy(response_uses=np.where(STEPS > 0, 0.4, 0.0))) == 0.0
    assert reuse(hacked(response_uses=np.ones(len(STEPS)))) == 0.0
