"""The command line as a user runs it: in a process of its own, or in this one where hundreds of commands are run."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from assay.__main__ import main


def in_a_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Has rich take what it writes to for a terminal of ``width`` columns without colours."""
    for name, value in {"TTY_COMPATIBLE": "1", "TERM": "dumb", "COLUMNS": str(width), "LINES": "40"}.items():
        monkeypatch.setenv(name, value)


def assay(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What ``assay ARGUMENTS`` ends with, run in ``folder``; for whole runs."""
    command = [sys.executable, "-m", "assay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)


def assay_here(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """The same without a process: whatever is raised but an exit comes through."""
    command = ["assay", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    before = Path.cwd()
    os.chdir(folder)
    try:
        with mock.patch("sys.argv", command), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as exit:
        code = exit.code
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(command, code if isinstance(code, int) else 1, out.getvalue(), err.getvalue())
