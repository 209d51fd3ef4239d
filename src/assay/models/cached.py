"""What a frozen model says about fixed responses, computed once and kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from assay import ranks
from assay.buckets import concatenated, top_k
from assay.chunked import chunks
from assay.divergences import hard_labels
from assay.errors import AssayError
from assay.models.batching import DENSE_VOCABULARY_LIMIT, SCORING_BATCH_SIZE, forecast_bytes, tokens_at_once
from assay.models.language_model import LanguageModel, ListingModel
from assay.types import Batch, Dense, States, TopK

Kept: TypeAlias = dict[str, Tensor]
"""What is kept of one sequence, a row for each response token, under the names in ``KEPT``."""

KEPT: dict[str, tuple[str, ...]] = {
    "log_probs": ("log_p",),
    "hidden": ("hidden",),
    "top_k": ("token_ids", "log_p", "log_tail"),
}
"""The ways to keep a law: whole, as the state that the model's head makes it from, or its most probable tokens."""


class CachedLogProbs:
    """A frozen model's next-token laws on stored sequences, without running the model again.

    Without ``top_k`` they are exact: kept whole for small vocabularies, as hidden states for large ones. With it the
    ``top_k`` most probable tokens are kept and the mass of all others. A model that gives no more than that
    (``ListingModel``) is taken at its word, which may list more tokens than asked for. ``signal`` makes a teacher
    signal of what is kept; stored equals live. Where ``in_memory`` is False, who asks does not hold what ``compute``
    gives, but asks again. Raises AssayError when a model cannot list so many tokens.
    """

    in_memory = True

    def __init__(self, model: LanguageModel | ListingModel, top_k: int | None = None) -> None:
        self.model = model
        self.kind: Literal["log_probs", "hidden", "top_k"]
        self.num_listed: int
        if isinstance(model, ListingModel):
            if top_k is not None and top_k > model.num_top:
                raise AssayError(
                    f"teacher {model.name!r} lists {model.num_top} tokens, fewer than {top_k}: lower teacher_top_k"
                )
            self.kind, self.num_listed = "top_k", model.num_top
        elif top_k is not None:
            self.kind, self.num_listed = "top_k", min(top_k, model.vocab_size)
        else:
            self.kind = "log_probs" if model.vocab_size <= DENSE_VOCABULARY_LIMIT else "hidden"

    @property
    def kind_and_reason(self) -> str:
        """What is kept of each law, and why."""
        vocabulary = f"its vocabulary of {self.model.vocab_size:,}"
        if self.kind == "top_k":
            return f"the {self.num_listed:,} most probable tokens of {vocabulary}"
        if self.kind == "log_probs":
            return f"whole laws, as {vocabulary} is at most {DENSE_VOCABULARY_LIMIT:,}"
        return f"states from which its head makes the laws, as {vocabulary} is above {DENSE_VOCABULARY_LIMIT:,}"

    def most_bytes(self, num_tokens: int) -> int:
        """What is kept at so many response tokens, in float32."""
        width = getattr(self.model, "hidden_size", 0)  # asked for where states are kept: then there are some
        listed = self.num_listed if self.kind == "top_k" else None
        return forecast_bytes(num_tokens, width, self.model.vocab_size, listed)

    @torch.no_grad()
    def compute(self, batch: Batch, batch_size: int = SCORING_BATCH_SIZE) -> list[Kept]:
        """What to keep of each sequence."""
        kept: list[Kept] = [{}] * len(batch)
        for rows, part in by_length(batch, batch_size):
            for row, value in zip(rows, self._computed(part), strict=True):
                kept[row] = value
        return kept

    def compute_together(self, batch: Batch) -> list[Kept]:
        """``compute``, of which every rank does a part and has all."""
        if ranks.num_ranks() == 1:
            return self.compute(batch)

        def compute(rows: list[int]) -> list[Kept]:
            part = Batch([batch.prompt_ids[row] for row in rows], [batch.response_ids[row] for row in rows])
            return [{name: value.cpu() for name, value in kept.items()} for kept in self.compute(part)]

        device = getattr(self.model, "device", "cpu")  # models in closed form have none
        gathered = ranks.shared("the teacher's signals", len(batch), compute)
        return [{name: value.to(device) for name, value in kept.items()} for kept in gathered]

    def signal(self, kept: Sequence[Kept]) -> Dense | States | TopK:
        """The teacher signal of the sequences whose kept values are given, one after the other."""
        if self.kind == "log_probs":
            return Dense(torch.cat([k["log_p"] for k in kept]))
        if self.kind == "hidden":
            assert isinstance(self.model, LanguageModel)
            return States(torch.cat([k["hidden"] for k in kept]), self.model.head)
        signal = concatenated([TopK(k["token_ids"].long(), k["log_p"], k["log_tail"]) for k in kept])
        assert isinstance(signal, TopK)
        return signal

    def _computed(self, part: Batch) -> list[Kept]:
        if isinstance(self.model, ListingModel):
            return _split(self.model.top_k(part), part.lengths)
        with self.model.evaluating():
            if self.kind == "log_probs":
                return [{"log_p": value.clone()} for value in self.model.log_probs(part).split(part.lengths)]
            hidden = self.model.hidden(part).split(part.lengths)
            if self.kind == "hidden":
                return [{"hidden": value.clone()} for value in hidden]
            return [_tensors(self._listed(self.model, hidden_TH)) for hidden_TH in hidden]

    def _listed(self, model: LanguageModel, hidden_TH: Tensor) -> TopK:
        """Of one sequence, a part at a time: [tokens, V] of a whole batch is what top_k is chosen to avoid."""
        parts = chunks(len(hidden_TH), tokens_at_once(model.vocab_size))
        signal = concatenated([top_k(model.head(hidden_TH[tokens]), self.num_listed) for tokens in parts])
        assert isinstance(signal, TopK)
        return signal


