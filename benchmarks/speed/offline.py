"""Offline distillation over several passes, ours and TRL's GKD (lmbda 0). The rules are in README.md.

python benchmarks/speed/offline.py [--write [FILE]] [--quick]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import measure
import numpy as np
import peers
from measure import Row, World
from numpy import median

from assay.config import SourceConfig
from assay.data.sources import Mixture, ResponseSource
from assay.training import fit

NUM_PASSES = 4
MANY_PASSES = 20
MANY_PASSES_WORLDS = ("V 1k", "V 32k")
MANY_PASSES_REPETITIONS = 3


def rows(repetitions: int, quick: bool) -> Iterator[Row]:
    """One row for each world, and those that are trained for many passes once more."""
    if quick:
        yield row(measure.define_world().first(16, 8), NUM_PASSES, repetitions)
        yield row(measure.random_world("V 1k").first(8, 4), NUM_PASSES, repetitions)
        return
    define = measure.define_world()
    yield row(define, NUM_PASSES, repetitions)
    for name in measure.SIZES:
        yield row(measure.random_world(name), NUM_PASSES, repetitions)
    repetitions = min(repetitions, MANY_PASSES_REPETITIONS)
    yield row(define, MANY_PASSES, repetitions)
    for name in MANY_PASSES_WORLDS:
        yield row(measure.random_world(name), MANY_PASSES, repetitions)


def row(world: World, num_passes: int, repetitions: int) -> Row:
    """Both sides on the same pairs, the same number of times."""
    num_sequences = num_passes * len(world.prompts)
    num_steps = num_sequences // world.batch_size
    (seconds, losses), (their_seconds, theirs) = measure.alternate(
        repetitions,
        lambda repetition: prepared(world, num_steps),
        lambda repetition: peers.offline_gkd(world, num_steps),
    )
    their_seconds = their_seconds - [trained.setup_seconds for trained in theirs]
    figures = {
        "sequences_per_s": float(median(num_sequences / seconds)),
        "gkd_sequences_per_s": float(median(num_sequences / their_seconds)),
        "loss": float(median(losses)),
        "gkd_loss": float(median([trained.loss for trained in theirs])),
    }
    name = world.name if num_passes == NUM_PASSES else f"{world.name}, {num_passes} passes"
    return Row(name, figures, {"speed_over_gkd": their_seconds / seconds}, {"speed_over_gkd": "≥ 4"})


def prepared(world: World, num_steps: int) -> Callable[[], float]:
    """Ours, ready to run: an arm without its probe; returns the mean loss per response token."""
    student = world.fresh_student()
    source = ResponseSource(
        SourceConfig("teacher"),
        world.prompts,
        {"teacher": world.teacher},
        max_response_tokens=world.max_response_tokens,
    )
    source.preload(world.responses)
    mixture = Mixture([source], world.batch_size)
    return lambda: float(np.mean(fit(student, mixture, world.training(num_steps)).losses))


if __name__ == "__main__":
    measure.main(__file__, __doc__, rows)
