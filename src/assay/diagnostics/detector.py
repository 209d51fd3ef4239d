"""Has golden turned up? A verdict from a log alone, without an oracle, and what to do about it.

The checks measure, a small logistic model over one or two of them gives the score, and a truth column (golden, or the
NLL of references) says which kind of damage it is. ``Detector`` takes record after record and sees only the past.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import numpy as np

from assay.diagnostics import curves
from assay.diagnostics.calibration import Calibration, shipped
from assay.diagnostics.checks import CHECKS, LAW, LAW_THRESHOLD, PRIOR_FALL
from assay.diagnostics.law import Law, fit_law
from assay.diagnostics.trajectory import COLUMNS, Trajectory
from assay.diagnostics.truth import Case, case_of
from assay.errors import AssayError
from assay.notebook import as_html, as_text

DiagnosisName = Literal[
    "healthy", "hacking_suspected", "teacher_hacking", "overfitting", "benign_disagreement", "undecided"
]
MIN_EVALUATIONS = 8
"""Fewer give a score where they can, but no verdict."""


@dataclass(frozen=True)
class Signal:
    """A check's outcome; ``value`` is larger where things are worse, None where the log lacks what it needs."""

    code: str
    name: str
    value: float | None
    threshold: float
    status: Literal["pass", "fail", "not_applicable"]
    advice: str


