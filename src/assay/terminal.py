"""The one look of what is printed: colours of verdicts, tables where they fit, else lines, plain text in a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from assay.report.words import readable, visible

NARROWEST_TABLE = 100
"""Columns of a terminal below which rows are lines."""
NARROWEST_LIST = 60
"""Columns below which a name and what it means stand on lines of their own."""
GOOD, BAD, OPEN = "green", "red", "yellow"
_VERDICTS = {"healthy": GOOD, "undecided": OPEN, "benign_disagreement": OPEN}
_FINDINGS = {"agrees": GOOD, "disagrees": BAD, "undecided": OPEN}


def open_console() -> Console:
    """Stdout. In a terminal sentences are cut between words; in a file or a pipe each stays on its line."""
    console = Console(highlight=False, emoji=False)
    console.soft_wrap = not console.is_terminal
    return console


def verdict_style(verdict: str) -> str:
    """The colour of a verdict: green for healthy, yellow for what is open, red for every loss of truth."""
    return _VERDICTS.get(verdict, BAD)


def coloured(verdict: str) -> str:
    """A verdict as rich markup."""
    return f"[{verdict_style(verdict)}]{escape(readable(visible(verdict)))}[/]"


def open_table(*columns: str | Column) -> Table:
    """An empty table in the look of the help."""
    return Table(*columns, box=box.ROUNDED, border_style="dim")


def print_rows(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], lines: str) -> None:
    """``rows`` of rich markup as a table where it fits without wrapping, else each as ``lines.format(*row)``.

    Where even these are too long for the terminal, each cell stands on a line of its own under the first.
    """
    table = open_table(*(Column(name, no_wrap=True) for name in columns))
    for row in rows:
        table.add_row(*row)
    natural = console.measure(table, options=console.options.update_width(10_000)).maximum
    if console.is_terminal and console.width >= NARROWEST_TABLE and natural <= console.width:
        console.print(table)
        return
    whole = [Text.from_markup(lines.format(*row), emoji=False) for row in rows]
    longest = max((line.cell_len for text in whole for line in text.split("\n")), default=0)
    if not console.is_terminal or longest <= console.width:
        for text in whole:
            console.print(text, soft_wrap=True)
        return
    for first, *others in rows:
        console.print(f"[bold]{first}[/bold]")
        for name, cell in zip(columns[1:], others, strict=True):
            print_under(console, f"[dim]{name}:[/dim] {cell}")


def print_under(console: Console, markup: str) -> None:
    """Rich markup below what it belongs to, its lines indented."""
    if console.is_terminal:
        console.print(Padding(Text.from_markup(markup, emoji=False), (0, 0, 0, 2), expand=False))
    else:
        console.print(f"  {markup}")


def print_lines(lines: Sequence[str]) -> None:
    """Plain text, a fact a line."""
    console = open_console()
    for line in lines:
        console.print(Text(line))


def print_pairs(console: Console, pairs: Sequence[tuple[str, str]], pad: int) -> None:
    """Names and what they mean, as plain text: side by side, or below one another in a narrow terminal."""
    if not console.is_terminal:
        for name, text in pairs:
            console.print(escape(f"{name:{pad}} {text}"))
    elif console.width < NARROWEST_LIST:
        for name, text in pairs:
            console.print(Text(name, style="bold"))
            print_under(console, escape(" ".join(text.split())))
    else:
        grid = Table.grid(Column(no_wrap=True, style="bold"), Column(overflow="fold"), padding=(0, 2, 0, 0))
        for name, text in pairs:
            grid.add_row(Text(name), Text(" ".join(text.split())))
        console.print(grid)


def print_finding(finding: Mapping[str, Any] | None) -> None:
    """What a study has found, in a sentence; nothing for a sweep that tests no claim."""
    if finding is None:
        return
    found = finding["finding"]
    style = _FINDINGS.get(found, OPEN)
    open_console().print(f"[bold {style}]{escape(readable(visible(found)))}[/]: {escape(visible(finding['claim']))}")
