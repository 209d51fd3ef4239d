"""Everything that one may do about hacking in a world, by name: an experiment and which of its arms it is.

All start from the same student, train for the same number of steps, and are compared in benchmarks/cures.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from assay.config import ARMS, ArmConfig, Experiment, SourceConfig
from assay.recipes.cures import cures
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


def strategies(world: Experiment) -> Strategies:
    """All of them in one world."""
    found: Strategies = {"offline": _alone(world, ARMS["offline"])}
    found |= {arm.name: _alone(world, arm) for arm in _fresh_arms()}
    found |= {f"prompts_x{k}": _offline(world, num_prompts=k * world.distillation.num_prompts) for k in PROMPTS}
    found |= {f"completions_x{k}": _offline(world, completions_per_prompt=k) for k in COMPLETIONS}
    found |= {arm.name: _alone(world, arm) for arm in POLICY_ARMS}
    return found | {name: _only(cured) for name, cured in cures(world).items() if name != "offline"}


def _fresh_arms() -> Sequence[ArmConfig]:
    mixed = [
        ArmConfig(
            f"fresh_{percent}",
            (SourceConfig("teacher", weight=100.0 - percent), SourceConfig("teacher", 1, weight=float(percent))),
        )
        for percent in FRESH_PERCENT
    ]
    rewritten = [ArmConfig(f"refresh_{n}", (SourceConfig("teacher", n),)) for n in REFRESH]
    return [*mixed, *rewritten, ARMS["online_teacher"], ARMS["online_student"]]


def _only(experiment: Experiment) -> tuple[Experiment, str]:
    (arm,) = experiment.arms
    return experiment, arm.name


def _alone(world: Experiment, arm: ArmConfig) -> tuple[Experiment, str]:
    return dataclasses.replace(world, arms=(arm,)), arm.name


def _offline(world: Experiment, **changes: object) -> tuple[Experiment, str]:
    distillation = dataclasses.replace(world.distillation, **changes)  # type: ignore[arg-type]
    return _alone(dataclasses.replace(world, distillation=distillation), ARMS["offline"])
