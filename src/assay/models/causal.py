"""Any transformers decoder-only model behind the LanguageModel protocol."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from assay.errors import AssayError
from assay.models.caches import StepMasks, preallocated
from assay.models.decode_gpt2 import GPT2Layers
from assay.models.decode_llama import LlamaLayers
from assay.models.decode_rows import StepDecoding
from assay.models.pretrained import Decoding, PretrainedModel, right_padded
from assay.types import Batch


class CausalModel(PretrainedModel):
    """A transformers causal model: the prompt and the response are one sequence in one context."""

    def __init__(
        self, module: PreTrainedModel, name: str, eos_token_id: int | None = None, vocab_size: int | None = None
    ) -> None:
        if not isinstance(getattr(module.config, "max_position_embeddings", None), int):
            raise AssayError(
                f"model {name!r} ({type(module).__name__}) states no context length: it is not supported; "
                "set max_position_embeddings in its config.json, or choose another model"
            )
        self.max_context_tokens: int = int(module.config.max_position_embeddings)
        self._is_packing = False
        super().__init__(module, name, eos_token_id, vocab_size)

    def check_lengths(self, num_prompt_tokens: int, num_response_tokens: int) -> None:
        """Raises AssayError when prompt and response together are longer than the context."""
        if num_prompt_tokens + num_response_tokens > self.max_context_tokens:
            raise AssayError(
                f"a prompt with its response has {num_prompt_tokens + num_response_tokens} tokens, but model "
                f"{self.name!r} has a context of {self.max_context_tokens}: lower task.max_prompt_tokens or "
                "task.max_response_tokens, or drop that prompt"
            )

    def hidden(self, batch: Batch) -> Float[Tensor, "N H"]:
        """The last hidden state at the position before each response token.

        Rows are padded on the right: a causal model never looks there, so no mask is needed. The last
        response token is not fed: nothing is predicted from it.
        """
        self._check_batch(batch)
        return self._hidden(batch, packed=self._is_packing and self.module.training)

    def pack_rows(self) -> None:
        """From now on ``hidden`` reads several sequences in one row while the module trains.

        A row is as long as the longest sequence of its batch and takes sequences by first fit. Positions begin anew
        with each, by which transformers finds where it begins and lets no sequence see another. Raises AssayError when
        packed sequences have other states than sequences in rows of their own.
        """
        problem = (
            f"model {self.name!r} ({type(self.module).__name__}) does not keep sequences in one row apart: set "
            "distillation.training.packing to false"
        )
        try:
            agrees = self._packs_as_it_scores()
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise AssayError(problem) from error
        if not agrees:
            raise AssayError(problem)
        self._is_packing = True

    @torch.no_grad()
    def _packs_as_it_scores(self) -> bool:
        """The states of four sequences, two of which follow others in their rows."""
        first, second, third = (i % self.vocab_size for i in (1, 2, 3))
        prompts = [(first, second), (second, third, first, second, first), (third,), (first,)]
        batch = Batch(prompts, [(second, third)] * len(prompts))
        with self.evaluating():
            scored_NH, packed_NH = self._hidden(batch, packed=False), self._hidden(batch, packed=True)
        return bool((packed_NH - scored_NH).norm() <= 1e-3 * scored_NH.norm())

    def _hidden(self, batch: Batch, packed: bool) -> Tensor:
        fed = [(*prompt, *response[:-1]) for prompt, response in zip(batch.prompt_ids, batch.response_ids, strict=True)]
        lengths = list(map(len, fed))
        longest = max(lengths)
        places = first_fit(lengths, longest) if packed else [(row, 0) for row in range(len(fed))]
        # all fed tokens, sequence after sequence: how far into its own each one is, and where it stands in the rows
        positions_F = np.concatenate([np.arange(length) for length in lengths])
        index_F = positions_F + np.repeat([row * longest + start for row, start in places], lengths)
        shape = 1 + max(row for row, _ in places), longest
        input_ids_BT, positions_BT = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        input_ids_BT.numpy().flat[index_F] = np.fromiter(itertools.chain.from_iterable(fed), np.int64, len(index_F))
        positions_BT.numpy().flat[index_F] = positions_F  # padding begins anew at every token: nothing sees it
        index_N = index_F[positions_F >= np.repeat([len(prompt) - 1 for prompt in batch.prompt_ids], lengths)]
        hidden_BTH = self.module.base_model(
            input_ids=input_ids_BT.to(self.device),
            position_ids=positions_BT.to(self.device) if packed else None,
            use_cache=False,
        ).last_hidden_state
        return hidden_BTH.flatten(0, 1)[torch.from_numpy(index_N).to(self.device)]

    def prompt_hidden(self, prompt_ids: Sequence[tuple[int, ...]]) -> Float[Tensor, "N H"]:
        """See ``PretrainedModel``; a token's state sees the tokens before it only."""
        # the state before each token of (rest of the prompt, one token that is not fed)
        return self.hidden(Batch([ids[:1] for ids in prompt_ids], [(*ids[1:], 0) for ids in prompt_ids]))

    def begin(self, prompt_ids: Sequence[tuple[int, ...]], max_response_tokens: int) -> tuple[Decoding, Tensor]:
        """Decoding starts with the prompts themselves, padded on the left."""
        input_ids_BT, mask_BT = (ids.flip(-1).to(self.device) for ids in right_padded([p[::-1] for p in prompt_ids]))
        capacity = input_ids_BT.shape[1] + max_response_tokens
        if self.steps_directly and (family := self._written_out()):
            return StepDecoding(family(self.module, capacity), mask_BT, capacity, self.module.dtype), input_ids_BT
        return _CausalDecoding(self.module, mask_BT, capacity if self.preallocates else None), input_ids_BT

    def _written_out(self) -> type[GPT2Layers] | type[LlamaLayers] | None:
        return next((family for family in (GPT2Layers, LlamaLayers) if family.fit(self.module)), None)

    @property
    def _logit_scales(self) -> tuple[float, ...]:
        return (getattr(self.module.config, "logit_scale", None) or 1.0,)

    def _hidden_and_logits(self, input_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        mask_BT = torch.ones_like(input_ids_BT)
        output: Any = self.module(input_ids=input_ids_BT, attention_mask=mask_BT)
        return self.module.base_model(input_ids=input_ids_BT, attention_mask=mask_BT).last_hidden_state, output.logits


def first_fit(lengths: Sequence[int], row_length: int) -> list[tuple[int, int]]:
    """The row and the place in it of each sequence: the first row that has room, else a new one."""
    taken: list[int] = []
    places: list[tuple[int, int]] = []
    for length in lengths:
        row = next((i for i, used in enumerate(taken) if used + length <= row_length), len(taken))
        if row == len(taken):
            taken.append(0)
        places.append((row, taken[row]))
        taken[row] += length
    return places


class _CausalDecoding:
    """The key-value cache of left-padded rows: for ``capacity`` tokens, or one that grows."""

    def __init__(self, module: PreTrainedModel, mask_BT: Tensor, capacity: int | None) -> None:
        self._model: Any = module.base_model
        self._cache = DynamicCache(config=module.config) if capacity is None else preallocated(module, capacity)
        self._masks = None if capacity is None else StepMasks(module, mask_BT, capacity)
        self._mask_AT = mask_BT
        self._positions_AT = (mask_BT.cumsum(dim=-1) - 1).clamp_(min=0)
        self._num_tokens = 0

    def feed(self, input_ids_AT: Tensor) -> Tensor:
        """See ``Decoding``."""
        is_first = self._num_tokens == 0
        self._num_tokens += input_ids_AT.shape[1]
        if self._masks is None and not is_first:
            self._mask_AT = pad(self._mask_AT, (0, 1), value=1)
        hidden_AH = self._model(
            input_ids=input_ids_AT,
            attention_mask=self._mask_AT if is_first or self._masks is None else self._masks.after(self._num_tokens),
            position_ids=self._positions_AT,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self._positions_AT = self._positions_AT[:, -1:] + 1
        return hidden_AH

    def keep(self, rows: Tensor) -> None:
        """See ``Decoding``."""
        self._cache.batch_select_indices(rows)
        self._positions_AT = self._positions_AT[rows]
        if self._masks is None:
            self._mask_AT = self._mask_AT[rows]
        else:
            self._masks.keep(rows)
