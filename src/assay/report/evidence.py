"""What the detector sees in each curve, without golden: the law of its proxy, the departure from it, the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assay.diagnostics.checks import CHECKS, LAW, LAW_THRESHOLD
from assay.diagnostics.detector import Diagnosis, Signal, diagnose
from assay.diagnostics.trajectory import Trajectory
from assay.report.figures import rank
from assay.report.files import Row
from assay.report.page_data import rounded
from assay.report.tables import Curve, Study, values_by_prompt
from assay.report.words import readable
from assay.statistics import paired_difference

_COLUMNS = {
    "proxy": "proxy_nats",
    "train_proxy": "train_proxy_nats",
    "reference_nll": "reference_nll_nats",
    "student_entropy": "student_entropy_nats_per_token",
    "teacher_entropy": "teacher_entropy_nats_per_token",
    "response_tokens": "response_tokens_mean",
    "truncated": "truncated_fraction",
    "repetition": "repetition_fraction",
    "distinct": "distinct_2",
    "top_overlap": "top_overlap",
    "response_uses": "response_uses",
}
"""Names of ``diagnostics.trajectory`` → columns of metrics.jsonl; golden is not among them."""


@dataclass(frozen=True)
class Evidence:
    """A curve and its diagnosis; None where the curve is too short, or holds no proxy that could be looked at."""

    curve: Curve
    diagnosis: Diagnosis | None


def examine(study: Study) -> list[Evidence]:
    """The diagnosis of each curve, as ``assay diagnose RUN --arm ARM --golden none`` gives it."""
    return [Evidence(curve, _diagnosed(curve)) for curve in study.curves]


def law_panels(study: Study, evidence: Sequence[Evidence]) -> list[Row]:
    """A panel for each label: the held-out proxy of its first seed and the law of it, both axes logarithmic."""
    firsts = {each.curve.label: each for each in reversed(evidence)}
    return [_law_panel(study, firsts[label]) for label in study.labels]


def checks_table(study: Study, evidence: Sequence[Evidence]) -> list[Row]:
    """A row for each check: per label its status over the seeds, and the advice where it fails."""
    rows = []
    for code, check in CHECKS.items():
        cells, failing = [], []
        for label in study.labels:
            mine = [each.diagnosis for each in evidence if each.curve.label == label and each.diagnosis]
            signals = [signal for found in mine for signal in found.signals if signal.code == code]
            cells.append(_cell(signals))
            if cells[-1]["status"] == "fail":
                failing.append(readable(label))
        rows.append({"code": code, "name": check.name, "cells": cells, "advice": check.advice, "failing": failing})
    return rows


def detector_row(study: Study, evidence: Sequence[Evidence]) -> list[str]:
    """Per label what the detector says alone: verdicts, scores and the steps that it would keep, over the seeds."""
    cells = []
    for label in study.labels:
        mine = [each.diagnosis for each in evidence if each.curve.label == label and each.diagnosis]
        verdicts = dict.fromkeys(readable(found.verdict) for found in mine)
        scores = [f"{found.score:.2f}" for found in mine if found.score is not None]
        kept = [f"{found.recommended_step:,.0f}" for found in mine]
        cells.append(
            f"{' / '.join(verdicts)}; score {_span(scores) or 'unknown'}; would keep step {_span(kept)}"
            if mine
            else "too short to look at, or with gaps"
        )
    return cells


def _span(texts: Sequence[str]) -> str:
    """What several seeds say: once where they agree."""
    return ", ".join(texts) if len(set(texts)) > 1 else "".join(texts[:1])


def _diagnosed(curve: Curve) -> Diagnosis | None:
    steps = curve["step"]
    columns = {
        name: np.array([np.nan if row.get(key) is None else row[key] for row in curve.rows], dtype=float)
        for name, key in _COLUMNS.items()
    }
    columns = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    if len(steps) < 2 or steps[0] < 0 or not np.isfinite(columns["proxy"]).all():
        return None
    return diagnose(Trajectory(steps, columns | _noise(curve)))


def _noise(curve: Curve) -> dict[str, np.ndarray]:
    """Paired standard error of the proxy's change since the evaluation before; the first repeats the second."""
    steps, values_SP = values_by_prompt(curve.run.probe, curve.arm, curve.seed, "proxy")
    if len(steps) < 2 or values_SP.shape[1] < 2 or not np.array_equal(steps, curve["step"]):
        return {}
    errors = [paired_difference(*pair).stderr for pair in zip(values_SP[1:], values_SP[:-1], strict=True)]
    return {"proxy_diff_stderr": np.array([errors[0], *errors], dtype=float)}


