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
from assay.footprint import FLOAT_BYTES, LAYER_ACTIVATIONS, TRAINED_COPIES, loss_bytes
from assay.models.batching import DENSE_VOCABULARY_LIMIT, forecast_bytes
from assay.models.cached import CachedLogProbs
from assay.models.pretrained import PretrainedModel
from assay.report.words import duration
from assay.training import train_step
from assay.types import Batch

NEARLY_FULL = 0.8
TIMED_SEQUENCES = 4
"""Sequences of the timed training step: small enough for any vocabulary."""
CHECKPOINTS = 5
"""Copies of the student that a run keeps on disk besides that of every evaluation: its best, its last, and a checkpoint
with AdamW's moments."""
_SIGNAL_COPIES = 2


def memory(case: Case) -> Outcome:
    """D014: the peak of a training step with both models, against the memory of the device."""
    student = case.student.size
    response, num_rows = case.request.max_response_tokens, case.request.batch_size
    weights = sum(side.size.num_parameters for side in case.sides) * FLOAT_BYTES
    trained = TRAINED_COPIES * student.num_parameters * FLOAT_BYTES
    layers = student.num_layers + student.num_encoder_layers
    states = LAYER_ACTIVATIONS * student.hidden_size * layers * (case.max_prompt_tokens + response) * FLOAT_BYTES
    there = memory_bytes(case.request.device)

    def logits(rows: int) -> int:
        signal = forecast_bytes(rows * response, student.hidden_size, student.vocab_size)
        return loss_bytes(rows * response, student) + _SIGNAL_COPIES * signal

    def peak_of(rows: int) -> int:
        return weights + trained + logits(rows) + rows * states

    peak = peak_of(num_rows)
    numbers = {
        "peak_bytes": peak,
        "memory_bytes": there,
        "frozen_weights_bytes": weights,
        "trained_weights_bytes": trained,
        "logits_bytes": logits(num_rows),
        "hidden_states_bytes": num_rows * states,
    }
    what = (
        f"a batch of {num_rows} takes at most {_size(peak)} of {_size(there)}: frozen models "
        f"{_size(weights)}, student with gradients and AdamW {_size(trained)}, vocabulary logits "
        f"{_size(logits(num_rows))}, hidden states {_size(num_rows * states)}"
    )
    if peak <= NEARLY_FULL * there:
        return passed(what, **numbers)
    fitting = next((rows for rows in range(num_rows, 0, -1) if peak_of(rows) <= NEARLY_FULL * there), 0)
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
    num_copies = CHECKPOINTS + case.work.experiment.probe.num_evaluations
    checkpoints = num_copies * case.student.size.num_parameters * FLOAT_BYTES
    signal, signal_is = 0, ""
    if case.teacher is not None:
        size = case.teacher.size
        width = size.vocab_size if size.vocab_size <= DENSE_VOCABULARY_LIMIT else size.hidden_size
        signal = len(case.kept) * case.request.max_response_tokens * width * FLOAT_BYTES
        kept_as = "log-probabilities" if width == size.vocab_size else "hidden states"
        signal_is = (
            f", the teacher's exact signal on one response to each of {len(case.kept):,} prompts, if it is stored, "
            f"{_size(signal)} ({kept_as})"
        )
    free = shutil.disk_usage(Path.cwd()).free
    numbers = {"checkpoints_bytes": checkpoints, "signal_bytes": signal, "free_bytes": free}
    what = (
        f"{num_copies} copies of the student, as checkpoints and of every evaluation, take {_size(checkpoints)}"
        f"{signal_is}; {_size(free)} are free here"
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
    num_prompts = len(case.kept)
    training = _training_seconds(case.student.model, few)
    numbers = {"trained_tokens_per_second": few.num_tokens / training}
    what = [f"{numbers['trained_tokens_per_second']:,.0f} response tokens per second trained on by the student"]
    total = num_prompts * request.passes * training / len(few)
    if request.responses is None:
        asked = pairs if case.is_served else few  # a server answers many at a time
        writing, scoring = _teacher_seconds(case, asked)
        total += num_prompts * (writing + scoring) / len(asked)
        numbers["written_tokens_per_second"] = asked.num_tokens / writing
        numbers["scored_tokens_per_second"] = asked.num_tokens / scoring
        what.append(f"{numbers['written_tokens_per_second']:,.0f} written")
        what.append(f"{numbers['scored_tokens_per_second']:,.0f} scored by the teacher")
    told = f"{', '.join(what)}; {num_prompts:,} prompts, trained on in {request.passes:g} passes, "
    if case.is_served:
        numbers["requests"] = 2 * num_prompts
        told += f"and {2 * num_prompts:,} requests to the server, one to write and one to score each, "
    return passed(f"{told}take about {duration(total)} without the probe", **numbers, total_seconds=total)


def _teacher_seconds(case: Case, pairs: Batch) -> tuple[float, float]:
    """Of the teacher's writing to these prompts, and of its scoring these pairs."""
    prompts, seeds = list(pairs.prompt_ids), range(len(pairs))
    limit = case.request.max_response_tokens
    if case.teacher is None:
        served = case.served
        return _seconds(lambda: served.sample(prompts, seeds, limit)), _seconds(lambda: served.top_k(pairs))
    model = case.teacher.model
    writing = _seconds(lambda: model.sample(prompts, seeds, limit))
    cache = CachedLogProbs(model)
    return writing, _seconds(lambda: cache.compute(pairs))


def _training_seconds(student: PretrainedModel, pairs: Batch) -> float:
    """Of one optimiser step towards the student's own law, which has the right shape, with the learning rate 0."""
    cache = CachedLogProbs(student)
    batch = Batch(pairs.prompt_ids, pairs.response_ids, cache.signal(cache.compute(pairs)))
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
