"""A smaller vocabulary for a model and its byte-level BPE tokenizer: the law given that a kept token comes next.

Tokens that a corpus never needs are most of a vocabulary, and the vocabulary is most of what small students, their
losses and their sampling cost.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from assay.errors import AssayError


def kept_token_ids(tokenizer: PreTrainedTokenizerBase, needed: Iterable[int]) -> list[int]:
    """The closure of ``needed`` under BPE merges, and the special tokens; ascending.

    A token is made by merging two others, which are kept with it, and so on down to single characters. Whatever text
    the tokenizer turns into needed tokens, the trimmed one turns into the same: every merge on the way is kept, in
    the same order, and no merge is added. Raises AssayError for a tokenizer that is no BPE.
    """
    state = _state(tokenizer)
    vocabulary: dict[str, int] = state["model"]["vocab"]
    parents: dict[int, list[int]] = {}
    for left, right in state["model"]["merges"]:  # several merges may make one token: any of them may be the way
        parents.setdefault(vocabulary[left + right], []).extend((vocabulary[left], vocabulary[right]))
    special = [token["id"] for token in state["added_tokens"]]
    waiting, kept = [*needed, *special], set[int]()
    while waiting:
        token_id = waiting.pop()
        if token_id not in kept:
            kept.add(token_id)
            waiting += parents.get(token_id, ())
    return sorted(kept)


def trimmed_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]) -> PreTrainedTokenizerFast:
    """The tokenizer with the ``kept`` tokens only: token kept[i] has the id i.

    Characters that are not kept become the unknown token. Raises AssayError when the tokenizer has none.
    """
    if tokenizer.unk_token is None:
        raise AssayError(
            "the tokenizer has no unknown token: text that is not kept would vanish without a trace; "
            "choose a tokenizer that has one"
        )
    state, new_ids = _state(tokenizer), {old: new for new, old in enumerate(kept)}
    bpe = state["model"]
    vocabulary: dict[str, int] = bpe["vocab"]
    bpe["merges"] = [
        (left, right)
        for left, right in bpe["merges"]
        if all(vocabulary[token] in new_ids for token in (left, right, left + right))
    ]
    bpe["unk_token"] = tokenizer.unk_token
    bpe["vocab"] = {token: new_ids[old] for token, old in vocabulary.items() if old in new_ids}
    for token in state["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        **{name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
        chat_template=tokenizer.chat_template,
    )


def trimmed_model(module: PreTrainedModel, kept: Sequence[int], temperature: float = 1.0) -> PreTrainedModel:
    """The model with the ``kept`` rows of its embeddings and head: p(token | a kept token comes, at ``temperature``).

    Its log-probabilities are log softmax(z / temperature) over the kept tokens, with z the logits of ``module``. The
    temperature goes into the weight of the last normalisation, so the result is an ordinary checkpoint. ``module``
    itself is left as it is. Raises AssayError for a model without such a last normalisation when it is needed.
    """
    trimmed = copy.deepcopy(module)
    rows = torch.tensor(kept)
    embeddings: Any = trimmed.get_input_embeddings()
    head: Any = trimmed.get_output_embeddings()
    weights = {id(layer): layer for layer in (embeddings, head)}
    tied = head.weight is embeddings.weight
    for layer in weights.values():
        layer.weight = torch.nn.Parameter(layer.weight.detach()[rows].clone(), requires_grad=layer.weight.requires_grad)
    if tied:
        head.weight = embeddings.weight
    embeddings.num_embeddings = head.out_features = len(kept)
    trimmed.config.vocab_size = len(kept)
    for config in (trimmed.config, trimmed.generation_config):
        _renumber(config, kept)
    if temperature != 1.0:
        norm: Any = getattr(trimmed.base_model, "norm", None)
        if norm is None or getattr(norm, "bias", None) is not None or getattr(head, "bias", None) is not None:
            raise AssayError(
                f"{type(module).__name__} ends in no normalisation that a temperature could go into: leave it at 1"
            )
        norm.weight = torch.nn.Parameter(norm.weight.detach() / temperature)
    return trimmed


def _renumber(config: Any, kept: Sequence[int]) -> None:
    """Gives the special tokens that a config names their new ids; one that is not kept is none any more."""
    new_ids = {old: new for new, old in enumerate(kept)}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        old = getattr(config, name, None)
        if isinstance(old, list):
            setattr(config, name, [new_ids[token_id] for token_id in old if token_id in new_ids])
        elif old is not None:
            setattr(config, name, new_ids.get(old))


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer as plain values; AssayError when it is not one that merges pairs."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = {} if backend is None else json.loads(backend.to_str())
    if state.get("model", {}).get("type") != "BPE":
        raise AssayError(
            f"only a BPE tokenizer can be trimmed: {type(tokenizer).__name__} is none; choose a model with one"
        )
    return state
