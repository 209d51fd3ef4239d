"""Figures of a study as matplotlib objects; every figure comes with the table it was drawn from.

To add one: a function ``study -> (Figure, table)`` and a row in ``FIGURES``; its interactive twin is in
``page_data.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from assay.report.files import Table
from assay.report.schedule import PHASE_NAMES, STAGE_NAMES, arm_phases, phase_seconds
from assay.report.style import (
    ARM_COLOURS,
    INK,
    MUTED,
    PAPER,
    PHASE_COLOURS,
    StartAxis,
    in_style,
    plain_ticks,
    round_values,
    to_png,
    to_svg,
)
from assay.report.tables import Study, banded
from assay.report.words import golden_axis, proxy_axis, readable, visible

_STAGE_COLOUR = "#9aa3ad"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SIGNS = {
    "response_tokens_mean": ("response length", "tokens"),
    "truncated_fraction": ("cut at the length limit", "share of responses"),
    "repetition_fraction": ("repetition", "share of 3-grams"),
    "distinct_2": ("distinct bigrams", "distinct / all"),
    "student_entropy_nats_per_token": ("entropy", "nats per token"),
    "kl_from_start_nats": ("distance from its own start", "nats per sequence"),
}
"""Signs of decay: column of metrics.jsonl → title and unit."""
_FIXED_RANKS = {"offline": 0, "online_teacher": 1, "online_student": 2}


@dataclass(frozen=True)
class FigureSpec:
    """A figure of the report: how it is drawn, its title, and the caption that says how to read it."""

    draw: Callable[[Study], tuple[Figure, Table]]
    title: str
    caption: str
    needs: Literal["nothing", "truth", "oracle", "judges"] = "nothing"
    with_oracle: str = ""
    """What the caption adds where the truth is an oracle."""
    live: str = ""
    """What it adds under the interactive panels, where they show more than the figure."""
    still: str = ""
    """What it adds under the figure itself."""

    def fits(self, study: Study) -> bool:
        """Whether the runs have what the figure shows."""
        if self.needs == "judges":
            return bool(study.judges)
        return study.truth in {"nothing": (None, "references", "oracle"), "truth": ("references", "oracle")}.get(
            self.needs, ("oracle",)
        )


def slot(study: Study, label: str) -> int:
    """The number of a label's colour in ``ARM_COLOURS``."""
    return rank(study, label) % len(ARM_COLOURS)


def short(label: str, limit: int = 34) -> str:
    """A readable label that fits into a figure."""
    text = visible(readable(label))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def proxy_golden_plane(study: Study) -> tuple[Figure, Table]:
    """Golden against proxy (nats per sequence), one path per arm from the start to the end of the run."""
    marks = [
        Line2D([], [], ls="", marker="o", ms=8, mfc=PAPER, mec=INK, mew=1.4, label="start"),
        Line2D([], [], ls="", marker="o", ms=10, mfc="none", mec=MUTED, mew=1.6, label="lowest golden"),
        Line2D([], [], ls="", marker="o", ms=7, color=MUTED, label="end"),
    ]
    figure, (axes,) = _sheet(_arm_handles(study) + marks, 1, width=8.4, height=4.0)
    for label in study.labels:
        _draw_label(axes, study, label, "proxy_nats", "golden_nats")
        x, y = study.mean(label, "proxy_nats"), study.mean(label, "golden_nats")
        colour = _colour(study, label)
        axes.plot(x[:1], y[:1], "o", ms=9, mfc=PAPER, mec=INK, mew=1.4, zorder=4)
        axes.plot(x[-1:], y[-1:], _marker(study, label), color=colour, ms=8, zorder=4)
        if np.isfinite(y).any():
            best = int(np.nanargmin(y))
            axes.plot(x[best], y[best], "o", ms=12, mfc="none", mec=colour, mew=1.6, zorder=5)
    _reference(axes, study.references("d_oracle_teacher"), "d(oracle, teacher)", at="left")
    _reference(axes, study.references("golden_at_start"), "golden at the start", at="left", dashes=":")
    _reference(axes, study.references("proxy_at_start"), "proxy at the start", at="bottom", dashes=":")
    axes.margins(0.07)
    for label in study.labels:
        _arrows(axes, study.mean(label, "proxy_nats"), study.mean(label, "golden_nats"), _colour(study, label))
    axes.set_xlabel(f"{proxy_axis(study.proxy_is)} (nats per sequence)")
    axes.set_ylabel(f"{golden_axis(study.truth)} (nats per sequence)")
    return figure, study.columns(["proxy_nats", "golden_nats"])


