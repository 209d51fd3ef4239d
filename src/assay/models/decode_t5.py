"""The decoder of T5 and mT5 written out (``decode_step.py``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MT5ForConditionalGeneration, T5ForConditionalGeneration
from transformers.models.mt5 import modeling_mt5
from transformers.models.t5 import modeling_t5

from assay.models.caches import additive_mask
from assay.models.decode_step import ACTIVATIONS, attend, is_plain, root_mean_square_norm, side_by_side, weights

_FAMILIES = {T5ForConditionalGeneration, MT5ForConditionalGeneration}
_OWN_PARTS = ("Stack", "Block", "LayerSelfAttention", "LayerCrossAttention", "Attention", "LayerFF", "LayerNorm")
_PARTS = {nn.Embedding, nn.ModuleList, nn.Linear, nn.Dropout} | {
    getattr(source, family + part)
    for family, source in (("T5", modeling_t5), ("MT5", modeling_mt5))
    for part in (*_OWN_PARTS, "DenseActDense", "DenseGatedActDense")
}


def fits_t5(module: Any) -> bool:
    """Whether the module's decoder is a plain one of these families."""
    return type(module) in _FAMILIES and is_plain(module.get_decoder(), _PARTS | ACTIVATIONS.keys())


class T5StepDecoding:
    """A decoding that is fed one token of each row at a time; keys and values of the prompts are computed once.

    A layer's keys and values are a tensor [2, rows, heads, places, head size]: one of the tokens so far, written in
    place, and one of the prompts.
    """

    @torch.inference_mode()
    def __init__(self, module: Any, encoded_BTH: Tensor, mask_BT: Tensor, capacity: int) -> None:
        decoder = module.get_decoder()
        attention = decoder.block[0].layer[0].SelfAttention
        self._tokens, _ = weights(decoder.embed_tokens)
        self._layers = [_Layer(block.layer) for block in decoder.block]
        self._last_norm = root_mean_square_norm(decoder.final_layer_norm)
        self._num_heads, self._head_size = attention.n_heads, attention.key_value_proj_dim
        # row t of [tokens, 1, heads, 1, tokens]: by how far the last of t + 1 tokens looks back
        self._bias_C1H1C = attention.compute_bias(capacity, capacity).permute(2, 0, 1, 3).unsqueeze(3)
        mask_A11T = additive_mask(mask_BT, self._tokens.dtype)
        self._mask_X1T = mask_A11T.expand(-1, self._num_heads, -1, -1).flatten(0, 1)
        self._prompts = [self._of_prompts(encoded_BTH, layer) for layer in self._layers]
        shape = 2, len(mask_BT), self._num_heads, capacity, self._head_size
        self._states = [encoded_BTH.new_empty(shape) for _ in self._layers]
        self._num_tokens = 0

    @torch.inference_mode()
    def feed(self, input_ids_AT: Tensor) -> Tensor:
        """See ``Decoding``."""
        x_AH, end = self._tokens[input_ids_AT[:, 0]], self._num_tokens + 1
        bias_1H1T = self._bias_C1H1C[self._num_tokens, ..., :end]
        bias_X1T = bias_1H1T.expand(len(x_AH), -1, -1, -1).flatten(0, 1)
        for layer, own_2AHCD, prompts_2AHTD in zip(self._layers, self._states, self._prompts, strict=True):
            states_ASD = side_by_side(F.rms_norm(x_AH, *layer.norm), layer.into, self._head_size)
            queries_AHD, new_A2HD = states_ASD[:, : self._num_heads], states_ASD[:, self._num_heads :]
            own_2AHCD.select(3, self._num_tokens).copy_(new_A2HD.unflatten(1, (2, -1)).transpose(0, 1))
            x_AH = F.linear(self._attend(queries_AHD, own_2AHCD.narrow(3, 0, end), bias_X1T), *layer.out_of).add_(x_AH)
            queries_AHD = F.linear(F.rms_norm(x_AH, *layer.cross_norm), *layer.query)
            x_AH = F.linear(self._attend(queries_AHD, prompts_2AHTD, self._mask_X1T), *layer.cross_out_of).add_(x_AH)
            x_AH = layer.feed_forward(F.rms_norm(x_AH, *layer.mlp_norm)).add_(x_AH)
        self._num_tokens = end
        return F.rms_norm(x_AH, *self._last_norm)

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        """See ``Decoding``."""
        self._mask_X1T = self._mask_X1T.unflatten(0, (-1, self._num_heads))[rows].flatten(0, 1)
        for states in (self._states, self._prompts):
            states[:] = [layer_2AHTD.index_select(1, rows) for layer_2AHTD in states]

    def _attend(self, queries_AHD: Tensor, states_2AHTD: Tensor, bias_X1T: Tensor) -> Tensor:
        keys_XTD, values_XTD = states_2AHTD.flatten(1, 2).unbind()
        queries_X1D = queries_AHD.reshape(len(keys_XTD), 1, -1)
        return attend(queries_X1D, keys_XTD, values_XTD, bias_X1T, scale=1.0).view(len(queries_AHD), -1)

    def _of_prompts(self, encoded_BTH: Tensor, layer: _Layer) -> Tensor:
        states_NSD = side_by_side(encoded_BTH.flatten(0, 1), layer.cross_into, self._head_size)
        states_BT2HD = states_NSD.view(*encoded_BTH.shape[:2], 2, self._num_heads, self._head_size)
        return states_BT2HD.permute(2, 0, 3, 1, 4).contiguous()


class _Layer:
    """The weights of one layer, as operations take them."""

    def __init__(self, parts: Any) -> None:
        own, cross, mlp = parts[0].SelfAttention, parts[1].EncDecAttention, parts[2].DenseReluDense
        self.norm, self.cross_norm, self.mlp_norm = (root_mean_square_norm(part.layer_norm) for part in parts)
        self.into = [weights(part) for part in (own.q, own.k, own.v)]
        self.query, self.cross_into = weights(cross.q), [weights(cross.k), weights(cross.v)]
        self.out_of, self.cross_out_of, self._down = weights(own.o), weights(cross.o), weights(mlp.wo)
        self._activation = ACTIVATIONS[type(mlp.act)]
        self._is_gated = hasattr(mlp, "wi_0")
        self._up = [weights(part) for part in ((mlp.wi_0, mlp.wi_1) if self._is_gated else (mlp.wi,))]

    def feed_forward(self, x_AH: Tensor) -> Tensor:
        """Up, through the activation, and down; the gated kind multiplies with a second way up."""
        hidden_AF = self._activation(F.linear(x_AH, *self._up[0]))
        if self._is_gated:
            hidden_AF = hidden_AF.mul_(F.linear(x_AH, *self._up[1]))
        return F.linear(hidden_AF, *self._down)
