"""The probe's share of a run's arms, from the run's own log. The rules are in README.md.

python benchmarks/speed/probe_share.py [--write [FILE]] [--quick]
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import measure
import numpy as np
from measure import Row

from assay import get_recipe, run_experiment, runs
from assay.config import Experiment

PHASES = ("sample", "teacher", "student", "probe")


def rows(repetitions: int, quick: bool) -> Iterator[Row]:
    """All arms of the quickstart, then each; repetitions are seeds."""
    experiment = get_recipe("quickstart")
    found = [phases(small(experiment) if quick else experiment, seed) for seed in range(repetitions)]
    together = [{name: sum(arm[name] for arm in arms.values()) for name in PHASES} for arms in found]
    yield dataclasses.replace(row("all arms", together), aims={"probe_share": "≤ 0.05"})
    for arm in found[0]:
        yield row(arm, [arms[arm] for arms in found])


def row(name: str, found: list[dict[str, float]]) -> Row:
    """The probe over all phases, and what each takes."""
    shares = np.array([seconds["probe"] / sum(seconds.values()) for seconds in found])
    figures = {f"{phase}_s": float(np.median([seconds[phase] for seconds in found])) for phase in PHASES}
    return Row(name, figures, {"probe_share": shares})


def phases(experiment: Experiment, seed: int) -> dict[str, dict[str, float]]:
    """Runs it and reads the seconds of every arm's phases from its last record."""
    with tempfile.TemporaryDirectory() as folder:
        run_experiment(dataclasses.replace(experiment, seed=seed), Path(folder))
        records = runs.read_records(Path(folder) / "metrics.jsonl")
    last = {record["arm"]: record["seconds"] for record in records}
    return {arm: {phase: seconds[phase] for phase in PHASES} for arm, seconds in last.items()}


def small(experiment: Experiment) -> Experiment:
    """Enough to have every phase in it."""
    replace = dataclasses.replace
    training = replace(experiment.distillation.training, num_steps=4, batch_size=8)
    return replace(
        experiment,
        stage_one=replace(experiment.stage_one, num_oracle_prompts=64, batch_size=16),
        distillation=replace(experiment.distillation, num_prompts=16, training=training),
        arms=experiment.arms[:1],
        probe=replace(experiment.probe, num_prompts=16, num_train_pairs=8, num_monitored=8, num_evaluations=4),
    )


if __name__ == "__main__":
    measure.main(__file__, __doc__, rows, repetitions=2)
