"""Heat maps as tables: numbers in coloured cells that every reader can tell apart, in any theme and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from assay.report.words import brackets, nats, readable
from assay.sweep_cells import METRICS, Cell, Level

Axes = Mapping[str, Mapping[str, Any]]
"""The value of every axis of a sweep, by variant."""

_BLACK, _WHITE = "#000000", "#ffffff"


@dataclass(frozen=True)
class Scale:
    """From values to colours: from ``low`` to ``high``, or, ``diverging``, as far below 0 as above it."""

    low: float
    high: float
    diverging: bool

    def colour(self, value: float) -> str:
        """The background of a value, as #rrggbb."""
        # Both maps can be read with any common colour blindness; cividis is reversed, so that darker is worse.
        colours = matplotlib.colormaps["PuOr_r" if self.diverging else "cividis_r"]
        place = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return to_hex(colours(float(np.clip(place, 0, 1))))

    @property
    def steps(self) -> list[str]:
        """Colours from the low end to the high one, for a legend."""
        return [self.colour(value) for value in np.linspace(self.low, self.high, 9)]


def scale_of(values: Sequence[float], diverging: bool) -> Scale:
    """The scale of a metric over all its cells, in all worlds; one of severities is wide enough for noise around 0."""
    if not diverging:
        return Scale(min(values), max(values), False)
    size = max([abs(value) for value in values] + [0.05])
    return Scale(-size, size, True)


def text_colour(background: str) -> str:
    """Black or white, whichever is told better from #rrggbb: one of them always has a contrast of 4.58 or more."""
    return max((_BLACK, _WHITE), key=lambda text: contrast(text, background))


def contrast(a: str, b: str) -> float:
    """(L1 + 0.05) / (L2 + 0.05) of two colours' relative luminances, the lighter first [WCAG 2.1]."""
    lighter, darker = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def maps(cells: Sequence[Cell], axes: Axes) -> list[dict[str, Any]]:
    """One map for each metric that is known: its scale and its tables, ready for the page."""
    found = []
    for metric, name in METRICS.items():
        levels = {cell: cell.level(metric) for cell in cells}
        known = [level.value for level in levels.values() if level]
        if not known:
            continue
        scale = scale_of(known, diverging=metric == "severity")
        # the lowest of severities around 0 is noise
        lowest = None if metric == "severity" else min(known)
        boxes = {cell: _box(level, scale, lowest) for cell, level in levels.items()}
        found.append({"metric": metric, "name": name, "scale": scale, "tables": _tables(cells, boxes, axes)})
    return found


def _box(level: Level | None, scale: Scale, lowest: float | None) -> dict[str, Any]:
    if level is None:
        return {"text": "–", "bounds": "", "lowest": False, "background": "", "ink": ""}
    background = scale.colour(level.value)
    bounds = "" if level.low is None or level.high is None else brackets([level.low, level.high])
    box = {"text": nats(level.value), "bounds": bounds, "lowest": level.value == lowest}
    return box | {"background": background, "ink": text_colour(background)}


def _tables(cells: Sequence[Cell], boxes: Mapping[Cell, Any], axes: Axes) -> list[dict[str, Any]]:
    """Two axes or more: a table for each arm, the last axis across. Else arms down, and variants or worlds across."""
    worlds = list(dict.fromkeys(cell.world for cell in cells))
    variants = list(dict.fromkeys(cell.variant for cell in cells))
    if len(variants) == 1:
        return [_table("", "arm", "world", [(readable(c.arm), c.world, boxes[c]) for c in cells])]
    names = list(next(iter(axes.values()), {}))
    tables = []
    for world in worlds:
        title = world if len(worlds) > 1 else ""
        mine = [cell for cell in cells if cell.world == world]
        if len(names) < 2:
            across = names[0] if names else "variant"
            items = [(readable(c.arm), str(axes[c.variant][across]) if names else c.variant, boxes[c]) for c in mine]
            tables.append(_table(title, "arm", across, items))
            continue
        *down, across = names
        for arm in dict.fromkeys(cell.arm for cell in mine):
            items = [
                (", ".join(str(axes[c.variant][name]) for name in down), str(axes[c.variant][across]), boxes[c])
                for c in mine
                if c.arm == arm
            ]
            tables.append(_table(" · ".join(filter(None, [title, readable(arm)])), ", ".join(down), across, items))
    return tables


def _table(title: str, down: str, across: str, items: Sequence[tuple[str, str, Any]]) -> dict[str, Any]:
    columns = list(dict.fromkeys(column for _, column, _ in items))
    rows = {row: {column: box for r, column, box in items if r == row} for row, _, _ in items}
    return {"title": title, "down": down, "across": across, "columns": columns, "rows": rows}