@dataclass(frozen=True)
class Diagnosis:
    """A verdict with its evidence. ``law`` is fitted to the evaluations up to the onset, or to all of them."""

    verdict: DiagnosisName
    score: float | None
    onset_step: float | None
    recommended_step: float
    law: Law | None
    law_reason: str
    signals: list[Signal]
    reasons: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The object of ``assay diagnose --json``."""
        law = None if self.law is None else {**self.law.parameters(), "ci95": self.law.intervals()}
        return {
            "schema": "assay.diagnosis/1",
            "verdict": self.verdict,
            "score": self.score,
            "onset_step": _whole(self.onset_step),
            "recommended_step": _whole(self.recommended_step),
            "law": law,
            "law_reason": self.law_reason,
            "signals": [vars(signal) for signal in self.signals],
            "reasons": self.reasons,
        }

    def __str__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())

    def _shown(self) -> tuple[str, list[str], tuple[str, ...], list[tuple[str, ...]]]:
        score = "no score" if self.score is None else f"score {self.score:.2f}"
        keep = f"Keep the checkpoint of step {self.recommended_step:,.12g}."
        onset = [] if self.onset_step is None else [f"Golden turns up from step {self.onset_step:,.12g}."]
        head = ("check", "name", "value", "fails above", "status")
        rows = [
            (
                s.code,
                s.name,
                "–" if s.value is None else f"{s.value:.3g}",
                f"{s.threshold:.3g}",
                s.status.replace("_", " "),
            )
            for s in self.signals
        ]
        return f"{self.verdict.replace('_', ' ')}, {score}", [keep, *onset, *self.reasons], head, rows


def diagnose(log: Trajectory, judged: Case | None = None, calibration: Calibration | None = None) -> Diagnosis:
    """The verdict on a log with at least two evaluations of the held-out proxy.

    ``judged`` is a verdict from per-prompt values of golden, where there are any; it outranks the mean curve. Golden
    decides where it is there; else the score decides *whether* golden has turned up, and references *how*.
    """
    calibration, gaps, log = calibration or shipped(), _gaps(log), log.binned()
    values = {code: check.measure(log) for code, check in CHECKS.items()}
    signals = [_signal(code, value, calibration) for code, value in values.items()]
    tier, score = score_of(values, calibration)
    flagged = _is_flagged(len(log), tier, score, calibration)
    golden, reference, proxy = log.get("golden"), log.get("reference_nll"), log.columns["proxy"]
    if judged is None and golden is not None:
        judged = case_of(log.steps, golden, proxy, log.get("golden_diff_stderr"), log.get("proxy_diff_stderr"))
        judged = replace(judged, reason=f"golden: {judged.reason}")
    reasons = [_score_reason(score, tier, calibration)]
    if judged is not None:
        verdict: DiagnosisName = judged.name
        reasons.insert(0, judged.reason)
        recommended, onset = judged.best_step, judged.onset_step
    else:
        recommended = recommended_step(log, flagged, calibration)
        onset = float(log.steps[log.steps > recommended][0]) if flagged and recommended < log.steps[-1] else None
        case = None if reference is None else case_of(log.steps, reference, proxy, None, log.get("proxy_diff_stderr"))
        if case is not None:
            reasons.append(f"references: {case.reason}")
        verdict = _name(len(log), score, flagged, case)
    if len(log) < MIN_EVALUATIONS:
        reasons.append(f"{len(log)} evaluations are too few for a verdict without golden: it takes {MIN_EVALUATIONS}")
    reasons += gaps
    reasons += [
        f"{s.code} {s.name} {s.value:.3g} > {s.threshold:.3g}: {s.advice}" for s in signals if s.status == "fail"
    ]
    law, law_reason = _law(log, onset)
    return Diagnosis(verdict, score, onset, recommended, law, law_reason, signals, reasons)


def score_of(values: Mapping[str, float | None], calibration: Calibration) -> tuple[str, float | None]:
    """The best model whose checks are all applicable, and its score; None where no model applies."""
    for tier, model in calibration.models.items():
        score = model.score(values)
        if score is not None:
            return tier, score
    return "", None


def recommended_step(log: Trajectory, flagged: bool, calibration: Calibration) -> float:
    """The evaluation whose checkpoint to keep: the last one, unless the run is flagged.

    A flagged run goes back to where its references were most likely; without references, to the last evaluation with
    a good transfer; without a train proxy, to the last one early in the proxy's fall.
    """
    proxy, train, reference = (log.get(name) for name in ("proxy", "train_proxy", "reference_nll"))
    if not flagged or proxy is None:
        return float(log.steps[-1])
    if reference is not None:
        return float(log.steps[reference.argmin()])
    fallen = np.log(proxy[0]) - np.log(proxy)
    if train is not None and train.min() > 0:
        transfer = (fallen + PRIOR_FALL) / (np.maximum(np.log(train[0]) - np.log(train), 0.0) + PRIOR_FALL)
        good = transfer >= calibration.kept_transfer
    else:
        good = fallen <= calibration.kept_fall * float(fallen.max())
        good[int(fallen.argmax()) + 1 :] = False  # a proxy that has come up again is not early in its fall
    good[0] = True
    return float(log.steps[np.flatnonzero(good)[-1]])


class Detector:
    """The detector during a run: ``update`` with each evaluation's record, ask for the score or for the diagnosis."""

    def __init__(self, calibration: Calibration | None = None) -> None:
        self.calibration: Calibration = calibration or shipped()
        self._records: list[dict[str, float]] = []
        self.is_flagged: bool = False
        """Whether the score was at or above its threshold at the last update, as in ``diagnose``."""

    def update(self, record: Mapping[str, Any]) -> float | None:
        """Takes one evaluation (``step``, ``proxy``, any other of ``trajectory.COLUMNS``); returns the score so far.

        Unknown keys are ignored, a value of None is missing. The score is None before the third evaluation.
        Raises AssayError when the proxy is missing, a value is not finite, or a step is negative or not the largest.
        """
        known = {name: record[name] for name in ("step", *COLUMNS) if record.get(name) is not None}
        for name in ("step", "proxy"):
            if name not in known:
                raise AssayError(
                    f"a record for the detector needs {name!r}: {', '.join(sorted(record))} are there; add it"
                )
        for name, value in known.items():
            if not _is_finite(value):
                raise AssayError(f"{name!r} must be a finite number, not {reprlib.repr(value)}")
        if known["step"] < 0:
            raise AssayError(f"the step is {known['step']:g}: steps must not be negative")
        if self._records and known["step"] <= self._records[-1]["step"]:
            raise AssayError(
                f"step {known['step']} comes after step {self._records[-1]['step']:g}: steps must increase; "
                "add records in their order"
            )
        self._records.append({name: float(value) for name, value in known.items()})
        if len(self._records) < curves.MIN_POINTS:
            self.is_flagged = False
            return None
        log = self.trajectory.binned()
        values = {code: None if code == LAW else check.measure(log) for code, check in CHECKS.items()}
        tier, score = score_of(values, self.calibration)
        self.is_flagged = _is_flagged(len(log), tier, score, self.calibration)
        return score

    def forget_after(self, step: float) -> None:
        """Drops the records after ``step``: the student has gone back to it."""
        self._records = [record for record in self._records if record["step"] <= step]

    @property
    def trajectory(self) -> Trajectory:
        """The records so far."""
        names = [name for name in COLUMNS if any(name in record for record in self._records)]
        columns = {name: np.array([record.get(name, np.nan) for record in self._records]) for name in names}
        return Trajectory(np.array([record["step"] for record in self._records]), columns)

    def diagnose(self) -> Diagnosis:
        """The diagnosis of what was seen so far."""
        if len(self._records) < 2:
            raise AssayError("a diagnosis needs at least two evaluations: wait for the next one")
        return diagnose(self.trajectory, calibration=self.calibration)


