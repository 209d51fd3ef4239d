"""Checks of what a run will take: memory and disk from shapes alone, time from a short calibration."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.optim import AdamW

from assay.config import TrainingConfig
from assay.doctor.case import Case
from assay.doctor.findings import Outcome, passed, refusal, warning
from assay.footprint import FLOAT_BYTES, LAYER_ACTIVATIONS, LOSS_COPIES, TRAINED_COPIES
from assay.models.batching import DENSE_VOCABULARY_LIMIT
from assay.models.pretrained import PretrainedModel
from assay.report.words import duration
from assay.training import train_step
from assay.types import Batch, Dense

NEARLY_FULL = 0.8
TIMED_SEQUENCES = 4
"""Sequences of the timed training step: small enough for any vocabulary."""
CHECKPOINTS = 5
"""Copies of the student that a run keeps on disk: its best, its last, and a checkpoint with AdamW's moments."""
_SIGNAL_COPIES = 2


def memory(case: Case) -> Outcome:
    """D014: the peak of a training step with both models, against the memory of the device."""
    teacher, student = case.teacher.size, case.student.size
    response, num_rows = case.request.max_response_tokens, case.request.batch_size
    weights = (teacher.num_parameters + student.num_parameters) * FLOAT_BYTES
    trained = TRAINED_COPIES * student.num_parameters * FLOAT_BYTES
    logits = (LOSS_COPIES + _SIGNAL_COPIES) * response * student.vocab_size * FLOAT_BYTES
    layers = student.num_layers + student.num_encoder_layers
    states = LAYER_ACTIVATIONS * student.hidden_size * layers * (case.max_prompt_tokens + response) * FLOAT_BYTES
    peak, there = weights + trained + num_rows * (logits + states), memory_bytes(case.request.device)
    numbers = {
        "peak_bytes": peak,
        "memory_bytes": there,
        "frozen_weights_bytes": weights,
        "trained_weights_bytes": trained,
        "logits_bytes": num_rows * logits,
        "hidden_states_bytes": num_rows * states,
    }
    what = (
        f"a batch of {num_rows} takes at most {_size(peak)} of {_size(there)}: frozen teacher and student "
        f"{_size(weights)}, student with gradients and AdamW {_size(trained)}, vocabulary logits "
        f"{_size(num_rows * logits)}, hidden states {_size(num_rows * states)}"
    )
    if peak <= NEARLY_FULL * there:
        return passed(what, **numbers)
    fitting = int((NEARLY_FULL * there - weights - trained) // (logits + states))
    if fitting < 1:
        advice = "take smaller models, or a larger machine: not even one sequence fits"
    else:
        parts = math.ceil(num_rows / fitting)
        advice = f"set training.num_micro_batches to {parts} ({fitting} sequences at a time), or lower the lengths"
    return (warning if peak <= there else refusal)(what, advice, **numbers)


def memory_bytes(device: str) -> int:
    """The memory of the machine, or of the GPU where a model is put on one."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def disk(case: Case) -> Outcome:
    """D015: checkpoints and the teacher's stored signal, against the free space of this folder's disk."""
    teacher, student = case.teacher.size, case.student.size
    width = teacher.vocab_size if teacher.vocab_size <= DENSE_VOCABULARY_LIMIT else teacher.hidden_size
    kept_as = "log-probabilities" if width == teacher.vocab_size else "hidden states"
    signal = len(case.kept) * case.request.max_response_tokens * width * FLOAT_BYTES
    checkpoints = CHECKPOINTS * student.num_parameters * FLOAT_BYTES
    free = shutil.disk_usage(Path.cwd()).free
    numbers = {"checkpoints_bytes": checkpoints, "signal_bytes": signal, "free_bytes": free}
    what = (
        f"checkpoints take {_size(checkpoints)}, the teacher's exact signal on one response to each of "
        f"{len(case.kept):,} prompts, if it is stored, {_size(signal)} ({kept_as}); {_size(free)} are free here"
    )
    if checkpoints > free:
        return refusal(what, "free some space, or run where there is more", **numbers)
    if checkpoints + signal > NEARLY_FULL * free:
        return warning(what, "do not store the signal, or store its most probable tokens only", **numbers)
    return passed(what, **numbers)


def run_time(case: Case) -> Outcome:
    """D023: seconds of writing, scoring and training on a few real prompts, for all of them."""
    pairs, request = case.teacher_pairs, case.request
    few = pairs[: min(TIMED_SEQUENCES, len(pairs))]
    prompts = list(few.prompt_ids)
    teacher, student = case.teacher.model, case.student.model
    writing = _seconds(lambda: teacher.sample(prompts, range(len(prompts)), request.max_response_tokens))
    with torch.no_grad(), teacher.evaluating():
        scoring = _seconds(lambda: teacher.log_probs(few))
    training = _training_seconds(student, few)
    num_prompts = len(case.kept)
    each = [seconds / len(few) for seconds in (writing, scoring, training)]
    total = num_prompts * (each[0] + each[1] + request.passes * each[2])
    written, scored, trained = (few.num_tokens / seconds for seconds in (writing, scoring, training))
    return passed(
        f"response tokens per second: {written:,.0f} written and {scored:,.0f} scored by the teacher, {trained:,.0f} "
        f"trained on by the student, {len(few)} sequences at a time; {num_prompts:,} prompts, written and scored once "
        f"and trained on in {request.passes:g} passes, take about {duration(total)} without the probe",
        written_tokens_per_second=written,
        scored_tokens_per_second=scored,
        trained_tokens_per_second=trained,
        total_seconds=total,
    )


def _training_seconds(student: PretrainedModel, pairs: Batch) -> float:
    """Of one optimiser step towards the student's own law, which has the right shape, with the learning rate 0."""
    with torch.no_grad(), student.evaluating():
        batch = Batch(pairs.prompt_ids, pairs.response_ids, Dense(student.log_probs(pairs)))
    config = TrainingConfig(learning_rate=0.0, warmup_steps=0)
    optimizer = AdamW(student.module.parameters(), lr=0.0)
    seconds = _seconds(lambda: train_step(student, optimizer, batch, 0, config))
    student.module.zero_grad(set_to_none=True)
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    """The shorter of two times: the first also warms up."""
    found = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def _size(num_bytes: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes / 1024:.3g} KiB"
