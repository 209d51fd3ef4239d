"""Embeddings of prompts and responses: mean last hidden states of a model, as float64 arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from assay.models.cached import by_length
from assay.models.ensemble import Ensemble
from assay.models.pretrained import PretrainedModel
from assay.types import Batch

TokenIds = tuple[int, ...]


def prompt_embeddings(model: PretrainedModel | Ensemble, prompt_ids: Sequence[TokenIds]) -> np.ndarray:
    """Mean over a prompt's tokens of the last hidden state (the encoder's, where there is one); shape [P, H]."""
    rows_PH = np.zeros((len(prompt_ids), 0))
    for rows, part in by_length(Batch(prompt_ids, [(0,)] * len(prompt_ids))):
        with torch.no_grad(), model.evaluating():
            means_BH = _means(model.prompt_hidden(part.prompt_ids), [len(ids) for ids in part.prompt_ids])
        rows_PH = rows_PH if rows_PH.shape[1] else np.zeros((len(prompt_ids), means_BH.shape[1]))
        rows_PH[rows] = means_BH
    return rows_PH


def response_embeddings(model: PretrainedModel | Ensemble, batch: Batch) -> np.ndarray:
    """Mean over a response's tokens of the state from which the model predicts the token; shape [B, H]."""
    rows_BH = np.zeros((len(batch), 0))
    for rows, part in by_length(batch):
        with torch.no_grad(), model.evaluating():
            means_BH = _means(model.hidden(part), part.lengths)
        rows_BH = rows_BH if rows_BH.shape[1] else np.zeros((len(batch), means_BH.shape[1]))
        rows_BH[rows] = means_BH
    return rows_BH


def _means(hidden_NH: Tensor, lengths: Sequence[int]) -> np.ndarray:
    return torch.stack([part.double().mean(dim=0) for part in hidden_NH.split(list(lengths))]).cpu().numpy()
