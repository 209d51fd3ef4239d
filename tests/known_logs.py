"""Logs whose outcome is known by construction."""

from __future__ import annotations

import numpy as np

from assay.diagnostics.trajectory import Trajectory

STEPS = np.unique(np.round(np.geomspace(1, 300, 15))).astype(float)
STEPS = np.concatenate([[0.0], STEPS])


def falling(exponent: float = 0.5, start: float = 8.0, floor: float = 0.0, steps: np.ndarray = STEPS) -> np.ndarray:
    """``floor + (start - floor) · ((t + 10)/10)^-exponent``: a curve that keeps its law."""
    return floor + (start - floor) * ((steps + 10) / 10) ** -exponent


def healthy(**columns: np.ndarray) -> Trajectory:
    """Held-out and train proxy fall together, references become likelier."""
    return Trajectory(
        STEPS,
        {"proxy": falling(), "train_proxy": falling(0.52), "reference_nll": 30 + falling(0.2), **columns},
    )


def hacked(**columns: np.ndarray) -> Trajectory:
    """The train proxy falls on, the held-out one stalls at step 40, references become unlikely from there on."""
    held_out = np.maximum(falling(), falling(steps=np.array([40.0])))
    rise = 2 * np.log(np.maximum(STEPS, 40) / 40)
    return Trajectory(
        STEPS,
        {"proxy": held_out, "train_proxy": falling(1.0), "reference_nll": 30 + falling(0.2) + rise, **columns},
    )
