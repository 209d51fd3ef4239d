"""What a run takes of memory and disk, counted from its config and the sizes of its models.

Estimates on the high side, in float32 throughout, without what libraries hold on their own: some 0.5 GB for Python and
torch in every process, a GPU's context, blocks that an allocator keeps.
"""

from __future__ import annotations

import math

from assay import runs
from assay.config import ArmConfig, Experiment, TrainingConfig
from assay.models.batching import (
    SAMPLING_BATCH_SIZE,
    SCORING_BATCH_SIZE,
    SIGNALS_IN_MEMORY_BYTES,
    forecast_bytes,
    tokens_at_once,
)
from assay.models.sizes import ModelSize
from assay.workload import (
    Sizes,
    is_sampled,
    num_evaluations,
    num_held,
    num_held_signals,
    num_pairs,
    num_shown,
    num_stored_signals,
    sft_steps,
    whole_role,
)

FLOAT_BYTES = 4
TRAINED_COPIES = 4
"""A trained model is there four times: weights, gradients, and the two moments of AdamW."""
LOSS_COPIES = 8
"""[tokens, vocabulary] tensors of a chunk of the loss: logits, log q, log p, p, difference, its terms, gradients."""
LAYER_ACTIVATIONS = 16
"""Numbers kept for the backward pass, per token and layer, in hidden sizes [Korthikanti et al. 2022, without masks]."""

# Bytes on disk, from run folders: a tokenizer per token, rows of the probe, a small table, a page with its figures.
TOKENIZER_BYTES, PROBE_ROW_BYTES, TABLE_BYTES, REPORT_BYTES, LOSS_BYTES = 64, 24, 5_000, 1_000_000, 22
TOKEN_ROW_BYTES = 12
"""Of a shown token."""
SIGNAL_FILE_BYTES = 500
"""Of a stored sequence beside its signal: names and places of its tensors, and its address."""


def memory_bytes(experiment: Experiment, sizes: Sizes) -> int:
    """The peak of the largest stage that a worker process runs, each process being one stage at a time."""
    oracle, stage = sizes.get("oracle"), experiment.stage_one
    peaks = [FLOAT_BYTES * sum(size.num_parameters for size in sizes.values())]
    if oracle is not None:
        peaks.append(oracle.num_parameters * FLOAT_BYTES + _decoding(experiment, oracle, SAMPLING_BATCH_SIZE))
    for role in sizes.keys() & {"teacher", "student"}:
        weights = sizes[role].num_parameters * FLOAT_BYTES
        if oracle is not None and sft_steps(experiment, role):
            peaks.append(TRAINED_COPIES * weights + _training_step(experiment, sizes[role], stage.batch_size))
        others = oracle.num_parameters * FLOAT_BYTES if oracle is not None and role == "teacher" else 0
        whole = whole_role(experiment, role, sizes[role])
        both = weights + whole.num_parameters * FLOAT_BYTES
        peaks.append(both + others + _decoding(experiment, whole, SAMPLING_BATCH_SIZE))
    return max([*peaks, *(_arm_memory(experiment, arm, sizes) for arm in experiment.arms)])


def _arm_memory(experiment: Experiment, arm: ArmConfig, sizes: Sizes) -> int:
    """The frozen models (the student's start is one), the trained student, what is remembered, and one step.

    An anchor keeps the start once more; an average, or the student that low-rank updates are merged into, is a copy.
    """
    sizes = {role: whole_role(experiment, role, size) for role, size in sizes.items()}
    student = sizes["student"]
    probe, training = experiment.probe, experiment.distillation.training
    frozen = sum(size.num_parameters for size in sizes.values())
    copies = TRAINED_COPIES + (training.anchor_weight > 0) + _has_learner(training)
    weights = (frozen + copies * student.num_parameters) * FLOAT_BYTES
    remembered: dict[str, int] = {
        "oracle": probe.num_prompts,
        "teacher": 0 if spills(experiment, arm, sizes.get("teacher")) else num_held_signals(experiment, arm),
        "student": probe.num_monitored,
        **{judge.column: probe.num_prompts * (judge.walks_on == "judge") for judge in probe.judges},
    }
    caches = sum(_signal_bytes(experiment, role, size, remembered[role]) for role, size in sizes.items())
    signal = 2 * _signal_bytes(experiment, "teacher", sizes.get("teacher", student), training.batch_size)
    micro_batch = math.ceil(training.batch_size / training.num_micro_batches)
    writers = [sizes[source.writer] for source in arm.sources if is_sampled(source) and source.writer in sizes]
    largest_step = max(
        _training_step(experiment, student, micro_batch) + signal,
        *(_scoring(experiment, size) for size in sizes.values()),
        *(_decoding(experiment, size, training.batch_size) for size in writers),
        *(_decoding(experiment, size, probe.num_train_pairs) for role, size in sizes.items() if role == "teacher"),
        *(_decoding(experiment, sizes[role], SAMPLING_BATCH_SIZE) for role in probe.judging_models),
        _decoding(experiment, student, min(probe.num_monitored, SAMPLING_BATCH_SIZE)),
    )
    return weights + caches + largest_step


