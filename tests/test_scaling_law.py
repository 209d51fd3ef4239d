"""The law of diversity: what it must do whatever the numbers, what it recovers, and how often its intervals hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from assay.errors import AssayError
from assay.scaling_law import PARAMETERS, Exposure, Shape, decays, effective_number, fit, shipped

TRUTH = dict(zip(PARAMETERS, np.log([0.8, 0.5, 4.0, 0.7, 0.7, 0.9]), strict=True))
SHAPE = Shape(TRUTH, dict.fromkeys(PARAMETERS, 0.15), noise=0.02, widening=1.645, coverage=0.9)
SMALL = [Exposure(128), Exposure(256), Exposure(256, 2)]
OTHERS = [
    Exposure(512),
    Exposure(2048),
    Exposure(256, 8),
    Exposure(256, rewrites=7.5),
    Exposure(256, rewrites=75),
    Exposure(256, fresh=0.1),
    Exposure(256, fresh=0.5),
    Exposure(256, rewrites=75, by_student=True),
]


def world(logs: np.ndarray, exposures: Sequence[Exposure], level: float = 12.0, size: float = 3.7) -> np.ndarray:
    return level + size * decays(exposures, logs, 128.0)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (Exposure(100), Exposure(101)),
        (Exposure(100, 2), Exposure(100, 3)),
        (Exposure(100, rewrites=2), Exposure(100, rewrites=3)),
        (Exposure(100), Exposure(100, fresh=0.01)),
        (Exposure(100, fresh=0.1), Exposure(100, fresh=0.2)),
        (Exposure(100, 2), Exposure(200)),
        (Exposure(100, rewrites=2), Exposure(200)),
    ],
)
def test_more_of_anything_is_more_and_a_prompt_is_worth_most(less: Exposure, more: Exposure) -> None:
    logs = shipped("golden").vector("mean")
    assert effective_number(less, logs) < effective_number(more, logs)


def test_a_response_once_counts_once() -> None:
    assert effective_number(Exposure(256), np.array([*TRUTH.values()])) == 256
    assert decays([Exposure(256)], np.array([*TRUTH.values()]), 256.0) == pytest.approx(1.0)


def test_a_world_without_noise_is_recovered() -> None:
    logs = SHAPE.vector("mean")
    law = fit(SMALL, world(logs, SMALL), SHAPE)
    assert law.theta[:2] == pytest.approx([12.0, 3.7], abs=1e-3)
    assert law.predict(OTHERS).values == pytest.approx(world(logs, OTHERS), abs=1e-3)


def test_small_runs_teach_a_shape_that_the_prior_does_not_have() -> None:
    logs = SHAPE.vector("mean")
    logs[PARAMETERS.index("completions")] = np.log(0.6)
    vague = dataclasses.replace(SHAPE, noise=1e-4)
    law = fit(SMALL, world(logs, SMALL), vague)
    wrong, found = SHAPE.vector("mean"), law.theta[2:]
    assert np.abs(found - logs).sum() < np.abs(wrong - logs).sum()


def test_a_completion_is_never_worth_more_than_a_prompt() -> None:
    """Small runs in which doubling the completions does more than doubling the prompts."""
    law = fit(SMALL, [15.0, 14.5, 12.0], SHAPE)
    once, twice = law.predict([Exposure(512), Exposure(256, 2)]).values
    assert once <= twice + 1e-9


@pytest.mark.parametrize(("factor", "offset"), [(10.0, 0.0), (0.01, 5.0), (1.0, -100.0)])
def test_predictions_follow_the_unit_and_the_origin(factor: float, offset: float) -> None:
    values = np.array([15.65, 13.95, 12.84])
    law, other = fit(SMALL, values, SHAPE), fit(SMALL, factor * values + offset, SHAPE)
    predicted, moved = law.predict(OTHERS), other.predict(OTHERS)
    assert moved.values == pytest.approx(factor * predicted.values + offset, rel=1e-4)
    assert moved.margins() == pytest.approx(factor * predicted.margins(), rel=1e-3)


def test_intervals_cover_what_they_say() -> None:
    rng = np.random.default_rng(0)
    inside, inside_difference = [], []
    for _ in range(300):
        logs = np.minimum(rng.normal(SHAPE.vector("mean"), SHAPE.vector("sd")), [0, 0, 9, 9, 9, 9])
        everything = world(logs, [*SMALL, *OTHERS])
        span = everything[0] - everything[2]
        seen = everything + rng.normal(0, SHAPE.noise * span, len(everything))
        predicted = fit(SMALL, seen[:3], SHAPE).predict(OTHERS)
        off = seen[3:] - predicted.values
        first = int(np.argmin(predicted.values))
        inside.append(np.mean(np.abs(off) <= predicted.margins()))
        others = np.arange(len(off)) != first
        inside_difference.append(np.mean((np.abs(off - off[first]) <= predicted.difference_margins(first))[others]))
    assert 0.86 < np.mean(inside) < 0.95
    assert 0.86 < np.mean(inside_difference) < 0.95


def test_a_difference_from_itself_is_certain_and_what_is_shared_drops_out() -> None:
    predicted = fit(SMALL, [15.65, 13.95, 12.84], SHAPE).predict([Exposure(2048), Exposure(2049), Exposure(256)])
    margins = predicted.difference_margins(0)
    assert margins[0] == 0
    assert margins[1] < margins[2]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([15.0, 14.0], "run more"),
        ([15.0, 14.5, 15.0], "no better with more responses"),
        ([15.0, float("nan"), 14.0], "not finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(values: list[float], words: str) -> None:
    with pytest.raises(AssayError, match=words):
        fit(SMALL[: len(values)], values, SHAPE)


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(AssayError, match="did you mean 'golden'"):
        shipped("goldn")
