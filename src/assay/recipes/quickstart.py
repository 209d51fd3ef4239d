"""The main job: the paper's three data sources from one start, on embedded text, in a few minutes."""

from __future__ import annotations

from assay.config import Experiment


def quickstart() -> Experiment:
    """Offline, online teacher and online student from one start on the task `define`; three minutes on two cores."""
    return Experiment(recipe="quickstart")
