"""One frame of ``assay watch``: curves, verdicts so far, time left and samples, in the lines that there are."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import numpy as np
from rich.console import Group
from rich.text import Text

from assay.diagnostics.trajectory import Floats
from assay.observation import Observation, Samples, Watched
from assay.report.words import readable, visible
from assay.terminal import BAD, GOOD, OPEN, verdict_style

_CURVES = {
    "proxy": ("proxy", "bright_blue"),
    "train_proxy": ("train proxy", "blue"),
    "golden": ("golden", "yellow"),
    "reference_nll": ("references", "magenta"),
}
_BLOCKS = " ▁▂▃▄▅▆▇█"
_LABEL, _NUMBER, _STEP = 14, 8, 11
"""Cells of a line: the curve's name, each of three numbers, and the step of the lowest value."""
_SMALLEST_SPAN = 0.02
"""A curve that moves by less than this share of its values is drawn flat: noise is no news."""
_MOST_TROUBLE = 3
_NARROW = 60
"""Cells of a frame below which lowest values and scores are left out."""
_LAYOUTS = (
    *((height, 6, "whole") for height in (4, 3, 2, 1)),
    (1, 3, "whole"),
    (1, 3, "short if finished"),
    (1, 0, "short if finished"),
    (1, 0, "short"),
)
"""Lines of a curve, number of samples and form of the arms, from the most generous on."""
_UNLIMITED = ((1, 6, "whole"),)


def sparkline(steps: Floats, values: Floats, end: float, width: int, height: int = 1) -> list[str]:
    """A curve over the logarithm of 1 + step in blocks, from step 0 to ``end``; lines from the top to the bottom.

    NaN has no block; neither has what is to come after the last step.
    """
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    if not len(steps):
        return [" " * width] * height
    first = steps[steps > 0].min(initial=max(end, 1.0))
    places = np.log1p(np.array([*steps, end]) / first)
    columns = np.linspace(0.0, places[-1], width)
    values = values / (np.abs(values).max() or 1.0)  # differences of large values would overflow
    span = max(float(np.ptp(values)), _SMALLEST_SPAN)
    share = np.interp(columns, places[:-1], (values - values.min()) / span)
    eighths = 1 + np.round(share * (8 * height - 1)).astype(int)
    half = places[-1] / max(width - 1, 1) / 2
    eighths[(columns > places[-2] + half) | (columns < places[0] - half)] = 0
    rows = range(height - 1, -1, -1)
    return ["".join(_BLOCKS[min(max(level - 8 * row, 0), 8)] for level in eighths) for row in rows]


def frame(seen: Observation, now: float, width: int, height: int | None = None) -> Group:
    """What a look has found, in lines of at most ``width`` cells; at most ``height`` lines, all there is for None."""
    lines: list[Text] = []
    for curve_height, num_samples, form in _LAYOUTS if height is not None else _UNLIMITED:
        lines = [*_header(seen, now, width), *_body(seen, now, width, curve_height, form)]
        if seen.samples is not None and num_samples:
            lines += _samples(seen.samples, num_samples, width)
        if height is None or len(lines) + _to_come(seen, curve_height, num_samples, form) <= height:
            break
    if height is not None and len(lines) > height:
        left_out = len(lines) - height + 1
        lines = [*lines[: height - 1], Text(f"… {left_out} more lines: --arm NAME shows one arm", style="dim")]
    # Over the last lines where all are taken: a line that comes and goes moves nothing.
    troubles = list(_troubles(seen, width))
    lines = [*lines[: None if height is None else max(height - len(troubles), 0)], *troubles]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(*lines)


