"""How large a model is, from public facts or from the header of its files: no weights are read, no torch is needed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from assay.errors import AssayError
from assay.models.bases import BASES, Family, base_path


@dataclass(frozen=True)
class ModelSize:
    """The numbers that costs follow from.

    ``num_parameters`` counts what is stored, a tied head once. ``num_prompt_parameters`` multiply every prompt token
    and ``num_response_parameters`` every response token; look-up tables multiply nothing, and the output head
    (``hidden_size · vocab_size``) is counted apart. ``num_layers`` are those that keep keys and values while decoding,
    of width ``attention_size``. ``relative_positions``: each pair of tokens has a bias of its own, kept in memory.
    """

    family: Family
    num_parameters: int
    num_prompt_parameters: int
    num_response_parameters: int
    vocab_size: int
    hidden_size: int
    attention_size: int
    num_heads: int
    num_layers: int
    num_encoder_layers: int = 0
    relative_positions: bool = False

    @property
    def num_head_parameters(self) -> int:
        """Parameters of the output head, tied or not."""
        return self.hidden_size * self.vocab_size


def ensemble_size(size: ModelSize, num_members: int) -> ModelSize:
    """The size of so many models whose next-token laws are averaged: one model, so many times as wide."""
    parts = ("num_parameters", "num_prompt_parameters", "num_response_parameters")
    widths = ("hidden_size", "attention_size", "num_heads")
    return dataclasses.replace(size, **{name: num_members * getattr(size, name) for name in (*parts, *widths)})


def _gpt2(hidden_size: int, num_layers: int, num_heads: int) -> ModelSize:
    vocab_size, num_positions = 50_257, 1024
    body = num_layers * (12 * hidden_size**2 + 13 * hidden_size) + 2 * hidden_size
    stored = body + (vocab_size + num_positions) * hidden_size
    return ModelSize("causal", stored, body, body, vocab_size, hidden_size, hidden_size, num_heads, num_layers)


def _t5(
    hidden_size: int, feed_forward_size: int, num_layers: int, num_heads: int, version_1_1: bool = False
) -> ModelSize:
    """T5, or its version 1.1: a gated feed-forward part, and a head that is not tied."""
    vocab_size, attention_size, num_buckets = 32_128, 64 * num_heads, 32
    projection = hidden_size * attention_size
    feed_forward = (3 if version_1_1 else 2) * hidden_size * feed_forward_size
    encoder = num_layers * (4 * projection + feed_forward + 2 * hidden_size) + hidden_size
    decoder = num_layers * (8 * projection + feed_forward + 3 * hidden_size) + hidden_size
    tables = (2 if version_1_1 else 1) * vocab_size * hidden_size + 2 * num_buckets * num_heads
    across = 2 * num_layers * projection  # keys and values of the prompt, made by the decoder
    return ModelSize(
        "seq2seq",
        encoder + decoder + tables,
        encoder + across,
        decoder - across,
        vocab_size,
        hidden_size,
        attention_size,
        num_heads,
        num_layers,
        num_layers,
        relative_positions=True,
    )


PUBLIC: dict[str, ModelSize] = {
    "distilbert/distilgpt2": _gpt2(768, 6, 12),
    "openai-community/gpt2": _gpt2(768, 12, 12),
    "openai-community/gpt2-medium": _gpt2(1024, 24, 16),
    "openai-community/gpt2-large": _gpt2(1280, 36, 20),
    "google/t5-efficient-tiny": _t5(256, 1024, 4, 4),
    "google-t5/t5-small": _t5(512, 2048, 6, 8),
    "google-t5/t5-base": _t5(768, 3072, 12, 12),
    "google-t5/t5-large": _t5(1024, 4096, 24, 16),
    "google/flan-t5-xl": _t5(2048, 5120, 24, 32, version_1_1=True),
}
"""The hub models of recipes/scales.py and recipes/studies.py, from their published shapes.

[Radford et al. 2019; Raffel et al. 2020; Tay et al. 2022]
"""


def size_of(name: str) -> ModelSize | None:
    """The size of an embedded base, a local checkpoint folder or a hub id of ``PUBLIC``; None for any other hub id.

    Raises AssayError when a folder holds no config.json with safetensors that can be read.
    """
    folder = base_path(name) if name in BASES else Path(name)
    if not folder.is_dir():
        return PUBLIC.get(name)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shapes = _shapes(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise AssayError(
            f"cannot read the size of model {name!r}: {(str(error).splitlines() or ['?'])[0]}; "
            "give a folder with config.json and safetensors"
        ) from error
    if not isinstance(config, dict) or not shapes:
        raise AssayError(f"cannot read the size of model {name!r}: give a folder with config.json and safetensors")
    return size_from_shapes(name, config, shapes)


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="np") as file:
            shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return shapes


_TABLES = {
    *("wte", "embed_tokens", "shared", "embed_in", "word_embeddings", "lm_head", "embed_out", "final_logits_bias"),
    *("wpe", "embed_positions", "position_embeddings", "relative_attention_bias"),
}
"""Modules that are looked up by token or position, and the head; by name, for a body may be as wide as a vocabulary."""


def size_from_shapes(name: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> ModelSize:
    """The size of a model with this config.json and these weights, a tied head once.

    Raises AssayError when the config lacks a number that costs follow from.
    """

    def field(*names: str) -> int:
        for key in names:
            if isinstance(config.get(key), int):
                return config[key]
        raise AssayError(
            f"the config.json of model {name!r} states no {' or '.join(names)}: its costs are unknown; "
            "add it, or choose another model"
        )

    vocab_size, hidden_size = field("vocab_size"), field("n_embd", "d_model", "hidden_size")
    num_heads = field("n_head", "decoder_attention_heads", "num_attention_heads", "num_heads")
    head_size = config.get("d_kv") or config.get("head_dim") or hidden_size // num_heads
    body = {key: prod(shape) for key, shape in shapes.items() if _TABLES.isdisjoint(key.split("."))}
    sizes = (vocab_size, hidden_size, num_heads * head_size, num_heads)
    stored = sum(map(prod, shapes.values()))
    if not config.get("is_encoder_decoder"):
        num_body = sum(body.values())
        return ModelSize("causal", stored, num_body, num_body, *sizes, field("n_layer", "num_hidden_layers"))
    encoder = sum(count for key, count in body.items() if "encoder" in key.split("."))
    num_layers = field("decoder_layers", "num_decoder_layers", "num_layers")
    across = 2 * num_layers * hidden_size * num_heads * head_size
    return ModelSize(
        "seq2seq",
        stored,
        encoder + across,
        sum(body.values()) - encoder - across,
        *sizes,
        num_layers,
        field("encoder_layers", "num_layers"),
        relative_positions="relative_attention_num_buckets" in config,
    )
