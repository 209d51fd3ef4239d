"""AS012: the fall of the overlap with the teacher's likely tokens, from its best."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.checks import overlap_fall
from known_logs import STEPS, falling, hacked, healthy


def test_it_counts_from_the_best() -> None:
    overlap = np.full(len(STEPS), 0.5)
    overlap[4], overlap[-1] = 0.7, 0.45
    assert overlap_fall(healthy(top_overlap=overlap)) == pytest.approx(0.25)
    assert overlap_fall(hacked(top_overlap=np.linspace(0.3, 0.6, len(STEPS)))) == 0.0
    assert overlap_fall(healthy(top_overlap=falling())) > 0  # type: ignore[operator]
