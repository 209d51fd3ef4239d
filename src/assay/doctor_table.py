"""What an examination looks like in a terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Column

from assay.doctor.findings import Examination, Finding
from assay.report.words import readable, visible
from assay.terminal import BAD, GOOD, NARROWEST_TABLE, OPEN, open_console, open_table, print_under

_COLOURS = {"pass": GOOD, "note": "cyan", "warning": OPEN, "refuse": f"bold {BAD}", "not_applicable": "dim"}
_VERDICTS = {"pass": GOOD, "warnings": OPEN, "refuse": BAD}


def print_examination(examination: Examination) -> None:
    """All findings on stdout: a table in a wide terminal, else a line each; the verdict last."""
    console = open_console()
    if console.is_terminal and console.width >= NARROWEST_TABLE:
        names = ("code", "finding", "check")
        table = open_table(*(Column(name, no_wrap=True) for name in names), Column("what, and what to do"))
        for finding in examination.findings:
            table.add_row(*_cells(finding), _text(finding))
        console.print(table)
    elif console.is_terminal:
        for finding in examination.findings:
            console.print(" ".join(_cells(finding)))
            print_under(console, _text(finding))
    else:
        for finding in examination.findings:
            code, status, name = _cells(finding)
            console.print(f"{code} {status} {name}: {_text(finding)}")
    style = _VERDICTS[examination.verdict]
    console.print(f"\n[bold {style}]{escape(_sentence(examination))}[/]")


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