def _is_flagged(num_evaluations: int, tier: str, score: float | None, calibration: Calibration) -> bool:
    return num_evaluations >= MIN_EVALUATIONS and score is not None and score >= calibration.models[tier].threshold


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int beyond all floats
        return False


def _gaps(log: Trajectory) -> list[str]:
    """Columns that are there and cannot be used: nobody should think that they were."""
    missing = {name: int((~np.isfinite(values)).sum()) for name, values in log.columns.items()}
    return [
        f"{name} has no value at {count} of {len(log)} evaluations and is left out"
        for name, count in missing.items()
        if count
    ]


def _name(num_evaluations: int, score: float | None, flagged: bool, case: Case | None) -> DiagnosisName:
    if num_evaluations < MIN_EVALUATIONS or score is None:
        return "undecided"
    if flagged:
        return (
            case.name if case is not None and case.name in ("teacher_hacking", "overfitting") else "hacking_suspected"
        )
    if case is not None and case.name == "benign_disagreement":
        return "benign_disagreement"
    return "undecided" if score >= 0.5 else "healthy"


def _signal(code: str, value: float | None, calibration: Calibration) -> Signal:
    threshold = LAW_THRESHOLD if code == LAW else calibration.thresholds[code]
    status = "not_applicable" if value is None else "fail" if value > threshold else "pass"
    check = CHECKS[code]
    return Signal(code, check.name, value, threshold, status, check.advice)


def _score_reason(score: float | None, tier: str, calibration: Calibration) -> str:
    if score is None:
        return "no score: too few evaluations, or values at or below 0"
    model = calibration.models[tier]
    used = ", ".join(f"{CHECKS[code].name} ({code})" for code in model.weights)
    return f"score {score:.2f} from {used}; flagged from {model.threshold:.2f}"


def _law(log: Trajectory, onset: float | None) -> tuple[Law | None, str]:
    lawful = log.steps < onset if onset is not None else np.ones(len(log), dtype=bool)
    found = fit_law(log.steps[lawful], log.columns["proxy"][lawful])
    if onset is not None and not isinstance(found, Law):
        found, lawful = fit_law(log.steps, log.columns["proxy"]), np.ones(len(log), dtype=bool)
    if not isinstance(found, Law):
        return None, found
    window = f"fitted to {found.num_points} evaluations from step {log.steps[found.first]:g} to {found.last_step:g}"
    floor = "" if found.floor_p_value is None else f"; floor against none: p = {found.floor_p_value:.2g}"
    return found, window + floor


def _whole(step: float | None) -> float | int | None:
    return int(step) if step is not None and step == int(step) else step