def duration(seconds: float) -> str:
    """Seconds to come or gone, as roughly as people say them."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 24 * 60 else f"{minutes / 60 / 24:.1f} days"


def step_of(step: float) -> str:
    """A step, or an epoch, as it is written."""
    return f"{step:,.0f}" if step == round(step) else f"{step:,.4g}"


def standing(each: Watched) -> str:
    """The last values, the score and the verdict so far as one plain line."""
    if each.log is None or each.diagnosis is None:
        return "no evaluation yet" if each.step is None else "one evaluation"
    values = [
        f"{name} {_written(float(column[np.isfinite(column)][-1]), column)}" for name, _, column in _curves_of(each)
    ]
    return f"{', '.join(values)}; {_verdict(each)}"


def _to_come(seen: Observation, curve_height: int, num_samples: int, form: str) -> int:
    """Lines of the arms that have not begun, once they have: a frame keeps its shape while a run goes on."""
    waiting = [each for each in seen.watched if each.log is None]
    if form == "short" or not waiting:
        return 0
    curves = max((sum(1 for _ in _curves_of(each)) for each in seen.watched if each.log is not None), default=0)
    samples = 0 if seen.samples is not None or not num_samples else num_samples + 2
    lines_of_curve = curve_height + (curve_height > 1)
    return len(waiting) * ((curves or len(_CURVES)) * lines_of_curve + 1) + samples


def _header(seen: Observation, now: float, width: int) -> Iterator[Text]:
    title = Text(visible(seen.title), style="bold").append(f"  {visible(seen.place)}", style="dim")
    left = None if seen.is_finished else seen.seconds_left(now)
    right = Text(f"about {duration(left)} left" if left else "", style="bold")
    yield _spread(title, right, width)
    changed = [each.changed_at for each in seen.watched if each.changed_at is not None]
    age = Text(f"last record {duration(max(now - max(changed), 0.0))} ago" if changed else "", style="dim")
    yield _spread(Text(visible(seen.phase)), Text("") if seen.is_finished else age, width)
    if seen.notes:
        yield Text(visible("; ".join(seen.notes)), style="dim")


def _troubles(seen: Observation, width: int) -> Iterator[Text]:
    for trouble in seen.troubles:
        for line in textwrap.wrap(visible(trouble), max(width - 2, 10))[:_MOST_TROUBLE]:
            yield Text(f"! {line}", style=OPEN)


def _body(seen: Observation, now: float, width: int, curve_height: int, form: str) -> Iterator[Text]:
    if form != "short" and any(each.log is not None for each in seen.watched):
        names = ("now", "change") if width < _NARROW else ("now", "change", "lowest")
        numbers = "".join(f"{name:>{_NUMBER}}" for name in names) + ("" if width < _NARROW else " at step")
        yield Text(f"{'  over log(1 + step)':<{_LABEL + _room(width)}}{numbers}", style="dim")
    label = max((len(each.name) for each in seen.watched), default=0)
    for each in seen.watched:
        if form == "short" or (form == "short if finished" and each.is_finished):
            line = Text(f"{readable(visible(each.name)):<{label}}  ", style="bold")
            yield line.append(f"{_place(each)}  ", style="dim").append(standing(each), style=_verdict_style(each))
            continue
        yield Text("")
        yield from _arm_lines(each, now, width, curve_height)


def _arm_lines(each: Watched, now: float, width: int, curve_height: int) -> Iterator[Text]:
    left = None if each.is_finished else each.seconds_left(now)
    title = Text(readable(visible(each.name)), style="bold").append(f"  {_place(each)}", style="dim")
    yield _spread(title, Text(f"{duration(left)} left" if left else "", style="dim"), width)
    if each.log is None or each.diagnosis is None:
        if each.step is not None:
            yield Text(f"  {standing(each)}", style="dim")
        return
    for label, colour, values in _curves_of(each):
        yield from _curve_lines(each, label, colour, values, width, curve_height)
    shown = readable(each.diagnosis.verdict) if width < _NARROW else _verdict(each)
    verdict = Text("  ").append(shown, style=_verdict_style(each))
    verdict.append(f" · keep step {step_of(each.diagnosis.recommended_step)}")
    if each.alarm_step is not None:
        verdict.append(f" · alarm from step {each.alarm_step:,}", style=BAD)
    yield verdict
    yield from (Text(f"  {text}", style="dim") for text in each.deeds)


def _curve_lines(
    each: Watched, label: str, colour: str, values: Floats, width: int, curve_height: int
) -> Iterator[Text]:
    assert each.log is not None
    steps = each.log.trajectory.steps
    known = np.flatnonzero(np.isfinite(values))
    lowest = int(known[values[known].argmin()])
    first, last = float(values[known[0]]), float(values[known[-1]])
    end = max(float(each.total_steps or 0), float(steps[-1]))
    *above, line = sparkline(steps, values, end, _room(width), curve_height)
    if above:
        yield Text("")
    for blocks in above:
        yield Text(" " * _LABEL).append(blocks, style=colour)
    change = _written(last - first, values, signed=True)
    best = f"{_written(float(values[lowest]), values):>{_NUMBER}} at {step_of(float(steps[lowest]))}"
    whole = Text(f"  {label:<{_LABEL - 2}}").append(line, style=colour)
    whole.append(f"{_written(last, values):>{_NUMBER}}", style="bold")
    whole.append(f"{change:>{_NUMBER}}", style={"−": GOOD, "+": BAD}.get(change[0], ""))
    yield whole if width < _NARROW else whole.append(best, style="dim")


def _room(width: int) -> int:
    numbers = 2 * _NUMBER if width < _NARROW else 3 * _NUMBER + _STEP
    return max(width - _LABEL - numbers, 1)


def _samples(samples: Samples, most: int, width: int) -> Iterator[Text]:
    yield Text("")
    title = Text("samples  ", style="bold")
    yield title.append(f"{readable(visible(samples.name))} at step {samples.step:,}: prompt → response", style="dim")
    for prompt, response in samples.pairs[:most]:
        shown = Text(visible(prompt))
        shown.truncate(2 * width // 5, overflow="ellipsis")
        yield Text("  ").append_text(shown).append(" → ", style="dim").append(visible(response))


def _curves_of(each: Watched) -> Iterator[tuple[str, str, Floats]]:
    """Label, colour and values of the curves that have any."""
    assert each.log is not None
    for column, (label, colour) in _CURVES.items():
        values = each.log.trajectory.columns.get(column)
        if values is not None and np.isfinite(values).any():
            yield label, colour, values


def _place(each: Watched) -> str:
    if each.step is None:
        return "not begun"
    total = "" if each.total_steps is None else f"/{each.total_steps:,}"
    return f"step {step_of(each.step)}{total}" + (" · finished" if each.is_finished else "")


def _verdict(each: Watched) -> str:
    assert each.diagnosis is not None
    assert each.log is not None
    score = each.diagnosis.score
    basis = "" if each.log.trajectory.get("golden") is None else " by golden"
    so_far = "" if each.is_finished else f" so far{basis}"
    return f"{readable(each.diagnosis.verdict)}{so_far} · " + ("no score" if score is None else f"score {score:.2f}")


def _verdict_style(each: Watched) -> str:
    if each.diagnosis is None or each.log is None:
        return "dim"
    style = verdict_style(each.diagnosis.verdict)
    # Golden may rise a little at first in every arm, and fall again.
    by_golden = each.log.trajectory.get("golden") is not None
    return OPEN if style == BAD and by_golden and not each.is_finished else style


def _written(value: float, column: Floats, signed: bool = False) -> str:
    """A value with as many digits as those of its column need, and a true minus sign."""
    largest = float(np.nanmax(np.abs(column)))
    if 0 < largest < 0.01 or largest >= 10_000:
        text = f"{value:{'+' if signed else ''}.2g}"
    else:
        digits = 2 if largest >= 1 or largest == 0 else 3 if largest >= 0.1 else 4
        text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def _spread(left: Text, right: Text, width: int) -> Text:
    """Both on one line, as far apart as it is wide; the left one is cut where they would meet."""
    if not right.plain:
        return left
    left.truncate(max(width - right.cell_len - 1, 1), overflow="ellipsis")
    return left.append(" " * max(width - left.cell_len - right.cell_len, 1)).append_text(right)
