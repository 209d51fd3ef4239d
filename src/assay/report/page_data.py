"""What the page's charts draw, as plain values: panels of curves over steps, and paths of golden over proxy.

A panel and a path have the shape that ``assets/charts.js`` says. Numbers are rounded to six digits; the tables beside
the page hold them in full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from assay.report.figures import FIGURES, SIGNS, curve_name, rank
from assay.report.files import Row
from assay.report.tables import Curve, Study, banded
from assay.report.words import golden_axis, proxy_axis, readable
from assay.statistics import mean_over_seeds, t_interval

_STEP, _NATS = "optimiser step", "nats per sequence"


def page_data(study: Study) -> Row:
    """All that the page's script needs to draw, but for the responses."""
    epochs = _epochs(study)
    return {
        "arms": [{"label": label, "name": readable(label), "slot": rank(study, label)} for label in study.labels],
        "seeds": sorted({curve.seed for curve in study.curves}) if study.has_replicates else [],
        "steps": steps(study),
        "epochs": epochs and [rounded(epoch) for epoch in epochs],
        "figures": {name: draw(study) for name, draw in _CHARTS.items() if FIGURES[name].fits(study)},
    }


def steps(study: Study) -> list[int]:
    """All steps at which any curve was evaluated, in order."""
    return sorted({row["step"] for curve in study.curves for row in curve.rows})


