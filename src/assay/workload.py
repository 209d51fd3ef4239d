"""What a run does, counted from its config alone: sequences written, scored and trained on, by which model.

All counts are upper bounds; a sequence is a prompt with its response. stages.py is what is counted here.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from assay.config import ArmConfig, Experiment, SourceConfig, TaskConfig
from assay.models.batching import DENSE_VOCABULARY_LIMIT, MAX_VENDI_ROWS
from assay.models.sizes import ModelSize, ensemble_size
from assay.token_table import NUM_SAMPLE_PROMPTS

Sizes = Mapping[str, ModelSize]
"""By the role of a model, or by the column of a judge."""


@dataclass
class Work:
    """Sequences (a prompt and its response) by what is done to them and by which model.

    ``kept`` are scored once by a frozen model and remembered; ``expanded``: log-probabilities made from what is
    remembered, through the head again where only hidden states are. Several teachers write and score together, as one
    model; ``trained`` counts each one's own sequences.
    """

    written: Counter[str] = field(default_factory=Counter)
    scored: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    expanded: Counter[str] = field(default_factory=Counter)
    trained: Counter[str] = field(default_factory=Counter)

    @classmethod
    def total(cls, parts: Iterable[Work]) -> Work:
        """All parts together."""
        whole = cls()
        for part in parts:
            for f in dataclasses.fields(cls):
                getattr(whole, f.name).update(getattr(part, f.name))
        return whole

    @property
    def num_written(self) -> int:
        """Sequences sampled."""
        return self.written.total()

    @property
    def num_trained(self) -> int:
        """Sequences passed forward and backward."""
        return self.trained.total()

    @property
    def num_scored(self) -> int:
        """Sequences passed forward only."""
        return self.scored.total() + self.kept.total()

    def flops(self, experiment: Experiment, sizes: Sizes) -> int:
        """2 operations per parameter and token forward, 6 where it is trained on; see ``forecast.forecast``."""
        task = experiment.task
        total = 0
        for role, size in sizes.items():
            whole = whole_role(experiment, role, size)
            body, head = (_per_sequence(task, whole), task.max_response_tokens * whole.num_head_parameters)
            listed = role == "teacher" and experiment.distillation.teacher_top_k is not None
            dense = listed or size.vocab_size <= DENSE_VOCABULARY_LIMIT
            total += 2 * ((self.written[role] + self.scored[role]) * (body + head) + self.kept[role] * body)
            total += 2 * head * (self.kept[role] if dense else self.expanded[role])
            one = _per_sequence(task, size) + task.max_response_tokens * size.num_head_parameters
            total += 6 * self.trained[role] * one
        return total


def _per_sequence(task: TaskConfig, size: ModelSize) -> int:
    """Parameters times tokens of one sequence, without the head."""
    body = task.max_prompt_tokens * size.num_prompt_parameters
    return body + task.max_response_tokens * size.num_response_parameters


def whole_role(experiment: Experiment, role: str, size: ModelSize) -> ModelSize:
    """The size of a role after stage 1, from that of one model: several teachers are one ensemble."""
    return ensemble_size(size, experiment.models.num_teachers) if role == "teacher" else size


def sft_steps(experiment: Experiment, role: str) -> int:
    """Optimiser steps of a role's SFT."""
    stage = experiment.stage_one
    if role == "teacher" and experiment.models.teacher_is_oracle:
        return 0
    epochs = {"teacher": stage.teacher_epochs, "student": stage.student_epochs}[role]
    return round(epochs * stage.num_oracle_prompts / stage.batch_size)


def stage_one_work(experiment: Experiment) -> Work:
    """Oracle responses, SFT, everyone's held-out responses, and the distance of oracle and teacher."""
    held_out = experiment.probe.num_prompts
    work = Work()
    if experiment.models.oracle is None:
        work.written["student"] = held_out
        work.written["teacher"] = 0 if experiment.models.teacher is None else held_out
        return work
    work.written["oracle"] = experiment.stage_one.num_oracle_prompts + held_out
    work.written["teacher"] = 0 if experiment.models.teacher_is_oracle else held_out
    work.written["student"] = held_out
    for role in ("teacher", "student"):
        models = experiment.models.num_teachers if role == "teacher" else 1
        work.trained[role] = models * sft_steps(experiment, role) * experiment.stage_one.batch_size
    work.kept["oracle"] = work.expanded["oracle"] = work.scored["teacher"] = held_out  # their distance
    return work


