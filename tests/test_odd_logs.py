"""Legal logs that nobody expects: each gets a diagnosis, strict JSON and a figure, without a warning."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assay.diagnosing import print_diagnosis
from assay.diagnostics.calibration import shipped
from assay.diagnostics.checks import CHECKS
from assay.diagnostics.detector import diagnose, recommended_step
from assay.diagnostics.trajectory import COLUMNS, Trajectory
from assay.report.diagnosis import draw_diagnosis, write_diagnosis
from known_logs import STEPS, falling, hacked, healthy

N = len(STEPS)
X = np.arange(N) / (N - 1)
ALL = {name: falling(0.4) for name in COLUMNS}
LONG = np.arange(300.0)
ODD = {
    "two evaluations": Trajectory(np.array([0.0, 100.0]), {"proxy": np.array([3.0, 2.0])}),
    "constant": Trajectory(STEPS, {"proxy": np.full(N, 2.0), "reference_nll": np.full(N, 30.0)}),
    "zeros": Trajectory(STEPS, dict.fromkeys(COLUMNS, np.zeros(N))),
    "negative": Trajectory(STEPS, {name: -values for name, values in ALL.items()}),
    "late and equidistant": Trajectory(np.linspace(500, 4000, 8), {"proxy": np.geomspace(3, 1, 8)}),
    "within a decade": Trajectory(np.linspace(200, 900, 8), {"proxy": np.geomspace(3, 1, 8)}),
    "huge": Trajectory(STEPS, {name: values * 1e300 for name, values in ALL.items()}),
    "nearly infinite": Trajectory(STEPS, dict.fromkeys(COLUMNS, 1.7e+308 * (1 - 0.9 * X))),
    "nearly infinite, both signs": Trajectory(STEPS, dict.fromkeys(COLUMNS, 1.7e+308 * (1 - 2 * X))),
    "negative and nearly infinite": Trajectory(STEPS, {"proxy": -1.7e308 * (1 - 0.5 * X)}),
    "constant and nearly infinite": Trajectory(STEPS, {"proxy": np.full(N, 1.7e308)}),
    "tiny": Trajectory(STEPS, {name: values * 1e-300 for name, values in ALL.items()}),
    "subnormal": Trajectory(STEPS, {name: values * 1e-321 for name, values in ALL.items()}),
    "every size": Trajectory(STEPS, {name: np.geomspace(1e300, 1e-300, N) for name in COLUMNS}),
    "every size, rising": Trajectory(STEPS, {name: np.geomspace(1e-300, 1e300, N) for name in COLUMNS}),
    "it explodes at its end": Trajectory(STEPS, {name: np.where(X < 1, falling(), 1e300) for name in COLUMNS}),
    "huge errors": healthy(proxy_diff_stderr=np.full(N, 1.7e308), golden=falling(), golden_diff_stderr=falling()),
    "huge errors of a tiny curve": Trajectory(
        STEPS, {"proxy": falling() * 1e-300, "golden": falling() * 1e-300,
                "proxy_diff_stderr": np.full(N, 1e300), "golden_diff_stderr": np.full(N, 1e300)}),
    "huge steps": Trajectory((STEPS + 1) * 1e300, hacked().columns),
    "steep in huge steps": Trajectory((STEPS + 1) * 1e200, {"proxy": falling(3.0)}),
    "steps of every size": Trajectory(np.geomspace(1e-300, 1e300, 300), {"proxy": 1 / (LONG + 1)}),
    "tiny steps": Trajectory(STEPS * 1e-310, hacked().columns),
    "a long log of nearly infinite values": Trajectory(LONG, {"proxy": 1.7e308 / (1 + LONG / 100)}),
    "no values": healthy(golden=np.full(N, np.nan), reference_nll=np.full(N, np.nan)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ODD))
def test_an_odd_log_is_diagnosed_printed_and_drawn(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = diagnose(ODD[name])
        text = json.dumps(found.to_dict(), allow_nan=False)
        print_diagnosis(found)
        path = write_diagnosis(ODD[name], found, tmp_path / "a.svg")
    assert json.loads(text)["recommended_step"] in ODD[name].steps
    assert found.verdict.replace("_", " ") in capsys.readouterr().out
    assert "nan" not in path.read_text().lower().split("<defs>")[0]


@pytest.mark.parametrize("log", [healthy(golden=falling()), hacked(golden=5 + np.log1p(STEPS / 30))])
@pytest.mark.parametrize("factor", [2.0**-900, 2.0**900, 1e-30, 7e40])
def test_no_unit_is_too_large_or_too_small(log: Trajectory, factor: float) -> None:
    one, other = diagnose(log), diagnose(Trajectory(log.steps, {k: v * factor for k, v in log.columns.items()}))
    assert one.verdict == other.verdict
    assert (one.recommended_step, one.onset_step) == (other.recommended_step, other.onset_step)
    assert one.law is not None
    assert other.law is not None
    assert other.law.parameters()["a"] / factor == pytest.approx(one.law.parameters()["a"], rel=1e-3)
    assert other.law.noise / factor == pytest.approx(one.law.noise, rel=1e-3)
    for a, b in zip(one.signals, other.signals, strict=True):
        assert a.status == b.status
        if a.value is not None:
            assert a.value == pytest.approx(b.value, rel=2e-2), a.code


def test_means_of_equal_values_are_no_rise() -> None:
    """0.1 added up some hundred times and divided again is not always 0.1."""
    steps = np.arange(1, 2001.0)
    log = Trajectory(steps, {"proxy": steps**-0.5, "golden": np.full(len(steps), 0.1)})
    assert np.ptp(log.binned().columns["golden"]) > 0
    found = diagnose(log)
    assert found.verdict == "healthy", found.reasons


def test_without_a_law_its_check_is_not_applicable() -> None:
    for proxy in (np.full(N, 2.0), 2 + X, falling() - 4):
        assert CHECKS["AS001"].measure(Trajectory(STEPS, {"proxy": proxy})) is None
        assert diagnose(Trajectory(STEPS, {"proxy": proxy})).signals[0].status == "not_applicable"


def test_few_evaluations_send_nobody_back() -> None:
    """A score of two evaluations is a guess: it is told, and nothing follows from it."""
    found = diagnose(ODD["two evaluations"])
    assert found.verdict == "undecided"
    assert (found.recommended_step, found.onset_step) == (100.0, None)


def test_a_proxy_that_ends_above_its_start_is_not_kept_to_its_end() -> None:
    down_and_up = np.where(STEPS < 60, falling(), falling()[-1] * (np.maximum(STEPS, 60) / 60) ** 2)
    assert down_and_up[-1] > down_and_up[0]
    found = diagnose(Trajectory(STEPS, {"proxy": down_and_up}))
    assert found.verdict == "hacking_suspected"
    assert found.recommended_step < 60
    assert found.onset_step is not None
    assert diagnose(Trajectory(STEPS, {"proxy": 2 + X})).recommended_step == 0.0


def test_a_spike_after_the_fall_is_not_early() -> None:
    spiked = np.maximum(falling(), falling()[9])
    spiked[-3] = spiked[0]
    assert recommended_step(Trajectory(STEPS, {"proxy": spiked}), True, shipped()) < 60


def test_the_last_evaluation_with_a_good_transfer_is_kept() -> None:
    log = Trajectory(STEPS, {name: hacked().columns[name] for name in ("proxy", "train_proxy")})
    fallen, trained = (np.log(log.columns[name][0] / log.columns[name]) + 0.1 for name in ("proxy", "train_proxy"))
    limit = replace(shipped(), kept_transfer=float((fallen / trained)[4]) - 1e-9)
    assert recommended_step(log, True, limit) == STEPS[4]


def test_a_column_with_a_gap_is_said_to_be_left_out() -> None:
    golden = np.where(STEPS > 2, 5 + np.log1p(STEPS / 30), np.nan)
    found = diagnose(healthy(golden=golden))
    assert found.verdict == diagnose(healthy()).verdict
    assert f"golden has no value at 3 of {N} evaluations and is left out" in found.reasons


def test_steps_within_a_decade_have_ticks_and_a_wide_axis_few() -> None:
    def labels(log: Trajectory) -> list[str]:
        with np.errstate(all="ignore"):
            return [tick.get_text() for tick in draw_diagnosis(log, diagnose(log)).axes[0].get_xticklabels()]

    assert labels(ODD["within a decade"]) == ["200", "900"]
    assert labels(healthy()) == ["0", "1", "10", "100"]
    assert len(labels(ODD["steps of every size"])) < 20


def test_the_axis_of_a_steep_fall_ends_below_its_lowest_value() -> None:
    steep = Trajectory(STEPS, {"proxy": falling(1.5)})
    low, high = draw_diagnosis(steep, diagnose(steep)).axes[0].get_ylim()
    assert 0.5 * falling(1.5).min() < low < falling(1.5).min()
    assert high > 8.0
    below_zero = Trajectory(STEPS, {"proxy": falling() - 4})
    assert draw_diagnosis(below_zero, diagnose(below_zero)).axes[0].get_ylim()[0] < (falling() - 4).min()


@pytest.mark.parametrize("factor", [0.1, 0.7, 1 / 3, 1.1, 1e-3, 3e7])
def test_steps_on_a_border_stay_on_their_side_in_every_unit(factor: float) -> None:
    """Last step over 24 and over 4 are borders of the late lines; bins of a long log have theirs."""
    steps = np.array([0.0, 1, 2, 5, 10, 25, 50, 75, 100, 150, 300, 600, 900, 1200])
    noisy = 8 * (1 + steps / 20) ** -0.5 * np.exp(np.random.default_rng(0).normal(0, 0.1, len(steps)))
    for code in ("AS002", "AS003"):
        one, other = (CHECKS[code].measure(Trajectory(s, {"proxy": noisy})) for s in (steps, steps * factor))
        assert one == pytest.approx(other, rel=1e-6)
    long = 3.0 ** (np.arange(65) / 2)
    values = np.random.default_rng(1).normal(5, 1, 65)
    one, other = (Trajectory(s, {"proxy": values}).binned().columns["proxy"] for s in (long, long * factor))
    assert one == pytest.approx(other)
