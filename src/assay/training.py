"""The training loop: one loss, one step, one loop, exact resume."""

from __future__ import annotations

import copy
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from assay import ranks, runs
from assay.buckets import lists_all, on_same_buckets
from assay.config import TrainingConfig
from assay.divergences import DIVERGENCES, divergence, hard_labels, reverse_kl
from assay.errors import AssayError
from assay.models.averaging import Learner
from assay.models.language_model import LanguageModel
from assay.models.pretrained import PretrainedModel
from assay.models.sharding import clip_gradients, divided_like, is_sharded, whole
from assay.types import Action, Batch, Sample, TopK


class Source(Protocol):
    """Anything that yields the batch of a step."""

    def batch(self, step: int, student: LanguageModel) -> Batch:
        """The batch to learn from at optimiser step ``step``."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up such a state."""
        ...

    def carry_out(self, action: Action) -> None:
        """What an action changes about the batches to come."""
        ...


def distillation_loss(
    student: LanguageModel, batch: Batch, config: TrainingConfig, start: LanguageModel | None = None
) -> Tensor:
    """Σ over response tokens of D(p, q) + λ KL(q‖s), in nats: p the teacher's next-token law, q the student's.

    The sum, not the mean: divide by the number of response tokens of the whole optimiser step, so that
    accumulation and padding cannot change the loss. ``softmax_temperature`` τ divides both log-probabilities
    before normalising [Hinton et al. 2015], without the factor τ². The second term, with λ = ``anchor_weight`` and
    always at temperature 1, is there when ``start``, the model s, is given. With w = ``hard_label_weight`` the
    teacher's term is (1 − w) D(p, q) + w (−log q(token)), the labels at temperature 1 too.
    Of a teacher that lists its most probable tokens D is a lower bound: that of the two laws on the listed tokens and
    all others as one bucket. Raises AssayError when the divergence needs a distribution and the batch has none, or a
    temperature the whole law where a part is listed.
    """
    log_q_NV = student.log_probs(batch)
    total = _from_teacher(log_q_NV, batch, config)
    if config.hard_label_weight > 0:
        labels = hard_labels(log_q_NV, _token_ids(batch, log_q_NV)).sum()
        total = (1 - config.hard_label_weight) * total + config.hard_label_weight * labels
    if start is None:
        return total
    with torch.no_grad(), start.evaluating():
        log_s_NV = start.log_probs(batch)
    return total + config.anchor_weight * reverse_kl(log_s_NV, log_q_NV).sum()


def _from_teacher(log_q_NV: Tensor, batch: Batch, config: TrainingConfig) -> Tensor:
    loss = divergence(config.divergence, **config.divergence_parameters)
    if DIVERGENCES[config.divergence].needs == "tokens":
        return loss(log_q_NV, _token_ids(batch, log_q_NV)).sum()
    signal = batch.signal
    if isinstance(signal, Sample):
        raise AssayError(
            f"divergence {config.divergence!r} needs the teacher's distribution at {batch.num_tokens} tokens, "
            "but the batch has text only: use hard_labels"
        )
    log_p, log_q = on_same_buckets(signal, log_q_NV)
    if config.softmax_temperature != 1.0:
        if isinstance(signal, TopK) and not lists_all(signal, log_q_NV.shape[-1]):
            raise AssayError(
                f"softmax_temperature {config.softmax_temperature:g} needs the teacher's whole law, but it lists "
                f"{signal.token_ids_NK.shape[1]} of {log_q_NV.shape[-1]} tokens: set it to 1"
            )
        log_p = (log_p / config.softmax_temperature).log_softmax(dim=-1)
        log_q = (log_q / config.softmax_temperature).log_softmax(dim=-1)
    return loss(log_p, log_q).sum()


