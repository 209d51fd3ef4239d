"""The figures of a sweep for papers, and for readers without scripts: its maps, its cells' curves, its Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from assay.pareto import Point
from assay.report.style import ARM_COLOURS, StartAxis
from assay.report.words import readable
from assay.sweep_cells import Cell, interval_is_over

_COLUMNS = 3
_MOST_ACROSS, _MOST_DOWN = 40, 150
"""Of a map's boxes: a figure with more of them is no figure, and no file either."""


def draw_cells(cells: Sequence[Cell]) -> Figure:
    """Golden and proxy over steps, a panel for each cell, all of a world on one scale: means with t intervals."""
    rows = math.ceil(len(cells) / _COLUMNS)
    figure = Figure(figsize=(9, 2.1 * rows + 0.5), layout="constrained")
    grid = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axes in grid[len(cells) :]:
        axes.remove()
    panels = list(zip(grid, cells, strict=False))
    for axes, cell in panels:
        axis = StartAxis(np.array(cell.steps, dtype=float))
        x = axis.place(np.array(cell.steps, dtype=float))
        for metric, colour in (("golden", ARM_COLOURS[0]), ("proxy", ARM_COLOURS[1])):
            levels = [level for level in cell.curve(metric) if level]
            if not levels:
                continue
            axes.plot(x, [level.value for level in levels], color=colour, label=metric)
            bounds = [(level.low, level.high) for level in levels if level.low is not None and level.high is not None]
            if len(bounds) == len(x):
                axes.fill_between(x, *zip(*bounds, strict=True), color=colour, alpha=0.17, lw=0)
        axis.apply(axes, "optimiser step")
        world = f"{cell.world}\n" if len(cell.outcomes.worlds) > 1 else ""
        variant = f"\n{cell.variant}" if len(cell.outcomes.variants) > 1 else ""
        axes.set_title(f"{world}{readable(cell.arm)}{variant}", fontsize=8)
    for world in {cell.world for cell in cells}:
        mine = [axes for axes, cell in panels if cell.world == world]
        limits = (min(axes.get_ylim()[0] for axes in mine), max(axes.get_ylim()[1] for axes in mine))
        for axes in mine:
            axes.set_ylim(limits)
    for axes, _ in panels[::_COLUMNS]:
        axes.set_ylabel("nats per sequence")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def can_draw_map(found: Mapping[str, Any]) -> bool:
    """Whether a map is small enough for one figure."""
    widest = max(len(table["columns"]) for table in found["tables"])
    return widest <= _MOST_ACROSS and sum(len(table["rows"]) + 1 for table in found["tables"]) <= _MOST_DOWN


def draw_map(found: Mapping[str, Any], num_seeds: int) -> Figure:
    """One of ``heat_map.maps``: its tables below each other, every box in its colour with mean and 95 % interval."""
    tables = found["tables"]
    widest = max(len(table["columns"]) for table in tables)
    heights = [len(table["rows"]) + 1.5 for table in tables]
    figure = Figure(figsize=(max(1.15 * widest + 2.2, 3.5), 0.42 * sum(heights) + 0.6), layout="constrained")
    grid = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)
    over = f"{num_seeds} seeds" if interval_is_over(num_seeds) == "seeds" else "prompts, one seed"
    figure.suptitle(f"{found['name']}, nats per sequence\n95 % intervals over {over}", fontsize=9)
    for (axes,), table in zip(grid, tables, strict=True):
        axes.set(xlim=(0, widest), ylim=(len(table["rows"]), 0), ylabel=table["down"], title=table["title"])
        axes.set_xlabel(table["across"], labelpad=4)
        axes.set_xticks(np.arange(len(table["columns"])) + 0.5, table["columns"])
        axes.set_yticks(np.arange(len(table["rows"])) + 0.5, list(table["rows"]))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        for y, row in enumerate(table["rows"].values()):
            for x, column in enumerate(table["columns"]):
                box = row.get(column)
                if box is None or not box["background"]:
                    axes.text(x + 0.5, y + 0.5, "–", ha="center", va="center")
                    continue
                axes.add_patch(Rectangle((x, y), 1, 1, facecolor=box["background"], edgecolor="white", lw=1.5))
                mark = "  lowest" if box["lowest"] else ""
                text = f"{box['text']}{mark}\n{box['bounds']}".rstrip()
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=box["ink"], fontsize=7.5)
    return figure


def draw_front(
    points: Mapping[tuple[str, str], Sequence[Point]], fronts: Mapping[tuple[str, str], Sequence[Point]]
) -> Figure:
    """Golden over tokens, a row for each world, a column for each kind: dominated points faint, the front as steps."""
    worlds, kinds = (list(dict.fromkeys(key[part] for key in points)) for part in (0, 1))
    figure = Figure(figsize=(9, 3.2 * len(worlds) + 0.4), layout="constrained")
    grid = figure.subplots(len(worlds), len(kinds), squeeze=False)
    for row, world in zip(grid, worlds, strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            mine, members = points[world, kind], fronts[world, kind]
            axis = StartAxis(np.array([point.tokens for point in mine]))
            for number, arm in enumerate(dict.fromkeys(point.cell.arm for point in mine)):
                for chosen, alpha in (([p for p in mine if p not in members], 0.25), (list(members), 1.0)):
                    of_arm = [p for p in chosen if p.cell.arm == arm]
                    x = axis.place(np.array([p.tokens for p in of_arm]))
                    axes.plot(x, [p.golden.value for p in of_arm], "o", ms=4.5, alpha=alpha, zorder=3, mew=0,
                              color=ARM_COLOURS[number % len(ARM_COLOURS)],
                              label=readable(arm) if alpha == 1.0 else None)  # fmt: skip
            x = axis.place(np.array([p.tokens for p in members]))
            axes.step(x, [p.golden.value for p in members], where="post", color="#5b6470", lw=1)
            axis.apply(axes, f"{kind} tokens")
            axes.set_title(world if len(worlds) > 1 else f"against {kind} tokens")
        row[0].set_ylabel("golden, nats")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=max(len(labels), 1))
    return figure
