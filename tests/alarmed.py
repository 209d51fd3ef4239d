"""The command line of a policy that takes every score for an alarm: a small run then does all that a policy can do.

Spawned workers import the main module too, so what is changed here is changed for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay import policy
from assay.cli import main
from assay.policy import Policy


def _alarmed(self: Policy, record: Any, update: Callable[..., float | None] = Policy.update) -> float | None:
    score = update(self, record)
    self.is_alarmed = len(self.detector.trajectory) >= 4
    return score


policy.EVEN_ODDS = 0.0
Policy.update = _alarmed  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
