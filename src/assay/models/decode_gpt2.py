"""GPT-2 written out (``decode_step.py``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2LMHeadModel, GPT2Model
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block
from transformers.pytorch_utils import Conv1D

from assay.models.decode_rows import AttentionShape, RowAttention
from assay.models.decode_step import ACTIVATIONS, is_plain, weights

_PARTS = {GPT2Model, GPT2Block, GPT2Attention, GPT2MLP, Conv1D, nn.Embedding, nn.ModuleList, nn.LayerNorm, nn.Dropout}


class GPT2Layers:
    """See ``CausalLayers``."""

    def __init__(self, module: Any, capacity: int) -> None:
        model = module.transformer
        self._tokens, self._positions = weights(model.wte)[0], weights(model.wpe)[0]
        self._layers = [_Layer(block) for block in model.h]
        self._last_norm = _norm(model.ln_f)
        self._activation = ACTIVATIONS[type(model.h[0].mlp.act)]
        attentions = [block.attn for block in model.h]
        self._head_size = attentions[0].head_dim
        self.attention = AttentionShape(attentions[0].num_heads, 1, [attn.scaling for attn in attentions])

    @staticmethod
    def fit(module: Any) -> bool:
        """Whether the module is a plain GPT-2 that reads nothing but its own sequence."""
        if type(module) is not GPT2LMHeadModel or module.config.add_cross_attention:
            return False
        return is_plain(module.transformer, _PARTS | ACTIVATIONS.keys())

    def __call__(self, input_ids_N: Tensor, positions_N: Tensor, attention: RowAttention) -> Tensor:
        """See ``CausalLayers``."""
        x_NH = self._tokens[input_ids_N] + self._positions[positions_N]
        for i, layer in enumerate(self._layers):
            states_NSD = _conv1d(F.layer_norm(x_NH, *layer.norm), *layer.into).view(len(x_NH), -1, self._head_size)
            x_NH = _conv1d(attention(i, states_NSD), *layer.out_of).add_(attention.kept(i, x_NH))
            hidden_NF = self._activation(_conv1d(F.layer_norm(x_NH, *layer.mlp_norm), *layer.up))
            x_NH = _conv1d(hidden_NF, *layer.down).add_(x_NH)
        return F.layer_norm(x_NH, *self._last_norm)


class _Layer:
    """The weights of one layer, as operations take them."""

    def __init__(self, block: Any) -> None:
        self.norm, self.mlp_norm = _norm(block.ln_1), _norm(block.ln_2)
        self.into, self.out_of = weights(block.attn.c_attn), weights(block.attn.c_proj)
        self.up, self.down = weights(block.mlp.c_fc), weights(block.mlp.c_proj)


def _norm(layer: nn.LayerNorm) -> tuple[Any, ...]:
    """What ``layer_norm`` is called with."""
    return layer.normalized_shape, *weights(layer), layer.eps


def _conv1d(x_NH: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    assert bias is not None
    return torch.addmm(bias, x_NH, weight)
