"""What to spend teacher tokens on: prompts, completions, rewriting, fresh responses, or online distillation.

An ``Option`` is one way to distil at a world's number of steps. Its cost follows from its config and from rates that
small runs have measured, its end from a scaling law that is fitted to them. No torch, no files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import nnls

from assay.config import ARMS, ArmConfig, Experiment, fresh_arm, refresh_arm
from assay.errors import AssayError
from assay.footprint import FLOAT_BYTES
from assay.scaling_law import Exposure, Law, Prediction
from assay.workload import responses_counted

MOST_COMPLETIONS = 16
REFRESH_INTERVALS, FRESH_PERCENTS = (10, 5, 2), (5, 10, 25, 50)
"""What the law was fitted on: no option goes beyond."""
SHARD_BYTES = 2**30
ROW_BYTES = 40
"""On disk beside a response's tokens: ids, seed, writer (footprint.py has the same)."""


@dataclass(frozen=True)
class Option:
    """One way to spend: prompts with so many stored completions; the last three are for one completion.

    ``refresh_every`` n: written anew every n-th pass, 1 is the online teacher. ``fresh_percent``: of every batch, new
    at every draw, beside stored ones. ``writer`` "student": it writes, anew at every step. At most one of them.
    """

    num_prompts: int
    completions: int = 1
    refresh_every: int | None = None
    fresh_percent: int = 0
    writer: Literal["teacher", "student"] = "teacher"

    def __post_init__(self) -> None:
        special = (self.completions > 1, self.refresh_every is not None, self.fresh_percent > 0, not self._by_teacher)
        if sum(special) > 1:
            raise ValueError(f"{self}: completions, refresh, fresh share and the student exclude each other")
        counts = (self.num_prompts, self.completions, 1 if self.refresh_every is None else self.refresh_every)
        if min(counts) < 1 or not 0 <= self.fresh_percent < 100:
            raise ValueError(f"{self}: out of range")

    @property
    def _by_teacher(self) -> bool:
        return self.writer == "teacher"

    @property
    def name(self) -> str:
        """As people write it."""
        if not self._by_teacher:
            return f"{self.num_prompts} prompts, online student"
        if self.refresh_every is not None:
            anew = "online teacher" if self.refresh_every == 1 else f"rewritten every {self.refresh_every} passes"
            return f"{self.num_prompts} prompts, {anew}"
        if self.fresh_percent:
            return f"{self.num_prompts} prompts, {self.fresh_percent} % fresh"
        return f"{self.num_prompts} prompts × {self.completions}"

    @property
    def arm(self) -> ArmConfig:
        """The arm of an experiment that does it, under the name that studies give it."""
        if not self._by_teacher:
            return ARMS["online_student"]
        if self.refresh_every == 1:
            return ARMS["online_teacher"]
        if self.refresh_every is not None:
            return refresh_arm(self.refresh_every)
        if self.fresh_percent:
            return fresh_arm(self.fresh_percent)
        return ARMS["offline"]

    def of(self, world: Experiment) -> Experiment:
        """The world with this option's prompts, completions and arm, and nothing else changed."""
        distillation = dataclasses.replace(
            world.distillation, num_prompts=self.num_prompts, completions_per_prompt=self.completions
        )
        return dataclasses.replace(world, distillation=distillation, arms=(self.arm,))

    def exposure(self, world: Experiment) -> Exposure:
        """What training sees of it in the world's number of steps; a pair that is never drawn does not count."""
        rows, pairs = _rows(world), self.num_prompts * self.completions
        completions = self.completions * min(1.0, rows / pairs)
        every = 1 if not self._by_teacher else self.refresh_every
        rewrites = 1.0 if every is None else max(1.0, rows / (pairs * every))
        return Exposure(self.num_prompts, completions, rewrites, self.fresh_percent / 100, not self._by_teacher)


@dataclass(frozen=True)
class Rates:
    """Seconds of one worker process per response token, and the mean length of a response (with its end token).

    ``recalled`` is what the teacher has said before, made ready for a step again; ``trained`` forward and backward.
    """

    tokens_per_response: float
    written: float
    scored: float
    recalled: float
    trained: float


@dataclass(frozen=True)
class Cost:
    """Of one run's distillation, without stage 1 and the probe; the first two mean what they do in summary.json."""

    generated_tokens: int
    teacher_tokens: int
    seconds: float


def rates(world: Experiment, runs: Mapping[Option, Sequence[Mapping[str, Any]]]) -> Rates:
    """Rates from the records (metrics.jsonl) of offline runs, by non-negative least squares over their increments.

    The teacher writes and scores in the first pass and only recalls later, which tells the two apart.
    Raises AssayError where the records do not: too few evaluations, or a clock that stood still.
    """
    tokens = sum(records[-1]["generated_tokens"] for records in runs.values())
    responses = sum(responses_counted(option.of(world), option.arm)[0] for option in runs)
    length = tokens / responses
    teacher, writing, work = [], [], []
    for records in runs.values():
        for before, after in zip([None, *records[:-1]], records, strict=True):
            change = {key: after["seconds"][key] - (before["seconds"][key] if before else 0.0) for key in
                      ("sample", "teacher", "student")}  # fmt: skip
            written = after["generated_tokens"] - (before["generated_tokens"] if before else 0)
            counted = after["teacher_tokens"] - (before["teacher_tokens"] if before else 0)
            rows = (after["step"] - (before["step"] if before else 0)) * world.distillation.training.batch_size
            writing.append((written, change["sample"]))
            teacher.append((counted - written, rows * length, change["teacher"]))
            work.append((rows * length, change["student"]))
    (written_N, sample_N), (row_N, student_N) = np.transpose(writing), np.transpose(work)
    scored, recalled = nnls(np.array(teacher)[:, :2], np.array(teacher)[:, 2])[0]
    found = Rates(length, sample_N.sum() / written_N.sum(), float(scored), float(recalled),
                  student_N.sum() / row_N.sum())  # fmt: skip
    if not (found.written > 0 and found.trained > 0):
        raise AssayError("the small runs have no times of writing and training: run them again in another folder")
    return found


