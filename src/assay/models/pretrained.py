"""What the adapters of transformers models share: identity, head, and the decoding loop."""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from assay.errors import AssayError
from assay.models import caches, sampling
from assay.models.batching import SAMPLING_BATCH_SIZE
from assay.types import Batch

_RETIRE_BELOW = 0.7
"""Rows that have ended leave once the others are this share or less: leaving copies what the others have seen."""


@runtime_checkable
class Decoding(Protocol):
    """A batch of responses in the making: the family's caches, and nothing about tokens."""

    def feed(self, input_ids_AT: Int[Tensor, "A T"]) -> Float[Tensor, "A H"]:
        """Takes the next tokens of every row and returns the state from which the token after them is predicted."""
        ...

    def keep(self, rows: Int[Tensor, " A"]) -> None:
        """Goes on with these rows only."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """What the decoding loop asks of a model."""

    eos_token_id: int

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        ...

    def begin(self, prompt_ids: Sequence[tuple[int, ...]], max_response_tokens: int) -> tuple[Decoding, Tensor]:
        """A decoding of responses to these prompts, and the first tokens to feed it."""
        ...


class PretrainedModel(ABC):
    """A transformers model with a language-modelling head; a family adds ``hidden``, ``begin`` and its lengths.

    Raises AssayError when the model does more between its last hidden state and its logits than a linear
    head, a scale, a constant bias and a tanh soft cap (its loss could not be computed from hidden states), and
    when cached decoding of padded prompts gives another law than scoring does (a model without position ids or
    masks, or one that looks ahead: its samples would not be its own).

    ``eos_token_id`` is the one token that ends a response. Real models state several (``eos_token_id`` of config.json
    and of generation_config.json, each a number or a list): the rule is to take the tokenizer's, which is given here,
    where it is among them, and to refuse the model where it is not. Without one given, the model must state exactly
    one. ``vocab_size`` cuts the law to the first so many output rows, renormalised over them, whatever is computed
    from it; the weights stay whole.
    """

    prompts_are_closed = False
    """Whether the tokenizer's closing tokens end a prompt; where a response follows in the same row, they must not."""

    steps_directly: bool
    """Whether decoding runs the family's layers written out (``decode_step.py``) where the module is plain then."""

    preallocates: bool
    """Whether decoding through the module writes keys and values in place (``caches.py``), or lets a cache grow."""

    def __init__(
        self, module: PreTrainedModel, name: str, eos_token_id: int | None = None, vocab_size: int | None = None
    ) -> None:
        self.module = module
        self.name = name
        self.eos_token_id: int = _one_eos_token_id(module, name, eos_token_id)
        self._output_embeddings: Any = module.get_output_embeddings()
        num_rows = int(self._output_embeddings.weight.shape[0])
        self.vocab_size: int = num_rows if vocab_size is None else vocab_size
        if not self.eos_token_id < self.vocab_size <= num_rows:
            raise AssayError(
                f"model {name!r} predicts {num_rows} tokens and ends responses with token {self.eos_token_id}: it has "
                f"no law over the first {self.vocab_size} tokens; "
                "choose models that share a tokenizer"
            )
        self._logits_bias: Tensor | None = getattr(module, "final_logits_bias", None)
        self._softcap: float | None = getattr(module.config, "final_logit_softcapping", None)
        self._logit_scale: float = 1.0
        self.steps_directly = self.preallocates = False
        self._check_head()
        self._check_decoding()

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

    @property
    def hidden_size(self) -> int:
        """H: the features of the states that ``hidden`` gives and ``head`` takes."""
        return int(self._output_embeddings.weight.shape[1])

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it dropout is off; afterwards the module is in the mode it was in before."""
        was_training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(was_training)

    @abstractmethod
    def check_lengths(self, num_prompt_tokens: int, num_response_tokens: int) -> None:
        """Raises AssayError when a sequence of these lengths is beyond the model's context."""

    @abstractmethod
    def hidden(self, batch: Batch) -> Float[Tensor, "N H"]:
        """The last hidden state from which each response token is predicted."""

    def pack_rows(self) -> None:
        """From now on ``hidden`` reads several sequences in a row while the module trains; AssayError if it cannot."""
        raise AssayError(
            f"model {self.name!r} ({type(self.module).__name__}) reads prompts and responses in rows of their own, "
            "which are not packed: set distillation.training.packing to false"
        )

    @abstractmethod
    def prompt_hidden(self, prompt_ids: Sequence[tuple[int, ...]]) -> Float[Tensor, "N H"]:
        """The last hidden state at every prompt token, prompt after prompt."""

    @abstractmethod
    def begin(
        self, prompt_ids: Sequence[tuple[int, ...]], max_response_tokens: int
    ) -> tuple[Decoding, Int[Tensor, "B T"]]:
        """A decoding of responses to these prompts, and the first tokens to feed it.

        Keys and values have room for ``max_response_tokens`` from the start where ``preallocates``.
        """

    @abstractmethod
    def _written_out(self) -> object:
        """What ``begin`` takes the place of the module with; nothing where the module is not plain as it is now."""

    @abstractmethod
    def _hidden_and_logits(self, input_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The states and the logits of the whole model on one prompt, to compare the head with."""

    @property
    @abstractmethod
    def _logit_scales(self) -> tuple[float, ...]:
        """What models of the family multiply their logits with, likeliest first; the module itself decides."""

    def head(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Log-probabilities (nats): log softmax of softcap(scale · W h + b), in float32, over the kept rows of W."""
        return self._logits(hidden_NH.to(self._output_embeddings.weight.device)).float().log_softmax(dim=-1)

    @property
    def head_weights(self) -> list[Tensor]:
        """The parameters of ``head``; tied ones are the input embeddings too."""
        return list(self._output_embeddings.parameters())

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

        Rows leave the batch once most of it has finished. Row i depends on prompt_ids[i] and seeds[i] alone
        (up to float rounding of the logits).
        """
        self._check_batch(Batch(prompt_ids, [(0,) * max_response_tokens] * len(prompt_ids)))
        with self.evaluating(), torch.no_grad():
            return sample_responses(self, self._logits, prompt_ids, seeds, max_response_tokens, sampling_temperature)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._output_embeddings(hidden)
        if self._logit_scale != 1.0:  # each of these is a pass over [N, V], forward and backward
            logits = logits * self._logit_scale
        if self._logits_bias is not None:
            logits = logits + self._logits_bias
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits if logits.shape[-1] == self.vocab_size else logits[..., : self.vocab_size]

    @torch.no_grad()
    def _check_head(self) -> None:
        input_ids = torch.tensor([[1 % self.vocab_size, 2 % self.vocab_size, 3 % self.vocab_size]])
        with self.evaluating():
            try:
                hidden, expected = self._hidden_and_logits(input_ids.to(self.device))
                expected = expected[..., : self.vocab_size]
            except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
                raise AssayError(
                    f"model {self.name!r} ({type(self.module).__name__}) cannot be run as its family is: it is not "
                    "supported; choose a model of another family"
                ) from error
            if not expected.isfinite().all():
                raise AssayError(
                    f"model {self.name!r} gives logits that are not finite: its weights are damaged; "
                    "fetch them, or save them, again"
                )
            for scale in self._logit_scales:
                self._logit_scale = scale
                ours = self._logits(hidden)
                rounding = 1e-3 if self.module.dtype == torch.float32 else 5e-2
                if ours.shape == expected.shape and torch.allclose(ours, expected, rtol=rounding, atol=rounding):
                    return
        raise AssayError(
            f"model {self.name!r} ({type(self.module).__name__}) does more to its logits than a linear head, "
            "a scale, a bias and a soft cap: assay cannot compute its losses from hidden states; "
            "choose a model of another family"
        )

    def _check_decoding(self) -> None:
        """Settles ``steps_directly`` and ``preallocates``; refuses the model when it decodes as it scores by no way."""
        error: Exception | None = None
        can_preallocate = caches.can_preallocate(self.module)
        for preallocates in (True, False) if can_preallocate else (False,):
            self.preallocates = preallocates
            try:
                if self._decodes_as_it_scores():
                    break
            except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as raised:
                error = raised
        else:
            raise AssayError(
                f"model {self.name!r} ({type(self.module).__name__}) does not decode padded prompts with a cache as it "
                "scores them: its samples would not be its own; it is not supported: "
                "choose a model of another family"
            ) from error
        with self.evaluating():
            self.steps_directly = can_preallocate and bool(self._written_out())
        self.steps_directly = self.steps_directly and self._decodes_as_it_scores()

    @torch.no_grad()
    def _decodes_as_it_scores(self) -> bool:
        """The law of the second token of two prompts of unlike length, once scored and once decoded."""
        first, second, third = (i % self.vocab_size for i in (1, 2, 3))
        prompts = [(first,), (third, second, first)]
        with self.evaluating():
            scored_NV = self.log_probs(Batch(prompts, [(second, third)] * 2))
            decoding, input_ids = self.begin(prompts, 2)
            decoding.feed(input_ids)
            decoded_BV = self.head(decoding.feed(torch.tensor([[second], [second]], device=self.device)))
        rounding = 1e-3 if self.steps_directly else 1e-2 if self.module.dtype == torch.float32 else 0.2
        return torch.allclose(decoded_BV, scored_NV[1::2], rtol=rounding, atol=rounding)

    def _check_batch(self, batch: Batch) -> None:
        if not all(batch.prompt_ids) or not all(batch.response_ids):
            raise AssayError("a prompt or a response is empty: every sequence needs at least one token of each")
        for prompt, response in {(len(p), len(r)) for p, r in zip(batch.prompt_ids, batch.response_ids, strict=True)}:
            self.check_lengths(prompt, response)


def eos_token_ids(module: PreTrainedModel) -> list[int]:
    """Every token that ends a response as the model's config.json and its generation_config.json state."""
    configs = (module.config, getattr(module, "generation_config", None))
    stated = [getattr(config, "eos_token_id", None) for config in configs]
    several = [ids if isinstance(ids, list | tuple) else [ids] for ids in stated]
    return sorted({token_id for ids in several for token_id in ids if isinstance(token_id, int)})


def _one_eos_token_id(module: PreTrainedModel, name: str, eos_token_id: int | None) -> int:
    stated = eos_token_ids(module)
    if eos_token_id is None and len(stated) == 1:
        return stated[0]
    if eos_token_id is None:
        raise AssayError(
            f"model {name!r} states no single end-of-sequence token ({stated}): give its tokenizer's, or set one "
            "eos_token_id in its config.json"
        )
    if eos_token_id not in stated:
        raise AssayError(
            f"the tokenizer ends sequences with token {eos_token_id}, but {name!r} with {stated}: responses would not "
            "end; choose the tokenizer that the model was trained with, or add the token to eos_token_id in its "
            "config.json"
        )
    return eos_token_id


def sample_responses(
    model: Decoder,
    logits: Callable[[Tensor], Tensor],
    prompt_ids: Sequence[tuple[int, ...]],
    seeds: Sequence[int],
    max_response_tokens: int,
    sampling_temperature: float,
) -> list[tuple[int, ...]]:
    """One response per prompt, in their order, a token at a time from the softmax of ``logits`` of its state.

    At most ``SAMPLING_BATCH_SIZE`` prompts are decoded at a time, those of like length together.
    """
    responses: list[tuple[int, ...]] = [()] * len(prompt_ids)
    by_length = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    for start in range(0, len(by_length), SAMPLING_BATCH_SIZE):
        part = by_length[start : start + SAMPLING_BATCH_SIZE]
        uniforms_BT = torch.from_numpy(sampling.uniforms([seeds[i] for i in part], max_response_tokens))
        rows = _decode(model, logits, [prompt_ids[i] for i in part], uniforms_BT, sampling_temperature)
        for i, row in zip(part, rows.tolist(), strict=True):
            responses[i] = sampling.until_end(row, model.eos_token_id)
    return responses


def _decode(
    model: Decoder,
    logits: Callable[[Tensor], Tensor],
    prompt_ids: Sequence[tuple[int, ...]],
    uniforms_BT: Tensor,
    sampling_temperature: float,
) -> Int[Tensor, "B T"]:
    """The decoding loop: row i has its response, and after its end whatever was decoded until the row was retired."""
    token_ids_BT = torch.full(uniforms_BT.shape, model.eos_token_id)
    alive_A = torch.arange(len(prompt_ids))  # rows that are still decoded
    uniforms_AT, written_AT = uniforms_BT, token_ids_BT.clone()  # theirs
    is_going_A = np.ones(len(prompt_ids), bool)  # those of them that have not ended
    decoding, input_ids = model.begin(prompt_ids, uniforms_BT.shape[1])
    for t in range(uniforms_BT.shape[1]):
        logits_AV = logits(decoding.feed(input_ids)).float().cpu()
        if sampling_temperature == 0:
            token_A = logits_AV.argmax(dim=-1)
        else:
            tempered_AV = logits_AV if sampling_temperature == 1 else logits_AV / sampling_temperature
            token_A = sampling.draw(tempered_AV, uniforms_AT[:, t])
        written_AT[:, t] = token_A
        is_going_A &= token_A.numpy() != model.eos_token_id
        num_going = np.count_nonzero(is_going_A)
        if num_going == 0:
            break
        if num_going <= _RETIRE_BELOW * len(alive_A):
            token_ids_BT[alive_A] = written_AT
            rows = torch.from_numpy(is_going_A.nonzero()[0])
            alive_A, uniforms_AT, written_AT, token_A = (of[rows] for of in (alive_A, uniforms_AT, written_AT, token_A))
            is_going_A = np.ones(len(rows), bool)
            decoding.keep(rows.to(model.device))
        input_ids = token_A.unsqueeze(-1).to(model.device)
    token_ids_BT[alive_A] = written_AT
    return token_ids_BT


def right_padded(rows: Sequence[tuple[int, ...]]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Rows with zeros after them, and the mask that is 1 where a row is."""
    lengths_B = np.fromiter(map(len, rows), np.int64, len(rows))
    mask_BT = np.arange(lengths_B.max()) < lengths_B[:, None]
    input_ids_BT = np.zeros(mask_BT.shape, np.int64)
    input_ids_BT[mask_BT] = np.fromiter(itertools.chain.from_iterable(rows), np.int64, lengths_B.sum())
    return torch.from_numpy(input_ids_BT), torch.from_numpy(mask_BT.astype(np.int64))