def rounded(value: float | None) -> float | None:
    """A number in six digits; None where it is unknown or infinite."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def _epochs(study: Study) -> list[float] | None:
    """The epoch of every step; None where arms differ in it."""
    found: dict[int, set[float]] = {}
    for curve in study.curves:
        for row in curve.rows:
            found.setdefault(row["step"], set()).add(row["epoch"])
    return [found[step].pop() for step in steps(study)] if all(len(each) == 1 for each in found.values()) else None


def _plane(study: Study) -> Row:
    marks = [
        {"label": name, axis: rounded(level)}
        for key, axis, name in (
            ("d_oracle_teacher", "y", "d(oracle, teacher)"),
            ("golden_at_start", "y", "golden at the start"),
            ("proxy_at_start", "x", "proxy at the start"),
        )
        for level in study.references(key)
    ]
    x, y = _series(study, "proxy_nats"), _series(study, "golden_nats")
    paths = [
        {key: each[key] for key in ("label", "slot", "seed")} | {"x": each["values"], "y": other["values"]}
        for each, other in zip(x, y, strict=True)
    ]
    return {
        "plane": {
            "title": "",
            "xLabel": f"{proxy_axis(study.proxy_is).split(':')[0]} ({_NATS})",
            "yLabel": f"{golden_axis(study.truth).split(':')[0]} ({_NATS})",
            "xName": "proxy",
            "yName": "golden",
            "steps": steps(study),
            "series": paths,
            "levels": marks,
        }
    }


def _training(study: Study) -> Row:
    panels = []
    for metric in reversed(banded(study.truth)):
        levels = [] if metric == "train_proxy" else [("at the start", each) for each in _start(study, metric)]
        if metric == "golden":
            levels += [("d(oracle, teacher)", each) for each in study.references("d_oracle_teacher")]
        lines = _series(study, f"{metric}_nats", band=metric)
        if metric == "golden":
            onsets = {(c.label, c.seed): c.summary["onset_step"] for c in study.curves if c.summary}
            lines = [line | {"onset": onsets.get((line["label"], line["seed"]))} for line in lines]
        panels.append(_panel(study, curve_name(study, metric), lines, levels=levels))
        if any(line.get("onset") is not None for line in lines):
            panels[-1]["note"] = "Triangle: onset, from where golden stays up."
    return {"panels": panels}


def _start(study: Study, metric: str) -> list[float]:
    return study.references(f"{metric}_at_start")


def _theory(study: Study) -> Row:
    walkers = (
        ("oracle_term_nats", "on what the oracle writes", 0),
        ("proxy_nats", "on what the teacher writes", 1),
    )
    found = {
        label: [
            each | {"name": name, "dash": dash}
            for key, name, dash in walkers
            for each in _series(study, key, labels=[label])[-1:]
        ]
        for label in study.labels
    }
    known = [value for lines in found.values() for each in lines for value in each["values"] if value is not None]
    limits = {}
    if known:  # one scale for all arms, as in the figure
        room = 0.07 * (max(known) - min(known)) or 1.0
        limits = {"yRange": [rounded(min(known) - room), rounded(max(known) + room)]}
    return {
        "panels": [_panel(study, readable(label), lines, levels=[("", 0.0)]) | limits for label, lines in found.items()]
    }


def _degeneration(study: Study) -> Row:
    panels = []
    for key, (title, unit) in SIGNS.items():
        lines, levels = _series(study, key), []
        if key == "student_entropy_nats_per_token":
            teachers = {rounded(value) for curve in study.curves for value in curve["teacher_entropy_nats_per_token"]}
            levels = [("the teacher's", value) for value in sorted(filter(None, teachers))] if len(teachers) < 4 else []
        digits = 3 if "share" in unit else 2
        panels.append(_panel(study, title, lines, unit=unit, levels=levels, digits=digits, from_zero=True))
    return {"panels": panels}


def _judges(study: Study) -> Row:
    panels = []
    for column, higher_is_better in study.judges.items():
        better = "higher" if higher_is_better else "lower"
        title = f"{readable(column.removeprefix('judge_'))} ({better} is better)"
        panels.append(_panel(study, title, _series(study, column), unit="its own unit"))
    return {"panels": panels}


_CHARTS = {
    "proxy_golden_plane": _plane,
    "training_curves": _training,
    "theory_terms": _theory,
    "degeneration": _degeneration,
    "judges": _judges,
}
"""By the name of the figure that the chart takes the place of; convergence is in ``evidence.py``."""


def _panel(
    study: Study,
    title: str,
    series: list[Row],
    unit: str = _NATS,
    levels: Sequence[tuple[str, float]] = (),
    digits: int = 2,
    from_zero: bool = False,
) -> Row:
    return {
        "title": title,
        "xLabel": _STEP,
        "yLabel": unit,
        "x": steps(study),
        "series": series,
        "logX": True,
        "logY": False,
        "levels": [{"label": label, "value": rounded(value)} for label, value in levels],
        "digits": digits,
        "fromZero": from_zero,
    }


def _series(study: Study, key: str, band: str | None = None, labels: Sequence[str] | None = None) -> list[Row]:
    """The lines of each label: one seed with its band, or every seed and then the mean of all with its interval."""
    lines = []
    for label in labels or study.labels:
        curves = study.curves_of(label)
        for curve in curves:
            low = high = None
            if band and len(curves) == 1:
                low, high = (
                    _by_step(study, curve["step"], curve[key] + sign * curve.margins[band]) for sign in (-1, 1)
                )
            values = _by_step(study, curve["step"], curve[key])
            lines.append(_line(study, label, curve.seed, values, low, high))
        if len(curves) > 1:
            lines.append(_mean(study, label, curves, key))
    return lines


def _mean(study: Study, label: str, curves: Sequence[Curve], key: str) -> Row:
    at = curves[0]["step"][study.common_rows(curves[0])]
    by_seed = np.stack([curve[key][study.common_rows(curve)] for curve in curves], axis=1)
    bounds = np.full((len(at), 2), np.nan)
    for i, values in enumerate(by_seed):
        if np.isfinite(values).all():
            found = t_interval(mean_over_seeds([[value] for value in values]))
            bounds[i] = found.low, found.high
    values, low, high = (_by_step(study, at, each) for each in (by_seed.mean(axis=1), bounds[:, 0], bounds[:, 1]))
    return _line(study, label, None, values, low, high)


def _line(
    study: Study,
    label: str,
    seed: int | None,
    values: list[float | None],
    low: list[float | None] | None,
    high: list[float | None] | None,
) -> Row:
    return {
        "label": label,
        "slot": rank(study, label),
        "seed": seed,
        "values": values,
        "low": low,
        "high": high,
    }


def _by_step(study: Study, at: np.ndarray, values: np.ndarray) -> list[float | None]:
    """One value for each of ``steps``; None where there is none."""
    found = dict(zip(at.astype(int).tolist(), values.tolist(), strict=True))
    return [rounded(found.get(step)) for step in steps(study)]