def spills(experiment: Experiment, arm: ArmConfig, teacher: ModelSize | None) -> bool:
    """Whether what an arm's teacher says goes into files instead of memory; ``teacher`` is all teachers together."""
    if teacher is None:
        return False
    most = _signal_bytes(experiment, "teacher", teacher, num_held_signals(experiment, arm))
    return most > SIGNALS_IN_MEMORY_BYTES


def _signal_bytes(experiment: Experiment, role: str, size: ModelSize, num_sequences: int) -> int:
    """What is kept of a role's word on so many sequences, several teachers being one."""
    listed = experiment.distillation.teacher_top_k if role == "teacher" else None
    num_tokens = num_sequences * experiment.task.max_response_tokens
    return forecast_bytes(num_tokens, size.hidden_size, size.vocab_size, listed)


def _store_bytes(experiment: Experiment, arm: ArmConfig, teacher: ModelSize) -> int:
    """What an arm adds to a signal store that holds nothing yet, at most; ``teacher`` is the size of one."""
    whole = whole_role(experiment, "teacher", teacher)
    num_sequences = num_stored_signals(experiment, arm)
    return _signal_bytes(experiment, "teacher", whole, num_sequences) + SIGNAL_FILE_BYTES * num_sequences


def _has_learner(training: TrainingConfig) -> bool:
    """Whether the model that is trained is another one than the student that follows it."""
    return training.averaging_decay is not None or training.lora_rank is not None


def _num_kept(experiment: Experiment, arm: ArmConfig) -> int:
    """Students that an arm keeps to go back to, until it ends; without an oracle it may need them to choose one."""
    may_go_back = arm.policy in ("stop", "auto") or experiment.models.oracle is None
    return num_evaluations(experiment) if may_go_back else 0


