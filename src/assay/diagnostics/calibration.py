"""The numbers of the detector, fitted on HackBench by ``benchmarks/hackbench.py fit`` and kept in detector.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Model:
    """score = 1 / (1 + exp(-(intercept + Σ weight · value))) over values of checks; flagged from ``threshold`` on.

    A score is the probability that golden has turned up if half of all runs had: the classes were weighted equally.
    """

    weights: dict[str, float]
    intercept: float
    threshold: float

    def score(self, values: Mapping[str, float | None]) -> float | None:
        """None where a check is not applicable."""
        found = {code: value for code in self.weights if (value := values[code]) is not None}
        if len(found) < len(self.weights):
            return None
        total = self.intercept + sum(self.weights[code] * value for code, value in found.items())
        return 1 / (1 + math.exp(-total))


@dataclass(frozen=True)
class Calibration:
    """Thresholds of the checks, one model for each set of columns (best first), and where to go back to.

    ``kept_transfer``: a flagged run goes back to the last evaluation at which held-out prompts had gained at least this
    share of what trained ones had. ``kept_fall``: without a train proxy, to the last one at which the held-out proxy
    had done at most this share of its fall (in logs).
    """

    thresholds: dict[str, float]
    models: dict[str, Model]
    kept_transfer: float
    kept_fall: float

    def to_dict(self) -> dict[str, object]:
        """Plain values for detector.json."""
        return {
            "schema": "assay.detector/1",
            "thresholds": self.thresholds,
            "models": {name: vars(model) for name, model in self.models.items()},
            "kept_transfer": self.kept_transfer,
            "kept_fall": self.kept_fall,
        }


@cache
def shipped() -> Calibration:
    """The calibration that comes with the package."""
    found = json.loads(resources.files("assay.diagnostics").joinpath("detector.json").read_text(encoding="utf-8"))
    models = {name: Model(**model) for name, model in found["models"].items()}
    return Calibration(found["thresholds"], models, found["kept_transfer"], found["kept_fall"])
