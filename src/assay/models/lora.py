"""Low-rank updates (LoRA) through the library peft, which is loaded only when they are asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.errors import AssayError
from assay.models.pretrained import PretrainedModel

_ADAPTER = "default"


def check_peft() -> None:
    """Raises AssayError when peft is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise AssayError("lora_rank needs the library peft: pip install 'assay[peft]', or set it to null") from error


def add_adapters(model: PretrainedModel, rank: int) -> None:
    """W → W + B A for every linear layer but the head: only A (rank × inputs) and B (outputs × rank) are trained.

    B begins at 0, so the model's law does not change; A is drawn from torch's generator. The update is not scaled
    (alpha = rank): the learning rate is the dial. Raises AssayError when peft is not installed, or has no such layer
    to work on [Hu et al. 2022].
    """
    check_peft()
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules="all-linear")
    # rows of Conv1D (GPT-2) lie the other way round, which peft would find out by itself, with a warning
    config.fan_in_fan_out = any(type(part).__name__ == "Conv1D" for part in model.module.modules())
    try:
        peft.inject_adapter_in_model(config, model.module, _ADAPTER)
    except ValueError as error:
        raise AssayError(
            f"peft finds no linear layers in model {model.name!r} to adapt: set lora_rank to null"
        ) from error


@torch.no_grad()
def merged_weights(model: PretrainedModel) -> dict[str, Tensor]:
    """W + B A of every adapted layer, under the name that W has in the plain model."""
    from peft.tuners.lora import LoraLayer

    merged: dict[str, Tensor] = {}
    for name, part in model.module.named_modules():
        if isinstance(part, LoraLayer):
            layer: Any = part
            merged[f"{name}.weight"] = layer.get_base_layer().weight + layer.get_delta_weight(_ADAPTER)
    return merged
