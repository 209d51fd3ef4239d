"""Where training responses come from: a writer, and how often it writes anew.

Offline is the teacher, never; online teacher is the teacher, every pass; online student is the student, every
step. A mixture is a weighted list of sources.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from assay import ranks
from assay.buckets import concatenated
from assay.config import SourceConfig
from assay.errors import AssayError
from assay.models.cached import CachedLogProbs, Kept
from assay.models.language_model import LanguageModel, ListingModel
from assay.models.sampling import response_seed
from assay.types import Action, Batch, Dense, Prompt, Response, States, TopK, Writer


@dataclass
class Counters:
    """What the sources of an arm have spent so far. ``teacher_tokens`` counts what the teacher wrote or scored.

    A signal that a store holds counts as well: what a run needs of its teacher does not depend on earlier runs.
    """

    num_responses: int = 0
    generated_tokens: int = 0
    teacher_tokens: int = 0
    sample_seconds: float = 0.0
    teacher_seconds: float = 0.0
    data_seconds: float = 0.0  # what else it took to make batches

    def as_list(self) -> list[float]:
        """The six numbers in their order."""
        return [
            *(self.num_responses, self.generated_tokens, self.teacher_tokens),
            *(self.sample_seconds, self.teacher_seconds, self.data_seconds),
        ]

    def take(self, numbers: Sequence[float]) -> None:
        """Set the six numbers from ``as_list``."""
        self.num_responses, self.generated_tokens, self.teacher_tokens = map(int, numbers[:3])
        self.sample_seconds, self.teacher_seconds, self.data_seconds = numbers[3:]


@dataclass
class _Stored:
    """The response in use for one pair (prompt, completion index), and the teacher's cached word on it."""

    response: Response
    num_draws: int = 0  # of the pair, ever
    num_uses: int = 0  # of this response
    expired: bool = False  # to be written anew when it is next drawn, whatever the refresh
    scored_at: int = 0  # rows drawn when the teacher scored it, hence counted; ``kept`` itself is not in a checkpoint
    kept: Kept | None = None


