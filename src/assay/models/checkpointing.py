"""Activation checkpointing of a transformers model."""

from __future__ import annotations

import warnings

from assay.errors import AssayError
from assay.models.pretrained import PretrainedModel


def checkpoint_activations(model: PretrainedModel) -> None:
    """While the module trains, a layer keeps its input alone, and its activations are computed again going backward.

    Losses and gradients stay the same up to float rounding. Memory for activations falls to about one layer's; a step
    takes up to a third longer, for another forward pass. Raises AssayError where the architecture cannot
    [Chen et al. 2016].
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # late versions 5 have a second name for it, early ones do not
        try:
            model.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise AssayError(
                f"model {model.name!r} ({type(model.module).__name__}) cannot compute its activations anew: set "
                "distillation.training.gradient_checkpointing to false"
            ) from error
