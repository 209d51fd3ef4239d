"""A teacher's law and a student's on the same buckets: the tokens that the teacher lists, and all others as one.

A module of its own below the estimators: a divergence is a function of two arrays over one axis and knows of no
signal, while training, evaluation, sources and stored signals all have to make those arrays from one.

Merging outcomes never raises an f-divergence (data-processing inequality), and all of ``DIVERGENCES`` that need a
distribution are f-divergences: on buckets each is a lower bound of what it is on the vocabulary, higher the more tokens
are listed, and equal to it where all are [Csiszár 1967].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.errors import AssayError
from assay.types import Dense, Joined, Sample, States, TeacherSignal, TopK, WholeLaw


def top_k(log_p_NV: Float[Tensor, "N V"], k: int) -> TopK:
    """The ``k`` most probable tokens of every row, most probable first (all V where k is more), and the rest's mass."""
    log_p_NK, token_ids_NK = log_p_NV.topk(min(k, log_p_NV.shape[-1]), dim=-1)
    return TopK(token_ids_NK, log_p_NK, _log_rest(log_p_NV, token_ids_NK))


@torch.no_grad()
def resolved(signal: WholeLaw | TopK, device: torch.device | None = None) -> Dense | TopK:
    """The signal as log-probabilities, which a head makes now, in its own precision; on ``device`` if one is given.

    Of a large vocabulary for a few response tokens at a time: ``resolved(signal.at(tokens))``.
    """
    if isinstance(signal, TopK):
        return TopK(*(t.to(device=device) for t in (signal.token_ids_NK, signal.log_p_NK, signal.log_tail_N)))
    parts = signal.parts if isinstance(signal, Joined) else (signal,)
    laws = [_log_p(part).to(device=device) for part in parts]
    return Dense(laws[0] if len(laws) == 1 else torch.cat(laws))


def _log_p(signal: Dense | States) -> Tensor:
    if isinstance(signal, Dense):
        return signal.log_p_NV
    with torch.autocast(signal.hidden_NH.device.type, enabled=False):  # the student's precision is not the teacher's
        return signal.head(signal.hidden_NH)


def on_same_buckets(
    signal: Dense | TopK, log_q_NV: Float[Tensor, "N V"]
) -> tuple[Float[Tensor, "N buckets"], Float[Tensor, "N buckets"]]:
    """log p and log q (nats) over the same buckets, for any divergence.

    A dense signal and log q as they are. Of a listed one K tokens and, last, all others as one bucket, whose mass under
    q is summed over just these tokens. There is no such bucket where every row lists the whole vocabulary: what is left
    of rounding has no mass to be compared. A repeated first token that fills a row up has no mass on either side.
    Raises AssayError when the teacher lists a token that the student does not have.
    """
    if isinstance(signal, Dense):
        return signal.log_p_NV, log_q_NV
    token_ids_NK, num_tokens = signal.token_ids_NK, log_q_NV.shape[0]
    if len(token_ids_NK) != num_tokens:
        raise ValueError(f"the teacher lists tokens at {len(token_ids_NK)} positions, the student has {num_tokens}")
    vocab_size = log_q_NV.shape[-1]
    if num_tokens and int(token_ids_NK.max()) >= vocab_size:
        raise AssayError(
            f"the teacher lists token {int(token_ids_NK.max())}, but the student predicts {vocab_size} tokens: "
            "a divergence needs one vocabulary; use models that share a tokenizer"
        )
    log_q_NK = log_q_NV.gather(-1, token_ids_NK).masked_fill(_is_filling(token_ids_NK), -torch.inf)
    if lists_all(signal, vocab_size):
        return signal.log_p_NK, log_q_NK
    log_rest_N = _log_rest(log_q_NV, token_ids_NK)
    # a row's loss does not hang on whether others beside it list all tokens too
    log_tail_N = signal.log_tail_N.masked_fill(_num_listed(signal) == vocab_size, -torch.inf)
    return (
        torch.cat([signal.log_p_NK, log_tail_N.unsqueeze(-1)], dim=-1),
        torch.cat([log_q_NK, log_rest_N.unsqueeze(-1)], dim=-1),
    )


