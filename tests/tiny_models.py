"""Random models of a few thousand weights, in several architectures and both families."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from assay.models.causal import CausalModel
from assay.models.pretrained import PretrainedModel
from assay.models.seq2seq import Seq2SeqModel

VOCAB_SIZE = 23
EOS = 0


def gpt2(
    seed: int = 0, vocab_size: int = VOCAB_SIZE, tied: bool = True, scale: float = 8.0, dropout: float = 0.0
) -> CausalModel:
    """A random GPT-2 with probabilities that are far from uniform (weights scaled up)."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=0.0,
        bos_token_id=EOS,
        eos_token_id=EOS,
        tie_word_embeddings=tied,
    )
    return CausalModel(_sharpened(GPT2LMHeadModel(config), scale), f"gpt2-{seed}")


_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "pad_token_id": None,
}
"""Of Llama and its kin."""


def llama(seed: int = 0, tied: bool = False, vocab_size: int = VOCAB_SIZE) -> CausalModel:
    """A random Llama with an untied head by default."""
    torch.manual_seed(seed)
    config = LlamaConfig(**_SIZES, vocab_size=vocab_size, tie_word_embeddings=tied)
    return CausalModel(_sharpened(LlamaForCausalLM(config), 8.0), f"llama-{seed}")


def qwen3(seed: int = 0, tied: bool = True, vocab_size: int = VOCAB_SIZE) -> CausalModel:
    """A random Qwen3: heads of their own width, two for each of keys and values, normalised queries and keys."""
    torch.manual_seed(seed)
    heads = {"num_key_value_heads": 1, "head_dim": 12}
    config = Qwen3Config(**_SIZES, **heads, vocab_size=vocab_size, tie_word_embeddings=tied)
    return CausalModel(_sharpened(Qwen3ForCausalLM(config), 8.0), f"qwen3-{seed}")


def gemma2(
    seed: int = 0, tied: bool = True, vocab_size: int = VOCAB_SIZE, softcap: float | None = 1.0, window: int = 4
) -> CausalModel:
    """A random Gemma2: soft caps that bind on logits and attention, and a first layer that sees ``window`` tokens."""
    torch.manual_seed(seed)
    config = Gemma2Config(
        **_SIZES,
        num_key_value_heads=1,
        head_dim=12,
        query_pre_attn_scalar=12,
        vocab_size=vocab_size,
        tie_word_embeddings=tied,
        sliding_window=window,
        final_logit_softcapping=softcap,
        attn_logit_softcapping=softcap,
    )
    return CausalModel(_sharpened(Gemma2ForCausalLM(config), 8.0), f"gemma2-{seed}")


def t5(seed: int = 0, gated: bool = False, dropout: float = 0.0, vocab_size: int = VOCAB_SIZE) -> Seq2SeqModel:
    """A random T5 (head tied and scaled), or of the 1.1 kind that is called mT5 (gated, head of its own, unscaled)."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
        "dropout_rate": dropout,
        "pad_token_id": 1,
        "eos_token_id": EOS,
        "decoder_start_token_id": 1,
    }
    if gated:
        module: Any = MT5ForConditionalGeneration(MT5Config(**sizes))
        module.lm_head.weight = torch.nn.Parameter(torch.randn_like(module.lm_head.weight))
    else:
        module = T5ForConditionalGeneration(T5Config(**sizes))
    return Seq2SeqModel(_sharpened(module, 2.0), f"t5-{seed}")


def bart(seed: int = 0, vocab_size: int = VOCAB_SIZE) -> Seq2SeqModel:
    """A random BART, with a bias on its logits."""
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=vocab_size,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        dropout=0.0,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
    )
    module = BartForConditionalGeneration(config)
    module.final_logits_bias.copy_(torch.linspace(-1, 1, vocab_size).unsqueeze(0))
    return Seq2SeqModel(_sharpened(module, 8.0), f"bart-{seed}")


def cut(model: PretrainedModel, num_ids: int = VOCAB_SIZE) -> PretrainedModel:
    """The same module with its law cut to the first ids; what follows them carries most of the mass, once cut off."""
    with torch.no_grad():
        weight: Any = model.module.get_output_embeddings().weight  # type: ignore[union-attr]
        weight[num_ids:] = 8 * weight[num_ids - 1]
    return type(model)(model.module, model.name, vocab_size=num_ids)


def _sharpened(module: Any, scale: float) -> Any:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.mul_(scale if parameter.dim() > 1 and "relative_attention_bias" not in name else 1.0)
    return module.eval()