def training_curves(study: Study) -> tuple[Figure, Table]:
    """Train proxy, proxy and golden (nats per sequence) over epochs, step 0 at the left edge, with bands."""
    onset = Line2D([], [], ls="", marker="v", ms=8, color=MUTED, label="onset")
    metrics = banded(study.truth)
    handles = _arm_handles(study) + ([onset] if _onset_points(study) else [])
    figure, panels = _sheet(handles, len(metrics))
    axis = _start_axis(study, "epoch")
    for axes, metric in zip(panels, reversed(metrics), strict=True):
        for label in study.labels:
            _draw_label(axes, study, label, "epoch", f"{metric}_nats", axis.place, band=metric)
        if metric != "train_proxy":
            _reference(axes, study.references(f"{metric}_at_start"), "at the start", dashes=":")
        axis.apply(axes, "epochs (passes over the prompts)")
        axes.set_title(curve_name(study, metric))
        axes.set_ylabel("nats per sequence")
    _reference(panels[-1], study.references("d_oracle_teacher"), "d(oracle, teacher)")
    for label, epoch, golden in _onset_points(study):
        at = axis.place(np.array([epoch]))
        panels[-1].plot(at, [golden], "v", ms=9, color=_colour(study, label), mec=PAPER, zorder=5)
    margins = [
        {f"{metric}_margin95_of_change_nats": float(curve.margins[metric][i]) for metric in metrics}
        for curve in study.curves
        for i in range(len(curve.rows))
    ]
    table = study.columns([f"{metric}_nats" for metric in metrics])
    return figure, [row | margin for row, margin in zip(table, margins, strict=True)]


def theory_terms(study: Study) -> tuple[Figure, Table]:
    """golden − d(o,t) = E_{y~o}[log t − log s] beside proxy = E_{y~t}[log t − log s], one panel per arm."""
    handles = [
        Line2D([], [], color=MUTED, label="on what the oracle writes: golden − d(oracle, teacher)"),
        Line2D([], [], color=MUTED, ls="--", label="on what the teacher writes: proxy"),
    ]
    figure, panels = _sheet(handles, len(study.labels), columns=3, sharey=True)
    axis = _start_axis(study, "epoch")
    for axes, label in zip(panels, study.labels, strict=True):
        for key, dashes in (("oracle_term_nats", "-"), ("proxy_nats", "--")):
            _draw_label(axes, study, label, "epoch", key, axis.place, ls=dashes, marker="")
        axes.axhline(0.0, color=MUTED, lw=0.8)
        axis.apply(axes, "epochs (passes over the prompts)")
        axes.set_title(short(label, 24), color=_colour(study, label))
    for axes in panels[::3]:
        axes.set_ylabel("nats per sequence")
    return figure, study.columns(["oracle_term_nats", "proxy_nats"])


def convergence(study: Study) -> tuple[Figure, Table]:
    """Held-out proxy and golden against the step, both axes logarithmic: a power law is a straight line."""
    metrics = ("proxy", "golden") if study.truth is not None else ("proxy",)
    figure, panels = _sheet(_arm_handles(study), len(metrics))
    last = max(2, *(row["step"] for curve in study.curves for row in curve.rows))
    for axes, metric in zip(panels, metrics, strict=True):
        axes.set_xscale("log", nonpositive="mask")
        axes.set_yscale("log", nonpositive="mask")
        for label in study.labels:
            _draw_label(axes, study, label, "step", f"{metric}_nats")
        plain_ticks(axes.xaxis, round_values(1, last))
        low, high = axes.get_ylim()
        ticks = round_values(low, high)
        close = [value for value in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low < value < high]
        plain_ticks(axes.yaxis, ticks if len(ticks) > 2 else close)
        if len(metrics) > 1:
            axes.set_title(curve_name(study, metric))
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("nats per sequence" if len(metrics) > 1 else "held-out proxy (nats per sequence)")
    return figure, [row for row in study.columns([f"{metric}_nats" for metric in metrics]) if row["step"] > 0]


