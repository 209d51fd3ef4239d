"""AS008: how far the length of sampled responses has moved."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.checks import length_drift
from known_logs import STEPS, falling, hacked, healthy


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_shorter_and_longer_count_alike(factor: float) -> None:
    tokens = np.linspace(20, 20 * factor, len(STEPS))
    assert length_drift(healthy(response_tokens=tokens)) == pytest.approx(np.log(4))


def test_a_length_of_zero_is_cut_or_missing() -> None:
    assert length_drift(hacked(response_tokens=np.zeros(len(STEPS)))) is None
    assert length_drift(hacked(response_tokens=falling() * 1e-9 + 1e-9)) is not None
