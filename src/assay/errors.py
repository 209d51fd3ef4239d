"""The one exception a user is meant to read: a sentence that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AssayError(Exception):
    """Bad input or an impossible request. The command line prints its message alone and exits with 2."""


MOST_KNOWN_NAMES = 12
"""How many names an error lists: of more, the nearest."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> AssayError:
    """The error for a name that is not in a table, with the nearest name that is."""
    of_small_letters = {each.casefold(): each for each in sorted(known)}
    near = difflib.get_close_matches(name.casefold(), of_small_letters, n=MOST_KNOWN_NAMES, cutoff=0.0)
    listed = sorted(of_small_letters[each] for each in near)
    hint = f"did you mean {of_small_letters[near[0]]!r}? " if near else ""
    more = f" and {len(of_small_letters) - len(listed)} more" if len(of_small_letters) > len(listed) else ""
    return AssayError(f"unknown {kind} {name!r}: {hint}known: {', '.join(listed)}{more}")


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: Python's, numpy's and Arrow's, or torch's on any device."""
    told = any(words in str(error).lower() for words in _NO_MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and told)