def degeneration(study: Study) -> tuple[Figure, Table]:
    """Six signs of decay over steps, read from the student's own samples; no oracle is needed for any."""
    dashed = Line2D([], [], color=MUTED, lw=1.1, ls="--", label="entropy of the teacher")
    figure, panels = _sheet([*_arm_handles(study), dashed], 6, columns=3, height=1.6)
    axis = _start_axis(study, "step")
    for axes, (key, (title, unit)) in zip(panels, SIGNS.items(), strict=True):
        for label in study.labels:
            _draw_label(axes, study, label, "step", key, axis.place, marker="")
            if key == "student_entropy_nats_per_token":
                x, teacher = study.mean(label, "step"), study.mean(label, "teacher_entropy_nats_per_token")
                axes.plot(axis.place(x), teacher, color=_colour(study, label), lw=1.1, ls="--")
        axis.apply(axes, "optimiser step")
        axes.set_ylim(0, max(axes.get_ylim()[1], 0.02))
        axes.set_title(title)
        axes.set_ylabel(unit)
    return figure, study.columns([*SIGNS, "teacher_entropy_nats_per_token", "reference_nll_nats"])


def judges(study: Study) -> tuple[Figure, Table]:
    """What each judge says over steps, in its own unit; the title says which way is better."""
    figure, panels = _sheet(_arm_handles(study), len(study.judges), columns=3, height=1.6)
    axis = _start_axis(study, "step")
    for axes, (column, higher_is_better) in zip(panels, study.judges.items(), strict=True):
        for label in study.labels:
            _draw_label(axes, study, label, "step", column, axis.place, marker="")
        axis.apply(axes, "optimiser step")
        better = "higher" if higher_is_better else "lower"
        axes.set_title(f"{short(column.removeprefix('judge_'), 16)} ({better} is better)")
    return figure, study.columns([name for column in study.judges for name in (column, f"{column}_stderr")])


def time_spent(study: Study) -> tuple[Figure, Table]:
    """Seconds by phase for every arm, and for the stages around the arms; means over seeds."""
    bars = phase_seconds(study)
    phases = arm_phases(study)
    colours = {phase: PHASE_COLOURS[i % len(PHASE_COLOURS)] for i, phase in enumerate(phases)}
    handles = [Patch(color=colours[phase], label=PHASE_NAMES.get(phase) or short(phase)) for phase in phases]
    names = [short(STAGE_NAMES.get(name, name) if kind == "stage" else name, 34) for kind, name in bars]
    room = 0.3 + 0.068 * max(map(len, names))
    figure, (axes,) = _sheet(handles, 1, width=8.4, height=0.3 * len(names) + 0.1, left=room)
    for place, ((kind, _), parts) in enumerate(bars.items()):
        end = 0.0
        for phase, seconds in parts.items():
            colour = colours[phase] if kind == "arm" else _STAGE_COLOUR
            axes.barh(place, seconds, left=end, height=0.62, color=colour)
            end += seconds
        text, style = f"{end:.1f}" if end < 100 else f"{end:,.0f}", {"fontsize": 8, "color": MUTED, "va": "center"}
        axes.annotate(text, (end, place), (4, 0), textcoords="offset points", **style)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlabel("seconds")
    return figure, [
        {"of": kind, "name": name, "phase": phase, "seconds": seconds}
        for (kind, name), parts in bars.items()
        for phase, seconds in parts.items()
    ]


