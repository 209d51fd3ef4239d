"""Exact worlds: language models small and plain enough that their divergences are known without sampling.

An estimator or a detector meets these first: a Markov chain, whose KL and entropy follow from a recursion
over the last token, and a hidden Markov model, whose next-token law hangs on the whole past and whose
responses are few enough to enumerate. Everything is float64.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from assay.divergences import forward_kl
from assay.errors import AssayError
from assay.estimators import sum_per_sequence
from assay.models import sampling
from assay.models.language_model import LanguageModel
from assay.types import Batch

_MAX_ENUMERATED = 200_000


class _World(ABC):
    """A model with a state that starts from a prompt, advances by one token, and gives the next-token law.

    ``hidden`` is that state and ``head`` the law, so a subclass says three things: ``_start``, ``_advance``
    and ``head``.
    """

    def __init__(self, name: str, vocab_size: int, eos_token_id: int, parameters: Sequence[Tensor]) -> None:
        if not 0 <= eos_token_id < vocab_size:
            raise AssayError(f"eos_token_id {eos_token_id} is not one of the {vocab_size} tokens of {name!r}")
        self.name = name
        self.vocab_size = vocab_size
        self.eos_token_id = eos_token_id
        self._parameters = parameters

    def check_lengths(self, num_prompt_tokens: int, num_response_tokens: int) -> None:  # noqa: B027
        """Any length fits."""

    @abstractmethod
    def _start(self, prompt_ids: Sequence[tuple[int, ...]]) -> Float[Tensor, "B H"]: ...

    @abstractmethod
    def _advance(self, state_BH: Float[Tensor, "B H"], token_B: Int[Tensor, " B"]) -> Float[Tensor, "B H"]: ...

    @abstractmethod
    def head(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Log-probabilities (nats) of the next token from states."""

    @property
    def digest(self) -> str:
        """The first 16 hex digits of SHA-256 over the kind of world, its end token and its parameters."""
        total = hashlib.sha256(f"{type(self).__name__}{self.eos_token_id}".encode())
        for parameter in self._parameters:
            total.update(f"{tuple(parameter.shape)}".encode())
            total.update(parameter.numpy().tobytes())
        return total.hexdigest()[:16]

    def evaluating(self) -> AbstractContextManager[None]:
        """Nothing to switch off: an exact world is always deterministic."""
        return nullcontext()

    def hidden(self, batch: Batch) -> Float[Tensor, "N H"]:
        """The state before each response token."""
        response_BT, lengths_B = self._padded(batch.response_ids)
        state_BH = self._start(batch.prompt_ids)
        states = []
        for token_B in response_BT.T:
            states.append(state_BH)
            state_BH = self._advance(state_BH, token_B)
        is_token_BT = torch.arange(response_BT.shape[1]) < lengths_B.unsqueeze(-1)
        return torch.stack(states, dim=1)[is_token_BT]

    def log_probs(self, batch: Batch) -> Float[Tensor, "N V"]:
        """Exact log-probabilities (nats) over the vocabulary at every response token."""
        return self.head(self.hidden(batch))

    def sample(
        self,
        prompt_ids: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
        max_response_tokens: int,
        sampling_temperature: float = 1.0,
    ) -> list[tuple[int, ...]]:
        """One response per prompt, drawn with row i's own uniforms; temperature 0 takes the likeliest token.

        Raises AssayError for an empty prompt, an unknown token or a negative temperature.
        """
        if len(seeds) != len(prompt_ids):
            raise ValueError(f"{len(prompt_ids)} prompts, {len(seeds)} seeds")
        if sampling_temperature < 0:
            raise AssayError(f"sampling_temperature must be 0 (greedy) or more, not {sampling_temperature}")
        uniforms_BT = torch.from_numpy(sampling.uniforms(seeds, max_response_tokens))
        state_BH = self._start(prompt_ids)
        columns = []
        ended_B = torch.zeros(len(prompt_ids), dtype=torch.bool)
        for uniform_B in uniforms_BT.T:
            log_p_BV = self.head(state_BH)
            if sampling_temperature == 0:
                token_B = log_p_BV.argmax(dim=-1)
            else:
                token_B = sampling.draw(log_p_BV / sampling_temperature, uniform_B)
            columns.append(token_B)
            ended_B |= token_B == self.eos_token_id
            if ended_B.all():
                break
            state_BH = self._advance(state_BH, token_B)
        return [sampling.until_end(row, self.eos_token_id) for row in torch.stack(columns, dim=1).tolist()]

    def _padded(self, rows: Sequence[tuple[int, ...]]) -> tuple[Int[Tensor, "B T"], Int[Tensor, " B"]]:
        """Rows filled up on the right with token 0, and their lengths."""
        if not all(rows):
            raise AssayError("a prompt or a response is empty: every sequence needs at least one token of each")
        lengths_B = torch.tensor([len(row) for row in rows])
        token_BT = torch.zeros((len(rows), int(lengths_B.max())), dtype=torch.long)
        for i, row in enumerate(rows):
            token_BT[i, : len(row)] = torch.tensor(row)
        if token_BT.min() < 0 or token_BT.max() >= self.vocab_size:
            raise AssayError(f"a token id lies outside 0 ... {self.vocab_size - 1}, the vocabulary of {self.name!r}")
        return token_BT, lengths_B


