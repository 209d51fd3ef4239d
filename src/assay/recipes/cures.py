"""Cures of teacher hacking beside fresh responses: each alone, on the offline arm of a world.

The dials are what was expected to do best and not yet a choice: docs/log.md §11 has the values to try, and how.
"""

from __future__ import annotations

import dataclasses

from assay.config import ARMS, ArmConfig, Experiment, SourceConfig

ANCHOR_WEIGHT = 1.0
AVERAGING_DECAY = 0.99
LORA_RANK, LORA_LEARNING_RATE = 8, 3e-4


def cures(world: Experiment) -> dict[str, Experiment]:
    """The world's offline arm as it is, and with one cure at a time; each experiment has one arm."""
    models = dataclasses.replace(world.models, num_teachers=2)
    world = _offline(world)
    return {
        "offline": world,
        "replay_20": _mixed(world, "replay_20", SourceConfig("oracle", weight=20.0, prompts="oracle", learn="text")),
        "references_20": _mixed(world, "references_20", SourceConfig("dataset", weight=20.0, learn="text")),
        "anchor": anchored(world, ANCHOR_WEIGHT),
        "ema": averaged(world, AVERAGING_DECAY),
        "dropout_0.1": _training(world, dropout=0.1),
        "weight_decay_0.1": _training(world, weight_decay=0.1),
        "lora_8": low_rank(world, LORA_LEARNING_RATE),
        "softmax_temperature_2": _training(world, softmax_temperature=2.0),
        "sampling_temperature_0.7": _sampled_at(world, 0.7),
        "sampling_temperature_1.3": _sampled_at(world, 1.3),
        "two_teachers": dataclasses.replace(world, models=models),
    }


def anchored(world: Experiment, weight: float) -> Experiment:
    """With λ KL(student‖its start)."""
    return _training(world, anchor_weight=weight)


def averaged(world: Experiment, decay: float) -> Experiment:
    """With the running average of the weights as the student."""
    return _training(world, averaging_decay=decay)


def low_rank(world: Experiment, learning_rate: float) -> Experiment:
    """With low-rank updates, which want a learning rate of their own."""
    return _training(world, lora_rank=LORA_RANK, learning_rate=learning_rate)


def _offline(world: Experiment) -> Experiment:
    return dataclasses.replace(world, arms=(ARMS["offline"],))


def _mixed(world: Experiment, name: str, second: SourceConfig) -> Experiment:
    """The offline arm's stored responses for the rest of each batch."""
    first = SourceConfig("teacher", weight=100.0 - second.weight)
    return dataclasses.replace(world, arms=(ArmConfig(name, (first, second)),))


def _training(world: Experiment, **changes: float) -> Experiment:
    training = dataclasses.replace(world.distillation.training, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(world, distillation=dataclasses.replace(world.distillation, training=training))


def _sampled_at(world: Experiment, temperature: float) -> Experiment:
    distillation = dataclasses.replace(world.distillation, sampling_temperature=temperature)
    return dataclasses.replace(world, distillation=distillation)