def _law_panel(study: Study, evidence: Evidence) -> Row:
    curve, diagnosis = evidence.curve, evidence.diagnosis
    proxy = curve["proxy_nats"]
    look = {"label": curve.label, "slot": rank(study, curve.label), "seed": curve.seed, "low": None, "high": None}
    series = [look | {"name": "held-out proxy", "values": [rounded(value) for value in proxy], "dash": 0}]
    law = diagnosis.law if diagnosis else None
    if law is not None:
        steps = np.where(curve["step"] > 0, curve["step"], law.last_step * 1e-4)
        with np.errstate(all="ignore"):  # nobody reads a law of numbers near the ends of what a number can be
            low, high = law.band(steps)
        bounds = {"low": [rounded(value) for value in low], "high": [rounded(value) for value in high]}
        at = [rounded(value) for value in law.at(steps)]
        series.append(look | {"name": "its law", "values": at, "colour": "muted", "dash": 1} | bounds)
    lawful = proxy[np.isfinite(proxy) & (proxy > 0)]
    return {
        "title": readable(curve.label) + (f", seed {curve.seed}" if study.has_replicates else ""),
        "note": _law_sentence(evidence),
        "xLabel": "optimiser step",
        "yLabel": "held-out proxy (nats)",
        "x": [row["step"] for row in curve.rows],
        "series": series,
        "logX": True,
        "logY": True,
        "spans": _beyond(law.last_step, curve) if law is not None else [],
        # far beyond its window a law says nothing: its band would squash the points
        "yRange": [rounded(lawful.min() / 1.12), rounded(lawful.max() * 1.12)] if len(lawful) else None,
    }


def _beyond(last_step: float, curve: Curve) -> list[Row]:
    last = curve.rows[-1]["step"]
    return [{"from": rounded(last_step), "to": last}] if 0 < last_step < last else []


def _law_sentence(evidence: Evidence) -> str:
    diagnosis = evidence.diagnosis
    if diagnosis is None:
        return "No law: the curve is too short to look at, or has gaps."
    if diagnosis.law is None:
        return f"No law: {diagnosis.law_reason}."
    numbers, limits = diagnosis.law.parameters(), diagnosis.law.intervals()
    b, floor = (f"{numbers[name]:.3g} [{limits[name][0]:.3g}, {limits[name][1]:.3g}]" for name in ("b", "c"))
    strength = next(signal.value for signal in diagnosis.signals if signal.code == LAW)
    if strength is None:
        tested = "Departure from the law could not be tested."
    elif strength > LAW_THRESHOLD:
        tested = f"The proxy has left its law upwards: evidence {strength:,.0f}, alarm at {LAW_THRESHOLD:.0f}."
    else:
        tested = f"No departure from the law: evidence {strength:.1f}, alarm at {LAW_THRESHOLD:.0f}."
    window = diagnosis.law_reason[:1].upper() + diagnosis.law_reason[1:]
    return f"{tested} {window}. b = {b}, c = {floor}."


def _cell(signals: Sequence[Signal]) -> Row:
    failed = [signal for signal in signals if signal.status == "fail"]
    known = [signal for signal in signals if signal.value is not None]
    if not known:
        return {"status": "not_applicable", "text": "not applicable", "title": "the run lacks what it needs"}
    title = f"{max(s.value for s in known if s.value is not None):.3g}; fails above {known[0].threshold:.3g}"
    if not failed:
        return {"status": "pass", "text": "pass", "title": title}
    share = f" {len(failed)} of {len(signals)}" if len(signals) > 1 else ""
    return {"status": "fail", "text": f"fails{share}", "title": title}