class MarkovChain(_World):
    """p(y_i | prompt, y_<i) = transitions_VV[y_{i-1}]; the prompt's last token is y_0.

    Rows are the previous token. The row of the end-of-sequence token serves prompts that end with it.
    ``hidden`` is the row of log-probabilities itself and ``head`` the identity. Raises AssayError unless
    every row is a distribution.
    """

    def __init__(self, transitions_VV: ArrayLike | Tensor, eos_token_id: int, name: str = "markov-chain") -> None:
        self.transitions_VV: Tensor = _distributions("transitions_VV", transitions_VV)
        rows, columns = self.transitions_VV.shape
        if rows != columns:
            raise AssayError(f"transitions_VV must be square, not {rows} × {columns}")
        super().__init__(name, columns, eos_token_id, [self.transitions_VV])
        self._log_transitions_VV = self.transitions_VV.log()

    @classmethod
    def random(
        cls,
        vocab_size: int,
        seed: int,
        concentration: float = 1.0,
        eos_token_id: int = 0,
        name: str = "markov-chain",
    ) -> MarkovChain:
        """Rows drawn from a symmetric Dirichlet; a small ``concentration`` makes peaked, far-apart chains."""
        rng = np.random.default_rng(seed)
        transitions_VV = rng.dirichlet(np.full(vocab_size, concentration), size=vocab_size)
        return cls(transitions_VV, eos_token_id, name)

    def mixed_with(self, other: MarkovChain, weight: float, name: str = "mixture") -> MarkovChain:
        """The chain (1 − weight) · self + weight · other, row by row: this one at weight 0."""
        _require_one_vocabulary(self, other)
        return MarkovChain((1 - weight) * self.transitions_VV + weight * other.transitions_VV, self.eos_token_id, name)

    def head(self, hidden_NH: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """The identity: the hidden state is the row of log-probabilities."""
        return hidden_NH

    def exact_kl(self, other: MarkovChain, prompt_ids: tuple[int, ...], max_response_tokens: int) -> float:
        """KL(self‖other) between responses to one prompt of at most ``max_response_tokens`` (nats).

        Σ_i Σ_v P(y_{i-1} = v, not ended) KL(row v‖other's row v). ``inf`` where other excludes what this
        chain reaches. Raises AssayError unless both have one vocabulary and one end token.
        """
        _require_one_vocabulary(self, other)
        kl_V = forward_kl(self._log_transitions_VV, other._log_transitions_VV)
        return self._expected_sum(kl_V, prompt_ids, max_response_tokens)

    def exact_entropy(self, prompt_ids: tuple[int, ...], max_response_tokens: int) -> float:
        """H(self) of the responses to one prompt of at most ``max_response_tokens`` (nats)."""
        entropy_V = torch.special.entr(self.transitions_VV).sum(-1)
        return self._expected_sum(entropy_V, prompt_ids, max_response_tokens)

    def _start(self, prompt_ids: Sequence[tuple[int, ...]]) -> Tensor:
        token_BT, lengths_B = self._padded(prompt_ids)
        return self._log_transitions_VV[token_BT[torch.arange(len(token_BT)), lengths_B - 1]]

    def _advance(self, state_BH: Tensor, token_B: Tensor) -> Tensor:
        return self._log_transitions_VV[token_B]

    def _expected_sum(self, cost_V: Tensor, prompt_ids: tuple[int, ...], max_response_tokens: int) -> float:
        """E Σ_i cost(y_{i-1}) over the tokens of a response."""
        token_BT, _ = self._padded([prompt_ids])
        alive_V = torch.zeros(self.vocab_size, dtype=torch.float64)
        alive_V[token_BT[0, -1]] = 1.0
        total = 0.0
        for _ in range(max_response_tokens):
            total += float(torch.where(alive_V > 0, alive_V * cost_V, 0.0).sum())
            alive_V = alive_V @ self.transitions_VV
            alive_V[self.eos_token_id] = 0.0
        return total


class HiddenMarkovModel(_World):
    """p(y_i | prompt, y_<i) = belief_H · emissions_HV, the belief filtered through prompt and response.

    A hidden state emits a token, then moves by ``transitions_HH``. ``hidden`` is the belief before a token
    is emitted, ``head`` the law that it implies. Raises AssayError unless all rows are distributions, and
    when a state cannot emit some token: every past must leave a belief.
    """

    def __init__(
        self,
        initial_H: ArrayLike | Tensor,
        transitions_HH: ArrayLike | Tensor,
        emissions_HV: ArrayLike | Tensor,
        eos_token_id: int,
        name: str = "hidden-markov-model",
    ) -> None:
        self.initial_H: Tensor = _distributions("initial_H", initial_H)
        self.transitions_HH: Tensor = _distributions("transitions_HH", transitions_HH)
        self.emissions_HV: Tensor = _distributions("emissions_HV", emissions_HV)
        states, vocab_size = self.emissions_HV.shape
        if self.initial_H.shape != (states,) or self.transitions_HH.shape != (states, states):
            raise AssayError(
                f"emissions_HV has {states} hidden states, but initial_H has shape "
                f"{tuple(self.initial_H.shape)} and transitions_HH {tuple(self.transitions_HH.shape)}: "
                "give all of them for the same states"
            )
        if not bool((self.emissions_HV > 0).all()):
            raise AssayError("emissions_HV has zeros: every hidden state must be able to emit every token")
        super().__init__(name, vocab_size, eos_token_id, [self.initial_H, self.transitions_HH, self.emissions_HV])

    @classmethod
    def random(
        cls,
        num_states: int,
        vocab_size: int,
        seed: int,
        concentration: float = 1.0,
        eos_token_id: int = 0,
        name: str = "hidden-markov-model",
    ) -> HiddenMarkovModel:
        """Every row drawn from a symmetric Dirichlet with this ``concentration``."""
        rng = np.random.default_rng(seed)
        return cls(
            rng.dirichlet(np.full(num_states, concentration)),
            rng.dirichlet(np.full(num_states, concentration), size=num_states),
            rng.dirichlet(np.full(vocab_size, concentration), size=num_states),
            eos_token_id,
            name,
        )

    def head(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """log(belief_NH · emissions_HV)."""
        return (hidden_NH @ self.emissions_HV).log()

    def _start(self, prompt_ids: Sequence[tuple[int, ...]]) -> Tensor:
        token_BT, lengths_B = self._padded(prompt_ids)
        belief_BH = self.initial_H.expand(len(token_BT), -1)
        for t, token_B in enumerate(token_BT.T):
            inside_B1 = (t < lengths_B).unsqueeze(-1)
            belief_BH = torch.where(inside_B1, self._advance(belief_BH, token_B), belief_BH)
        return belief_BH

    def _advance(self, state_BH: Tensor, token_B: Tensor) -> Tensor:
        joint_BH = state_BH * self.emissions_HV.T[token_B]
        return joint_BH / joint_BH.sum(-1, keepdim=True) @ self.transitions_HH


@torch.no_grad()
def enumerate_responses(
    model: LanguageModel, prompt_ids: tuple[int, ...], max_response_tokens: int
) -> tuple[list[tuple[int, ...]], Float[Tensor, " R"]]:
    """Every response to one prompt that the model can give, with its log-probability (nats).

    Responses end with the end-of-sequence token or at ``max_response_tokens``; their probabilities add up
    to 1. Raises AssayError when there may be more than 200,000.
    """
    most = model.vocab_size**max_response_tokens
    if most > _MAX_ENUMERATED:
        raise AssayError(
            f"{model.vocab_size} tokens at {max_response_tokens} positions give up to {most:,} responses, "
            f"more than {_MAX_ENUMERATED:,}: take fewer of either"
        )
    responses: list[tuple[int, ...]] = []
    log_probs: list[Tensor] = []
    open_prefixes: list[tuple[int, ...]] = [()]
    open_log_probs = torch.zeros(1, dtype=torch.float64)
    for position in range(1, max_response_tokens + 1):
        # The law after a prefix is the last one of the prefix and any token more.
        batch = Batch([prompt_ids] * len(open_prefixes), [(*y, model.eos_token_id) for y in open_prefixes])
        last_law_RV = model.log_probs(batch)[position - 1 :: position].double()
        log_p_RV = open_log_probs.unsqueeze(-1) + last_law_RV
        ends_RV = torch.zeros_like(log_p_RV, dtype=torch.bool)
        ends_RV[:, model.eos_token_id] = True
        ends_RV |= position == max_response_tokens
        possible_RV = log_p_RV > -torch.inf
        ended, going = possible_RV & ends_RV, possible_RV & ~ends_RV
        responses += [(*open_prefixes[row], token) for row, token in ended.nonzero().tolist()]
        log_probs.append(log_p_RV[ended])
        open_prefixes = [(*open_prefixes[row], token) for row, token in going.nonzero().tolist()]
        open_log_probs = log_p_RV[going]
        if not open_prefixes:
            break
    return responses, torch.cat(log_probs)


@torch.no_grad()
def exact_kl_by_enumeration(
    p_model: LanguageModel, q_model: LanguageModel, prompt_ids: tuple[int, ...], max_response_tokens: int
) -> float:
    """KL(p‖q) = Σ_y p(y) (log p(y) − log q(y)) over all responses to one prompt (nats).

    ``inf`` where q excludes a response of p. Raises AssayError for two vocabulary sizes or end tokens, and
    when there are too many responses to enumerate.
    """
    _require_one_vocabulary(p_model, q_model)
    responses, log_p_R = enumerate_responses(p_model, prompt_ids, max_response_tokens)
    batch = Batch([prompt_ids] * len(responses), responses)
    token_ids = torch.tensor([token for response in responses for token in response])
    token_log_q_N = q_model.log_probs(batch).double().gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    log_q_R = sum_per_sequence(token_log_q_N, batch.lengths)
    return float((log_p_R.exp() * (log_p_R - log_q_R)).sum())


def _require_one_vocabulary(p_model: LanguageModel, q_model: LanguageModel) -> None:
    if (p_model.vocab_size, p_model.eos_token_id) != (q_model.vocab_size, q_model.eos_token_id):
        raise AssayError(
            f"{p_model.name!r} has {p_model.vocab_size} tokens and ends with {p_model.eos_token_id}, but "
            f"{q_model.name!r} has {q_model.vocab_size} and ends with {q_model.eos_token_id}: "
            "two models compare within one vocabulary"
        )


def _distributions(label: str, values: ArrayLike | Tensor) -> Tensor:
    """A float64 copy of ``values``, after a check that the last axis holds distributions."""
    rows = torch.as_tensor(values, dtype=torch.float64).clone()
    if rows.ndim == 0 or not bool((rows >= 0).all()) or bool(((rows.sum(-1) - 1).abs() > 1e-9).any()):
        raise AssayError(f"{label} must hold distributions: entries of at least 0 that add up to 1 in every row")
    return rows
