"""What a training log says, as aligned columns: the input of everything that looks for hacking without an oracle."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COLUMNS = {
    "proxy": "distance from the teacher (or a loss) on held-out prompts",
    "proxy_diff_stderr": "paired standard error of the proxy's change since the evaluation before",
    "train_proxy": "the same distance, or the loss, on the prompts that are trained on",
    "reference_nll": "negative log-likelihood of held-out references written by people (or by the oracle)",
    "golden": "distance from the oracle on held-out prompts",
    "golden_diff_stderr": "paired standard error of golden's change since the evaluation before",
    "student_entropy": "entropy of the student's next-token distribution on teacher responses",
    "teacher_entropy": "the teacher's, on the same responses",
    "response_tokens": "mean length of responses that the student samples",
    "truncated": "share of them that reach the limit of length",
    "repetition": "share of 3-grams in them that occurred before",
    "distinct": "distinct 2-grams over all 2-grams in them",
    "top_overlap": "share of the teacher's most probable tokens that are among the student's",
    "response_uses": "how often a training response has been used so far, on average",
}
"""Every column that is understood; ``proxy`` is required. All may have any unit: only ratios within a column count."""

MAX_POINTS = 32
"""Longer curves are averaged into this many bins of equal ratio, so that their cost and noise stay bounded."""


@dataclass(frozen=True)
class Trajectory:
    """Evaluations in the order of their steps; a column is an array of the same length, NaN where it has no value."""

    steps: Floats
    columns: dict[str, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.steps)

    def get(self, name: str) -> Floats | None:
        """A column without gaps, or None: a column that has a gap is treated as missing, not patched."""
        values = self.columns.get(name)
        return None if values is None or not np.isfinite(values).all() else values

    def until(self, index: int) -> Trajectory:
        """The evaluations up to and with ``index``."""
        return Trajectory(self.steps[: index + 1], {name: v[: index + 1] for name, v in self.columns.items()})

    def binned(self) -> Trajectory:
        """At most ``MAX_POINTS`` evaluations beside step 0: means over steps whose ratio to the last is alike.

        The step of a bin is that of its last evaluation, so the last evaluation keeps its step.
        """
        if len(self) <= MAX_POINTS:
            return self
        positive = self.steps > 0
        ratio = np.log(self.steps[positive]) - np.log(self.steps[-1])
        # a step on an edge stays below it whatever its unit, which may change the last digit of a ratio
        edges = np.linspace(ratio.min(), 0, MAX_POINTS + 1)[1:-1] + 1e-9
        bins = np.concatenate([np.full((~positive).sum(), -1), np.searchsorted(edges, ratio, side="left")])
        _, group, counts = np.unique(bins, return_inverse=True, return_counts=True)
        last = np.cumsum(counts) - 1

        def bin_of(name: str, values: Floats) -> Floats:
            if name.endswith("_diff_stderr"):  # independent changes add up over a bin
                largest = float(np.nanmax(values, initial=0.0)) or 1.0
                return largest * np.sqrt(np.bincount(group, (values / largest) ** 2))
            return np.bincount(group, values / counts[group]).astype(float)  # shares first: sums could overflow

        return Trajectory(self.steps[last], {name: bin_of(name, values) for name, values in self.columns.items()})
