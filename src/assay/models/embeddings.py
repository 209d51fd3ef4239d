"""Embeddings of prompts and responses: mean last hidden states of a model, as float64 arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from assay import ranks
from assay.models.cached import by_length
from assay.models.ensemble import Ensemble
from assay.models.pretrained import PretrainedModel
from assay.types import Batch

TokenIds = tuple[int, ...]


def prompt_embeddings(model: PretrainedModel | Ensemble, prompt_ids: Sequence[TokenIds]) -> np.ndarray:
    """Mean over a prompt's tokens of the last hidden state (the encoder's, where there is one); shape [P, H]."""

    def means(part: Batch) -> list[np.ndarray]:
        return _means(model.prompt_hidden(part.prompt_ids), [len(ids) for ids in part.prompt_ids])

    return _embeddings(model, Batch(prompt_ids, [(0,)] * len(prompt_ids)), means)


def response_embeddings(model: PretrainedModel | Ensemble, batch: Batch) -> np.ndarray:
    """Mean over a response's tokens of the state from which the model predicts the token; shape [B, H]."""
    return _embeddings(model, batch, lambda part: _means(model.hidden(part), part.lengths))


def _embeddings(
    model: PretrainedModel | Ensemble, batch: Batch, means: Callable[[Batch], list[np.ndarray]]
) -> np.ndarray:
    """``means`` of every sequence; each rank computes some and has all."""

    def compute(mine: list[int]) -> list[np.ndarray]:
        found: list[np.ndarray] = [np.zeros(0)] * len(mine)
        share = Batch([batch.prompt_ids[row] for row in mine], [batch.response_ids[row] for row in mine])
        for rows, part in by_length(share):
            with torch.no_grad(), model.evaluating():
                for row, mean_H in zip(rows, means(part), strict=True):
                    found[row] = mean_H
        return found

    rows_BH = ranks.shared("embeddings", len(batch), compute)
    return np.stack(rows_BH) if rows_BH else np.zeros((0, 0))


def _means(hidden_NH: Tensor, lengths: Sequence[int]) -> list[np.ndarray]:
    return [part.double().mean(dim=0).cpu().numpy() for part in hidden_NH.split(list(lengths))]