def rows_drawn(experiment: Experiment, arm: ArmConfig) -> list[int]:
    """Pairs that each source of the arm's mixture gives to training."""
    training = experiment.distillation.training
    total_weight = sum(source.weight for source in arm.sources)
    total = training.num_steps * training.batch_size
    return [math.ceil(total * source.weight / total_weight - 1e-9) for source in arm.sources]


def num_pairs(experiment: Experiment, source: SourceConfig) -> int:
    """Pairs of a prompt and a completion index: one pass over a source, with every new prompt that may be added."""
    distillation = experiment.distillation
    prompts = {
        "distillation": distillation.num_prompts + num_new_prompts(experiment),
        "oracle": experiment.stage_one.num_oracle_prompts,
    }
    return prompts[source.prompts] * source.completions(distillation.completions_per_prompt)


def num_new_prompts(experiment: Experiment) -> int:
    """Prompts that augmentation makes, before its check drops some."""
    config = experiment.distillation
    return config.num_prompts * {"none": 0, "templates": len(config.templates), "paraphrases": 1}[config.augmentation]


def _distillation_set_work(experiment: Experiment, arm: ArmConfig) -> Work:
    """Choosing and augmenting the prompts, and measuring the pairs at the end, each by the teacher."""
    work, config, held_out = Work(), experiment.distillation, experiment.probe.num_prompts
    new = num_new_prompts(experiment)
    if config.selection != "random":
        work.scored["teacher"] += config.num_candidates or 0
    if new:
        work.written["teacher"] += config.num_prompts * (2 if config.augmentation == "paraphrases" else 1)
        work.scored["teacher"] += 2 * new
    pairs = sum(num_pairs(experiment, source) for source in arm.sources)
    prompts = sum(num_pairs(experiment, source) // source.completions(config.completions_per_prompt)
                  for source in arm.sources)  # fmt: skip
    work.scored["teacher"] += 2 * held_out + prompts + min(pairs, MAX_VENDI_ROWS)
    return work


def num_train_pairs(experiment: Experiment, arm: ArmConfig) -> int:
    """Pairs that the train proxy walks on: an offline source's own, or fresh ones to as many prompts."""
    offline = [num_pairs(experiment, source) for source in arm.sources if source.is_offline]
    return min(experiment.probe.num_train_pairs, *(offline[:1] or [experiment.distillation.num_prompts]))


def responses_taken(experiment: Experiment, arm: ArmConfig) -> list[int]:
    """Responses that each source takes: a pair's first, and one more whenever it is drawn and due.

    Under policy "auto" at most one for each row, whatever it does.
    """
    num_steps = experiment.distillation.training.num_steps
    counts = []
    for source, rows in zip(arm.sources, rows_drawn(experiment, arm), strict=True):
        pairs = num_pairs(experiment, source)
        passes, rest = divmod(rows, pairs)
        draws = [(passes + 1, rest), (passes, pairs - rest)]  # of a pair, and how many pairs have so many
        every = source.refresh_every
        if every is None:
            counts.append(min(pairs, rows))
        elif source.refresh_unit == "epochs":
            counts.append(sum(num * math.ceil(times / every) for times, num in draws))
        else:
            counts.append(sum(num * min(times, math.ceil(num_steps / every)) for times, num in draws))
    first_offline = next((i for i, source in enumerate(arm.sources) if source.is_offline), None)
    if first_offline is not None:  # it is asked for the train proxy's pairs first, drawn or not
        extra = counts[first_offline] + experiment.probe.num_train_pairs
        counts[first_offline] = min(num_pairs(experiment, arm.sources[first_offline]), extra)
    if arm.policy == "auto":
        rows = rows_drawn(experiment, arm)
        counts = [max(n, row) if is_sampled(s) else n for s, n, row in zip(arm.sources, counts, rows, strict=True)]
    return counts


def num_held(experiment: Experiment, arm: ArmConfig) -> list[int]:
    """Responses that each source holds at one time, those of a replay beyond what it draws left out."""
    rows = rows_drawn(experiment, arm)
    if arm.policy == "auto":  # it may add as many completions as there are rows
        return rows
    return [min(n, num_pairs(experiment, source)) for source, n in zip(arm.sources, rows, strict=True)]


