"""Any transformers encoder-decoder model (T5, mT5, BART and their kin) behind the LanguageModel protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from assay.errors import AssayError
from assay.models.caches import StepMasks, additive_mask, preallocated
from assay.models.decode_t5 import T5StepDecoding, fits_t5
from assay.models.pretrained import Decoding, PretrainedModel, right_padded
from assay.types import Batch


class Seq2SeqModel(PretrainedModel):
    """A transformers encoder-decoder model: the encoder reads the prompt, the decoder writes the response.

    ``max_context_tokens`` bounds prompt and response each on its own; None with relative positions, which have
    no bound.
    """

    prompts_are_closed = True

    def __init__(
        self, module: PreTrainedModel, name: str, eos_token_id: int | None = None, vocab_size: int | None = None
    ) -> None:
        config = module.config
        limit = getattr(config, "max_position_embeddings", None)
        if not isinstance(limit, int) and not hasattr(config, "relative_attention_num_buckets"):
            raise AssayError(
                f"model {name!r} ({type(module).__name__}) states no context length: it is not supported; "
                "set max_position_embeddings in its config.json, or choose another model"
            )
        start = getattr(config, "decoder_start_token_id", None)
        if not isinstance(start, int):
            raise AssayError(f"model {name!r} has no decoder_start_token_id in its config.json: set it")
        self.max_context_tokens = limit
        self._start_token_id = start
        super().__init__(module, name, eos_token_id, vocab_size)

    def check_lengths(self, num_prompt_tokens: int, num_response_tokens: int) -> None:
        """Raises AssayError when the prompt or the response is longer than the context."""
        for what, num_tokens in (("prompt", num_prompt_tokens), ("response", num_response_tokens)):
            if self.max_context_tokens is not None and num_tokens > self.max_context_tokens:
                raise AssayError(
                    f"a {what} has {num_tokens} tokens, but model {self.name!r} has a context of "
                    f"{self.max_context_tokens}: lower task.max_{what}_tokens, or drop that prompt"
                )

    def hidden(self, batch: Batch) -> Float[Tensor, "N H"]:
        """The decoder's last hidden state before each response token; the first follows the start token alone.

        Prompts are padded on the right and masked; responses are padded on the right, where a causal decoder
        never looks. The last response token is not fed: nothing is predicted from it.
        """
        self._check_batch(batch)
        encoded_BTH, mask_BT = self._encode(batch.prompt_ids)
        input_ids_BT, fed_BT = right_padded([(self._start_token_id, *response[:-1]) for response in batch.response_ids])
        decoder: Any = self.module.get_decoder()
        hidden_BTH = decoder(
            input_ids=input_ids_BT.to(self.device),
            encoder_hidden_states=encoded_BTH,
            encoder_attention_mask=mask_BT,
            use_cache=False,
        ).last_hidden_state
        return hidden_BTH[fed_BT.bool().to(self.device)]

    def prompt_hidden(self, prompt_ids: Sequence[tuple[int, ...]]) -> Float[Tensor, "N H"]:
        """See ``PretrainedModel``; the encoder's states, each of which sees the whole prompt."""
        encoded_BTH, mask_BT = self._encode(prompt_ids)
        return encoded_BTH[mask_BT.bool()]

    def begin(self, prompt_ids: Sequence[tuple[int, ...]], max_response_tokens: int) -> tuple[Decoding, Tensor]:
        """Decoding starts with the start token; the encoder runs here, once for each prompt."""
        encoded_BTH, mask_BT = self._encode(prompt_ids)
        start_B1 = torch.full((len(prompt_ids), 1), self._start_token_id, device=self.device)
        if self.steps_directly and self._written_out():
            return T5StepDecoding(self.module, encoded_BTH, mask_BT, max_response_tokens), start_B1
        capacity = max_response_tokens if self.preallocates else None
        return _Seq2SeqDecoding(self.module, encoded_BTH, mask_BT, capacity), start_B1

    def _written_out(self) -> bool:
        return fits_t5(self.module)

    def _encode(self, prompt_ids: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        input_ids_BT, mask_BT = (ids.to(self.device) for ids in right_padded(prompt_ids))
        encoder: Any = self.module.get_encoder()
        return encoder(input_ids=input_ids_BT, attention_mask=mask_BT).last_hidden_state, mask_BT

    @property
    def _logit_scales(self) -> tuple[float, ...]:
        # T5 divides by the root of its width, T5 1.1, mT5 and BART do not, and no config says so in all versions
        return (1.0, self._output_embeddings.weight.shape[1] ** -0.5)

    def _hidden_and_logits(self, input_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        start_B1 = torch.full_like(input_ids_BT[:, :1], self._start_token_id)
        output: Any = self.module(input_ids=input_ids_BT, decoder_input_ids=start_B1)
        decoding, start_B1 = self.begin([tuple(row) for row in input_ids_BT.tolist()], 1)
        return decoding.feed(start_B1).unsqueeze(1), output.logits


class _Seq2SeqDecoding:
    """The encoded prompts and the key-value caches of the decoder: its own, and the one over the prompts."""

    def __init__(self, module: PreTrainedModel, encoded_BTH: Tensor, mask_BT: Tensor, capacity: int | None) -> None:
        self._decoder: Any = module.get_decoder()
        own = DynamicCache(config=module.config) if capacity is None else preallocated(module, capacity)
        self._cache = EncoderDecoderCache(own, DynamicCache(config=module.config))
        self._encoded_ATH, self._mask_AT = encoded_BTH, mask_BT
        self._masks = None
        if capacity is not None:
            # no row of the decoder has padding, and what it may see of the prompts is the same at every step
            self._masks = StepMasks(module, mask_BT.new_ones((1, 0)), capacity)
            self._mask_AT = additive_mask(mask_BT, module.dtype)
        self._num_tokens = 0

    def feed(self, input_ids_AT: Tensor) -> Tensor:
        """See ``Decoding``."""
        self._num_tokens += input_ids_AT.shape[1]
        return self._decoder(
            input_ids=input_ids_AT,
            attention_mask=None if self._masks is None else self._masks.after(self._num_tokens),
            encoder_hidden_states=self._encoded_ATH,
            encoder_attention_mask=self._mask_AT,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

    def keep(self, rows: Tensor) -> None:
        """See ``Decoding``."""
        for cache in (self._cache.self_attention_cache, self._cache.cross_attention_cache):
            cache.batch_select_indices(rows)
        self._encoded_ATH, self._mask_AT = self._encoded_ATH[rows], self._mask_AT[rows]
