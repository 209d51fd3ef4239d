"""What an examination looks like in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from assay.doctor.findings import Examination, Finding
from assay.report.words import readable, visible
from assay.terminal import NARROWEST_TABLE

_COLOURS = {"pass": "green", "note": "cyan", "warning": "yellow", "refuse": "bold red", "not_applicable": "dim"}


def print_examination(examination: Examination) -> None:
    """All findings on stdout: a table in a wide terminal, else a line each; the verdict last."""
    console = Console(highlight=False, emoji=False)
    if console.is_terminal and console.width >= NARROWEST_TABLE:
        names = ("code", "finding", "check")
        table = Table(*(Column(name, no_wrap=True) for name in names), Column("what, and what to do"))
        for finding in examination.findings:
            table.add_row(*_cells(finding), _text(finding))
        console.print(table)
    else:
        for finding in examination.findings:
            code, status, name = _cells(finding)
            console.print(f"{code} {status} {name}: {_text(finding)}", soft_wrap=True)
    console.print(f"\n[bold]{escape(_sentence(examination))}[/bold]", soft_wrap=True)


def _cells(finding: Finding) -> tuple[str, str, str]:
    colour = _COLOURS[finding.status]
    return finding.code, f"[{colour}]{readable(finding.status)}[/{colour}]", escape(finding.name)


def _text(finding: Finding) -> str:
    advice = f"\n→ {finding.advice}" if finding.advice else ""
    return escape(visible(finding.what + advice, keep="\n"))


def _sentence(examination: Examination) -> str:
    codes = {
        status: [finding.code for finding in examination.findings if finding.status == status]
        for status in ("refuse", "warning")
    }
    if codes["refuse"]:
        return f"refuse: a run would fail or mean nothing ({', '.join(codes['refuse'])})"
    if codes["warning"]:
        return f"warnings: a run is possible; read {', '.join(codes['warning'])} first"
    return "pass: nothing speaks against a run"
