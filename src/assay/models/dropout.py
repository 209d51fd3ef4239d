"""Dropout of a transformers model, wherever its family keeps the rate."""

from __future__ import annotations

from torch import nn

from assay.errors import AssayError
from assay.models.pretrained import PretrainedModel

_RATES = ("dropout", "attention_dropout", "activation_dropout")
"""Attributes in which modules of BART, mBART, T5, Llama and their kin keep a rate that they apply by themselves."""


def set_dropout(model: PretrainedModel, rate: float) -> None:
    """Every dropout of the model gets this rate: after embeddings, sub-layers and activations, and in attention.

    It acts while the module trains, so not within ``evaluating``; the model's config stays as it is. Families differ
    in the places that they have (Llama: attention alone). Raises AssayError for a model that has none.
    """
    num_places = 0
    for part in model.module.modules():
        if isinstance(part, nn.Dropout):
            part.p = rate
            num_places += 1
        for name in _RATES:
            if isinstance(vars(part).get(name), int | float):
                setattr(part, name, rate)
                num_places += 1
    if num_places == 0:
        raise AssayError(
            f"model {model.name!r} ({type(model.module).__name__}) has no place for dropout: set "
            "distillation.training.dropout to 0"
        )
