"""Models and tokenizers by the name of an embedded base, a local checkpoint folder, or a hub id."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from assay.errors import AssayError
from assay.models.bases import BASES, base_path
from assay.models.causal import CausalModel
from assay.models.checkpoint_files import check_descriptions, check_weights, pickled
from assay.models.in_memory import num_token_ids as num_token_ids
from assay.models.language_model import LanguageModel
from assay.models.pretrained import PretrainedModel, eos_token_ids
from assay.models.seq2seq import Seq2SeqModel
from assay.types import Framing

logging.disable_progress_bar()
logging.set_verbosity_error()  # what matters of a load report becomes an error below
# transformers would ask a service of the hub to convert pickled weights there, in a pull request
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")


def checkpoint_of(name: str) -> str:
    """The folder of an embedded base, or the name itself (a local folder or a hub id)."""
    return str(base_path(name)) if name in BASES else name


_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    ArithmeticError,
    AssertionError,
    EOFError,
    SafetensorError,
    StrictDataclassError,
)
"""What a config.json or a damaged file makes transformers and its libraries raise."""
_LONGEST_CAUSE = 160
"""Characters of what they say that are told."""


@contextmanager
def _readable_errors(what: str, name: str) -> Iterator[None]:
    """Turns what transformers raises for a checkpoint that it cannot read into one sentence."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise AssayError(
            f"the pickled weights of {name!r} are damaged or hold more than tensors, which is never loaded: convert "
            "them to safetensors"
        ) from error
    except _LOADING_ERRORS as error:
        cause = (" ".join(str(error).split()) or type(error).__name__)[:_LONGEST_CAUSE]
        if "trust_remote_code=True" in str(error):
            raise AssayError(
                f"the {what} {name!r} is made by Python code in its own repository, which is never run unasked: read "
                "that code, and set models.trust_remote_code to true if you trust it"
            ) from error
        if "cannot be loaded with `safetensors`" in str(error):  # of a hub id; folders are looked into before
            raise pickled(name) from error
        known = "" if "/" in name else "`assay bases` lists the embedded ones; otherwise "
        raise AssayError(
            f"cannot load the {what} {name!r}: {cause} ({known}give a "
            "folder with config.json and safetensors, or a hub id)"
        ) from error