class ResponseSource:
    """One writer's responses to a fixed list of prompts, in a fresh random order every pass.

    A pair is a prompt and a completion index; an epoch is one pass over all pairs. ``signal`` False leaves
    the teacher's log-probabilities out (hard labels); a source that learns text has the one-hot law of its tokens
    in their place. ``cache`` says how the teacher's word is kept, and may be shared (None: exact, in memory).
    ``index`` is the place in a mixture: sources of different
    places draw different orders and different responses, equal places the same (arms share their first pass).
    """

    def __init__(
        self,
        config: SourceConfig,
        prompts: Sequence[Prompt],
        models: Mapping[Writer, LanguageModel | ListingModel],
        *,
        max_response_tokens: int,
        completions_per_prompt: int = 1,
        sampling_temperature: float = 1.0,
        seed: int = 0,
        signal: bool = True,
        cache: CachedLogProbs | None = None,
        index: int = 0,
        counters: Counters | None = None,
    ) -> None:
        if config.writer == "dataset" and completions_per_prompt > 1:
            raise AssayError("a data set has one reference per prompt: completions_per_prompt must be 1")
        if config.writer == "dataset" and not all(prompt.reference_ids for prompt in prompts):
            raise AssayError(
                "writer 'dataset' needs a reference for every prompt: give the others one, or choose another writer"
            )
        self.config = config
        self.prompts = prompts
        self.completions_per_prompt = completions_per_prompt
        self.counters = counters or Counters()
        self._models = models
        self._cache = (cache or CachedLogProbs(models["teacher"])) if signal else None
        self._eos_token_id = next(iter(models.values())).eos_token_id
        self._max_response_tokens = max_response_tokens
        self._sampling_temperature = sampling_temperature
        self._seed = seed
        self._index = index
        self._stored: dict[int, _Stored] = {}
        self._order: tuple[int, np.ndarray] | None = None
        self.rows_drawn = 0
        self._last_pairs: list[int] = []
        self._num_additions = 0
        self._rows_before, self._epochs_before = 0, 0.0  # when completions were last added

    @property
    def num_pairs(self) -> int:
        """Pairs of one pass."""
        return len(self.prompts) * self.completions_per_prompt

    @property
    def epoch(self) -> float:
        """Passes over the pairs so far; a pass is longer once there are more pairs."""
        return self._epochs_before + (self.rows_drawn - self._rows_before) / self.num_pairs

    @property
    def mean_uses(self) -> float:
        """How often the responses in store have been drawn, on average; 0 where there is none."""
        return sum(s.num_uses for s in self._stored.values()) / max(len(self._stored), 1)

    def add_completions(self, count: int) -> None:
        """Gives every prompt ``count`` more responses, each written when it is first drawn; a new pass begins."""
        self._epochs_before, self._rows_before = self.epoch, self.rows_drawn
        self._num_additions += 1
        self.completions_per_prompt += count
        self._order = None

    def regenerate(self) -> None:
        """Has every stored response written anew when it is next drawn."""
        for stored in self._stored.values():
            stored.expired = True

    def draw(self, num_rows: int, step: int, student: LanguageModel) -> Batch:
        """The next ``num_rows`` pairs with their responses (written now where due) and the teacher's signal.

        In the order of their lengths: a batch is a set, and neighbours of like length need little padding.
        """
        started, counters = time.perf_counter(), self.counters
        spent = counters.sample_seconds + counters.teacher_seconds
        pairs = [self._pair_at(row) for row in range(self.rows_drawn, self.rows_drawn + num_rows)]
        # a batch larger than a pass meets a pair twice: it is then written anew at most once
        due = [pair for pair in dict.fromkeys(pairs) if self._is_due(pair, step)]
        if due:
            self._write(due, step, student)
        for pair in pairs:
            self._stored[pair].num_draws += 1
            self._stored[pair].num_uses += 1
        self.rows_drawn += num_rows
        pairs = sorted(pairs, key=self._num_tokens)
        batch = self._batch(pairs)
        self._last_pairs = pairs
        spent_now = counters.sample_seconds + counters.teacher_seconds
        counters.data_seconds += time.perf_counter() - started - (spent_now - spent)
        return batch

    def last_rows(self) -> list[tuple[Writer, str]]:
        """Who wrote each response of the last draw, and to which prompt (its id)."""
        return [(self.config.writer, self._prompt_of(pair).id) for pair in self._last_pairs]

    def stored_pairs(self, num_pairs: int) -> tuple[list[Prompt], list[Response]]:
        """The first ``num_pairs`` pairs with their present responses, written now where there is none yet.

        For frozen writers only: what an offline source is going to train on.
        """
        pairs = range(min(num_pairs, self.num_pairs))
        missing = [pair for pair in pairs if pair not in self._stored]
        if missing:
            self._write(missing, 0, None)
        return [self._prompt_of(pair) for pair in pairs], [self._stored[pair].response for pair in pairs]

    def preload(self, responses: Sequence[Response]) -> None:
        """Take these responses (in the order of the pairs) instead of writing them."""
        if len(responses) != self.num_pairs:
            raise AssayError(
                f"{len(responses)} stored responses for {self.num_pairs} pairs: they must match; "
                "delete the arm's folder, the same command repeats it"
            )
        for pair, response in enumerate(responses):
            if response.prompt_id != self._prompt_of(pair).id:
                raise AssayError(
                    f"stored response {pair} belongs to prompt {response.prompt_id!r}, not to its pair: "
                    "delete the arm's folder, the same command repeats it"
                )
            self._stored[pair] = _Stored(response)
        self.counters.num_responses += len(responses)

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs to go on with the same responses in the same order."""
        stored = sorted(self._stored.items())
        numbers = [
            (pair, s.num_draws, s.num_uses, s.expired, s.scored_at, s.response.writer_step, len(s.response.token_ids))
            for pair, s in stored
        ]
        return {
            "rows_drawn": torch.tensor([self.rows_drawn]),
            "pairs": torch.tensor([self.completions_per_prompt, self._num_additions, self._rows_before]),
            "epochs_before": torch.tensor([self._epochs_before], dtype=torch.float64),
            "counters": torch.tensor(self.counters.as_list(), dtype=torch.float64),
            "stored": torch.tensor(numbers, dtype=torch.long).reshape(-1, 7),
            "seeds": torch.from_numpy(np.array([s.response.seed for _, s in stored], np.uint64).view(np.int64)),
            "token_ids": torch.tensor([t for _, s in stored for t in s.response.token_ids], dtype=torch.long),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state made by ``state``; what the teacher said is computed again when first needed, bit for bit."""
        self.rows_drawn = int(state["rows_drawn"])
        self.completions_per_prompt, self._num_additions, self._rows_before = state["pairs"].tolist()
        self._epochs_before = float(state["epochs_before"])
        self._order = None
        self.counters.take(state["counters"].tolist())
        self._stored = {}
        seeds = state["seeds"].numpy().view(np.uint64).tolist()
        lengths = state["stored"][:, 6].tolist()
        token_ids = state["token_ids"].split(lengths) if lengths else []
        for row, seed, tokens in zip(state["stored"].tolist(), seeds, token_ids, strict=True):
            pair, num_draws, num_uses, expired, scored_at, writer_step, _ = row
            response = self._response(pair, tuple(tokens.tolist()), seed, writer_step)
            self._stored[pair] = _Stored(response, num_draws, num_uses, bool(expired), scored_at)

    def _pair_at(self, row: int) -> int:
        epoch, position = divmod(row - self._rows_before, self.num_pairs)
        if self._order is None or self._order[0] != epoch:
            key = [self._seed, self._index, epoch, *([self._num_additions] if self._num_additions else [])]
            order = np.random.default_rng(key).permutation(self.num_pairs)
            self._order = (epoch, order)
        return int(self._order[1][position])

    def _prompt_of(self, pair: int) -> Prompt:
        return self.prompts[pair % len(self.prompts)]

    def _num_tokens(self, pair: int) -> int:
        return len(self._prompt_of(pair).token_ids) + len(self._stored[pair].response.token_ids)

    def _is_due(self, pair: int, step: int) -> bool:
        stored = self._stored.get(pair)
        if stored is None or stored.expired:
            return True
        if self.config.refresh_every is None:
            return False
        if self.config.refresh_unit == "epochs":
            return stored.num_uses >= self.config.refresh_every
        return step - stored.response.writer_step >= self.config.refresh_every

    def _write(self, pairs: Sequence[int], step: int, student: LanguageModel | None) -> None:
        started = time.perf_counter()
        prompts = [self._prompt_of(pair) for pair in pairs]
        draws = [self._stored[pair].num_draws if pair in self._stored else 0 for pair in pairs]
        writer = self.config.writer
        seeds = [
            response_seed("train", self._seed, self._index, prompt.id, pair // len(self.prompts), draw)
            for pair, prompt, draw in zip(pairs, prompts, draws, strict=True)
        ]
        if writer == "dataset":
            texts = [prompt.reference_ids for prompt in prompts]
        else:
            model = student if writer == "student" else self._models[writer]
            assert model is not None
            texts = ranks.shared(
                f"the responses of the {writer}",
                len(prompts),
                lambda rows: model.sample(
                    [prompts[row].token_ids for row in rows],
                    [seeds[row] for row in rows],
                    self._max_response_tokens,
                    self._sampling_temperature,
                ),
            )
            num_tokens = sum(map(len, texts))
            self.counters.generated_tokens += num_tokens
            self.counters.teacher_tokens += num_tokens if writer == "teacher" else 0
        for pair, text, seed, num_draws in zip(pairs, texts, seeds, draws, strict=True):
            self._stored[pair] = _Stored(self._response(pair, text, seed, step), num_draws)
        self.counters.num_responses += len(pairs)
        self.counters.sample_seconds += time.perf_counter() - started

    def _response(self, pair: int, token_ids: tuple[int, ...], seed: int, writer_step: int) -> Response:
        return Response(
            prompt_id=self._prompt_of(pair).id,
            token_ids=token_ids,
            writer=self.config.writer,
            truncated=token_ids[-1] != self._eos_token_id,
            seed=seed,
            sampling_temperature=self._sampling_temperature,
            writer_step=writer_step,
        )

    def _batch(self, pairs: Sequence[int]) -> Batch:
        batch = Batch(
            [self._prompt_of(pair).token_ids for pair in pairs],
            [self._stored[pair].response.token_ids for pair in pairs],
        )
        if self._cache is None:
            return batch
        if self.config.learn == "text":
            law = {"log_probs": one_hot, "hidden": one_hot_states, "top_k": one_listed}[self._cache.kind]
            return Batch(batch.prompt_ids, batch.response_ids, law(batch, self._models["teacher"]))
        started = time.perf_counter()
        kept = {pair: self._stored[pair].kept for pair in pairs}
        for group in self._to_score([pair for pair, value in kept.items() if value is None]):
            fresh = Batch(
                [self._prompt_of(pair).token_ids for pair in group],
                [self._stored[pair].response.token_ids for pair in group],
            )
            for pair, value in zip(group, self._cache.compute_together(fresh), strict=True):
                stored = self._stored[pair]
                self.counters.teacher_tokens += 0 if stored.scored_at else len(stored.response.token_ids)
                kept[pair], stored.scored_at = value, stored.scored_at or self.rows_drawn
                if self._cache.in_memory and self.config.refresh_every != 1:  # else it is never met again
                    stored.kept = value
        signal = self._cache.signal([kept[pair] for pair in pairs])  # type: ignore[misc]
        self.counters.teacher_seconds += time.perf_counter() - started
        return Batch(batch.prompt_ids, batch.response_ids, signal)

    def _to_score(self, pairs: Sequence[int]) -> list[list[int]]:
        """These pairs, as they go to the teacher together.

        A resumed run has to score again what is held in memory, and a law depends in its last bits on the batch that it
        is computed in: so every pair comes with all those that it was first scored with.
        """
        assert self._cache is not None
        if not self._cache.in_memory:
            return [sorted(pairs)] if pairs else []
        never = sorted(pair for pair in pairs if self._stored[pair].scored_at == 0)
        again = sorted({self._stored[pair].scored_at for pair in pairs} - {0})
        together = [[pair for pair, s in sorted(self._stored.items()) if s.scored_at == at] for at in again]
        return [group for group in (never, *together) if group]


def one_hot(batch: Batch, model: LanguageModel | ListingModel) -> Dense:
    """log p is 0 at each token of the responses and −∞ elsewhere: KL(p‖q) = −log q(token).

    Over the vocabulary of ``model``, and where its own log-probabilities are.
    """
    states = one_hot_states(batch, model)
    return Dense(states.head(states.hidden_NH))


def one_hot_states(batch: Batch, model: LanguageModel | ListingModel) -> States:
    """The same law as ``one_hot`` with the tokens as states, to stand in a batch beside a teacher's."""
    return States(_token_ids(batch, model).unsqueeze(1), _OneHot(model.vocab_size))


@dataclass(frozen=True)
class _OneHot:
    """The head of states that are tokens themselves."""

    vocab_size: int

    def __call__(self, token_ids_N1: Tensor) -> Tensor:
        log_p_NV = torch.full((len(token_ids_N1), self.vocab_size), -torch.inf, device=token_ids_N1.device)
        return log_p_NV.scatter_(1, token_ids_N1, 0.0)


def one_listed(batch: Batch, model: LanguageModel | ListingModel) -> TopK:
    """The same law as ``one_hot`` as a list of one token, to stand in a batch beside a teacher's lists."""
    token_ids_N = _token_ids(batch, model)
    log_p_N = torch.zeros(len(token_ids_N), device=token_ids_N.device)
    return TopK(token_ids_N.unsqueeze(1), log_p_N.unsqueeze(1), torch.full_like(log_p_N, -torch.inf))


def _token_ids(batch: Batch, model: LanguageModel | ListingModel) -> Tensor:
    device = getattr(model, "device", None)  # models in closed form have none: they are on the CPU
    return torch.tensor([t for ids in batch.response_ids for t in ids], device=device)


class Mixture:
    """Sources drawn in proportion to their weights, exactly: after n rows no source is a full row off its share.

    ``fresh`` is a source in reserve, of which nothing is drawn until an action asks for a fresh fraction.
    """

    def __init__(self, sources: Sequence[ResponseSource], batch_size: int, fresh: ResponseSource | None = None) -> None:
        total = sum(source.config.weight for source in sources)
        self.sources = [*sources, *([fresh] if fresh else [])]
        self.batch_size = batch_size
        self._has_reserve = fresh is not None
        self._shares = [source.config.weight / total for source in sources] + [0.0] * self._has_reserve
        self._rows_before = [0] * len(self.sources)  # when the shares were last changed
        self._last_sources: list[ResponseSource] = []

    @property
    def epoch(self) -> float:
        """Passes over the pairs so far, in the source that has made the most."""
        return max(source.epoch for source in self.sources)

    @property
    def stored(self) -> ResponseSource | None:
        """The first source that draws responses of teacher or student more than once; None where there is none."""
        kept = (s for s in self.sources if s.config.refresh_every != 1 and s.config.writer in ("teacher", "student"))
        return next(kept, None)

    def share_of(self, source: ResponseSource) -> float:
        """The part of a batch that a source gives at present."""
        return self._shares[self.sources.index(source)]

    @property
    def fresh_fraction(self) -> float | None:
        """The part of a batch that the reserve gives; None without a reserve."""
        return self._shares[-1] if self._has_reserve else None

    def carry_out(self, action: Action) -> None:
        """What an action changes about the responses to come; "stop" and "roll_back" change nothing here."""
        if action.kind == "set_fresh_fraction":
            assert self._has_reserve
            assert action.fraction is not None
            rest = sum(self._shares[:-1])
            others = [share / rest * (1 - action.fraction) for share in self._shares[:-1]]
            self._shares = [*others, action.fraction]
            self._rows_before = [source.rows_drawn for source in self.sources]
        elif action.kind in ("regenerate", "add_completions"):
            assert self.stored is not None
            if action.kind == "regenerate":
                self.stored.regenerate()
            else:
                assert action.completions is not None
                self.stored.add_completions(action.completions)

    @property
    def response_uses(self) -> float:
        """How often a response was drawn so far, averaged over all that were written.

        Below 1 in the first pass over responses that were written beforehand.
        """
        return sum(source.rows_drawn for source in self.sources) / max(self.sources[0].counters.num_responses, 1)

    def batch(self, step: int, student: LanguageModel) -> Batch:
        """The batch of optimiser step ``step``: a function of the state, the step and the student's weights."""
        rows = self._rows_per_source()
        self._last_sources = [source for source, num_rows in zip(self.sources, rows, strict=True) if num_rows]
        parts = [
            source.draw(num_rows, step, student)
            for source, num_rows in zip(self.sources, rows, strict=True)
            if num_rows
        ]
        if len(parts) == 1:
            return parts[0]
        return Batch(
            [ids for part in parts for ids in part.prompt_ids],
            [ids for part in parts for ids in part.response_ids],
            concatenated([part.signal for part in parts]),
        )

    def last_rows(self) -> list[tuple[Writer, str]]:
        """Who wrote each response of the last batch, and to which prompt (its id)."""
        return [row for source in self._last_sources for row in source.last_rows()]

    def state(self) -> dict[str, Tensor]:
        """The states of all sources, prefixed with their position, and their shares."""
        parts = {f"{i}.{key}": value for i, source in enumerate(self.sources) for key, value in source.state().items()}
        shares = torch.tensor(self._shares, dtype=torch.float64)
        return {**parts, "shares": shares, "rows_before": torch.tensor(self._rows_before)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state made by ``state``."""
        for i, source in enumerate(self.sources):
            source.load_state({k.split(".", 1)[1]: v for k, v in state.items() if k.startswith(f"{i}.")})
        self._shares, self._rows_before = state["shares"].tolist(), state["rows_before"].tolist()

    def _rows_per_source(self) -> list[int]:
        drawn = [source.rows_drawn - b for source, b in zip(self.sources, self._rows_before, strict=True)]
        before = list(drawn)
        for _ in range(self.batch_size):
            total = sum(drawn) + 1
            deficits = [share * total - count for share, count in zip(self._shares, drawn, strict=True)]
            drawn[deficits.index(max(deficits))] += 1
        return [after - count for after, count in zip(drawn, before, strict=True)]
