"""Random models of a few thousand weights, in several architectures."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from assay.models.causal import CausalModel

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
    module = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1.0)
    return CausalModel(module.eval(), f"gpt2-{seed}")


def llama(seed: int = 0, tied: bool = False) -> CausalModel:
    """A random Llama with an untied head by default."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=EOS,
        eos_token_id=EOS,
        tie_word_embeddings=tied,
    )
    module = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(8.0 if parameter.dim() > 1 else 1.0)
    return CausalModel(module.eval(), f"llama-{seed}")
