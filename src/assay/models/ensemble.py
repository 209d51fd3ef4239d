"""Several language models as one: the mean of their next-token laws."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import AssayError
from assay.models.pretrained import Decoding, PretrainedModel, sample_responses
from assay.types import Batch


class Ensemble:
    """p(token | prefix) = (1/k) Σ p_i(token | prefix), of k models of one family and one vocabulary.

    A mixture of laws token by token, not of whole responses. Its hidden state is that of all members, one after the
    other; its head applies theirs and takes the mean. Raises AssayError for no members, or members that differ in
    family, vocabulary or end-of-sequence token.
    """

    def __init__(self, members: Sequence[PretrainedModel], name: str) -> None:
        if not members:
            raise AssayError("an ensemble of no models: give at least one")
        kinds = {(type(member), member.vocab_size, member.eos_token_id) for member in members}
        if len(kinds) > 1:
            raise AssayError(
                f"the members of {name!r} differ in family, vocabulary or end-of-sequence token: their laws have no "
                "mean; give models from one base"
            )
        self.members = members
        self.name = name
        ((_, self.vocab_size, self.eos_token_id),) = kinds

    @property
    def device(self) -> torch.device:
        """Where the members are."""
        return self.members[0].device

    @property
    def digest(self) -> str:
        """The first 16 hex digits of SHA-256 over the members' digests, in their order."""
        return hashlib.sha256("".join(member.digest for member in self.members).encode()).hexdigest()[:16]

    def check_lengths(self, num_prompt_tokens: int, num_response_tokens: int) -> None:
        """Raises AssayError when a sequence of these lengths is beyond the context of a member."""
        for member in self.members:
            member.check_lengths(num_prompt_tokens, num_response_tokens)

    @property
    def hidden_size(self) -> int:
        """H: the members' features beside each other."""
        return sum(member.hidden_size for member in self.members)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it no member has dropout; afterwards each is in the mode it was in before."""
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.evaluating())
            yield

    def hidden(self, batch: Batch) -> Float[Tensor, "N H"]:
        """The members' states beside each other: H is the sum of their widths."""
        return torch.cat([member.hidden(batch) for member in self.members], dim=-1)

    def prompt_hidden(self, prompt_ids: Sequence[tuple[int, ...]]) -> Tensor:
        """The members' states of the prompts' own tokens beside each other."""
        return torch.cat([member.prompt_hidden(prompt_ids) for member in self.members], dim=-1)

    def head(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """log (1/k) Σ p_i, in nats, by log-sum-exp."""
        parts = hidden_NH.split([member.hidden_size for member in self.members], dim=-1)
        log_p_KNV = torch.stack([member.head(part) for member, part in zip(self.members, parts, strict=True)])
        return log_p_KNV.logsumexp(dim=0) - math.log(len(self.members))

    def log_probs(self, batch: Batch) -> Float[Tensor, "N V"]:
        """``head(hidden(batch))``: log-probabilities exist at response positions only."""
        return self.head(self.hidden(batch))

    def sample(
        self,
        prompt_ids: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
        max_response_tokens: int,
        sampling_temperature: float = 1.0,
    ) -> list[tuple[int, ...]]:
        """One response per prompt, each token from the mean law at ``sampling_temperature`` (0: the most likely).

        Every member decodes with its own cache. Row i depends on prompt_ids[i] and seeds[i] alone.
        """
        for prompt in prompt_ids:
            self.check_lengths(len(prompt), max_response_tokens)
        with self.evaluating(), torch.no_grad():
            return sample_responses(self, self.head, prompt_ids, seeds, max_response_tokens, sampling_temperature)

    def begin(self, prompt_ids: Sequence[tuple[int, ...]], max_response_tokens: int) -> tuple[Decoding, Tensor]:
        """A decoding by every member, and the first tokens to feed them: one family begins alike."""
        begun = [member.begin(prompt_ids, max_response_tokens) for member in self.members]
        decodings, firsts = zip(*begun, strict=True)
        return _EnsembleDecoding(decodings), firsts[0]


class _EnsembleDecoding:
    """The members' caches."""

    def __init__(self, members: Sequence[Decoding]) -> None:
        self._members = members

    def feed(self, input_ids_AT: Tensor) -> Tensor:
        """See ``Decoding``."""
        return torch.cat([member.feed(input_ids_AT) for member in self._members], dim=-1)

    def keep(self, rows: Tensor) -> None:
        """See ``Decoding``."""
        for member in self._members:
            member.keep(rows)
