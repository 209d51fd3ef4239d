"""What a command prints, and where: results on stdout, everything else on stderr, errors in one look.

Light on purpose: nothing here is imported until something is printed, so `assay --help` stays quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Output:
    """How much a command prints, and for whom."""

    quiet: bool = False
    """Print nothing but errors and, on the last line, the path of what was made."""
    json: bool = False
    """Print one JSON document on stdout and nothing else there; progress stays on stderr without --quiet."""

    def answer(self, document: Mapping[str, Any], text: Callable[[], None], path: Path | None = None) -> None:
        """The result of a command: ``document`` as JSON, or ``text()`` and the path of the file that was made."""
        if self.json:
            print(json.dumps(document, indent=1, allow_nan=False))
            return
        if not self.quiet:
            text()
        if path is not None:
            print(path)

    @contextlib.contextmanager
    def hushed(self) -> Iterator[None]:
        """With ``quiet``, what this process, its workers and its libraries say on stderr goes nowhere.

        An error is an exception, which leaves this context before it is printed.
        """
        if not self.quiet:
            yield
            return
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
                os.dup2(nowhere.fileno(), 2)  # workers inherit the descriptor, not the stream
                yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


NORMAL = Output()
FLAGS = ("--quiet", "--json")
"""The flags of ``Output``, which may stand before a command's name too."""


def say_why(message: str, speaker: str = "assay") -> None:
    """An error on stderr: "error: …" in red, cut between words, in a terminal; one plain line elsewhere."""
    if not sys.stderr.isatty():
        print(f"{speaker}: {message}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    who = "" if speaker == "assay" else f"{speaker}: "
    console = Console(stderr=True, highlight=False, emoji=False)
    console.print(Text.assemble(("error: ", "bold red"), who, message), overflow="fold")
