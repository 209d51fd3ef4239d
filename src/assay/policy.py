"""What to do about an alarm during a run: one typed action, decided without golden.

"stop" believes the detector's own threshold, at which few healthy runs are stopped by mistake. "auto" adds responses as
soon as damage is more likely than not: a needless action costs tokens, a late one costs what cannot be unlearned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from assay.config import ArmConfig
from assay.diagnostics.detector import Detector
from assay.errors import AssayError
from assay.types import Action

EVEN_ODDS = 0.5
"""The score from which "auto" adds responses."""
PATIENCE = 2
"""Evaluations without a new best after which the alarms "patience" and "references" rise."""
FRESH_FRACTION = 0.5
"""What "auto" raises the fresh fraction to, once more stored responses have not helped."""


@dataclass(frozen=True)
class Supply:
    """What the stored source of an arm has given and could give.

    ``uses``: how often its responses have been drawn, on average; ``rows_left``: rows that it will give to the end.
    """

    num_pairs: int
    num_prompts: int
    uses: float
    rows_left: float


def as_a_log(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the detector may see of a record of metrics.jsonl: all that a run without an oracle has too."""
    columns = {
        "proxy": "proxy_nats",
        "train_proxy": "train_proxy_nats",
        "reference_nll": "reference_nll_nats",
    }
    return {"step": record["step"], **{name: record[column] for name, column in columns.items()}}


class Policy:
    """Watches an arm's evaluations and decides; ``update`` with each of them, in order.

    "auto" has five steps: more completions; all stored responses anew; half of every batch fresh; and, once the alarm
    is up, back to the recommended student; back to it, and stop. It takes the next one when the score has risen since
    the last, and skips what the arm's sources cannot do.
    """

    def __init__(self, arm: ArmConfig) -> None:
        self.arm = arm
        self.detector: Detector = Detector()
        self.is_alarmed: bool = False
        self._taken: list[Action] = []
        self._score_then = 0.0

    def update(self, record: Mapping[str, Any]) -> float | None:
        """Takes one evaluation, as ``Detector.update`` does; returns the detector's score so far."""
        score = self.detector.update(record)
        if self.arm.alarm == "references" and record.get("reference_nll") is None:
            raise AssayError(
                f"arm {self.arm.name!r} listens to references, but its prompts have none: use another alarm"
            )
        if self.arm.alarm != "detector":
            self.is_alarmed = self._lateness() >= PATIENCE
        else:
            self.is_alarmed = self.detector.is_flagged
        return score

    def decide(self, score: float | None, supply: Supply | None, can_be_fresh: bool) -> Action | None:
        """The action for the evaluation that ``update`` took last; None to go on.

        ``supply`` is None for an arm without a stored source of a model's responses.
        """
        if self.arm.policy == "stop" and self.is_alarmed:
            return self._back("stop", f"alarm: {self.arm.alarm}")
        worse = score is not None and score >= EVEN_ODDS and score > self._score_then
        if self.arm.policy != "auto" or not worse:
            return None
        assert score is not None
        kinds = [action.kind for action in self._taken]
        why = f"score {score:.2f}"
        if supply is not None and "add_completions" not in kinds and (more := completions_to_add(supply)) > 0:
            return Action("add_completions", f"{why}: responses were used {supply.uses:.0f} times", completions=more)
        if supply is not None and "regenerate" not in kinds:
            return Action("regenerate", f"{why}, still rising")
        if can_be_fresh and "set_fresh_fraction" not in kinds:
            return Action("set_fresh_fraction", f"{why}, still rising", fraction=FRESH_FRACTION)
        if not self.is_alarmed:
            return None
        if "roll_back" not in kinds:
            return self._back("roll_back", f"{why}, still rising")
        return self._back("stop", f"{why}, still rising after all else")

    def carried_out(self, action: Action, score: float | None) -> None:
        """Notes an action that was carried out; the detector forgets what was undone by going back."""
        self._taken.append(action)
        self._score_then = score or 0.0
        if action.to_step is not None:
            self.detector.forget_after(action.to_step)
            self._score_then = 0.0

    def _back(self, kind: Literal["roll_back", "stop"], why: str) -> Action:
        if self.arm.alarm == "detector":
            step = self.detector.diagnose().recommended_step
        else:
            values = self._watched()
            step = self.detector.trajectory.steps[int(np.argmin(values))]
        return Action(kind, f"{why}: back to the student of step {step:.0f}", to_step=int(step))

    def _watched(self) -> Sequence[float]:
        column = {"patience": "proxy", "references": "reference_nll"}[self.arm.alarm]
        return self.detector.trajectory.columns[column].tolist()

    def _lateness(self) -> int:
        values = self._watched()
        return len(values) - 1 - int(np.argmin(values))


def completions_to_add(supply: Supply) -> int:
    """How many more responses per prompt let the rest of the run use each half as often as it took to raise an alarm.

    ceil(rows_left / (num_pairs · uses / 2)) times the present number per prompt, less what is there; at least 0.
    """
    if supply.uses <= 0:
        return 0
    present = supply.num_pairs // supply.num_prompts
    wanted = math.ceil(2 * supply.rows_left / (supply.num_prompts * supply.uses))
    return max(0, min(wanted, math.ceil(supply.rows_left / supply.num_prompts)) - present)
