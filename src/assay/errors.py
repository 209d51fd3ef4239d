"""The one exception a user is meant to read: a sentence that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AssayError(Exception):
    """Bad input or an impossible request. The command line prints its message alone and exits with 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> AssayError:
    """The error for a name that is not in a table, with the nearest name that is."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return AssayError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: Python's, numpy's and Arrow's, or torch's on any device."""
    told = any(words in str(error).lower() for words in _NO_MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and told)
