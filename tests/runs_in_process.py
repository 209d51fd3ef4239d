"""A whole run without worker processes: the same stages in the same order, for runs whose size is nothing."""

from __future__ import annotations

from pathlib import Path

from assay import provenance, runs, stages
from assay.config import Experiment
from assay.experiment import before_the_arms, write_results
from assay.types import Progress
from assay.validation import validate


def run_in_process(experiment: Experiment, folder: Path) -> None:
    """What ``run_experiment`` leaves in ``folder``, made here."""

    def ignore(progress: Progress) -> None:
        pass

    validate(experiment)
    runs.prepare_folder(folder)
    manifest = provenance.open_manifest(experiment, folder)
    provenance.pin_digests(manifest, stages.check_models(experiment, folder, ignore))
    for part in before_the_arms(experiment):
        for stage, *arguments in part.jobs:
            getattr(stages, stage)(experiment, folder, *arguments, report=ignore)
    for arm in experiment.arms:
        stages.run_arm(experiment, folder, arm.name, ignore)
    runs.write_json(folder / "manifest.json", manifest | {"status": "finished"})
    write_results(experiment, folder, 0.0)
