"""Fixed prompts and responses with what a frozen model says about them, scored against any student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from assay import ranks
from assay.buckets import lists_all, on_same_buckets, resolved
from assay.chunked import chunks
from assay.divergences import forward_kl, hard_labels
from assay.estimators import sum_per_sequence
from assay.models.batching import SCORING_BATCH_SIZE, tokens_at_once
from assay.models.cached import CachedLogProbs, Kept, by_length, log_probs_in_chunks
from assay.models.language_model import LanguageModel, ListingModel
from assay.types import Batch, Dense, Prompt, Response, TopK

TOP = 8
"""How many of the most probable tokens ``top_overlap`` compares."""


@dataclass(frozen=True)
class PerPrompt:
    """One metric for every prompt of a set: nats per sequence and the response tokens that it sums over.

    Of a judge of the student's responses ``value_nats`` is what the judge says, in the judge's own unit.
    """

    metric: str
    prompt_ids: list[str]
    value_nats: np.ndarray
    num_tokens: np.ndarray

    def table(self, *, arm: str, seed: int, step: int) -> pa.Table:
        """Rows of probe.parquet: one for each prompt."""
        count = len(self.prompt_ids)
        return pa.table(
            {
                "arm": pa.array([arm] * count),
                "seed": pa.array([seed] * count, pa.int64()),
                "step": pa.array([step] * count, pa.int64()),
                "metric": pa.array([self.metric] * count),
                "prompt_id": pa.array(self.prompt_ids),
                "value_nats": pa.array(self.value_nats, pa.float64()),
                "num_tokens": pa.array(self.num_tokens, pa.int32()),
            }
        )


@dataclass
class FrozenSet:
    """Fixed sequences with what a frozen walker says about them, scored against any student.

    ``walker`` is a model, or a cache that says how a model's word is kept; None scores the text alone. Of several
    ranks each keeps and scores its own rows, and all have the values of all.
    """

    metric: str
    prompts: Sequence[Prompt]
    responses: Sequence[Response]
    walker: LanguageModel | ListingModel | CachedLogProbs | None
    kept: list[Kept] = field(default_factory=list)
    batch_size: int = SCORING_BATCH_SIZE
    is_of_a_judge: bool = False

    def __post_init__(self) -> None:
        self._likeliest: dict[tuple[int, int, int], Tensor] = {}  # by first row and tokens of its part
        self.batch = Batch([p.token_ids for p in self.prompts], [r.token_ids for r in self.responses])
        mine = ranks.rows(len(self.batch))
        self._mine = Batch([self.batch.prompt_ids[i] for i in mine], [self.batch.response_ids[i] for i in mine])
        if self.walker is not None:
            self._cache = self.walker if isinstance(self.walker, CachedLogProbs) else CachedLogProbs(self.walker)
            if self._cache.in_memory:
                self.kept = self._cache.compute(self._mine, self.batch_size)
            else:
                for _, part in by_length(self._mine, self.batch_size):
                    self._cache.compute(part, self.batch_size)

    def _recall(self, rows: Sequence[int], part: Batch) -> list[Kept]:
        """What is kept of these rows, in memory or by the cache itself."""
        return [self.kept[row] for row in rows] if self.kept else self._cache.compute(part, self.batch_size)

    @torch.no_grad()
    def against(self, student: LanguageModel) -> tuple[PerPrompt, dict[str, float | None]]:
        """KL(walker‖student) per sequence along the walker's responses; without a walker, −log student.

        Of a walker that lists its most probable tokens a lower bound: the KL on these and all others as one bucket.
        For the proxy also, averaged over its tokens: the student's entropy in nats, and ``top_overlap``, the share of
        the walker's ``TOP`` most probable tokens that are among the student's.
        """
        found = np.zeros(len(self._mine))
        entropy = overlap = 0.0
        for rows, part in by_length(self._mine, self.batch_size):
            token_ids_N = torch.tensor([t for ids in part.response_ids for t in ids])
            signal = None if self.walker is None else self._cache.signal(self._recall(rows, part))
            parts = []
            for tokens, log_q_NV in log_probs_in_chunks(student, part):
                if signal is None:
                    parts.append(hard_labels(log_q_NV, token_ids_N[tokens].to(log_q_NV.device)))
                else:
                    law = resolved(signal.at(tokens), log_q_NV.device)  # a host may have moved its models since
                    parts.append(forward_kl(*on_same_buckets(law, log_q_NV)))
                    if self.metric == "proxy":
                        place = rows[0], tokens.start, tokens.stop
                        if place not in self._likeliest:  # it costs as much as all else that the overlap needs
                            self._likeliest[place] = likeliest(law)
                        overlap += top_overlap(law, log_q_NV, self._likeliest[place].to(log_q_NV.device))
                if self.metric == "proxy":
                    entropy -= float((log_q_NV.exp() * log_q_NV).sum())
            found[rows] = sum_per_sequence(torch.cat(parts), part.lengths).double().cpu().numpy()
        values = np.array(ranks.shared(self.metric, len(self.batch), lambda _: found.tolist()))
        ids = [prompt.id for prompt in self.prompts]
        per_prompt = PerPrompt(self.metric, ids, values, np.array(self.batch.lengths))
        if self.metric != "proxy":
            return per_prompt, {}
        num_tokens = self.batch.num_tokens
        entropy, overlap = ranks.totals(f"the monitors of the {self.metric}", (entropy, overlap))
        top = None if self.walker is None else overlap / num_tokens
        return per_prompt, {"entropy_nats_per_token": entropy / num_tokens, "top_overlap": top}

    @torch.no_grad()
    def of_the_walker(self) -> dict[str, float | None]:
        """Means over the tokens of what the walker says: its entropy in nats, and the mass of the tokens it lists.

        The entropy is None where a part of the law is all that is known, or none of it; the mass is there for lists
        alone.
        """
        if self.walker is None:
            return {"teacher_entropy_nats_per_token": None}
        entropy, mass, num_partial = 0.0, 0.0, 0
        vocab_size = self._cache.model.vocab_size
        for rows, part in by_length(self._mine, self.batch_size):
            signal = self._cache.signal(self._recall(rows, part))
            for tokens in chunks(part.num_tokens, tokens_at_once(vocab_size)):
                law = resolved(signal.at(tokens))
                if isinstance(law, TopK):
                    num_partial += not lists_all(law, vocab_size)
                    mass += float(law.log_p_NK.exp().sum())
                entropy -= _sum_p_log_p(law.log_p_NV if isinstance(law, Dense) else law.log_p_NK)
        entropy, mass, num_partial = ranks.totals("the teacher's law", (entropy, mass, num_partial))
        num_tokens = self.batch.num_tokens
        listed = {"captured_mass": mass / num_tokens} if self._cache.kind == "top_k" else {}
        return {"teacher_entropy_nats_per_token": entropy / num_tokens if num_partial == 0 else None, **listed}


def likeliest(signal: Dense | TopK) -> Tensor:
    """Where p's ``TOP`` most probable tokens stand among those of the signal, [N, K]: all, where it has fewer."""
    log_p = signal.log_p_NV if isinstance(signal, Dense) else signal.log_p_NK
    return log_p.topk(min(TOP, log_p.shape[1]), dim=1).indices


def top_overlap(signal: Dense | TopK, log_q_NV: Tensor, p_NK: Tensor | None = None) -> float:
    """Σ over tokens of the share of p's ``TOP`` most probable tokens that are among as many of q's.

    All of them, where p lists or the vocabulary has fewer. ``p_NK`` is ``likeliest(signal)``, where it is known.
    """
    p_NK = likeliest(signal) if p_NK is None else p_NK
    top = p_NK.shape[1]
    q_NK = log_q_NV.topk(top, dim=1).indices
    if isinstance(signal, Dense):
        return float((p_NK[:, :, None] == q_NK[:, None, :]).any(dim=2).sum()) / top
    is_listed_NK = signal.log_p_NK.gather(1, p_NK) > -torch.inf  # a row may be filled up
    p_NK = signal.token_ids_NK.gather(1, p_NK)
    is_shared_NK = is_listed_NK & (p_NK[:, :, None] == q_NK[:, None, :]).any(dim=2)
    return float((is_shared_NK.sum(1) / is_listed_NK.sum(1)).sum())


def _sum_p_log_p(log_p: Tensor) -> float:
    return float((log_p.exp() * log_p).nan_to_num(nan=0.0).sum())  # 0 · log 0 = 0