def _split(signal: TopK, lengths: Sequence[int]) -> list[Kept]:
    parts = (values.split(list(lengths)) for values in (signal.token_ids_NK, signal.log_p_NK, signal.log_tail_N))
    return [_tensors(TopK(*(values.clone() for values in part))) for part in zip(*parts, strict=True)]


def _tensors(signal: TopK) -> Kept:
    return {"token_ids": signal.token_ids_NK.int(), "log_p": signal.log_p_NK, "log_tail": signal.log_tail_N}


def by_length(batch: Batch, batch_size: int = SCORING_BATCH_SIZE) -> Iterator[tuple[list[int], Batch]]:
    """Parts of a batch with sequences of similar length (little padding), and the rows they came from."""
    order = sorted(range(len(batch)), key=lambda i: (len(batch.prompt_ids[i]) + len(batch.response_ids[i]), i))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, Batch([batch.prompt_ids[i] for i in rows], [batch.response_ids[i] for i in rows])


def log_probs_in_chunks(model: LanguageModel, batch: Batch) -> Iterator[tuple[slice, Tensor]]:
    """A model's ``log_probs`` without dropout, a few response tokens at a time, and which of the batch's they are."""
    with model.evaluating():
        hidden_NH = model.hidden(batch)
        for tokens in chunks(batch.num_tokens, tokens_at_once(model.vocab_size)):
            yield tokens, model.head(hidden_NH[tokens])


@torch.no_grad()
def token_nll(model: LanguageModel, batch: Batch) -> Tensor:
    """−log p of every response token, in nats, [N]."""
    token_ids_N = torch.tensor([t for ids in batch.response_ids for t in ids])
    parts = [
        hard_labels(log_p_NV, token_ids_N[tokens].to(log_p_NV.device))
        for tokens, log_p_NV in log_probs_in_chunks(model, batch)
    ]
    return torch.cat(parts)
