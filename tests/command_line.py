"""The command line as a user runs it: a process of its own."""

from __future__ import annotations

import subprocess
import sys


def assay(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What ``assay ARGUMENTS`` ends with; for whole runs."""
    command = [sys.executable, "-m", "assay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)
