"""Controls: experiments whose outcome is known, or that take one ingredient away."""

from __future__ import annotations

import dataclasses

from assay.config import Experiment
from assay.recipes.quickstart import quickstart


def oracle_as_teacher() -> Experiment:
    """The oracle is the teacher, with one held-out sample for both: golden = proxy, so no hacking by construction."""
    experiment = quickstart()
    models = dataclasses.replace(experiment.models, teacher_is_oracle=True)
    return dataclasses.replace(experiment, recipe="oracle_as_teacher", models=models)


def random_student() -> Experiment:
    """The student starts from random weights instead of a pretrained base: it has nothing to forget."""
    experiment = quickstart()
    models = dataclasses.replace(experiment.models, student_initialisation="random")
    return dataclasses.replace(experiment, recipe="random_student", models=models)
