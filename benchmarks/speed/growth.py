"""How training grows with batch, length, vocabulary, teacher and number of arms. The rules are in README.md.

python benchmarks/speed/growth.py [--write [FILE]] [--quick]

--quick leaves the row of arms out: probe_share.py runs the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import measure
import numpy as np
from measure import Row, Sizes, World
from offline import prepared

from assay import get_recipe, run_experiment, runs
from assay.config import Experiment

NUM_PASSES = 2
BATCHES, LENGTHS, VOCABULARIES = (8, 16, 32, 64), (16, 32, 64, 128), (1024, 4096, 16_384, 65_536)
TEACHERS = ((2, 128), (4, 256), (6, 384), (8, 512))
ARMS, REPETITIONS_OF_ARMS = (1, 2, 4), 3


def rows(repetitions: int, quick: bool) -> Iterator[Row]:
    """One row for each dial."""
    base = replace(measure.SIZES["V 1k"], num_pairs=64)
    few = replace(base, num_pairs=16, batch_size=8)
    batches, lengths, vocabularies, teachers = BATCHES, LENGTHS, VOCABULARIES, TEACHERS
    if quick:
        base = few = replace(base, num_pairs=4, batch_size=2)
        batches, lengths, vocabularies, teachers = (2, 4), (8, 16), (64, 128), TEACHERS[:2]
    yield dial("batch", {size: replace(base, batch_size=size) for size in batches}, repetitions)
    yield dial("length", {length: replace(base, response_tokens=(length, length)) for length in lengths}, repetitions)
    yield dial("vocabulary", {size: replace(few, vocab_size=size) for size in vocabularies}, repetitions)
    by_weights = {weights(base, shape): replace(base, teacher=shape) for shape in teachers}
    yield dial("teacher's weights", by_weights, repetitions)
    if not quick:
        yield arms()


def dial(name: str, sizes: dict[int, Sizes], repetitions: int) -> Row:
    """Every value in turn, in every repetition."""
    worlds = [measure.world_of(name, size) for size in sizes.values()]
    measured = measure.alternate(repetitions, *map(side, worlds))
    tokens = [NUM_PASSES * sum(len(response.token_ids) for response in world.responses) for world in worlds]
    per_token = [seconds / number for (seconds, _), number in zip(measured, tokens, strict=True)]
    return row(name, list(sizes), per_token, "us_per_token")


def side(world: World) -> measure.Prepare:
    """Training of one world."""
    return lambda repetition: prepared(world, NUM_PASSES * len(world.prompts) // world.batch_size)


def weights(sizes: Sizes, shape: tuple[int, int]) -> int:
    """How many a model of this shape has."""
    model = measure.random_model(sizes.family, *shape, sizes.vocab_size)
    return sum(parameter.numel() for parameter in model.module.parameters())


def row(name: str, values: Sequence[int], seconds: Sequence[np.ndarray], unit: str) -> Row:
    """Seconds at each value (an array over repetitions), and the exponent of each repetition."""
    exponents = np.polyfit(np.log(values), np.log(np.array(seconds)), 1)[0]
    figures = {f"{unit}_at_{value}": float(1e6 * np.median(s)) for value, s in zip(values, seconds, strict=True)}
    return Row(name, figures, {"exponent": exponents})


def arms() -> Row:
    """Whole runs with so many arms; seconds of their stage "arms" on the clock, for each sequence trained on."""
    found = np.zeros((len(ARMS), REPETITIONS_OF_ARMS))
    for repetition in range(REPETITIONS_OF_ARMS):
        for i in range(len(ARMS))[:: 1 if repetition % 2 == 0 else -1]:
            found[i, repetition] = seconds_per_sequence(with_arms(ARMS[i]))
    return row("arms", ARMS, list(found), "us_per_sequence")


def with_arms(number: int) -> Experiment:
    """The quickstart with little before its arms and few evaluations, and so many offline ones."""
    experiment = get_recipe("quickstart")
    distillation, offline = experiment.distillation, experiment.arms[0]
    return replace(
        experiment,
        stage_one=replace(experiment.stage_one, num_oracle_prompts=64, batch_size=16),
        distillation=replace(distillation, training=replace(distillation.training, num_steps=100)),
        arms=tuple(replace(offline, name=f"offline-{i}") for i in range(number)),
        probe=replace(experiment.probe, num_prompts=16, num_train_pairs=8, num_monitored=8, num_evaluations=4),
    )


def seconds_per_sequence(experiment: Experiment) -> float:
    """Of a run's stage "arms", by its manifest."""
    with tempfile.TemporaryDirectory() as folder:
        run_experiment(experiment, Path(folder))
        seconds = runs.read_json(Path(folder) / "manifest.json")["stage_seconds"]["arms"]
    training = experiment.distillation.training
    return seconds / (len(experiment.arms) * training.num_steps * training.batch_size)


if __name__ == "__main__":
    measure.main(__file__, __doc__, rows)
