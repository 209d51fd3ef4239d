"""The training loop: one loss, one step, one loop; it resumes exactly (``checkpoints``)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import AdamW

from assay import runs
from assay.buckets import lists_all, on_same_buckets, resolved
from assay.checkpoints import FitState, Stateful, load_newest_checkpoint, load_weights, read_weights, save_checkpoint
from assay.chunked import summed_over_chunks
from assay.config import TrainingConfig
from assay.divergences import DIVERGENCES, divergence, hard_labels, reverse_kl
from assay.errors import AssayError
from assay.models.averaging import Learner
from assay.models.batching import tokens_at_once
from assay.models.language_model import LanguageModel
from assay.models.pretrained import PretrainedModel
from assay.types import Action, Batch, Sample, TeacherSignal, TopK, Writer


class Source(Stateful, Protocol):
    """Anything that yields the batch of a step."""

    def batch(self, step: int, student: LanguageModel) -> Batch:
        """The batch to learn from at optimiser step ``step``."""
        ...

    def carry_out(self, action: Action) -> None:
        """What an action changes about the batches to come."""
        ...

    def last_rows(self) -> Sequence[tuple[Writer, str]]:
        """Who wrote each response of the last batch, and to which prompt (its id)."""
        ...


def distillation_loss(
    student: PretrainedModel, batch: Batch, config: TrainingConfig, start: LanguageModel | None = None
) -> Tensor:
    """Σ over response tokens of D(p, q) + λ KL(q‖s), in nats: p the teacher's next-token law, q the student's.

    The sum, not the mean: divide by the number of response tokens of the whole optimiser step, so that
    accumulation and padding cannot change the loss. ``softmax_temperature`` τ divides both log-probabilities
    before normalising [Hinton et al. 2015], without the factor τ². The second term, with λ = ``anchor_weight`` and
    always at temperature 1, is there when ``start``, the model s, is given. With w = ``hard_label_weight`` the
    teacher's term is (1 − w) D(p, q) + w (−log q(token)), the labels at temperature 1 too.
    Of a teacher that lists its most probable tokens D is a lower bound: that of the two laws on the listed tokens and
    all others as one bucket. Laws are made a few response tokens at a time (``assay.chunked``): of a large
    vocabulary no [N, V] array is ever there. Raises AssayError when the divergence needs a distribution and the batch
    has none, or a temperature the whole law where a part is listed.
    """
    if DIVERGENCES[config.divergence].needs == "distribution" and isinstance(batch.signal, Sample):
        raise AssayError(
            f"divergence {config.divergence!r} needs the teacher's distribution at {batch.num_tokens} tokens, "
            "but the batch has text only: use hard_labels"
        )
    hidden_NH = student.hidden(batch)
    token_ids_N = torch.tensor([t for ids in batch.response_ids for t in ids])
    start_NH = None
    if start is not None:
        with torch.no_grad(), start.evaluating():
            start_NH = start.hidden(batch)

    def losses(log_q_NV: Tensor, tokens: slice) -> Tensor:
        loss_N = _losses(log_q_NV, batch.signal.at(tokens), token_ids_N[tokens].to(log_q_NV.device), config)
        if start is None or start_NH is None:
            return loss_N
        with torch.no_grad(), start.evaluating():
            log_s_NV = start.head(start_NH[tokens])
        return loss_N + config.anchor_weight * reverse_kl(log_s_NV, log_q_NV)

    at_once = tokens_at_once(student.vocab_size, hidden_NH.shape[-1])
    return summed_over_chunks(hidden_NH, student.head, student.head_weights, losses, at_once)


def _losses(log_q_NV: Tensor, signal: TeacherSignal, token_ids_N: Tensor, config: TrainingConfig) -> Tensor:
    """What the teacher says of these response tokens, each with its loss in nats."""
    loss_N = _from_teacher(log_q_NV, signal, token_ids_N, config)
    if config.hard_label_weight == 0:
        return loss_N
    return (1 - config.hard_label_weight) * loss_N + config.hard_label_weight * hard_labels(log_q_NV, token_ids_N)


def _from_teacher(log_q_NV: Tensor, signal: TeacherSignal, token_ids_N: Tensor, config: TrainingConfig) -> Tensor:
    loss = divergence(config.divergence, **config.divergence_parameters)
    if DIVERGENCES[config.divergence].needs == "tokens":
        return loss(log_q_NV, token_ids_N)
    assert not isinstance(signal, Sample)
    law = resolved(signal, log_q_NV.device)
    log_p, log_q = on_same_buckets(law, log_q_NV)
    if config.softmax_temperature != 1.0:
        if isinstance(law, TopK) and not lists_all(law, log_q_NV.shape[-1]):
            raise AssayError(
                f"softmax_temperature {config.softmax_temperature:g} needs the teacher's whole law, but it lists "
                f"{law.token_ids_NK.shape[1]} of {log_q_NV.shape[-1]} tokens: set it to 1"
            )
        log_p = (log_p / config.softmax_temperature).log_softmax(dim=-1)
        log_q = (log_q / config.softmax_temperature).log_softmax(dim=-1)
    return loss(log_p, log_q)


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """The rate of step 0, 1, …: linear warm-up, then constant, cosine or linear decay to 0 at ``num_steps``."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    factor = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done}
    return config.learning_rate * factor[config.schedule]


