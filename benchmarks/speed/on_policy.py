"""On-policy distillation, ours and both of TRL's trainers. The rules are in README.md.

python benchmarks/speed/on_policy.py [--write [FILE]] [--quick]
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


def rows(repetitions: int, quick: bool) -> Iterator[Row]:
    """One row for each world."""
    for world in (measure.define_world(), measure.random_world("V 1k")) if quick else ():
        yield row(world.first(8, 4), 2, repetitions)
    if not quick:
        yield row(measure.define_world(), 4, repetitions)
        yield row(measure.random_world("V 1k"), 4, repetitions)
        yield row(measure.random_world("V 32k"), 4, repetitions)


def row(world: World, num_steps: int, repetitions: int) -> Row:
    """All three on the same prompts, each with responses of its own."""
    (seconds, ours), *others = measure.alternate(
        repetitions,
        lambda repetition: prepared(world, num_steps, repetition),
        lambda repetition: peers.on_policy_gkd(world, num_steps),
        lambda repetition: peers.on_policy_distillation(world, num_steps),
    )
    rates = np.array([num_tokens for _, num_tokens in ours]) / seconds
    figures = {"tokens_per_s": float(median(rates)), "loss": float(median([loss for loss, _ in ours]))}
    ratios = {}
    for name, (their_seconds, theirs) in zip(("gkd", "distillation"), others, strict=True):
        counted = their_seconds - [trained.setup_seconds for trained in theirs]
        their_rates = np.array([trained.num_tokens for trained in theirs]) / counted
        figures[f"{name}_tokens_per_s"] = float(median(their_rates))
        figures[f"{name}_loss"] = float(median([trained.loss for trained in theirs]))
        ratios[f"speed_over_{name}"] = rates / their_rates
    return Row(world.name, figures, ratios, dict.fromkeys(ratios, "≥ 3"))


def prepared(world: World, num_steps: int, repetition: int) -> Callable[[], tuple[float, int]]:
    """Ours, ready to run: an arm without its probe; returns loss per response token and number of response tokens."""
    student = world.fresh_student()
    source = ResponseSource(
        SourceConfig("student", 1, "steps"),
        world.prompts,
        {"teacher": world.teacher, "student": student},
        max_response_tokens=world.max_response_tokens,
        seed=repetition,
    )
    mixture = Mixture([source], world.batch_size)

    def run() -> tuple[float, int]:
        losses = fit(student, mixture, world.training(num_steps, "reverse_kl")).losses
        return float(np.mean(losses)), source.counters.generated_tokens

    return run


if __name__ == "__main__":
    measure.main(__file__, __doc__, rows)