FIGURES: dict[str, FigureSpec] = {
    "proxy_golden_plane": FigureSpec(
        proxy_golden_plane,
        "Proxy against golden",
        "Each path starts at the open circle and follows the arrows. Left is closer to the teacher, down is closer "
        "to the truth. A healthy path goes left and down. A path that goes left and up is teacher hacking: the "
        "student pleases the teacher at the cost of the truth.",
        with_oracle="A student that became the teacher exactly would sit at proxy 0, on the line d(oracle, teacher).",
        live="Filled dot: the step that is held. Ring: lowest golden.",
        needs="truth",
    ),
    "training_curves": FigureSpec(
        training_curves,
        "The curves that name the case",
        "All three down: healthy. The first two down and golden up: teacher hacking. Only the first down: "
        "overfitting to the distillation set. The horizontal axis is logarithmic, with step 0 set apart at its left "
        "edge.",
    ),
    "theory_terms": FigureSpec(
        theory_terms,
        "Same question, two walkers",
        "Both lines average the same quantity, log teacher − log student. The dashed line walks on what the "
        "teacher writes: that is the proxy. The solid line walks on what the oracle writes: it is golden minus "
        "the constant d(oracle, teacher). In a healthy arm both come down together. In hacking they part ways: "
        "dashed falls or rests while solid climbs, because the student loses what the truth visits and the "
        "teacher rarely does. Below zero, the student gives the oracle's responses more probability than its "
        "teacher does.",
        needs="oracle",
    ),
    "convergence": FigureSpec(
        convergence,
        "Does it follow a power law?",
        "Both axes are logarithmic, so a power law is a straight line; healthy runs are nearly straight once they "
        "have got going. A curve that flattens or turns up has left its law.",
        live="The dashed line is the law c + a (t + t0)^-b, fitted to the held-out proxy up to where the detector "
        "suspects damage; in its band lie 95 % of new evaluations, if the law holds. What is shaded was not fitted.",
        still="Step 0 has no place on this axis.",
    ),
    "degeneration": FigureSpec(
        degeneration,
        "Signs of decay in the student's own text",
        "Read from responses the student samples freely. Watch for length drifting to the limit, repetition rising, "
        "distinct bigrams falling, or entropy dropping below the teacher's.",
    ),
    "judges": FigureSpec(
        judges,
        "What the judges say",
        "Second teachers, functions and programs, asked about the student at every evaluation, each in its own "
        "unit. They decide nothing here: no verdict looks at them, and not every judge follows the truth.",
        needs="judges",
    ),
    "time_spent": FigureSpec(
        time_spent,
        "Where the time went",
        "One bar per arm, split into writing responses (sampling), asking the teacher, training the student and "
        "measuring on the probe. Grey bars are the stages before and after the arms.",
    ),
}
"""Every figure of the report, by file name, in the order of the page."""


def draw(name: str, study: Study) -> tuple[str, bytes, Table]:
    """The figure ``name`` as SVG text and as a PNG of 300 dpi, the same bytes for the same study, and its table."""
    with in_style():
        figure, table = FIGURES[name].draw(study)
        return to_svg(figure), to_png(figure), table


def curve_name(study: Study, metric: str) -> str:
    """What a panel of one metric is called."""
    names = {"proxy": "held-out proxy", "train_proxy": "train proxy", "golden": "golden"}
    if study.truth == "references":
        names["golden"] = "golden up to a constant"
    return names[metric]


def _start_axis(study: Study, key: str) -> StartAxis:
    return StartAxis(np.concatenate([curve[key] for curve in study.curves]))