FAILED_BATCH = "failed_batch.json"
"""In the folder of checkpoints: the rows of the batch whose loss or gradient was not finite."""


class NotFiniteError(AssayError):
    """A loss or a gradient is NaN or infinite; no weight has changed."""


def train_step(
    student: PretrainedModel,
    optimizer: AdamW,
    batch: Batch,
    step: int,
    config: TrainingConfig,
    start: LanguageModel | None = None,
) -> float:
    """One optimiser step; returns the loss in nats per response token. Raises NotFiniteError if it is not finite."""
    autocast = torch.autocast(student.device.type, torch.bfloat16) if config.precision == "bfloat16" else nullcontext()
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    size = math.ceil(len(batch) / config.num_micro_batches)
    for first in range(0, len(batch), size):
        with autocast:
            loss = distillation_loss(student, batch[first : first + size], config, start) / batch.num_tokens
        loss.backward()
        total += loss.item()
    if not math.isfinite(total):
        raise NotFiniteError(f"the loss is {total} at step {step}")
    norm = torch.nn.utils.clip_grad_norm_(student.module.parameters(), config.max_grad_norm).item()
    if not math.isfinite(norm):
        raise NotFiniteError(f"the gradient's norm is {norm} at step {step}")
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, config)
    optimizer.step()
    return total


def fit(
    student: PretrainedModel,
    source: Source,
    config: TrainingConfig,
    *,
    before_step: Callable[[FitState], Action | None] | None = None,
    checkpoints: Path | None = None,
    kept: Path | None = None,
    repaired: Callable[[str], None] = runs.say,
) -> FitState:
    """Trains for ``config.num_steps`` steps; with ``checkpoints`` it resumes from the newest one there.

    ``before_step`` is called before each step and once after the last, with ``state.step`` steps done: it
    evaluates, reports progress, raises to end it all, or returns an action, which is carried out at once; students to
    go back to are in ``kept``, by their steps. A resumed loop gives the same weights as an uninterrupted one.
    ``student`` is what is evaluated and saved; the optimiser moves, and ``source`` is given, the learner's model,
    which is the same one unless weights are averaged or low-rank updates trained (``models.averaging.Learner``).
    ``repaired`` is told of a damaged checkpoint that it does without. Raises AssayError when the loss or the gradient
    is not finite: the sentence says of which batch, ``FAILED_BATCH`` lists its rows, and checkpoints stay as they are.
    """
    start = copy.deepcopy(student) if config.anchor_weight > 0 else None  # before a checkpoint is loaded
    learner = Learner(student, config)
    optimizer = AdamW(
        learner.model.module.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    state = FitState(seconds={"student": 0.0})
    if checkpoints is not None:
        with runs.readable_errors(checkpoints, "write in"):
            (checkpoints / FAILED_BATCH).unlink(missing_ok=True)
        state = load_newest_checkpoint(checkpoints, learner, optimizer, source, repaired) or state
    learner.model.module.train()
    while True:
        action = before_step(state) if before_step is not None and state.stopped_at is None else None
        if action is not None:
            carry_out(action, learner, optimizer, source, state, kept)
            if checkpoints is not None:
                save_checkpoint(checkpoints, learner, optimizer, source, state)
        if state.step == config.num_steps or state.stopped_at is not None:
            break
        batch = source.batch(state.step, learner.model)
        started = time.perf_counter()
        try:
            state.losses.append(train_step(learner.model, optimizer, batch, state.step, config, start))
        except NotFiniteError as error:
            raise AssayError(f"{error}, {_blame(source, state.step, checkpoints)}") from error
        learner.follow()
        state.seconds["student"] += time.perf_counter() - started
        state.step += 1
        due = state.step % config.checkpoint_every == 0 or state.step == config.num_steps
        if checkpoints is not None and due:
            save_checkpoint(checkpoints, learner, optimizer, source, state)
    learner.model.module.eval()
    return state


def _blame(source: Source, step: int, checkpoints: Path | None) -> str:
    """Which batch it was and what to do; all its rows go into ``FAILED_BATCH``."""
    rows = [{"writer": writer, "prompt_id": prompt_id} for writer, prompt_id in source.last_rows()]
    writers = " and ".join(dict.fromkeys(row["writer"] for row in rows))
    shown = ", ".join([*dict.fromkeys(row["prompt_id"] for row in rows)][:3])
    text = f"in a batch of {len(rows)} responses of the {writers} (to the prompts {shown}"
    if checkpoints is None:
        return f"{text}, …): lower the learning rate, or look at those responses"
    runs.write_json(checkpoints / FAILED_BATCH, {"step": step, "rows": rows})
    return (
        f"{text}, …; all in {str(checkpoints / FAILED_BATCH)!r}): lower the learning rate, or look at those "
        "responses; the last checkpoint is kept"
    )


def carry_out(
    action: Action,
    learner: Learner,
    optimizer: AdamW,
    source: Source,
    state: FitState,
    kept: Path | None,
) -> None:
    """Does what an action says; with ``to_step``, on that step's student and without the optimiser's memory."""
    if action.to_step is not None and action.to_step != state.step:
        assert kept is not None
        load_weights(learner.student, read_weights(kept / f"step-{action.to_step:08d}"), kept)
        learner.restart()
        optimizer.state.clear()
    source.carry_out(action)
    state.action_steps.append(state.step)
    if action.kind == "stop":
        state.stopped_at = state.step if action.to_step is None else action.to_step