def num_held_signals(experiment: Experiment, arm: ArmConfig) -> int:
    """Sequences whose signals an arm holds at one time: what the probe walks on, and responses to be drawn again.

    Of responses that are written anew for every draw it holds those of one batch.
    """
    total, batch_size = 0, experiment.distillation.training.batch_size
    for source, count in zip(arm.sources, num_held(experiment, arm), strict=True):
        if has_signal(experiment, source):
            total += min(count, batch_size) if source.refresh_every == 1 else count
    return experiment.probe.num_prompts + experiment.probe.num_train_pairs + total


def num_stored_signals(experiment: Experiment, arm: ArmConfig) -> int:
    """Sequences of an arm whose signals go into a store: what the probe walks on, and all but a student's responses."""
    taken = zip(arm.sources, responses_taken(experiment, arm), strict=True)
    trained = sum(n for source, n in taken if has_signal(experiment, source) and source.writer != "student")
    return experiment.probe.num_prompts + num_train_pairs(experiment, arm) + trained


def is_sampled(source: SourceConfig) -> bool:
    """Whether a model writes the source's responses during the arm."""
    return source.writer != "dataset" and not source.is_replay


def has_signal(experiment: Experiment, source: SourceConfig) -> bool:
    """Whether the teacher scores what a source gives; hard labels, and a source of text, need the text alone."""
    return experiment.distillation.training.divergence != "hard_labels" and source.learn == "teacher"


def responses_counted(experiment: Experiment, arm: ArmConfig) -> tuple[int, int]:
    """Responses that a model writes, and those that the teacher writes plus those that it scores, as summary.json."""
    counts = responses_taken(experiment, arm)
    written = sum(n for source, n in zip(arm.sources, counts, strict=True) if is_sampled(source))
    by_teacher = sum(n for source, n in zip(arm.sources, counts, strict=True) if source.writer == "teacher")
    scored = sum(n for source, n in zip(arm.sources, counts, strict=True) if has_signal(experiment, source))
    return written, by_teacher + scored


def arm_work(experiment: Experiment, arm: ArmConfig) -> Work:
    """One arm: its sources, its training, and its probe from step 0 to the end."""
    work, probe, training = Work(), experiment.probe, experiment.distillation.training
    for source, rows, count in zip(
        arm.sources, rows_drawn(experiment, arm), responses_taken(experiment, arm), strict=True
    ):
        if is_sampled(source):
            work.written[source.writer] += count
        if has_signal(experiment, source):
            work.kept["teacher"] += count
            work.expanded["teacher"] += rows
    work.trained["student"] = training.num_steps * training.batch_size
    if training.anchor_weight > 0:
        work.scored["student"] += work.trained["student"]  # by the student's start
    held_out, monitored = probe.num_prompts, probe.num_monitored
    train_pairs = num_train_pairs(experiment, arm)
    if not any(source.is_offline for source in arm.sources):
        work.written["teacher"] += train_pairs
    walked: dict[str, int] = {"teacher": held_out + train_pairs, "student": monitored}
    if experiment.models.oracle is not None:
        walked["oracle"] = held_out
    work.kept.update(walked)
    work.expanded["teacher"] += held_out  # for its entropy
    times = num_evaluations(experiment)
    references = monitored if experiment.models.oracle is not None else held_out
    work.scored["student"] += times * (sum(walked.values()) + references)
    work.expanded.update({role: times * count for role, count in walked.items()})
    work.written["student"] += times * monitored
    shown = num_shown(experiment)
    fixed = shown * (3 if experiment.models.oracle is not None else 2)
    work.scored["student"] += times * (shown + fixed)
    for role in walked.keys() - {"student"}:
        work.scored[role] += times * shown + fixed
    for judge in (judge for judge in probe.judges if judge.kind == "model"):
        if judge.walks_on == "student":
            work.scored[judge.column] += times * monitored
            continue
        work.written[judge.column] += held_out
        work.kept[judge.column] += held_out
        work.expanded[judge.column] += times * held_out
        work.scored["student"] += times * held_out
    return Work.total([work, _distillation_set_work(experiment, arm)])


def num_shown(experiment: Experiment) -> int:
    """Held-out prompts whose responses are scored token by token for the report."""
    return min(experiment.probe.num_shown, NUM_SAMPLE_PROMPTS)


def num_evaluations(experiment: Experiment) -> int:
    """Evaluations of an arm, as ``evaluation.evaluation_steps`` has them."""
    return min(experiment.probe.num_evaluations - 1, experiment.distillation.training.num_steps) + 1
