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
