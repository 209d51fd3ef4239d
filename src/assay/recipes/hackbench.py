"""The runs of HackBench: labelled trajectories on which detectors are fitted and tested (benchmarks/hackbench.py).

Every world is varied in one dial at a time, so that offline runs which stay healthy stand beside offline runs that
hack: telling the sources apart would not be detection. The studies' runs belong to it as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from assay.config import ARMS, Experiment, config_hash, fresh_arm, refresh_arm
from assay.recipes import get_recipe
from assay.recipes.studies import ALL_WORLDS, STUDIES, experiments_of

SEED, SECOND_SEED = 11, 12
Turn = Callable[[Experiment], Experiment]


def _of_set(prompts: float = 1, completions: int = 1, **training: object) -> Turn:
    """The offline arm with so many times the prompts, completions of each, and other changes of the training."""

    def turn(world: Experiment) -> Experiment:
        distillation = world.distillation
        return dataclasses.replace(
            world,
            arms=(ARMS["offline"],),
            distillation=dataclasses.replace(
                distillation,
                num_prompts=int(distillation.num_prompts * prompts),
                completions_per_prompt=completions,
                training=dataclasses.replace(distillation.training, **training),  # type: ignore[arg-type]
            ),
        )

    return turn


def _mixtures(world: Experiment) -> Experiment:
    """Some fresh responses in every batch, and stored ones that are written anew now and then."""
    return dataclasses.replace(world, arms=(fresh_arm(10), fresh_arm(50), refresh_arm(10)))


def _random_student(world: Experiment) -> Experiment:
    models = dataclasses.replace(world.models, student_initialisation="random")
    return dataclasses.replace(world, arms=(ARMS["offline"],), models=models)


DIVERSITY: list[Turn] = [
    *(_of_set(prompts=k) for k in (0.5, 2, 4, 8)),
    *(_of_set(completions=k) for k in (4, 8)),
    _of_set(prompts=0.5, completions=8),
    _mixtures,
]
LEARNING: list[Turn] = [
    *(_of_set(learning_rate=rate) for rate in (1e-4, 1e-3)),
    *(_of_set(divergence=name) for name in ("reverse_kl", "hard_labels")),
    _of_set(prompts=4, divergence="hard_labels"),
    _of_set(schedule="cosine"),
    _of_set(prompts=4, schedule="cosine"),
    _of_set(num_steps=80),
    _random_student,
]


def hackbench_experiments() -> list[Experiment]:
    """All experiments, those of the studies first, then the first seed of every world."""
    found = _of_studies()
    worlds = [get_recipe(name) for name in ALL_WORLDS]
    for seed, turned in ((SEED, [*DIVERSITY, *LEARNING]), (SECOND_SEED, DIVERSITY)):
        found += [dataclasses.replace(turn(world), seed=seed) for world in worlds for turn in turned]
    return list({config_hash(experiment): experiment for experiment in found}.values())


def is_of_a_study(experiment: Experiment) -> bool:
    """Whether the experiment was there before HackBench: the detector's checks were chosen on those runs."""
    return config_hash(experiment) in set(map(config_hash, _of_studies()))


def _of_studies() -> list[Experiment]:
    return [
        experiment
        for study in STUDIES.values()
        for experiment in experiments_of(study, {name: get_recipe(name) for name in study.worlds}, study.seeds).values()
    ]
