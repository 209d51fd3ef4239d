"""Llama, Qwen2 and Qwen3 written out (``decode_step.py``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from assay.models.decode_rows import AttentionShape, RowAttention
from assay.models.decode_step import ACTIVATIONS, is_plain, root_mean_square_norm, side_by_side, weights

_FAMILIES = {LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM}
_PARTS = {nn.Embedding, nn.ModuleList, nn.Linear} | {
    getattr(source, family + part)
    for family, source in (("Llama", modeling_llama), ("Qwen2", modeling_qwen2), ("Qwen3", modeling_qwen3))
    for part in ("Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
}
_ROPE_TYPES = {"default", "linear", "llama3"}
"""Rotations that depend on a token's position alone."""


class LlamaLayers:
    """See ``CausalLayers``; ``capacity`` is the number of positions."""

    def __init__(self, module: Any, capacity: int) -> None:
        model = module.model
        self._tokens, _ = weights(model.embed_tokens)
        self._layers = [_Layer(layer) for layer in model.layers]
        self._last_norm = root_mean_square_norm(model.norm)
        self._activation = ACTIVATIONS[type(model.layers[0].mlp.act_fn)]
        attentions = [layer.self_attn for layer in model.layers]
        self._head_size = attentions[0].head_dim
        num_heads = attentions[0].k_proj.out_features // self._head_size
        group = attentions[0].num_key_value_groups
        self.attention = AttentionShape(num_heads, group, [attn.scaling for attn in attentions])
        positions_1C = torch.arange(capacity, device=self._tokens.device).unsqueeze(0)
        cos_1CD, sin_1CD = model.rotary_emb(self._tokens, position_ids=positions_1C)
        # to rotate halves is to roll them, with the sign of the first one turned
        sin_1CD = torch.cat([-sin_1CD[..., : self._head_size // 2], sin_1CD[..., self._head_size // 2 :]], dim=-1)
        self._cos_C1D, self._sin_C1D = cos_1CD.transpose(0, 1), sin_1CD.transpose(0, 1)

    @staticmethod
    def fit(module: Any) -> bool:
        """Whether the module is a plain one of these families, with a rotation of the common kinds and no window."""
        if type(module) not in _FAMILIES or not is_plain(module.model, _PARTS | ACTIVATIONS.keys()):
            return False
        kinds = set(getattr(module.config, "layer_types", None) or ["full_attention"])
        return kinds == {"full_attention"} and module.config.rope_parameters["rope_type"] in _ROPE_TYPES

    def __call__(self, input_ids_N: Tensor, positions_N: Tensor, attention: RowAttention) -> Tensor:
        """See ``CausalLayers``."""
        cos_N1D, sin_N1D = self._cos_C1D[positions_N], self._sin_C1D[positions_N]
        x_NH = self._tokens[input_ids_N]
        for i, layer in enumerate(self._layers):
            states_NSD = side_by_side(F.rms_norm(x_NH, *layer.norm), layer.into, self._head_size)
            turned_NSD = states_NSD[:, : -self.attention.num_heads]  # all but values
            if layer.head_norms:
                self._normalise(turned_NSD, layer)
            rolled_NSD = turned_NSD.roll(self._head_size // 2, -1)
            turned_NSD.copy_(torch.addcmul(turned_NSD * cos_N1D, rolled_NSD, sin_N1D))
            x_NH = F.linear(attention(i, states_NSD), *layer.out_of).add_(attention.kept(i, x_NH))
            normed_NH = F.rms_norm(x_NH, *layer.mlp_norm)
            gated_NF = self._activation(F.linear(normed_NH, *layer.gate)).mul_(F.linear(normed_NH, *layer.up))
            x_NH = F.linear(gated_NF, *layer.down).add_(x_NH)
        return F.rms_norm(x_NH, *self._last_norm)

    def _normalise(self, heads_NSD: Tensor, layer: _Layer) -> None:
        num_keys = self.attention.num_heads
        for part_NSD, norm in zip((heads_NSD[:, :-num_keys], heads_NSD[:, -num_keys:]), layer.head_norms, strict=True):
            part_NSD.copy_(F.rms_norm(part_NSD, *norm))


class _Layer:
    """The weights of one layer, as operations take them."""

    def __init__(self, layer: Any) -> None:
        attn, mlp, norm = layer.self_attn, layer.mlp, root_mean_square_norm
        self.norm, self.mlp_norm = norm(layer.input_layernorm), norm(layer.post_attention_layernorm)
        self.into = [weights(part) for part in (attn.q_proj, attn.k_proj, attn.v_proj)]
        self.head_norms = [norm(attn.q_norm), norm(attn.k_norm)] if hasattr(attn, "q_norm") else []
        self.out_of, self.gate = weights(attn.o_proj), weights(mlp.gate_proj)
        self.up, self.down = weights(mlp.up_proj), weights(mlp.down_proj)
