"""Models that somebody else holds in memory, a trainer above all: measured, and left as they were found."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from assay.errors import AssayError
from assay.models.causal import CausalModel
from assay.models.language_model import LanguageModel
from assay.models.pretrained import PretrainedModel
from assay.models.seq2seq import Seq2SeqModel
from assay.types import Framing, Writer

GivenModel: TypeAlias = PreTrainedModel | LanguageModel | str | Path
"""A model in memory, or the name of one to load."""


def frozen_models(
    given: Mapping[Writer, GivenModel | None],
    tokenizer: PreTrainedTokenizerBase,
    device: str,
    vocab_size: int | None,
    stack: ExitStack,
) -> tuple[dict[Writer, LanguageModel], Framing]:
    """The models that a probe walks with, and the special tokens around their prompts; ``stack`` leaves all as found.

    Names are loaded onto ``device``; ``vocab_size`` cuts the laws of all (None: not at all). Raises AssayError when
    tokenizer and models do not fit together.
    """
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    from assay.models.loading import check_fits, check_same_vocabulary, framing_of, load_model

    # loading silences transformers, and the program that it is imported into has its own mind about that
    logging.set_verbosity(verbosity)
    (logging.enable_progress_bar if shows_progress else logging.disable_progress_bar)()
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise AssayError("the tokenizer has no end-of-sequence token: responses could not end; set its eos_token")
    models: dict[Writer, LanguageModel] = {}
    for role, model in given.items():
        if model is None:
            continue
        if isinstance(model, str | Path):
            model = load_model(str(model), device, eos_token_id=eos, vocab_size=vocab_size)
        elif isinstance(model, PreTrainedModel):
            model = adapted(model, f"the {role}", eos, vocab_size)
        if isinstance(model, PretrainedModel):
            stack.enter_context(left_as_found(model.module))
        check_fits(tokenizer, model)
        models[role] = model
    for model in models.values():
        check_same_vocabulary(model, models["teacher"])
    is_closed = isinstance(models["teacher"], PretrainedModel) and models["teacher"].prompts_are_closed
    return models, framing_of(tokenizer, is_closed)


def num_token_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """1 + the largest id that the tokenizer can give."""
    return 1 + max(tokenizer.get_vocab().values())


def adapted(module: PreTrainedModel, name: str, eos_token_id: int, vocab_size: int | None = None) -> PretrainedModel:
    """The module behind the LanguageModel protocol: its own weights, no copy of them. Raises AssayError like it."""
    adapter = Seq2SeqModel if module.config.is_encoder_decoder else CausalModel
    with left_as_found(module):
        return adapter(module, name, eos_token_id, vocab_size)


def unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP, torch.compile and PEFT; adapters that PEFT has put into its layers stay on.

    Raises AssayError for weights that are sharded over processes, for a PEFT method that lives outside the layers
    (prompt and prefix tuning), and for what is no transformers model.
    """
    from accelerate.utils import extract_model_from_parallel  # a trainer has it, others need not

    if is_sharded(model):
        raise AssayError(
            "the model's weights are sharded over processes (FSDP, DeepSpeed ZeRO-3 or tensor parallelism), and one "
            "process would have to see them whole: take HackingCallback out, or train without sharding"
        )
    plain = extract_model_from_parallel(model, keep_torch_compile=False)
    if hasattr(plain, "peft_config") and hasattr(plain, "get_base_model"):
        if plain.active_peft_config.is_prompt_learning:
            raise AssayError(
                f"PEFT's {plain.active_peft_config.peft_type} adds to the prompt instead of the layers, which assay "
                "cannot evaluate: use a method such as LoRA"
            )
        plain = plain.get_base_model()
    if not isinstance(plain, PreTrainedModel):
        raise AssayError(
            f"the trained model is a {type(plain).__name__}, and assay can measure transformers models only: "
            "take HackingCallback out, or train one of these"
        )
    return plain


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether no process holds the whole weights."""
    wrapped = any(type(part).__name__ == "FullyShardedDataParallel" for part in model.modules())
    return wrapped or any(type(p).__name__ == "DTensor" or hasattr(p, "ds_id") for p in model.parameters())


@contextmanager
def left_as_found(module: torch.nn.Module) -> Iterator[None]:
    """Within it the module is in evaluation mode and computes in its own dtype.

    Afterwards the mode of each of its parts and all random number generators (Python, NumPy, torch on every device)
    are as before. Meanwhile transformers does not warn.
    """
    modes = [(part, part.training) for part in module.modules()]
    # it warns of missing masks, which right-padded causal models do not need
    verbosity = logging.get_verbosity()
    numbers, legacy = random.getstate(), np.random.get_state()
    # accelerate's mixed precision takes the place of forward by an attribute; parts that are called past it would
    # then compute in another dtype than the whole
    mixed = module.__dict__.pop("forward", None) if "_original_forward" in module.__dict__ else None
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            module.eval()
            logging.set_verbosity_error()
            yield
    finally:
        logging.set_verbosity(verbosity)
        if mixed is not None:
            module.__dict__["forward"] = mixed
        for part, was_training in modes:
            part.training = was_training
        random.setstate(numbers)
        np.random.set_state(legacy)
