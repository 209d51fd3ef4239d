"""AS001: evidence against the law, at least 1/α once the proxy turns up."""

from __future__ import annotations

import numpy as np

from assay.diagnostics.checks import law_departure
from known_logs import STEPS, falling, healthy


def test_a_lawful_curve_gives_little_evidence_and_a_turn_gives_much() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, len(STEPS))
    turned = falling() + noise + 2 * np.maximum(np.log(np.maximum(STEPS, 1) / 80), 0)
    quiet, loud = law_departure(healthy(proxy=falling() + noise)), law_departure(healthy(proxy=turned))
    assert quiet is not None
    assert quiet < 20
    assert loud is not None
    assert loud > 20


def test_paired_standard_errors_make_it_more_careful() -> None:
    turned = falling() + 0.3 * np.maximum(np.log(np.maximum(STEPS, 1) / 80), 0)
    sure = law_departure(healthy(proxy=turned))
    unsure = law_departure(healthy(proxy=turned, proxy_diff_stderr=np.full(len(STEPS), 0.5)))
    assert sure is not None
    assert unsure is not None
    assert unsure < sure


def test_seven_evaluations_are_too_few() -> None:
    assert law_departure(healthy().until(6)) is None