def load_model(
    name: str,
    device: str = "cpu",
    *,
    eos_token_id: int | None = None,
    vocab_size: int | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
) -> PretrainedModel:
    """The model in ``dtype`` from safetensors; pickled weights and code of the checkpoint only where allowed.

    ``eos_token_id`` and ``vocab_size``: see ``PretrainedModel``. Where no end-of-sequence token is given and the model
    states several, that of the tokenizer beside it is taken. Pickled weights, which are looked for only where there
    are no safetensors, are read by transformers with torch's ``weights_only``: tensors, and no other objects.
    Raises AssayError when it cannot be loaded, or when weights are missing, superfluous or of another shape.
    """
    check_device(device)
    adapter, auto_class = _family(_load_config(name, trust_remote_code))
    check_weights(name, checkpoint_of(name), allow_pickle)
    with _readable_errors("model", name):
        loaded: Any = auto_class.from_pretrained(
            checkpoint_of(name),
            dtype=dtype,
            use_safetensors=None if allow_pickle else True,
            weights_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    module, found = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[kind]:
            first = sorted(map(str, found[kind]))[0]
            raise AssayError(
                f"model {name!r} has {kind.replace('_', ' ')} (such as {first}): its file is not whole; "
                "fetch it, or save it, again"
            )
    if eos_token_id is None:
        eos_token_id = _eos_token_id_beside(module, name, trust_remote_code)
    return adapter(module.to(device).eval(), name, eos_token_id, vocab_size)


def random_model(
    name: str,
    seed: int,
    device: str = "cpu",
    *,
    eos_token_id: int | None = None,
    vocab_size: int | None = None,
    trust_remote_code: bool = False,
) -> PretrainedModel:
    """The architecture of ``name`` with weights drawn with ``seed``; the rest as in ``load_model``."""
    check_device(device)
    config = _load_config(name, trust_remote_code)
    adapter, auto_class = _family(config)
    torch.manual_seed(seed)
    with _readable_errors("model", name):
        module = auto_class.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
        with suppress(OSError):  # where there is none, transformers has made it of config.json
            module.generation_config = GenerationConfig.from_pretrained(checkpoint_of(name))
    if eos_token_id is None:
        eos_token_id = _eos_token_id_beside(module, name, trust_remote_code)
    return adapter(module.to(device).eval(), name, eos_token_id, vocab_size)


def _eos_token_id_beside(module: Any, name: str, trust_remote_code: bool) -> int | None:
    """The tokenizer's end-of-sequence token, looked up only where the model states several."""
    if len(eos_token_ids(module)) < 2:
        return None
    tokenizer: Any = load_tokenizer(name, trust_remote_code)
    return tokenizer.eos_token_id


def _load_config(name: str, trust_remote_code: bool) -> PreTrainedConfig:
    check_descriptions(name, checkpoint_of(name))
    with _readable_errors("model", name):
        return AutoConfig.from_pretrained(checkpoint_of(name), trust_remote_code=trust_remote_code)


def _family(config: PreTrainedConfig) -> tuple[type[PretrainedModel], Any]:
    """The adapter and the transformers class of a model: encoder-decoder or decoder-only, as its config says."""
    if config.is_encoder_decoder:
        return Seq2SeqModel, AutoModelForSeq2SeqLM
    return CausalModel, AutoModelForCausalLM


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; AssayError when there is none or it has no end-of-sequence token."""
    if not ships_tokenizer(name):
        raise AssayError(f"the folder {name!r} has no tokenizer: save the one it was trained with beside its weights")
    check_descriptions(name, checkpoint_of(name))
    with _readable_errors("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint_of(name), trust_remote_code=trust_remote_code)
    if len(tokenizer) <= 1 or tokenizer.eos_token_id is None:
        raise AssayError(
            f"{name!r} ships no tokenizer with an end-of-sequence token: responses could not end; "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def load_framing(name: str, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool = False) -> Framing:
    """``framing_of`` the tokenizer for the family of model ``name``."""
    adapter, _ = _family(_load_config(name, trust_remote_code))
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
            f"the tokenizer of {tokenizer.name_or_path!r} changes text when it adds special tokens: it is not "
            "supported; choose a model with another tokenizer"
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
        raise AssayError(
            f"device {device!r} cannot be used: {str(error).splitlines()[0]}; "
            "set models.device to cpu, or to one that this machine has"
        ) from error


def check_fits(tokenizer: PreTrainedTokenizerBase, model: LanguageModel) -> None:
    """Raises AssayError when the tokenizer has ids that the model lacks, or ends sequences with another token."""
    largest = num_token_ids(tokenizer) - 1
    if largest >= model.vocab_size:
        raise AssayError(
            f"the tokenizer has ids up to {largest}, but {model.name!r} predicts {model.vocab_size} tokens: "
            "save the tokenizer that it was trained with beside it"
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
            "divergences need one vocabulary; choose models that share a tokenizer, or set models.vocabulary to "
            "'shared' if they share it and differ in padding alone"
        )
    if first.eos_token_id != second.eos_token_id:
        raise AssayError(
            f"{first.name!r} ends sequences with token {first.eos_token_id} and {second.name!r} with "
            f"{second.eos_token_id}: make them equal in the models' configs"
        )


def check_same_tokenizer(
    tokenizer: PreTrainedTokenizerBase, name: str, *, on_trust: bool = True, trust_remote_code: bool = False
) -> None:
    """Raises AssayError when model ``name`` ships a tokenizer with other ids.

    A model without a tokenizer is taken ``on_trust``, or refused.
    """
    if not ships_tokenizer(name):
        if on_trust:
            return
        raise AssayError(
            f"model {name!r} ships no tokenizer, so nothing proves that its ids are the oracle's: save its tokenizer "
            "beside it, or set models.vocabulary to 'same'"
        )
    theirs, ours = load_tokenizer(name, trust_remote_code).get_vocab(), tokenizer.get_vocab()
    differing = [token for token in sorted(theirs | ours) if theirs.get(token) != ours.get(token)]
    if differing:
        raise AssayError(
            f"the tokenizer of {name!r} gives {len(differing)} tokens other ids than the oracle's (such as "
            f"{differing[0]!r}): exact divergences need one tokenizer; choose models that share it"
        )


def describe(name: str, trust_remote_code: bool = False) -> tuple[PreTrainedConfig, dict[str, tuple[int, ...]]]:
    """The config of a model and the shapes of the weights that it asks for, tied ones once; nothing is loaded.

    Raises AssayError when there is no config, or no model can be made of it.
    """
    config = _load_config(name, trust_remote_code)
    _, auto_class = _family(config)
    with _readable_errors("model", name), torch.device("meta"):
        module = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    return config, {key: tuple(parameter.shape) for key, parameter in module.named_parameters()}


def ships_tokenizer(name: str) -> bool:
    """Whether a checkpoint folder has a tokenizer; a hub id is taken to have one."""
    folder = Path(checkpoint_of(name))
    return not folder.is_dir() or any((folder / file).exists() for file in _TOKENIZER_FILES)
