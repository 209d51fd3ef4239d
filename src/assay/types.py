"""What flows through assay, and the axis letters that name every array.

Axis letters, used as suffixes (``log_p_NV``):

=====  ==========================================================================
``B``  sequences of a batch
``T``  positions of a sequence
``N``  response tokens of a whole batch: sequence after sequence, no padding in between
``V``  vocabulary entries
``K``  listed tokens: the most probable ones of the vocabulary
``H``  hidden features
``S``  evaluations along a run (steps)
``P``  prompts of the probe
=====  ==========================================================================

``p`` is the teacher (the first argument of a divergence), ``q`` the student, everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Writer = Literal["dataset", "oracle", "teacher", "student"]
"""Who wrote a response: human text, or one of the three models."""


@dataclass(frozen=True)
class Framing:
    """The special tokens that a model expects before and after its prompt, and before a reference."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    before_reference: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """One prompt of a task, with its human reference if there is one (``reference_ids`` are cut to the limit).

    ``response_ids`` are the responses that a teacher which gives text only has written, each cut to the limit.
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    reference: str | None = None
    reference_ids: tuple[int, ...] = ()
    response_ids: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Response:
    """One response with its provenance.

    ``token_ids`` end with the end-of-sequence token unless the response was cut at the length limit
    (``truncated``). ``seed`` fixes the uniforms that it was drawn with; ``writer_step`` is the optimiser step at
    which it was written.
    """

    prompt_id: str
    token_ids: tuple[int, ...]
    writer: Writer
    truncated: bool
    seed: int = 0
    sampling_temperature: float = 1.0
    writer_step: int = 0


@dataclass(frozen=True)
class Dense:
    """The teacher's full next-token distribution at every response token, as log-probabilities (nats)."""

    log_p_NV: Tensor

    def __len__(self) -> int:
        return len(self.log_p_NV)

    def at(self, tokens: slice) -> Dense:
        """The signal at these response tokens."""
        return Dense(self.log_p_NV[tokens])


@dataclass(frozen=True)
class States:
    """The teacher's full next-token distribution as the hidden states from which its ``head`` makes log-probabilities.

    ``head`` takes any rows: the law of a large vocabulary exists for a few response tokens at a time.
    """

    hidden_NH: Tensor
    head: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.hidden_NH)

    def at(self, tokens: slice) -> States:
        """The signal at these response tokens."""
        return States(self.hidden_NH[tokens], self.head)


@dataclass(frozen=True)
class Joined:
    """Full distributions that are there in several ways, the response tokens of one part after those of another."""

    parts: tuple[Dense | States, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def at(self, tokens: slice) -> Joined:
        """The signal at these response tokens."""
        start, stop, _ = tokens.indices(len(self))
        parts, first = [], 0
        for part in self.parts:
            parts.append(part.at(slice(max(start - first, 0), max(stop - first, 0))))
            first += len(part)
        return Joined(tuple(part for part in parts if len(part)))


@dataclass(frozen=True)
class TopK:
    """The teacher's most probable next tokens at every response token, and the mass of all others as one bucket.

    ``token_ids_NK`` are the listed tokens, ``log_p_NK`` their log-probabilities (nats), ``log_tail_N`` the logarithm
    of the mass that is on no listed token: −∞ where every token of the vocabulary is listed. A row that lists fewer
    tokens than others repeats its first token with log-probability −∞.
    """

    token_ids_NK: Tensor
    log_p_NK: Tensor
    log_tail_N: Tensor

    def __len__(self) -> int:
        return len(self.token_ids_NK)

    def at(self, tokens: slice) -> TopK:
        """The signal at these response tokens."""
        return TopK(self.token_ids_NK[tokens], self.log_p_NK[tokens], self.log_tail_N[tokens])


@dataclass(frozen=True)
class Sample:
    """The teacher gives text only: the response itself is all it says. Serves ``hard_labels`` alone."""

    def at(self, tokens: slice) -> Sample:
        """The signal at these response tokens."""
        return self


WholeLaw = Dense | States | Joined
"""A signal that says all of the teacher's law."""

TeacherSignal = WholeLaw | TopK | Sample


@dataclass(frozen=True)
class Batch:
    """Sequences to score or to learn from: prompt ``i`` is followed by response ``i``.

    Only response tokens count: arrays over tokens have the axis ``N = num_tokens``, sequence after
    sequence, so padding cannot enter a loss or a metric.
    """

    prompt_ids: Sequence[tuple[int, ...]]
    response_ids: Sequence[tuple[int, ...]]
    signal: TeacherSignal = field(default_factory=Sample)

    def __post_init__(self) -> None:
        if len(self.prompt_ids) != len(self.response_ids):
            raise ValueError(f"{len(self.prompt_ids)} prompts, {len(self.response_ids)} responses")
        if not isinstance(self.signal, Sample) and len(self.signal) != self.num_tokens:
            raise ValueError(f"{self.num_tokens} response tokens, but a signal at {len(self.signal)}")

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def lengths(self) -> list[int]:
        """Response tokens of each sequence; they add up to ``num_tokens``."""
        return [len(ids) for ids in self.response_ids]

    @property
    def num_tokens(self) -> int:
        """Response tokens of the whole batch, the size of axis ``N``."""
        return sum(self.lengths)

    def __getitem__(self, rows: slice) -> Batch:
        """The sequences ``rows`` (a slice with step 1) with their share of the signal."""
        start, stop, _ = rows.indices(len(self))
        first = sum(self.lengths[:start])
        signal = self.signal.at(slice(first, first + sum(self.lengths[start:stop])))
        return Batch(self.prompt_ids[start:stop], self.response_ids[start:stop], signal)


@dataclass(frozen=True)
class Action:
    """What a policy has the training loop do at a step.

    ``stop`` ends the arm, ``regenerate`` has every stored response written anew when it is next drawn,
    ``add_completions`` gives every prompt ``completions`` more responses, ``set_fresh_fraction`` makes ``fraction`` of
    every batch fresh responses of the teacher. With ``to_step`` the student of that evaluation takes the place of the
    present one first; ``roll_back`` does nothing else.
    """

    kind: Literal["stop", "roll_back", "set_fresh_fraction", "regenerate", "add_completions"]
    reason: str
    to_step: int | None = None
    completions: int | None = None
    fraction: float | None = None


@dataclass(frozen=True)
class Progress:
    """Where a stage of a run stands, sent to whoever watches it."""

    stage: str
    step: int
    num_steps: int
    golden_nats: float | None = None
    proxy_nats: float | None = None
    reference_nll_nats: float | None = None
