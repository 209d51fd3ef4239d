"""AS006: the rise of the references' NLL from its lowest value."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.checks import reference_rise
from known_logs import STEPS, hacked, healthy


def test_it_is_the_rise_as_a_share_of_the_first_value() -> None:
    nll = np.full(len(STEPS), 40.0)
    nll[5], nll[-1] = 38.0, 39.0
    assert reference_rise(healthy(reference_nll=nll)) == pytest.approx(1.0 / 40.0)


def test_a_fall_to_the_end_is_no_rise_and_a_collapse_is_cut() -> None:
    assert reference_rise(healthy()) == 0.0
    assert reference_rise(healthy(reference_nll=40 + STEPS)) == pytest.approx(0.1)
    assert reference_rise(hacked()) > 0.05  # type: ignore[operator]