def lists_all(signal: TopK, vocab_size: int) -> bool:
    """Whether every row lists every token of the vocabulary."""
    return bool((_num_listed(signal) == vocab_size).all())


def concatenated(signals: Sequence[TeacherSignal]) -> TeacherSignal:
    """Signals one after the other, all whole laws, lists or texts; rows that list fewer tokens than others are filled.

    Raises AssayError for signals of which some are whole and others are not.
    """
    whole = [signal for signal in signals if isinstance(signal, WholeLaw)]
    listed = [signal for signal in signals if isinstance(signal, TopK)]
    if len(whole) == len(signals):
        return _joined(whole)
    if len(listed) == len(signals):
        most = max(signal.token_ids_NK.shape[1] for signal in listed)
        filled = [_filled(signal, most) for signal in listed]
        return TopK(
            torch.cat([signal.token_ids_NK for signal in filled]),
            torch.cat([signal.log_p_NK for signal in filled]),
            torch.cat([signal.log_tail_N for signal in filled]),
        )
    if all(isinstance(signal, Sample) for signal in signals):
        return Sample()
    kinds = " and ".join(sorted({type(signal).__name__ for signal in signals}))
    raise AssayError(
        f"one batch holds teacher signals of the kinds {kinds}: give all sources of an arm the same teacher and the "
        "same top_k"
    )


def _joined(signals: Sequence[WholeLaw]) -> WholeLaw:
    """One array of what is kept in one way, so that a head runs once; else the parts as they are."""
    parts = [part for signal in signals for part in (signal.parts if isinstance(signal, Joined) else (signal,))]
    dense = [part for part in parts if isinstance(part, Dense)]
    states = [part for part in parts if isinstance(part, States)]
    if len(dense) == len(parts):
        return Dense(torch.cat([part.log_p_NV for part in dense]))
    if len(states) == len(parts) and all(part.head == states[0].head for part in states):
        return States(torch.cat([part.hidden_NH for part in states]), states[0].head)
    return Joined(tuple(parts))


def _filled(signal: TopK, num_listed: int) -> TopK:
    missing = num_listed - signal.token_ids_NK.shape[1]
    if missing == 0:
        return signal
    first_NK = signal.token_ids_NK[:, :1].expand(-1, missing)
    nothing_NK = signal.log_p_NK.new_full(first_NK.shape, -torch.inf)
    return TopK(
        torch.cat([signal.token_ids_NK, first_NK], dim=-1),
        torch.cat([signal.log_p_NK, nothing_NK], dim=-1),
        signal.log_tail_N,
    )


def _num_listed(signal: TopK) -> Int[Tensor, " N"]:
    return (~_is_filling(signal.token_ids_NK)).sum(dim=-1)


def _is_filling(token_ids_NK: Int[Tensor, "N K"]) -> Bool[Tensor, "N K"]:
    is_filling_NK = token_ids_NK == token_ids_NK[:, :1]
    is_filling_NK[:, 0] = False
    return is_filling_NK


def _log_rest(log_q_NV: Float[Tensor, "N V"], token_ids_NK: Int[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """The logarithm of the mass on tokens that are not listed, −∞ (with gradient 0) where there is none.

    Summed over these tokens: 1 − Σ over the listed ones would lose the digits of a small rest.
    """
    rest_NV = log_q_NV.scatter(-1, token_ids_NK, -torch.inf)
    is_empty_N = rest_NV.amax(dim=-1) == -torch.inf
    if is_empty_N.any():  # the gradient of a log-sum-exp over nothing is not a number
        rest_NV = rest_NV.masked_fill(is_empty_N.unsqueeze(-1), 0)
        return rest_NV.logsumexp(dim=-1).masked_fill(is_empty_N, -torch.inf)
    return rest_NV.logsumexp(dim=-1)