def _token_ids(batch: Batch, log_q_NV: Tensor) -> Tensor:
    return torch.tensor([t for ids in batch.response_ids for t in ids], device=log_q_NV.device)


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """The rate of step 0, 1, …: linear warm-up, then constant, cosine or linear decay to 0 at ``num_steps``."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    factor = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done}
    return config.learning_rate * factor[config.schedule]


_ADVICE = "lower the learning rate, or look at the responses of that batch; the last checkpoint is kept"


def train_step(
    student: PretrainedModel,
    optimizer: AdamW,
    batch: Batch,
    step: int,
    config: TrainingConfig,
    start: LanguageModel | None = None,
) -> float:
    """One optimiser step; returns the loss in nats per response token. Raises AssayError if it is not finite.

    Of several ranks each learns from its rows of the batch; loss and gradient are their sums, so all step alike.
    """
    autocast = torch.autocast(student.device.type, torch.bfloat16) if config.precision == "bfloat16" else nullcontext()
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    mine = batch[ranks.part([len(p) + len(r) for p, r in zip(batch.prompt_ids, batch.response_ids, strict=True)])]
    parts, sharded = _micro_batches(mine, config), is_sharded(student)
    if sharded:  # the others need this rank's part of every layer, also when it has no rows left
        parts += [slice(0, 0)] * (ranks.most("the micro-batches", len(parts)) - len(parts))
    with ranks.own_random_numbers(step):
        for rows in parts:
            part = mine[rows]
            with autocast:
                loss = distillation_loss(student, part if len(part) else batch[:1], config, start) / batch.num_tokens
            loss = loss if len(part) else 0.0 * loss
            loss.backward()
            total += loss.item()
    (total,) = ranks.totals("the loss", (total,))
    if not math.isfinite(total):
        raise AssayError(f"the loss is {total} at step {step}: {_ADVICE}")
    ranks.sum_gradients(student.module.parameters())
    if sharded:
        norm = clip_gradients(student.module.parameters(), config.max_grad_norm)
    else:
        norm = torch.nn.utils.clip_grad_norm_(student.module.parameters(), config.max_grad_norm).item()
    if not math.isfinite(norm):
        raise AssayError(f"the gradient's norm is {norm} at step {step}: {_ADVICE}")
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, config)
    optimizer.step()
    return total


def _micro_batches(batch: Batch, config: TrainingConfig) -> list[slice]:
    """Which rows go through the model together; none of a batch without rows."""
    size = max(1, math.ceil(len(batch) / config.num_micro_batches))
    return [slice(first, first + size) for first in range(0, len(batch), size)]


@dataclass
class FitState:
    """Where a training loop stands; ``seconds["student"]`` is the time spent in ``train_step``.

    ``action_steps`` are those at which an action was carried out; ``stopped_at`` is the step whose student an action
    left as the last one.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    action_steps: list[int] = field(default_factory=list)
    stopped_at: int | None = None


def fit(
    student: PretrainedModel,
    source: Source,
    config: TrainingConfig,
    *,
    before_step: Callable[[FitState], Action | None] | None = None,
    checkpoints: Path | None = None,
    kept: Path | None = None,
) -> FitState:
    """Trains for ``config.num_steps`` steps; with ``checkpoints`` it resumes from the newest one there.

    ``before_step`` is called before each step and once after the last, with ``state.step`` steps done: it
    evaluates, reports progress, raises to end it all, or returns an action, which is carried out at once; students to
    go back to are in ``kept``, by their steps. A resumed loop gives the same weights as an uninterrupted one.
    ``student`` is what is evaluated and saved; the optimiser moves, and ``source`` is given, the learner's model,
    which is the same one unless weights are averaged or low-rank updates trained (``models.averaging.Learner``).
    """
    start = copy.deepcopy(student) if config.anchor_weight > 0 else None  # before a checkpoint is loaded
    learner = Learner(student, config)
    optimizer = AdamW(
        learner.model.module.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        foreach=False if is_sharded(learner.model) else None,  # divided and whole tensors do not mix in one call
    )
    state = FitState(seconds={"student": 0.0})
    if checkpoints is not None:
        state = load_newest_checkpoint(checkpoints, learner, optimizer, source) or state
    learner.model.module.train()
    while True:
        action = before_step(state) if before_step is not None and state.stopped_at is None else None
        if action is not None:
            carry_out(action, learner, optimizer, source, state, kept)
            if checkpoints is not None:
                save_checkpoint(checkpoints, learner, optimizer, source, state)
        if state.step == config.num_steps or state.stopped_at is not None:
            break
        batch = source.batch(state.step, learner.writer)
        started = time.perf_counter()
        state.losses.append(train_step(learner.model, optimizer, batch, state.step, config, start))
        learner.follow()
        state.seconds["student"] += time.perf_counter() - started
        state.step += 1
        due = state.step % config.checkpoint_every == 0 or state.step == config.num_steps
        if checkpoints is not None and due:
            save_checkpoint(checkpoints, learner, optimizer, source, state)
    learner.model.module.eval()
    return state


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
        _load_weights(learner.student, _read_weights(kept / f"step-{action.to_step:08d}"), kept)
        learner.restart()
        optimizer.state.clear()
    source.carry_out(action)
    state.action_steps.append(state.step)
    if action.kind == "stop":
        state.stopped_at = state.step if action.to_step is None else action.to_step


