"""Models and tokenizers by the name of an embedded base, a local checkpoint folder, or a hub id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from assay.errors import AssayError
from assay.models.bases import BASES, base_path
from assay.models.causal import CausalModel
from assay.models.language_model import LanguageModel
from assay.models.pretrained import PretrainedModel
from assay.models.seq2seq import Seq2SeqModel
from assay.types import Framing

logging.disable_progress_bar()
logging.set_verbosity_error()  # what matters of a load report becomes an error below


def checkpoint_of(name: str) -> str:
    """The folder of an embedded base, or the name itself (a local folder or a hub id)."""
    return str(base_path(name)) if name in BASES else name


_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    ZeroDivisionError,
    SafetensorError,
    StrictDataclassError,
)
"""What a config.json or a damaged file makes transformers and its libraries raise."""


@contextmanager
def _readable_errors(what: str, name: str) -> Iterator[None]:
    """Turns what transformers raises for a checkpoint that it cannot read into one sentence."""
    try:
        yield
    except _LOADING_ERRORS as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        known = "" if "/" in name else f"embedded bases: {', '.join(sorted(BASES))}; otherwise "
        raise AssayError(
            f"cannot load the {what} {name!r}: {cause} ({known}give a "
            "folder with config.json and safetensors, or a hub id)"
        ) from error


def load_model(name: str, device: str = "cpu") -> PretrainedModel:
    """The model in float32 from safetensors; pickled weights and remote code are never loaded.

    Raises AssayError when it cannot be loaded, or when weights are missing, superfluous or of another shape.
    """
    check_device(device)
    adapter, auto_class = _family(_load_config(name))
    with _readable_errors("model", name):
        loaded: Any = auto_class.from_pretrained(
            checkpoint_of(name),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    module, found = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[kind]:
            first = sorted(map(str, found[kind]))[0]
            raise AssayError(f"model {name!r} has {kind.replace('_', ' ')} (such as {first}): its file is not whole")
    return adapter(module.to(device).eval(), name)


def random_model(name: str, seed: int, device: str = "cpu") -> PretrainedModel:
    """The architecture of ``name`` with weights drawn with ``seed``."""
    check_device(device)
    config = _load_config(name)
    adapter, auto_class = _family(config)
    torch.manual_seed(seed)
    with _readable_errors("model", name):
        module = auto_class.from_config(config, dtype=torch.float32)
    return adapter(module.to(device).eval(), name)


def _load_config(name: str) -> PreTrainedConfig:
    with _readable_errors("model", name):
        return AutoConfig.from_pretrained(checkpoint_of(name), trust_remote_code=False)


def _family(config: PreTrainedConfig) -> tuple[type[PretrainedModel], Any]:
    """The adapter and the transformers class of a model: encoder-decoder or decoder-only, as its config says."""
    if config.is_encoder_decoder:
        return Seq2SeqModel, AutoModelForSeq2SeqLM
    return CausalModel, AutoModelForCausalLM


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; AssayError when there is none or it has no end-of-sequence token."""
    with _readable_errors("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint_of(name), trust_remote_code=False)
    if len(tokenizer) <= 1 or tokenizer.eos_token_id is None:
        raise AssayError(f"{name!r} ships no tokenizer with an end-of-sequence token: responses could not end")
    return tokenizer


def load_framing(name: str, tokenizer: PreTrainedTokenizerBase) -> Framing:
    """``framing_of`` the tokenizer for the family of model ``name``."""
    adapter, _ = _family(_load_config(name))
    return framing_of(tokenizer, adapter.prompts_are_closed)


def framing_of(tokenizer: PreTrainedTokenizerBase, prompts_are_closed: bool) -> Framing:
    """The special tokens that a tokenizer puts around text, as far as the model's family wants them.

    Decoder-only models keep what comes before a prompt (a begin-of-sequence token), encoder-decoder models, whose
    ``prompts_are_closed``, also what closes it and what their references begin with. Raises AssayError when the
    tokenizer changes the text itself.
    """

    def around(framed: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        for i in range(len(framed) - len(plain) + 1):
            if framed[i : i + len(plain)] == plain:
                return tuple(framed[:i]), tuple(framed[i + len(plain) :])
        raise AssayError(
            f"the tokenizer of {tokenizer.name_or_path!r} changes text when it adds special tokens: it is not supported"
        )

    plain = tokenizer.encode("a", add_special_tokens=False)
    before, after = around(tokenizer.encode("a"))
    if not prompts_are_closed:
        return Framing(before)
    before_reference, _ = around(tokenizer(text_target="a")["input_ids"])
    return Framing(before, after, before_reference)


def check_device(device: str) -> None:
    """Raises AssayError when nothing can be put on that device."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise AssayError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def check_fits(tokenizer: PreTrainedTokenizerBase, model: LanguageModel) -> None:
    """Raises AssayError when the tokenizer has ids that the model lacks, or ends sequences with another token."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= model.vocab_size:
        raise AssayError(
            f"the tokenizer has ids up to {largest}, but {model.name!r} predicts {model.vocab_size} tokens"
        )
    if tokenizer.eos_token_id != model.eos_token_id:
        raise AssayError(
            f"the tokenizer ends sequences with token {tokenizer.eos_token_id}, but {model.name!r} with "
            f"{model.eos_token_id}: make them equal in its config.json"
        )


def check_same_vocabulary(first: LanguageModel, second: LanguageModel) -> None:
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
    if folder.is_dir() and not any((folder / file).exists() for file in _TOKENIZER_FILES):
        return
    theirs, ours = load_tokenizer(name).get_vocab(), tokenizer.get_vocab()
    differing = [token for token in sorted(theirs | ours) if theirs.get(token) != ours.get(token)]
    if differing:
        raise AssayError(
            f"the tokenizer of {name!r} gives {len(differing)} tokens other ids than the oracle's (such as "
            f"{differing[0]!r}): exact divergences need one tokenizer; choose models that share it"
        )
