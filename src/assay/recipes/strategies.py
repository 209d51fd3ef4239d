"""Everything that one may do about hacking in a world, by name: an experiment and which of its arms it is.

All start from the same student, train for the same number of steps, and are compared in benchmarks/cures.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from assay.config import ARMS, ArmConfig, Experiment, fresh_arm, refresh_arm
from assay.recipes.cures import ANCHOR_WEIGHT, anchored, cures
from assay.recipes.diversity import diversity
from assay.recipes.policies import POLICY_ARMS

Strategies = dict[str, tuple[Experiment, str]]

FRESH_PERCENT = (10, 50)
REFRESH = (10, 5, 2)
PROMPTS = (2, 4, 8)
COMPLETIONS = (2, 4, 8, 16)
PROMPTS_NEEDED = tuple(f"prompts_x{k}" for k in PROMPTS)
"""Strategies that need more prompts than the world has by default."""
FIXED = (
    *(f"fresh_{percent}" for percent in FRESH_PERCENT),
    *(f"refresh_{n}" for n in REFRESH),
    "online_teacher",
    "online_student",
    *PROMPTS_NEEDED,
    *(f"completions_x{k}" for k in COMPLETIONS),
)
"""Fixed from the first step on: how many responses, to how many prompts, how often anew."""

CHOSEN_PROMPTS = ("k_centre", "facility_location", "templates")
"""Other prompts, or other words for them; the first two read eight times as many prompts as they take."""
ANCHORED = ("completions_x8", "policy_auto", "online_teacher")
"""What is also tried with the anchor."""


def strategies(world: Experiment) -> Strategies:
    """All of them in one world."""
    found: Strategies = {"offline": _alone(world, ARMS["offline"])}
    found |= {arm.name: _alone(world, arm) for arm in _fresh_arms()}
    found |= {f"prompts_x{k}": _offline(world, num_prompts=k * world.distillation.num_prompts) for k in PROMPTS}
    found |= {f"completions_x{k}": _offline(world, completions_per_prompt=k) for k in COMPLETIONS}
    found |= {arm.name: _alone(world, arm) for arm in POLICY_ARMS}
    cured = cures(world) | {name: diversity(world)[name] for name in CHOSEN_PROMPTS}
    found |= {name: _only(experiment) for name, experiment in cured.items() if name != "offline"}
    return found | {f"{name}_anchored": _anchored(*found[name]) for name in ANCHORED}


def _fresh_arms() -> Sequence[ArmConfig]:
    fixed = [*map(fresh_arm, FRESH_PERCENT), *map(refresh_arm, REFRESH)]
    return [*fixed, ARMS["online_teacher"], ARMS["online_student"]]


def _only(experiment: Experiment) -> tuple[Experiment, str]:
    (arm,) = experiment.arms
    return experiment, arm.name


def _anchored(experiment: Experiment, arm: str) -> tuple[Experiment, str]:
    return anchored(experiment, ANCHOR_WEIGHT), arm


def _alone(world: Experiment, arm: ArmConfig) -> tuple[Experiment, str]:
    return dataclasses.replace(world, arms=(arm,)), arm.name


def _offline(world: Experiment, **changes: object) -> tuple[Experiment, str]:
    distillation = dataclasses.replace(world.distillation, **changes)  # type: ignore[arg-type]
    return _alone(dataclasses.replace(world, distillation=distillation), ARMS["offline"])
