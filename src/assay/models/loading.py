"""Models and tokenizers by the name of an embedded base, a local checkpoint folder, or a hub id."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from assay.errors import AssayError
from assay.models.bases import BASES, base_path
from assay.models.causal import CausalModel

logging.disable_progress_bar()


def checkpoint_of(name: str) -> str:
    """The folder of an embedded base, or the name itself (a local folder or a hub id)."""
    return str(base_path(name)) if name in BASES else name


def load_model(name: str, device: str = "cpu") -> CausalModel:
    """The model in float32 from safetensors; pickled weights and remote code are never loaded.

    Raises AssayError with the cause when it cannot be loaded.
    """
    try:
        module = AutoModelForCausalLM.from_pretrained(
            checkpoint_of(name), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _cannot_load("model", name, error) from error
    return CausalModel(module.to(device).eval(), name)  # pyright: ignore[reportArgumentType]


def random_model(name: str, seed: int, device: str = "cpu") -> CausalModel:
    """The architecture of ``name`` with weights drawn with ``seed``."""
    try:
        config = AutoConfig.from_pretrained(checkpoint_of(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _cannot_load("model", name, error) from error
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return CausalModel(module.to(device).eval(), name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; AssayError when there is none or it has no end-of-sequence token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint_of(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _cannot_load("tokenizer", name, error) from error
    if tokenizer.eos_token_id is None:
        raise AssayError(f"the tokenizer of {name!r} has no end-of-sequence token: responses could not end")
    return tokenizer


def check_same_vocabulary(first: CausalModel, second: CausalModel) -> None:
    """Raises AssayError unless both models predict the same vocabulary and end sequences alike."""
    if first.vocab_size != second.vocab_size:
        raise AssayError(
            f"{first.name!r} predicts {first.vocab_size} tokens and {second.name!r} {second.vocab_size}: exact "
            "divergences need one vocabulary; choose models that share a tokenizer"
        )
    if first.eos_token_id != second.eos_token_id:
        raise AssayError(
            f"{first.name!r} ends sequences with token {first.eos_token_id} and {second.name!r} with "
            f"{second.eos_token_id}: make them equal in the models' configs"
        )


def check_same_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises AssayError when model ``name`` ships a tokenizer with other ids; a model without one is taken on trust."""
    folder = Path(checkpoint_of(name))
    if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
        return
    theirs, ours = load_tokenizer(name).get_vocab(), tokenizer.get_vocab()
    differing = [token for token in sorted(theirs | ours) if theirs.get(token) != ours.get(token)]
    if differing:
        raise AssayError(
            f"the tokenizer of {name!r} gives {len(differing)} tokens other ids than the oracle's (such as "
            f"{differing[0]!r}): exact divergences need one tokenizer; choose models that share it"
        )


def _cannot_load(what: str, name: str, error: Exception) -> AssayError:
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return AssayError(
        f"cannot load the {what} {name!r}: {cause} (embedded bases: {', '.join(sorted(BASES))}; otherwise give a "
        "folder with config.json and safetensors, or a hub id)"
    )