def cost(option: Option, world: Experiment, measured: Rates) -> Cost:
    """What a run of the option spends; seconds of one worker. The student is taken to write as fast as the teacher."""
    experiment = option.of(world)
    written, by_teacher = responses_counted(experiment, option.arm)
    scored = by_teacher - (written if option.writer == "teacher" else 0)
    length = measured.tokens_per_response
    seconds = written * measured.written + scored * measured.scored
    seconds += _rows(world) * (measured.trained + (measured.recalled if scored else 0.0))
    return Cost(round(written * length), round(by_teacher * length), seconds * length)


def small_options(world: Experiment, pool: int) -> tuple[Option, ...]:
    """The small runs: half of the prompts, all of them, all of them twice; never more prompts than the pool has."""
    base = min(world.distillation.num_prompts, pool)
    return Option(base // 2), Option(base), Option(base, 2)


def options(world: Experiment, pool: int) -> list[Option]:
    """All that is compared: prompt sets from half the world's in steps of 2 up to the pool, 1 to 16 completions;
    on the world's prompts also rewriting, fresh shares, and both online arms.

    Stored sets are left out where they hold more pairs than all steps draw, rewriting where nothing would be rewritten.
    """
    rows, base = _rows(world), min(world.distillation.num_prompts, pool)
    sizes = [base // 2, *(base * 2**i for i in range(int(math.log2(pool / base)) + 1)), pool]
    counts = [2**i for i in range(int(math.log2(MOST_COMPLETIONS)) + 1)]
    stored = [Option(size, count) for size in dict.fromkeys(sizes) for count in counts if size * count <= rows]
    rewritten = [Option(base, refresh_every=n) for n in (*REFRESH_INTERVALS, 1) if rows >= 2 * n * base]
    mixed = [Option(base, fresh_percent=percent) for percent in FRESH_PERCENTS]
    return [*stored, *rewritten, *mixed, Option(base, writer="student")]


@dataclass(frozen=True)
class Ranked:
    """An option with its cost, its predicted end and how far that lies above the first choice's; intervals."""

    option: Option
    cost: Cost
    value: float
    margin: float
    difference: float
    difference_margin: float

    @property
    def is_tied(self) -> bool:
        """Whether the interval of the difference from the first choice contains 0."""
        return self.difference <= self.difference_margin


def rank(affordable: Mapping[Option, Cost], world: Experiment, law: Law) -> list[Ranked]:
    """Options from the lowest predicted end up, of equal ones that with most prompts; the first is the first choice."""
    found = list(affordable)
    predicted: Prediction = law.predict([option.exposure(world) for option in found])
    values = [round(float(value), 6) for value in predicted.values]  # where completions count as much as prompts: equal
    spent = [affordable[option].teacher_tokens for option in found]
    order = sorted(range(len(found)), key=lambda i: (values[i], -found[i].num_prompts, spent[i]))
    differences, margins = predicted.difference_margins(order[0]), predicted.margins()
    return [
        Ranked(
            found[i],
            affordable[found[i]],
            float(predicted.values[i]),
            float(margins[i]),
            float(predicted.values[i] - predicted.values[order[0]]),
            float(differences[i]),
        )
        for i in order
    ]


@dataclass(frozen=True)
class ScaleOut:
    """Teacher responses of so many tokens, written and scored once: files, and hours of machines like this one.

    ``bytes_of_responses`` are token ids and their rows, ``bytes_of_signal`` the teacher's full log-probabilities in
    float32, in shards of at most 1 GiB; None for a model of unknown size. ``price`` is None without a price per hour.
    """

    tokens: int
    responses: int
    bytes_of_responses: int
    shards_of_responses: int
    bytes_of_signal: int | None
    shards_of_signal: int | None
    machine_hours: float
    price: float | None


def scale_out(
    tokens: float,
    world: Experiment,
    measured: Rates,
    vocab_size: int | None,
    workers: int,
    price_per_hour: float | None,
) -> ScaleOut:
    """The plan past one machine, from the measured rates of one worker; a machine has ``workers`` of them."""
    responses = math.ceil(tokens / measured.tokens_per_response)
    stored = round(tokens * FLOAT_BYTES) + responses * (ROW_BYTES + FLOAT_BYTES * world.task.max_prompt_tokens)
    signal = None if vocab_size is None else round(tokens * FLOAT_BYTES * vocab_size)
    hours = tokens * (measured.written + measured.scored) / 3600 / workers
    return ScaleOut(
        tokens=round(tokens),
        responses=responses,
        bytes_of_responses=stored,
        shards_of_responses=math.ceil(stored / SHARD_BYTES),
        bytes_of_signal=signal,
        shards_of_signal=None if signal is None else math.ceil(signal / SHARD_BYTES),
        machine_hours=hours,
        price=None if price_per_hour is None else hours * price_per_hour,
    )


def _rows(world: Experiment) -> int:
    """Pairs that training draws in all its steps."""
    return world.distillation.training.num_steps * world.distillation.training.batch_size