def _sheet(
    handles: Sequence[Artist],
    count: int,
    columns: int = 4,
    width: float = 10.2,
    height: float = 2.6,
    left: float = 0.64,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    # ``count`` panels of ``height`` inches under one legend. All margins are inches: an automatic layout would
    # draw everything twice, and take half of the time of the report.
    columns = min(count, columns)
    rows = -(-count // columns)
    legend_columns = _legend_columns([str(handle.get_label()) for handle in handles], width)
    title, foot = 0.3 if count > 1 else 0.1, 0.52
    top = 0.1 + 0.2 * -(-len(handles) // legend_columns) + title
    total = top + rows * (height + foot) + (rows - 1) * title
    panel = (width - 0.12) / columns - left
    figure = Figure(figsize=(width, total))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey).flatten()
    figure.subplots_adjust(
        left / width, foot / total, 1 - 0.12 / width, 1 - top / total, left / panel, (foot + title) / height
    )
    for axes in grid:
        axes.xaxis.set_label_coords(0.5, -0.27 / height)
        axes.yaxis.set_label_coords(-0.42 / panel, 0.5)
    for unused in grid[count:]:
        unused.set_axis_off()
    figure.legend(
        handles=list(handles), loc="upper left", bbox_to_anchor=(0.0, 1.0), ncols=legend_columns, borderaxespad=0.1
    )
    return figure, list(grid[:count])


def _legend_columns(labels: list[str], width: float) -> int:
    # As many as fit, taking a letter of the legend for 0.068 inches.
    for columns in range(len(labels), 1, -1):
        longest = [max(map(len, part)) for part in np.array_split(labels, columns)]
        if sum(0.62 + 0.068 * letters for letters in longest) < width:
            return columns
    return 1


def _draw_label(
    axes: Axes,
    study: Study,
    label: str,
    x: str,
    y: str,
    place: Callable[[np.ndarray], np.ndarray] = np.asarray,
    band: str | None = None,
    **style: Any,
) -> None:
    # One seed: its line, with a band if asked. Several: a thin line for each and the mean of all.
    colour, curves = _colour(study, label), study.curves_of(label)
    if len(curves) > 1:
        for curve in curves:
            axes.plot(place(curve[x]), curve[y], color=colour, lw=0.7, alpha=0.6, ls=style.get("ls", "-"))
    elif band:
        half = curves[0].margins[band]
        axes.fill_between(place(curves[0][x]), curves[0][y] - half, curves[0][y] + half, color=colour, alpha=0.2, lw=0)
    mean_x, mean_y = place(study.mean(label, x)), study.mean(label, y)
    style = {"marker": _marker(study, label), "markevery": max(1, len(mean_x) // 20)} | style
    axes.plot(mean_x, mean_y, color=colour, **style)


def _onset_points(study: Study) -> list[tuple[str, float, float]]:
    # (label, epoch, golden) of every onset; the verdict counts steps, this panel epochs.
    return [
        (curve.label, float(row["epoch"]), row["golden_nats"])
        for curve in study.curves
        for row in curve.rows
        if study.truth is not None and curve.summary and row["step"] == curve.summary["onset_step"]
    ]


def _reference(axes: Axes, levels: list[float], label: str, at: str = "right", dashes: str = "--") -> None:
    box = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    style = {"fontsize": 8, "color": MUTED, "textcoords": "offset points", "bbox": box, "zorder": 2}
    for level in levels:
        if at == "bottom":
            axes.axvline(level, color=MUTED, lw=1, ls=dashes, zorder=1)
            style |= {"xycoords": axes.get_xaxis_transform(), "ha": "right", "rotation": 90}
            axes.annotate(label, (level, 0.0), (-3, 5), **style)
        else:
            axes.axhline(level, color=MUTED, lw=1, ls=dashes, zorder=1)
            edge, offset = (1.0, -2) if at == "right" else (0.0, 4)
            style |= {"xycoords": axes.get_yaxis_transform(), "ha": at}
            axes.annotate(label, (edge, level), (offset, 3), **style)


def _arrows(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    known = np.isfinite(x) & np.isfinite(y)
    points = np.column_stack([x[known], y[known]])
    lengths = np.hypot(*np.diff(axes.transLimits.transform(points), axis=0).T)
    travelled = np.cumsum(lengths)
    for share in (0.2, 0.5, 0.8) if len(lengths) else ():
        segment = int(np.searchsorted(travelled, share * travelled[-1]))
        if lengths[segment] < 0.02:
            continue
        tail, head = points[segment], points[segment + 1]
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 0, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 15}
        axes.annotate("", xy=tail + 0.65 * (head - tail), xytext=tail, arrowprops=arrow, zorder=3)


def _arm_handles(study: Study) -> list[Line2D]:
    return [
        Line2D([], [], color=_colour(study, label), marker=_marker(study, label), label=short(label))
        for label in study.labels
    ]


def _colour(study: Study, label: str) -> str:
    return ARM_COLOURS[slot(study, label)]


def _marker(study: Study, label: str) -> str:
    # Where colours begin again, markers do not: no two of the first 49 labels share both.
    number = rank(study, label)
    return _MARKERS[(number + number // len(ARM_COLOURS)) % len(_MARKERS)]


def rank(study: Study, label: str) -> int:
    """The number of a label's look: the paper's three sources look alike in every report, others take free places."""
    if label in _FIXED_RANKS:
        return _FIXED_RANKS[label]
    labels = [*study.labels, *study.waiting]
    taken = {_FIXED_RANKS[each] for each in labels if each in _FIXED_RANKS}
    free = [rank for rank in range(len(labels) + len(taken)) if rank not in taken]
    return free[[each for each in labels if each not in _FIXED_RANKS].index(label)]