def _training_step(experiment: Experiment, size: ModelSize, num_rows: int) -> int:
    """Activations kept for the backward pass of ``num_rows`` sequences, in float32, and the loss's tensors."""
    prompt, response = experiment.task.max_prompt_tokens, experiment.task.max_response_tokens
    layer_tokens = size.num_layers * (prompt + response)
    attended = 0
    if size.family == "seq2seq":  # the decoder attends twice, and keeps keys and values of the prompt
        layer_tokens = size.num_encoder_layers * prompt + size.num_layers * (2 * response + prompt // 4)
        attended = size.num_encoder_layers * prompt**2 + size.num_layers * response * (response + prompt)
    kept = LAYER_ACTIVATIONS * size.hidden_size * layer_tokens
    if size.relative_positions:
        kept += 2 * size.num_heads * attended
    return num_rows * kept * FLOAT_BYTES + loss_bytes(num_rows * response, size)


def loss_bytes(num_tokens: int, size: ModelSize) -> int:
    """The tensors of a chunk; where there are several, the head's gradient too, of the chunk and of all before it."""
    at_once = tokens_at_once(size.vocab_size, size.hidden_size)
    gradients = 2 * size.hidden_size if num_tokens > at_once else 0
    return (LOSS_COPIES * min(num_tokens, at_once) + gradients) * size.vocab_size * FLOAT_BYTES


def _scoring(experiment: Experiment, size: ModelSize) -> int:
    """One batch forward: a layer's activations, and a chunk's log-probabilities of two models with their terms."""
    num_tokens = min(SCORING_BATCH_SIZE * experiment.task.max_response_tokens, tokens_at_once(size.vocab_size))
    return (SCORING_BATCH_SIZE * _layer(experiment, size) + 4 * num_tokens * size.vocab_size) * FLOAT_BYTES


def _decoding(experiment: Experiment, size: ModelSize, num_rows: int) -> int:
    """Keys and values of all tokens (one layer's twice while they grow), a layer's activations, one token's law."""
    num_tokens = experiment.task.max_prompt_tokens + experiment.task.max_response_tokens
    cache = 2 * (size.num_layers + 1) * size.attention_size * num_tokens
    law = 6 * size.vocab_size  # logits, log-probabilities, and two float64
    return num_rows * (cache + _layer(experiment, size) + law) * FLOAT_BYTES


def _layer(experiment: Experiment, size: ModelSize) -> int:
    """Numbers that one layer holds for one sequence while it passes forward."""
    prompt, response = experiment.task.max_prompt_tokens, experiment.task.max_response_tokens
    activations = LAYER_ACTIVATIONS * size.hidden_size * (prompt + response)
    return activations + (size.num_heads * prompt**2 if size.relative_positions else 0)


def disk_bytes(experiment: Experiment, sizes: Sizes) -> int:
    """Checkpoints of SFT and of every arm (the two newest, best, last, kept ones), tables of arms and run, the report.

    With a signal store what every arm adds to it, as if it held nothing and no two arms shared anything.
    """
    probe, task = experiment.probe, experiment.task
    response_row = 4 * task.max_prompt_tokens + 6 * task.max_response_tokens + 40
    state_row = 8 * task.max_response_tokens + 56
    times = num_evaluations(experiment)
    total = REPORT_BYTES
    for role in ("teacher", "student") if experiment.models.oracle is not None else ():
        if role == "teacher" and experiment.models.teacher_is_oracle:
            continue
        weights = sizes[role].num_parameters * FLOAT_BYTES
        number = experiment.models.num_teachers if role == "teacher" else 1
        total += number * (weights + TOKENIZER_BYTES * sizes[role].vocab_size)
        if sft_steps(experiment, role):
            state = 3 * weights + experiment.stage_one.num_oracle_prompts * state_row
            total += number * runs.NUM_CHECKPOINTS * state
    num_oracle_prompts = experiment.stage_one.num_oracle_prompts if experiment.models.oracle is not None else 0
    num_responses = num_oracle_prompts + 4 * probe.num_prompts
    evaluated = 2 * probe.num_prompts + probe.num_train_pairs + 2 * probe.num_monitored
    evaluated += sum(
        probe.num_prompts if judge.kind == "model" and judge.walks_on == "judge" else probe.num_monitored
        for judge in probe.judges
    )
    num_tokens = 0
    weights = sizes["student"].num_parameters * FLOAT_BYTES
    for arm in experiment.arms:
        stored = sum(
            num_pairs(experiment, source) if source.is_replay else count
            for source, count in zip(arm.sources, num_held(experiment, arm), strict=True)
        )
        checkpoint = (3 + _has_learner(experiment.distillation.training)) * weights + stored * state_row
        total += (
            (2 + _num_kept(experiment, arm)) * weights
            + runs.NUM_CHECKPOINTS * checkpoint
            + 2 * TOKENIZER_BYTES * sizes["student"].vocab_size
        )
        total += LOSS_BYTES * experiment.distillation.training.num_steps + 3 * times * TABLE_BYTES
        num_responses += probe.num_train_pairs + times * probe.num_shown
        num_tokens += times * 4 * num_shown(experiment) * task.max_response_tokens
        teacher = sizes.get("teacher")
        whole = None if teacher is None else whole_role(experiment, "teacher", teacher)
        if experiment.distillation.signal_store is not None or spills(experiment, arm, whole):
            total += _store_bytes(experiment, arm, sizes["teacher"])
    num_values = probe.num_prompts + len(experiment.arms) * times * evaluated
    rows = num_responses * response_row + num_values * PROBE_ROW_BYTES + num_tokens * TOKEN_ROW_BYTES
    return total + 2 * rows
