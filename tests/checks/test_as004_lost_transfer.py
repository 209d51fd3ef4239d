"""AS004: the share of the train proxy's fall that the held-out proxy does not follow."""

from __future__ import annotations

import numpy as np
import pytest

from assay.diagnostics.checks import lost_transfer
from known_logs import STEPS, falling, healthy


def test_equal_falls_lose_nothing_and_no_fall_loses_nearly_all() -> None:
    assert lost_transfer(healthy(train_proxy=falling())) == pytest.approx(0.0)
    fallen = np.log(8.0 / falling(1.0)[-1])
    stuck = lost_transfer(healthy(proxy=np.full(len(STEPS), 8.0), train_proxy=falling(1.0)))
    assert stuck == pytest.approx(1 - 0.1 / (fallen + 0.1), abs=0.01)


def test_it_starts_at_zero_before_anything_has_moved() -> None:
    flat = np.full(len(STEPS), 8.0)
    assert lost_transfer(healthy(proxy=flat, train_proxy=flat)) == pytest.approx(0.0)


def test_a_train_proxy_that_explodes_with_the_rest_counts_as_lost() -> None:
    """Hard labels can collapse both: the gap closes, yet nothing was gained."""
    assert lost_transfer(healthy(proxy=4 * falling(-0.3), train_proxy=4 * falling(-0.5))) == 2.0


def test_one_column_may_be_in_other_units() -> None:
    log = healthy(train_proxy=falling(0.8))
    scaled = healthy(train_proxy=falling(0.8) * 55)
    assert lost_transfer(scaled) == pytest.approx(lost_transfer(log))
