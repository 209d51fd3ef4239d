"""AS002: the log-log slope of the proxy at the end."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.checks import stall
from known_logs import STEPS, hacked, healthy


@pytest.mark.parametrize("exponent", [0.2, 0.5, 0.9])
def test_it_is_the_exponent_of_a_pure_power_law(exponent: float) -> None:
    proxy = np.concatenate([[9.0], 9 * STEPS[1:] ** -exponent])
    assert stall(healthy(proxy=proxy)) == pytest.approx(-exponent)


def test_a_stalled_proxy_has_slope_zero_and_a_rising_one_more() -> None:
    assert stall(hacked()) == pytest.approx(0.0, abs=1e-9)
    assert stall(healthy(proxy=hacked().columns["proxy"] + STEPS / 300)) > 0.05  # type: ignore[operator]
    assert stall(healthy()) < -0.3  # type: ignore[operator]
