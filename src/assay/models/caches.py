"""Keys and values of decoded tokens in tensors of their final length: written in place, never concatenated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

_KINDS = {"full_attention", "sliding_attention"}
"""The layers whose keys and values this file can hold."""


class PreallocatedLayer(CacheLayerMixin):
    """One layer: ``keys`` and ``values`` are of shape [rows, heads, capacity, head size], the first ``length`` used.

    Attention is handed views of what is used, and of that the last ``window`` tokens only where the layer sees no
    more. The first tokens (the prompts) are handed back whole: their mask, which transformers makes, has the window.
    """

    def __init__(self, capacity: int, window: int | None) -> None:
        super().__init__()
        self.capacity, self.window, self.length = capacity, window, 0
        self.is_sliding = window is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes the memory once the first keys tell rows, heads and sizes."""
        self.keys, self.values = (
            states.new_empty((*states.shape[:2], self.capacity, states.shape[-1]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends the states of the newest tokens and returns those that the newest tokens may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values, num_new = self.keys, self.values, key_states.shape[-2]
        assert keys is not None
        assert values is not None
        keys.narrow(2, self.length, num_new).copy_(key_states)
        values.narrow(2, self.length, num_new).copy_(value_states)
        first = first_seen(self.length + num_new, self.window) if self.length else 0
        self.length += num_new
        return keys.narrow(2, first, self.length - first), values.narrow(2, first, self.length - first)

    def get_seq_length(self) -> int:
        """The tokens so far."""
        return self.length

    def get_max_length(self) -> int:
        """The tokens that have room."""
        return self.capacity

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what ``update`` returns for the first tokens."""
        return self.length + query_length, 0

    def batch_select_indices(self, indices: Tensor) -> None:
        """Goes on with these rows only."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys.index_select(0, indices), self.values.index_select(0, indices)


def additive_mask(is_token_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows, 1, 1, tokens], added to attention scores: 0 where a row has a token, else the lowest number."""
    mask_BT = torch.zeros(is_token_BT.shape, dtype=dtype, device=is_token_BT.device)
    return mask_BT.masked_fill_(~is_token_BT.bool(), torch.finfo(dtype).min)[:, None, None]


class StepMasks:
    """What every later token may see of the tokens before it, padding in the prompts left out.

    A mask that is ready spares transformers making one for each step.
    """

    def __init__(self, module: PreTrainedModel, is_token_BT: Tensor, capacity: int) -> None:
        room_for = capacity - is_token_BT.shape[1]
        self._mask_A11T = additive_mask(pad(is_token_BT, (0, room_for), value=1), module.dtype)
        self._windows = windows(module)
        self._kinds = getattr(module.config.get_text_config(decoder=True), "layer_types", None) or ()

    def after(self, num_tokens: int) -> Tensor | dict[str, Tensor]:
        """For the last of ``num_tokens``; by the kind of layer where a model has several, as it then asks for it."""
        masks = [
            self._mask_A11T[..., first_seen(num_tokens, window) : num_tokens] for window in dict.fromkeys(self._windows)
        ]
        return masks[0] if len(masks) == 1 else dict(zip(dict.fromkeys(self._kinds), masks, strict=True))

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows only."""
        self._mask_A11T = self._mask_A11T[rows]


def first_seen(num_tokens: int, window: int | None) -> int:
    """The first of ``num_tokens`` that the last of them sees."""
    return 0 if window is None else max(0, num_tokens - window)


def windows(module: PreTrainedModel) -> list[int | None]:
    """How many tokens each layer of the decoder sees; None is all."""
    layers = DynamicCache(config=module.config).layers
    return [getattr(layer, "sliding_window", None) for layer in layers]


def can_preallocate(module: PreTrainedModel) -> bool:
    """Whether a decoder's layers are of kinds that are known here, and its attention one that adds a ready mask."""
    kinds = getattr(module.config.get_text_config(decoder=True), "layer_types", None)
    known = set(kinds) <= _KINDS if kinds else True
    return known and module.config._attn_implementation in ("sdpa", "eager")


def preallocated(module: PreTrainedModel, capacity: int) -> Cache:
    """A cache of the decoder's layers for so many tokens."""
    return Cache(layers=[PreallocatedLayer(capacity, window) for window in windows(module)])
