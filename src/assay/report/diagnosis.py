"""The picture of a diagnosis: the law with its band and the departure from it, and the curves that decide."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from assay import runs
from assay.diagnostics.detector import Diagnosis
from assay.diagnostics.trajectory import Trajectory
from assay.errors import AssayError
from assay.report.style import ARM_COLOURS, INK, MUTED, in_style, to_svg
from assay.report.words import readable

_CURVES = {"proxy": "held-out proxy", "train_proxy": "train proxy", "reference_nll": "NLL of references",
           "golden": "golden"}  # fmt: skip
_LARGEST = 1e300


def write_diagnosis(log: Trajectory, diagnosis: Diagnosis, path: Path) -> Path:
    """Draws the diagnosis into an .svg file. Raises AssayError for another kind of file."""
    if path.suffix.lower() != ".svg":
        raise AssayError(f"the figure is an SVG: name it {path.stem}.svg, not {path.name!r}")
    # nobody reads a figure of numbers near the ends of what a number can be, yet it is drawn
    with in_style(), np.errstate(all="ignore"):
        runs.write_text(path, to_svg(draw_diagnosis(_drawable(log.binned()), diagnosis)))
    return path


def draw_diagnosis(log: Trajectory, diagnosis: Diagnosis) -> Figure:
    """Left the proxy with its law, both axes logarithmic; right all curves over their first value."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_law(left, log, diagnosis)
    for number, (name, words) in enumerate(_CURVES.items()):
        values = log.get(name)
        if values is not None and values[0] > 0:
            right.plot(log.steps, values / values[0], "-o", ms=3, color=ARM_COLOURS[number], label=words)
    right.set(title="each curve over its first value", xlabel="step")
    for axes in (left, right):
        _logarithmic_steps(axes, log)
        axes.axvline(diagnosis.recommended_step, color=INK, lw=1, ls="--", label="keep this checkpoint")
        if diagnosis.onset_step is not None:
            axes.axvline(diagnosis.onset_step, color=MUTED, lw=1, ls=":", label="onset")
        axes.legend(fontsize=7)
    score = "" if diagnosis.score is None else f", score {diagnosis.score:.2f}"
    figure.suptitle(f"{readable(diagnosis.verdict)}{score}")
    return figure


def _drawable(log: Trajectory) -> Trajectory:
    """Without numbers so large that an axis around them could not end."""
    columns = {name: np.clip(values, -_LARGEST, _LARGEST) for name, values in log.columns.items()}
    return Trajectory(np.minimum(log.steps, _LARGEST), columns)


def _logarithmic_steps(axes: Axes, log: Trajectory) -> None:
    """Decades, and 0 where the log begins there."""
    first, last = float(log.steps[log.steps > 0][0]), float(log.steps[-1])
    axes.set_xscale("symlog", linthresh=first)
    powers = range(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1)
    decades = [10.0**k for k in powers[:: max(len(powers) // 8, 1)]]
    # steps within one decade have their ends for ticks
    ticks = [*([0.0] if log.steps[0] == 0 else []), *(decades if len(decades) > 1 else dict.fromkeys((first, last)))]
    axes.set_xticks(ticks, [f"{step:g}" for step in ticks])
    axes.set_xticks([], minor=True)


def _draw_law(axes: Axes, log: Trajectory, diagnosis: Diagnosis) -> None:
    proxy, law = log.columns["proxy"], diagnosis.law
    axes.plot(log.steps, proxy, "o", ms=4, color=ARM_COLOURS[0], label="held-out proxy")
    if law is not None:
        first = max(float(log.steps[law.first]), law.last_step * 1e-4)
        steps = np.geomspace(first, float(log.steps[-1]), 200)
        low, high = law.band(steps)
        axes.plot(steps, law.at(steps), color=ARM_COLOURS[1], label="its law")
        axes.fill_between(steps, low, high, color=ARM_COLOURS[1], alpha=0.2, lw=0, label="95 % of new evaluations")
        if first < float(log.steps[-1]) and law.last_step < float(log.steps[-1]):
            axes.axvspan(law.last_step, float(log.steps[-1]), color=MUTED, alpha=0.1, lw=0)
    if proxy.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    # far beyond its window a law says nothing: its band would squash the points
    margin = 0.2 * float(np.ptp(proxy)) or 0.1 * float(np.abs(proxy).max()) or 1.0
    axes.set_ylim(proxy.min() / 1.15 if proxy.min() > 0 else proxy.min() - margin, proxy.max() + margin)
    axes.set_xlim(left=float(log.steps[0]), right=float(log.steps[-1]) * 1.1)
    axes.set(title="held-out proxy and its convergence law", xlabel="step")
