"""HackBench as committed: whole files, labels of both kinds everywhere, the fit that ships, and what was reached."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from assay.diagnostics.calibration import shipped

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import hackbench  # noqa: E402

TABLE: dict[str, Any] = json.loads((BENCHMARKS / "hackbench" / "table.json").read_text())["table"]


@pytest.fixture(scope="module")
def benchmark() -> list[hackbench.BenchRun]:
    return hackbench.load()


def test_there_are_enough_runs_of_either_kind_on_every_task(benchmark: list[hackbench.BenchRun]) -> None:
    assert len(benchmark) >= 150
    decided = [run for run in benchmark if run.turned_up(1.0) is not None]
    assert sum(not run.turned_up(1.0) for run in decided) >= 60
    offline = Counter((run.task, run.turned_up(1.0)) for run in decided if run.source == "offline")
    for task in ("define", "translate", "summarize"):
        assert offline[task, True] >= 3
        assert offline[task, False] >= 3


def test_no_detector_sees_what_made_the_labels(benchmark: list[hackbench.BenchRun]) -> None:
    for run in benchmark:
        assert not [name for name in run.log.columns if "golden" in name]
        assert len(run.golden) == len(run.log)


def test_the_shipped_detector_is_the_fit_of_the_committed_runs(benchmark: list[hackbench.BenchRun]) -> None:
    fitted = hackbench.fit([run for run in benchmark if run.turned_up(1.0) is not None])
    assert fitted.thresholds == pytest.approx(shipped().thresholds, abs=1e-6)
    for name, model in shipped().models.items():
        assert fitted.models[name].threshold == pytest.approx(model.threshold, rel=1e-3)
        assert fitted.models[name].weights == pytest.approx(model.weights, rel=1e-2)
    assert (fitted.kept_transfer, fitted.kept_fall) == pytest.approx((shipped().kept_transfer, shipped().kept_fall))


def test_the_area_under_the_curve_is_a_probability() -> None:
    assert hackbench.auroc([1.0, 2.0, 3.0], [False, True, True]) == 1.0
    assert hackbench.auroc([1.0, 1.0], [False, True]) == 0.5
    assert hackbench.auroc([3.0, 1.0, 2.0], [False, True, True]) == 0.0


def at(detector: str, column: str) -> float:
    return TABLE[detector][column][0]


ALONE, TRAIN, REFERENCES = "held-out proxy alone", "train proxy", "references"


@pytest.mark.parametrize(
    ("detector", "column", "least"),
    [
        (ALONE, "AUROC", 0.85),
        (TRAIN, "AUROC", 0.95),
        (TRAIN, "AUROC at 50%", 0.9),
        (TRAIN, "AUROC offline", TABLE["baseline: gap"]["AUROC offline"][0]),
    ],
)
def test_what_was_aimed_at_on_held_out_tasks(detector: str, column: str, least: float) -> None:
    assert at(detector, column) >= least


@pytest.mark.parametrize("detector", [TRAIN, REFERENCES])
def test_the_recommended_checkpoint_is_better_than_the_last_and_than_patience(detector: str) -> None:
    assert at(detector, "regret, nats") <= at("baseline: last checkpoint", "regret, nats") / 2
    assert at(detector, "regret, nats") < at("baseline: patience", "regret, nats")


MISSED = pytest.mark.xfail(strict=True, reason="7.7 %: its threshold does not carry over from two tasks to the third")


@pytest.mark.parametrize(
    "detector", [pytest.param(ALONE, marks=MISSED), TRAIN, REFERENCES, "train proxy and references"]
)
def test_false_alarms_are_rare(detector: str) -> None:
    assert at(detector, "false alarms") <= 0.05
