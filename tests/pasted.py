"""What pages tell readers to paste, read as a shell and the program would read it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from assay.cli import call_of


def understand(paste: str, folder: Path) -> None:
    """Fails unless every command of ``paste`` can be read in ``folder``; commands that are left open with … apart."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        for command in paste.split(" && "):
            program, *words = shlex.split(command)
            assert program == "assay", command
            if "…" not in words:
                call_of(words)
    finally:
        os.chdir(before)
