"""Rows as they are printed in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table

NARROWEST_TABLE = 100
"""Columns of a terminal below which rows are lines."""


def print_rows(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], lines: str) -> None:
    """``rows`` of rich markup as a table where it fits without wrapping, else each as ``lines.format(*row)``."""
    table = Table(*(Column(name, no_wrap=True) for name in columns))
    for row in rows:
        table.add_row(*row)
    natural = console.measure(table, options=console.options.update_width(10_000)).maximum
    if console.width >= NARROWEST_TABLE and natural <= console.width:
        console.print(table)
        return
    for row in rows:
        console.print(lines.format(*row), soft_wrap=True)
