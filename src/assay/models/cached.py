"""What a frozen model says about fixed responses, computed once and kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from assay.models.batching import DENSE_VOCABULARY_LIMIT, SCORING_BATCH_SIZE
from assay.models.language_model import LanguageModel
from assay.types import Batch


class CachedLogProbs:
    """A frozen model's next-token log-probabilities on stored sequences, without running the model again.

    Kept dense for small vocabularies, as hidden states for large ones; ``expand`` gives log-probabilities
    from either. Both are exact: stored equals live.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.dense = model.vocab_size <= DENSE_VOCABULARY_LIMIT

    @torch.no_grad()
    def compute(self, batch: Batch, batch_size: int = SCORING_BATCH_SIZE) -> list[Tensor]:
        """What to keep of each sequence: [length, V] log-probabilities or [length, H] hidden states."""
        kept: list[Tensor] = [torch.empty(0)] * len(batch)
        for rows, part in by_length(batch, batch_size):
            with self.model.evaluating():
                values = self.model.log_probs(part) if self.dense else self.model.hidden(part)
            for row, value in zip(rows, values.split(part.lengths), strict=True):
                kept[row] = value.clone()
        return kept

    @torch.no_grad()
    def expand(self, kept: Sequence[Tensor]) -> Float[Tensor, "N V"]:
        """Log-probabilities (nats) of the sequences whose kept values are given, one after the other."""
        values = torch.cat(list(kept))
        return values if self.dense else self.model.head(values)


def by_length(batch: Batch, batch_size: int = SCORING_BATCH_SIZE) -> Iterator[tuple[list[int], Batch]]:
    """Parts of a batch with sequences of similar length (little padding), and the rows they came from."""
    order = sorted(range(len(batch)), key=lambda i: (len(batch.prompt_ids[i]) + len(batch.response_ids[i]), i))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, Batch([batch.prompt_ids[i] for i in rows], [batch.response_ids[i] for i in rows])
