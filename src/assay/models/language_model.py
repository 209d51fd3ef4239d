"""What assay asks of a language model: score, sample, and hidden states with their head; or at least to list tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from assay.types import Batch, TopK


@runtime_checkable
class LanguageModel(Protocol):
    """A conditional distribution over responses.

    A response is at most ``max_response_tokens`` long; it ends with ``eos_token_id`` or at that limit. The
    end-of-sequence token is part of the response and is scored; nothing after it exists.

    Promises, tested on every adapter: padding, batch size and the order of rows change no number beyond
    float rounding; sampled frequencies match ``exp(log_probs)``; row ``i`` of ``sample`` depends on
    ``prompt_ids[i]`` and ``seeds[i]`` alone.
    """

    name: str
    vocab_size: int
    eos_token_id: int

    @property
    def digest(self) -> str:
        """A short hash of the weights: equal digests mean equal distributions."""
        ...

    def check_lengths(self, num_prompt_tokens: int, num_response_tokens: int) -> None:
        """Raises AssayError when a prompt and a response of these lengths do not fit the model's context."""
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """Within it the model is deterministic (no dropout); afterwards it is in the mode it was in before."""
        ...

    def hidden(self, batch: Batch) -> Float[Tensor, "N H"]:
        """The state from which each response token is predicted (axis N: see ``types.Batch``)."""
        ...

    def head(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Log-probabilities (nats) of the next token from hidden states; any subset of rows may be given."""
        ...

    def log_probs(self, batch: Batch) -> Float[Tensor, "N V"]:
        """``head(hidden(batch))``: log-probabilities (nats) over the vocabulary at every response token."""
        ...

    def sample(
        self,
        prompt_ids: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
        max_response_tokens: int,
        sampling_temperature: float = 1.0,
    ) -> list[tuple[int, ...]]:
        """One response for each prompt, drawn from the model at ``sampling_temperature`` (0 = greedy)."""
        ...


@runtime_checkable
class ListingModel(Protocol):
    """A conditional distribution of which only the most probable tokens are known, such as a teacher behind a server.

    It serves as a teacher: what is trained or measured against it is a lower bound (``assay.buckets``).
    """

    name: str
    vocab_size: int
    eos_token_id: int
    num_top: int

    @property
    def digest(self) -> str:
        """A short hash of what identifies the model: equal digests mean equal distributions."""
        ...

    def top_k(self, batch: Batch) -> TopK:
        """At every response token at least the ``num_top`` most probable tokens (or all), and the others' mass."""
        ...

    def sample(
        self,
        prompt_ids: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
        max_response_tokens: int,
        sampling_temperature: float = 1.0,
    ) -> list[tuple[int, ...]]:
        """See ``LanguageModel``."""
        ...
