"""Which students cost least for how close they come to the truth: the Pareto front of golden against tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from assay.sweep_cells import Cell, Level


@dataclass(frozen=True)
class Point:
    """The student of a cell at one evaluation: what it cost up to there (tokens), and its golden over seeds (nats)."""

    cell: Cell
    step: int
    tokens: float
    golden: Level


def points_of(cells: Sequence[Cell], kind: str) -> list[Point]:
    """Every evaluation of every cell that knows golden; ``kind`` of tokens is "generated" or "teacher"."""
    return [
        Point(cell, step, tokens, golden)
        for cell in cells
        for step, tokens, golden in zip(cell.steps, cell.tokens(kind), cell.curve("golden"), strict=True)
        if golden is not None
    ]


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one dominates: none is at most as far and as dear, and less in one of both.

    In order of cost. Of points alike in both only the first is kept. Means are compared, without their errors.
    """
    return [points[i] for i in front_of([point.tokens for point in points], [point.golden.value for point in points])]


def front_of(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """The same for numbers, both better when lower: the places of the members, in order of cost."""
    found: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], values[i])):
        if not found or values[i] < values[found[-1]]:
            found.append(i)
    return found
