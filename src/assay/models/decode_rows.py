"""Decoding of a causal model that is written out: the rows, their keys and values, and who sees whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.models.caches import additive_mask
from assay.models.decode_step import attend


@dataclass(frozen=True)
class AttentionShape:
    """Heads of keys (and as many of values), queries to each of them, and each layer's factor of scores."""

    num_heads: int
    group: int
    scales: Sequence[float]

    @property
    def num_layers(self) -> int:
        """One scale to each."""
        return len(self.scales)


class RowAttention:
    """Attention of causal rows over keys and values in place, a tensor [2, rows, heads, capacity, head size] a layer.

    A prompt takes the first places of its row, later tokens those after the longest prompt; a mask hides what is empty
    between them. Tokens of prompts come in one after another, without padding. Of the last layer nothing but the last
    token of each prompt is needed, and no more is computed.
    """

    def __init__(self, shape: AttentionShape, lengths_A: Tensor, capacity: int, dtype: torch.dtype) -> None:
        device, longest = lengths_A.device, int(lengths_A.max())
        places_C = torch.arange(capacity, device=device)
        is_prompt_AT = places_C[:longest] < lengths_A.unsqueeze(-1)
        self._places_N = is_prompt_AT.flatten().nonzero()[:, 0]
        self.prompt_positions_N = self._places_N % longest
        self._last_A = lengths_A.cumsum(dim=0) - 1
        is_seen_AC = (places_C >= longest) | (places_C < lengths_A.unsqueeze(-1))
        self._mask_XGC = additive_mask(is_seen_AC, dtype).expand(-1, shape.num_heads, shape.group, -1).flatten(0, 1)
        self._states: list[Tensor] = []
        self._shape, self._capacity, self._longest, self._num_tokens = shape, capacity, longest, 0

    @property
    def has_prompts(self) -> bool:
        """Whether the prompts have been read."""
        return self._num_tokens > 0

    def __call__(self, layer: int, states_NSD: Tensor) -> Tensor:
        """Attention of the newest tokens over all so far; [tokens, heads · head size].

        ``states_NSD`` are the heads of the newest tokens: those of queries, then of keys, then of values.
        """
        num_queries = self._shape.num_heads * self._shape.group
        if self.has_prompts:
            num_rows, end = len(states_NSD), self._num_tokens + 1
            new_A2KD = states_NSD[:, num_queries:].view(num_rows, 2, self._shape.num_heads, -1)
            self._states[layer].select(3, self._num_tokens).copy_(new_A2KD.transpose(0, 1))
        else:
            num_rows, end = len(self._last_A), self._longest
            # zeros, since what is never written is multiplied by a weight of 0, which only numbers survive
            states_PSD = states_NSD.new_zeros((num_rows * end, *states_NSD.shape[1:]))
            states_ATSD = states_PSD.index_copy_(0, self._places_N, states_NSD).unflatten(0, (num_rows, end))
            self._make(states_ATSD[:, :, num_queries:].unflatten(2, (2, -1)))
            if layer < self._shape.num_layers - 1:
                return self._within_prompts(layer, states_ATSD)
            states_NSD = states_NSD[self._last_A]
        keys_XTD, values_XTD = self._states[layer].flatten(1, 2).narrow(2, 0, end).unbind()
        queries_XGD = states_NSD[:, :num_queries].reshape(len(keys_XTD), self._shape.group, -1)
        mask_XGT, scale = self._mask_XGC.narrow(2, 0, end), self._shape.scales[layer]
        return attend(queries_XGD, keys_XTD, values_XTD, mask_XGT, scale).view(num_rows, -1)

    def kept(self, layer: int, x_NH: Tensor) -> Tensor:
        """The states of the tokens that this layer's attention answers for."""
        return x_NH if self.has_prompts or layer < self._shape.num_layers - 1 else x_NH[self._last_A]

    def advance(self) -> None:
        """All layers have seen the newest tokens."""
        self._num_tokens = self._num_tokens + 1 if self.has_prompts else self._longest

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows only."""
        mask_AKGC = self._mask_XGC.unflatten(0, (-1, self._shape.num_heads))
        self._mask_XGC = mask_AKGC[rows].flatten(0, 1)
        self._states = [states.index_select(1, rows) for states in self._states]

    def _make(self, prompts_AT2KD: Tensor) -> None:
        num_rows, _, _, num_heads, head_size = prompts_AT2KD.shape
        states_2AKCD = prompts_AT2KD.new_empty((2, num_rows, num_heads, self._capacity, head_size))
        states_2AKCD[..., : self._longest, :].copy_(prompts_AT2KD.permute(2, 0, 3, 1, 4))
        self._states.append(states_2AKCD)

    def _within_prompts(self, layer: int, states_ATSD: Tensor) -> Tensor:
        num_heads, group = self._shape.num_heads, self._shape.group
        sizes = [num_heads * group, num_heads, num_heads]
        queries, keys, values = (states.transpose(1, 2) for states in states_ATSD.split(sizes, dim=2))
        if group > 1:
            keys, values = (states.repeat_interleave(group, dim=1) for states in (keys, values))
        # no token sees a place after its own, so that padding on the right needs no mask
        scale = self._shape.scales[layer]
        out_ASTD = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale)
        return out_ASTD.transpose(1, 2).flatten(2).flatten(0, 1)[self._places_N]


@runtime_checkable
class CausalLayers(Protocol):
    """A decoder-only model written out."""

    attention: AttentionShape

    def __call__(self, input_ids_N: Tensor, positions_N: Tensor, attention: RowAttention) -> Tensor:
        """The last hidden states of those tokens that attention keeps to the end."""
        ...


class StepDecoding:
    """A decoding of left-padded prompts through a model's written-out layers."""

    def __init__(self, layers: CausalLayers, mask_BT: Tensor, capacity: int, dtype: torch.dtype) -> None:
        self._layers = layers
        self._is_token_BT = mask_BT.bool()
        self._positions_A = mask_BT.sum(dim=-1)
        self._attention = RowAttention(layers.attention, self._positions_A, capacity, dtype)

    @torch.inference_mode()
    def feed(self, input_ids_AT: Tensor) -> Tensor:
        """See ``Decoding``."""
        if self._attention.has_prompts:
            hidden_AH = self._layers(input_ids_AT[:, 0], self._positions_A, self._attention)
            self._positions_A = self._positions_A + 1
        else:
            input_ids_N = input_ids_AT[self._is_token_BT]
            hidden_AH = self._layers(input_ids_N, self._attention.prompt_positions_N, self._attention)
        self._attention.advance()
        return hidden_AH

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        """See ``Decoding``."""
        self._positions_A = self._positions_A[rows]
        self._attention.keep(rows)
