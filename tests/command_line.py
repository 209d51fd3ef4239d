"""The command line as a user runs it: in a process of its own, or in this one where hundreds of commands are run."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
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


def assay_in_a_terminal(
    *arguments: object, width: int = 80, folder: Path | None = None, **environment: str
) -> tuple[int, str]:
    """Its exit code and all it writes to a real terminal of ``width`` columns, escape codes and all."""
    main_end, own_end = pty.openpty()
    fcntl.ioctl(own_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    named = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "assay", *map(str, arguments)],
        stdin=own_end,
        stdout=own_end,
        stderr=own_end,
        cwd=folder,
        env={**named, "TERM": "xterm-256color", **environment},
    )
    os.close(own_end)
    written = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(main_end, 65_536):
            written += part
    os.close(main_end)
    return process.wait(timeout=60), written.decode()


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
