"""Any transformers decoder-only model behind the LanguageModel protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from assay.errors import AssayError
from assay.models import sampling
from assay.types import Batch


class CausalModel:
    """A transformers causal model: scores responses, samples them, and exposes hidden states and head.

    Raises AssayError when the model does more between its last hidden state and its logits than a linear
    head, an optional scale and an optional tanh soft cap: its loss could not be computed from hidden states.
    """

    def __init__(self, module: PreTrainedModel, name: str, eos_token_id: int | None = None) -> None:
        eos = module.config.eos_token_id if eos_token_id is None else eos_token_id
        if not isinstance(eos, int):
            raise AssayError(
                f"model {name!r} has no single end-of-sequence token ({eos!r}): set one eos_token_id in its config.json"
            )
        if not isinstance(getattr(module.config, "max_position_embeddings", None), int):
            raise AssayError(f"model {name!r} ({type(module).__name__}) states no context length: it is not supported")
        self.module = module
        self.name = name
        self.eos_token_id = eos
        self._output_embeddings: Any = module.get_output_embeddings()
        self.vocab_size = int(self._output_embeddings.weight.shape[0])
        self.max_context_tokens = int(module.config.max_position_embeddings)
        self._softcap: float | None = getattr(module.config, "final_logit_softcapping", None)
        self._logit_scale: float = getattr(module.config, "logit_scale", 1.0) or 1.0
        self._check_head()

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs go there."""
        return self.module.device

    @property
    def digest(self) -> str:
        """The first 16 hex digits of SHA-256 over names, shapes and bytes of all weights."""
        total = hashlib.sha256()
        for key, value in sorted(self.module.state_dict().items()):
            total.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            total.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()[:16]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it dropout is off; afterwards the module is in the mode it was in before."""
        was_training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(was_training)

    def hidden(self, batch: Batch) -> Float[Tensor, "N H"]:
        """The last hidden state at the position before each response token.

        Rows are padded on the right: a causal model never looks there, so no mask is needed. The last
        response token is not fed: nothing is predicted from it.
        """
        self._check_fits(batch)
        rows = [
            (*prompt, *response[:-1]) for prompt, response in zip(batch.prompt_ids, batch.response_ids, strict=True)
        ]
        longest = max(map(len, rows))
        input_ids_BT = torch.zeros((len(rows), longest), dtype=torch.long)
        for i, row in enumerate(rows):
            input_ids_BT[i, : len(row)] = torch.tensor(row)
        position_N = np.concatenate(
            [
                i * longest + len(prompt) - 1 + np.arange(length)
                for i, (prompt, length) in enumerate(zip(batch.prompt_ids, batch.lengths, strict=True))
            ]
        )
        hidden_BTH = self.module.base_model(input_ids=input_ids_BT.to(self.device), use_cache=False).last_hidden_state
        return hidden_BTH.flatten(0, 1)[torch.from_numpy(position_N).to(self.device)]

    def head(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Log-probabilities (nats): log softmax of softcap(scale · (W h + b)), in float32."""
        return self._logits(hidden_NH).float().log_softmax(dim=-1)

    def log_probs(self, batch: Batch) -> Float[Tensor, "N V"]:
        """``head(hidden(batch))``: logits exist at response positions only."""
        return self.head(self.hidden(batch))

    def sample(
        self,
        prompt_ids: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
        max_response_tokens: int,
        sampling_temperature: float = 1.0,
    ) -> list[tuple[int, ...]]:
        """One response per prompt by cached batched decoding; temperature 0 takes the most likely token.

        Rows are padded on the left and leave the batch once most of it has finished. Row i depends on
        prompt_ids[i] and seeds[i] alone (up to float rounding of the logits).
        """
        self._check_fits(Batch(prompt_ids, [(0,) * max_response_tokens] * len(prompt_ids)))
        uniforms_BT = torch.from_numpy(sampling.uniforms(seeds, max_response_tokens))
        with self.evaluating(), torch.no_grad():
            token_ids_BT = self._decode(prompt_ids, uniforms_BT, sampling_temperature)
        return [sampling.until_end(row, self.eos_token_id) for row in token_ids_BT.tolist()]

    def _decode(
        self, prompt_ids: Sequence[tuple[int, ...]], uniforms_BT: Tensor, sampling_temperature: float
    ) -> Tensor:
        """The decoding loop: token ids [B, T], end-of-sequence after the first end-of-sequence."""
        token_ids_BT = torch.full(uniforms_BT.shape, self.eos_token_id)
        alive_A = torch.arange(len(prompt_ids))  # rows that are still decoded
        input_ids, mask, positions = self._left_padded(prompt_ids)
        cache = DynamicCache(config=self.module.config)
        for t in range(uniforms_BT.shape[1]):
            hidden = self.module.base_model(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            logits = self._logits(hidden).float().cpu()
            if sampling_temperature == 0:
                token_A = logits.argmax(dim=-1)
            else:
                log_p_AV = (logits / sampling_temperature).log_softmax(dim=-1)
                token_A = sampling.draw(log_p_AV, uniforms_BT[alive_A, t])
            token_ids_BT[alive_A, t] = token_A
            going_A = ((token_ids_BT[alive_A, : t + 1] != self.eos_token_id).all(dim=-1)).nonzero()[:, 0]
            if len(going_A) == 0:
                break
            if len(going_A) <= 0.7 * len(alive_A):
                alive_A, token_A, kept = alive_A[going_A], token_A[going_A], going_A.to(self.device)
                cache.batch_select_indices(kept)
                mask, positions = mask[kept], positions[kept]
            input_ids = token_A.unsqueeze(-1).to(self.device)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
            positions = positions[:, -1:] + 1
        return token_ids_BT

    def _left_padded(self, prompt_ids: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        longest = max(map(len, prompt_ids))
        input_ids_BT = torch.zeros((len(prompt_ids), longest), dtype=torch.long)
        mask_BT = torch.zeros_like(input_ids_BT)
        for i, prompt in enumerate(prompt_ids):
            input_ids_BT[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask_BT[i, longest - len(prompt) :] = 1
        positions_BT = (mask_BT.cumsum(dim=-1) - 1).clamp_(min=0)
        return input_ids_BT.to(self.device), mask_BT.to(self.device), positions_BT.to(self.device)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._output_embeddings(hidden) * self._logit_scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    @torch.no_grad()
    def _check_head(self) -> None:
        input_ids = torch.tensor([[1 % self.vocab_size, 2 % self.vocab_size, 3 % self.vocab_size]])
        input_ids = input_ids.to(self.device)
        mask = torch.ones_like(input_ids)
        with self.evaluating():
            expected = self.module(input_ids=input_ids, attention_mask=mask).logits
            ours = self._logits(self.module.base_model(input_ids=input_ids, attention_mask=mask).last_hidden_state)
        if not expected.isfinite().all():
            raise AssayError(f"model {self.name!r} gives logits that are not finite: its weights are damaged")
        if ours.shape != expected.shape or not torch.allclose(ours, expected, rtol=1e-3, atol=1e-3):
            raise AssayError(
                f"model {self.name!r} ({type(self.module).__name__}) does more to its logits than a linear head, "
                "a scale and a soft cap: assay cannot compute its losses from hidden states"
            )

    def _check_fits(self, batch: Batch) -> None:
        longest = max(
            len(prompt) + len(response) for prompt, response in zip(batch.prompt_ids, batch.response_ids, strict=True)
        )
        if longest > self.max_context_tokens:
            raise AssayError(
                f"a prompt with its response has {longest} tokens, but model {self.name!r} has a context of "
                f"{self.max_context_tokens}: shorten max_prompt_tokens or max_response_tokens, or drop that prompt"
            )
        if not all(batch.prompt_ids) or not all(batch.response_ids):
            raise AssayError("a prompt or a response is empty: every sequence needs at least one token of each")
