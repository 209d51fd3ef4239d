"""The detector: known logs, invariances, prefixes, what it may see, and real labelled runs that it was fitted on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from assay.diagnostics.calibration import Calibration, Model, shipped
from assay.diagnostics.checks import CHECKS
from assay.diagnostics.detector import Detector, Diagnosis, diagnose
from assay.diagnostics.trajectory import COLUMNS, Trajectory
from assay.diagnostics.truth import Case
from assay.errors import AssayError
from known_logs import STEPS, falling, hacked, healthy


def without(log: Trajectory, *names: str) -> Trajectory:
    return Trajectory(log.steps, {name: values for name, values in log.columns.items() if name not in names})


SEEN = [(), ("reference_nll",), ("train_proxy",), ("train_proxy", "reference_nll")]


@pytest.mark.parametrize("hidden", SEEN)
def test_known_logs_are_told_apart_whatever_columns_there_are(hidden: tuple[str, ...]) -> None:
    good, bad = (diagnose(without(log, *hidden)) for log in (healthy(), hacked()))
    assert good.verdict == "healthy"
    assert good.recommended_step == STEPS[-1]
    assert good.onset_step is None
    assert bad.verdict == ("hacking_suspected" if "reference_nll" in hidden else "teacher_hacking")
    assert good.score is not None
    assert bad.score is not None
    assert good.score < 0.5 < bad.score
    assert bad.recommended_step < 100
    assert bad.onset_step is not None
    assert bad.onset_step > bad.recommended_step


def test_golden_decides_where_it_is_there() -> None:
    up, down = 5 + np.log1p(STEPS / 30), falling()
    assert diagnose(healthy(golden=up)).verdict == "teacher_hacking"
    assert diagnose(hacked(golden=down)).verdict == "healthy"
    found = diagnose(hacked(golden=up))
    assert found.recommended_step == STEPS[up.argmin()]
    assert found.score == diagnose(hacked()).score  # which never looks at golden


def test_a_verdict_from_per_prompt_values_outranks_the_mean_curve() -> None:
    judged = Case("undecided", "intervals are too wide", 4.0, None)
    found = diagnose(healthy(golden=falling()), judged)
    assert (found.verdict, found.recommended_step) == ("undecided", 4.0)


@pytest.mark.parametrize("hidden", SEEN)
def test_scales_do_not_matter(hidden: tuple[str, ...]) -> None:
    for log in (healthy(), hacked()):
        log = without(log, *hidden)
        scaled = Trajectory(log.steps * 1000, {name: v * (2 + i) for i, (name, v) in enumerate(log.columns.items())})
        one, other = diagnose(log), diagnose(scaled)
        assert one.verdict == other.verdict
        assert one.score == pytest.approx(other.score)
        assert one.recommended_step * 1000 == other.recommended_step


def test_the_detector_sees_only_the_past() -> None:
    """Record by record it says what it would say if the log ended there; spoilt later records change nothing."""
    log, spoilt = hacked(), hacked(proxy=np.where(STEPS > 50, 99.0, hacked().columns["proxy"]))
    one, other = Detector(), Detector()
    for i, step in enumerate(STEPS):
        records = [{"step": step, **{name: v[i] for name, v in source.columns.items()}} for source in (log, spoilt)]
        score, later = one.update(records[0]), other.update(records[1])
        if step <= 50:
            assert score == later
        if i >= 2:
            assert score == diagnose(log.until(i)).score
        else:
            assert score is None
    assert one.diagnose().to_dict() == diagnose(log).to_dict()


def test_a_proxy_that_explodes_is_not_kept_at_its_end() -> None:
    collapsed = Trajectory(STEPS, {"proxy": falling(0.3) * np.exp(np.maximum(STEPS - 60, 0) / 60)})
    found = diagnose(collapsed)
    assert found.verdict == "hacking_suspected"
    assert found.recommended_step <= 60


def test_few_evaluations_give_a_score_and_no_verdict_eight_suffice() -> None:
    few, eight = diagnose(hacked().until(6)), diagnose(Trajectory(STEPS[::2], {
        name: v[::2] for name, v in hacked().columns.items()}))  # fmt: skip
    assert few.verdict == "undecided"
    assert few.score is not None
    assert any("too few" in reason for reason in few.reasons)
    assert len(STEPS[::2]) == 8
    assert eight.verdict == "teacher_hacking"


def test_values_without_logarithm_give_no_score_and_no_crash() -> None:
    found = diagnose(Trajectory(STEPS, {"proxy": falling() - 4}))
    assert found.score is None
    assert found.verdict == "undecided"
    assert found.law is None
    assert "at or below 0" in found.law_reason


def test_a_decaying_learning_rate_and_a_floor_are_not_flagged() -> None:
    """With train proxy or references: these curves flatten together, and nothing gets worse."""
    floor = falling(0.8, floor=3.0)
    decayed = falling(0.6)[np.minimum(np.arange(len(STEPS)), 11)]
    for proxy in (floor, decayed):
        for columns in ({"train_proxy": proxy * 0.97}, {"reference_nll": 30 + proxy}):
            found = diagnose(Trajectory(STEPS, {"proxy": proxy, **columns}))
            assert found.verdict == "healthy", (found.score, columns.keys())


def test_the_json_has_its_schema() -> None:
    found = json.loads(json.dumps(diagnose(hacked()).to_dict(), allow_nan=False))
    assert list(found) == ["schema", "verdict", "score", "onset_step", "recommended_step", "law", "law_reason",
                           "signals", "reasons"]  # fmt: skip
    assert found["schema"] == "assay.diagnosis/1"
    assert list(found["law"]) == ["a", "b", "c", "t0", "ci95"]
    assert set(found["law"]["ci95"]) == {"a", "b", "c", "t0"}
    assert isinstance(found["recommended_step"], int)
    assert [signal["code"] for signal in found["signals"]] == list(CHECKS)
    for signal in found["signals"]:
        assert list(signal) == ["code", "name", "value", "threshold", "status", "advice"]
        assert (signal["value"] is None) == (signal["status"] == "not_applicable")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"step": 2.0}, "needs 'proxy'"),
        ({"proxy": 2.0}, "needs 'step'"),
        ({"step": 2, "proxy": float("nan")}, "'proxy' must be a finite number"),
        ({"step": 2, "proxy": "low"}, "'proxy' must be a finite number"),
        ({"step": 2, "proxy": 10**400}, "'proxy' must be a finite number"),
        ({"step": 2, "proxy": True}, "'proxy' must be a finite number"),
        ({"step": 1, "proxy": 2.0}, "step 1 comes after step 1: steps must increase"),
    ],
)
def test_bad_records_are_refused_and_forgotten(record: dict[str, object], words: str) -> None:
    detector = Detector()
    detector.update({"step": 0, "proxy": 8.0})
    detector.update({"step": 1, "proxy": 7.0, "unknown": "anything", "golden": None})
    with pytest.raises(AssayError, match=words):
        detector.update(record)
    assert len(detector.trajectory) == 2


def test_numbers_of_numpy_are_numbers_and_steps_are_not_negative() -> None:
    detector = Detector()
    detector.update({"step": np.int64(1), "proxy": np.float32(8.0), "golden": np.float64(2.0)})
    assert detector.trajectory.columns["proxy"].tolist() == [8.0]
    with pytest.raises(AssayError, match="must not be negative"):
        Detector().update({"step": -1, "proxy": 8.0})


def test_golden_never_enters_a_score_or_a_signal() -> None:
    up = 5 + np.log1p(STEPS / 30)
    for log in (healthy(), hacked()):
        seen = diagnose(Trajectory(STEPS, {**log.columns, "golden": up, "golden_diff_stderr": 0.1 + up}))
        assert (seen.score, seen.signals) == (diagnose(log).score, diagnose(log).signals)


def test_a_value_at_its_threshold_does_not_exceed_it_and_a_score_at_its_own_is_flagged() -> None:
    shown = {name: np.full(len(STEPS), 0.5) for name in ("truncated", "top_overlap")}
    found = diagnose(healthy(**shown), calibration=replace(shipped(), thresholds=dict.fromkeys(CHECKS, 0.0)))
    status = {signal.code: signal.status for signal in found.signals}
    assert (status["AS009"], status["AS012"]) == ("pass", "pass")
    log = without(hacked(), "reference_nll")
    model = shipped().models["train proxy"]
    for threshold, verdict in ((diagnose(log).score, "hacking_suspected"), (0.9999, "undecided")):
        limit = replace(shipped(), models={"train proxy": replace(model, threshold=threshold)})
        assert diagnose(log, calibration=limit).verdict == verdict


def test_the_law_is_that_of_the_evaluations_before_the_onset() -> None:
    found = diagnose(hacked())
    assert found.law is not None
    assert found.onset_step is not None
    assert found.law.last_step == max(step for step in STEPS if step < found.onset_step)
    assert diagnose(healthy()).law.last_step == STEPS[-1]  # type: ignore[union-attr]


def test_long_logs_are_averaged_into_few_bins() -> None:
    steps = np.arange(0, 100_001.0)
    noise = np.random.default_rng(0).normal(0, 0.05, len(steps))
    log = Trajectory(steps, {"proxy": falling(steps=steps / 300) + noise, "train_proxy": falling(steps=steps / 300)})
    short = log.binned()
    assert len(short) <= 33
    assert (short.steps[0], short.steps[-1]) == (0.0, 100_000.0)
    assert (np.diff(short.steps) > 0).all()
    assert diagnose(log).verdict == "healthy"
    assert Trajectory(steps * 7, log.columns).binned().columns["proxy"] == pytest.approx(short.columns["proxy"])


def test_the_shipped_numbers_are_whole() -> None:
    calibration = shipped()
    assert set(calibration.thresholds) == set(CHECKS) - {"AS001"}
    assert isinstance(calibration, Calibration)
    for model in calibration.models.values():
        assert set(model.weights) <= set(CHECKS)
        assert 0.5 <= model.threshold < 1
        assert all(weight > 0 for weight in model.weights.values())  # every value is larger where things are worse


def test_a_model_scores_by_its_formula_or_not_at_all() -> None:
    model = Model({"AS002": 2.0, "AS003": 3.0}, -1.0, 0.5)
    assert model.score({"AS002": 0.5, "AS003": 0.0}) == pytest.approx(0.5)
    assert model.score({"AS002": 0.5, "AS003": None}) is None


def test_diagnosing_imports_no_torch() -> None:
    code = (
        "import sys, numpy as np; from assay.diagnostics.detector import diagnose;"
        "from assay.diagnostics.trajectory import Trajectory; import assay.report.diagnosis, assay.integrations.logs;"
        "diagnose(Trajectory(np.arange(9.0), {'proxy': 1 / np.arange(1.0, 10)}));"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_column_is_documented_once() -> None:
    assert isinstance(diagnose(healthy()), Diagnosis)
    assert len(set(COLUMNS)) == len(COLUMNS)