def save_checkpoint(folder: Path, learner: Learner, optimizer: AdamW, source: Source, state: FitState) -> None:
    """Writes ``step-00000200`` (its step) atomically (weights readable by from_pretrained) and removes older ones."""
    tensors = {f"source.{key}": value for key, value in source.state().items()}
    tensors |= {f"learner.{key}": value for key, value in learner.state().items()}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": whole(value) for key, value in values.items()}
    tensors["rng"] = torch.get_rng_state()

    def write(path: Path) -> None:
        path.mkdir()
        save_model(learner.student, path)
        (path / "training.safetensors").write_bytes(save(tensors))
        (path / "training.json").write_text(json.dumps(asdict(state)), encoding="utf-8")

    newest = folder / f"step-{state.step:08d}"
    runs.write_atomically(newest, write)
    for older in _checkpoints(folder):
        if older != newest:
            runs.remove(older)


def load_newest_checkpoint(folder: Path, learner: Learner, optimizer: AdamW, source: Source) -> FitState | None:
    """Restores the newest checkpoint into learner, optimiser, source and RNG; None when there is none."""
    found = _checkpoints(folder)
    if not found:
        return None
    path = found[-1]
    weights, tensors, progress = _read_checkpoint(path)
    _load_weights(learner.student, weights, path)
    learner.load_state({k.removeprefix("learner."): v for k, v in tensors.items() if k.startswith("learner.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
    groups, trained = optimizer.state_dict()["param_groups"], [p for g in optimizer.param_groups for p in g["params"]]
    moments = {i: {k: divided_like(trained[i], v) for k, v in values.items()} for i, values in moments.items()}
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    source.load_state({k.removeprefix("source."): v for k, v in tensors.items() if k.startswith("source.")})
    torch.set_rng_state(tensors["rng"])
    return FitState(**progress)


def _load_weights(student: PretrainedModel, weights: Mapping[str, Tensor], path: Path) -> None:
    found_keys = student.module.load_state_dict(weights, strict=False)
    if found_keys.unexpected_keys or set(found_keys.missing_keys) - _tied_keys(student):
        raise AssayError(f"checkpoint {str(path)!r} is of another architecture: choose another folder")


def _read_weights(path: Path, name: str = "model") -> dict[str, Tensor]:
    try:
        return load_file(path / f"{name}.safetensors")
    except (OSError, SafetensorError) as error:
        raise runs.damaged(path, error) from error


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, training tensors and progress; AssayError when any of them is missing or damaged."""
    weights, tensors = _read_weights(path), _read_weights(path, "training")
    progress = runs.read_json(path / "training.json")
    if not isinstance(progress, dict) or progress.keys() != {f.name for f in fields(FitState)} or "rng" not in tensors:
        raise runs.damaged(path / "training.json", ValueError("fields are missing"))
    return weights, tensors, progress


def save_model(model: PretrainedModel, path: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Writes a folder that from_pretrained reads: configs, model.safetensors, and the tokenizer if given."""
    path.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.module.config)
    config.architectures = [type(model.module).__name__]  # by which vLLM knows that it writes text
    config.save_pretrained(path)
    if model.module.generation_config is not None:  # which tokens end a response, among other things
        model.module.generation_config.to_json_file(path / "generation_config.json")
    weights = {k: v.contiguous() for k, v in model.module.state_dict().items() if k not in _tied_keys(model)}
    (path / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    if tokenizer is not None:
        save_tokenizer(tokenizer, path)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Writes a tokenizer into a folder, beside its model."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        # tokenizers reports a full disk as a bare Exception; Python, writing the same bytes first, as an OSError
        (path / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    tokenizer.save_pretrained(path)


def _tied_keys(model: PretrainedModel) -> set[str]:
    """Weights that are another weight under a second name (some families tie a part whatever their config says)."""
    state, pairs = model.module.state_dict(), dict(model.module.all_tied_weights_keys)
    return {tied for tied, kept in pairs.items() if state[tied].data_ptr() == state[kept].data_ptr()}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name))
