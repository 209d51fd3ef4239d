"""Results as a notebook and a terminal show them: one table, in text or in HTML that follows the page's colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Rows = Sequence[Sequence[str]]
_EDGE = "1px solid rgba(127, 127, 127, 0.5)"
_CELL = "padding: 0.2em 0.8em 0.2em 0; text-align: left; vertical-align: top"


def as_text(title: str, sentences: Sequence[str], head: Sequence[str], rows: Rows) -> str:
    """The title, a sentence a line, and the table with aligned columns; without a head where it is empty."""
    table = [head, *rows] if head else rows
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    cells = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join([title, *sentences, *(f"  {line}".rstrip() for line in cells)])


def as_html(title: str, sentences: Sequence[str], head: Sequence[str], rows: Rows) -> str:
    """The same as a piece of a page: everything escaped, no colour of its own, wide tables scroll."""
    parts = [f'<div style="border-left: {_EDGE}; border-left-width: 4px; padding-left: 1em; max-width: 60em">']
    parts += [f"<p><strong>{escape(title)}</strong></p>", *(f"<p>{escape(sentence)}</p>" for sentence in sentences)]
    parts += [
        f'<div style="overflow-x: auto" role="region" tabindex="0" aria-label="{escape(title)}">',
        '<table style="border-collapse: collapse; color: inherit; background: none">',
    ]
    if head:
        parts += ["<thead><tr>", *(_cell("col", name) for name in head), "</tr></thead>"]
    for name, *values in rows:
        parts += ["<tr>", _cell("row", name), *(_cell("", value) for value in values), "</tr>"]
    return "".join([*parts, "</table></div></div>"])


def estimate(value: float | None, *bounds: float | None) -> str:
    """A value with two decimals, and [low, high] where two bounds are given; "unknown" for what is None."""
    if value is None:
        return "unknown"
    if not bounds:
        return _decimals(value)
    interval = "unknown" if None in bounds else ", ".join(_decimals(bound) for bound in bounds if bound is not None)
    return f"{_decimals(value)} [{interval}]"


def _decimals(value: float) -> str:
    # adding 0 makes 0 of -0
    return f"{round(value, 2) + 0.0:,.2f}".replace("-", "−")


def _cell(scope: str, text: str) -> str:
    tag, of = ("th", f' scope="{scope}"') if scope else ("td", "")
    return f'<{tag}{of} style="{_CELL}">{escape(text)}</{tag}>'
