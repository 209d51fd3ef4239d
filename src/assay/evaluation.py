"""The probe: held-out prompts, frozen responses and frozen log-probabilities → golden, proxy and company.

Everything that does not depend on the student is computed once. An evaluation costs student forwards (and a
few free-running samples) only, and gives the same numbers at fixed weights whatever the batch size.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from assay import ranks
from assay.config import ProbeConfig
from assay.data.given_prompts import Given, prompts_of
from assay.errors import AssayError
from assay.frozen_set import FrozenSet, PerPrompt
from assay.judges import Judge, ModelJudge
from assay.models.batching import MOST_LOG_PROBS, SAMPLING_BATCH_SIZE, SCORING_BATCH_SIZE
from assay.models.cached import CachedLogProbs
from assay.models.in_memory import GivenModel, frozen_models, num_token_ids
from assay.models.language_model import LanguageModel, ListingModel
from assay.models.sampling import response_seed
from assay.statistics import mean_estimate
from assay.types import Prompt, Response, Writer


def evaluation_steps(num_steps: int, num_evaluations: int) -> list[int]:
    """0, then ``num_evaluations - 1`` geometrically spaced steps from 1 to ``num_steps``, without repeats.

    Early steps of a geometric ladder coincide once rounded; the ladder is refined until the number is right
    or every step is taken.
    """
    for rungs in range(num_evaluations - 1, 100 * num_evaluations):
        steps = np.unique(np.round(np.geomspace(1, num_steps, rungs)).astype(int)).tolist()
        if len(steps) >= min(num_evaluations - 1, num_steps):
            return [0, *steps]
    return [0, *range(1, num_steps + 1)]


def write_responses(
    model: LanguageModel | ListingModel,
    writer: Writer,
    prompts: Sequence[Prompt],
    max_response_tokens: int,
    *,
    purpose: str,
    seed: int,
    sampling_temperature: float = 1.0,
    writer_step: int = 0,
    batch_size: int = SAMPLING_BATCH_SIZE,
) -> list[Response]:
    """One response per prompt, drawn with seeds that depend on (purpose, seed, prompt) alone.

    Every rank writes some of them and has them all.
    """
    seeds = [response_seed(purpose, seed, prompt.id) for prompt in prompts]

    def write(rows: list[int]) -> list[tuple[int, ...]]:
        texts: list[tuple[int, ...]] = []
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            asked = [prompts[row].token_ids for row in part]
            texts += model.sample(asked, [seeds[row] for row in part], max_response_tokens, sampling_temperature)
        return texts

    texts = ranks.shared(f"the responses of the {writer}", len(prompts), write)
    return [
        Response(
            prompt_id=prompt.id,
            token_ids=text,
            writer=writer,
            truncated=text[-1] != model.eos_token_id,
            seed=drawn_with,
            sampling_temperature=sampling_temperature,
            writer_step=writer_step,
        )
        for prompt, text, drawn_with in zip(prompts, texts, seeds, strict=True)
    ]


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found: per-prompt values, their means (keys as in metrics.jsonl), sampled responses."""

    per_prompt: list[PerPrompt]
    means: dict[str, float | None]
    samples: list[Response]


class Probe:
    """Golden, proxy, train proxy and the monitors of one run, on frozen held-out prompts.

    ``golden``, where there is an oracle, is KL(oracle‖student) along oracle responses, ``proxy`` KL(teacher‖student)
    along teacher responses to *the same* held-out prompts, ``train_proxy`` the same along teacher responses to
    distillation prompts; all Rao-Blackwellised, in nats per sequence, at sampling temperature 1.
    ``reference_nll`` is −log student of the human references, ``kl_from_start``, where the start is
    kept, KL(start‖student) along responses of the student as it was before distillation. Where the teacher lists its
    most probable tokens, proxy and train proxy are lower bounds, and ``captured_mass`` says how much of its law is
    listed along the proxy's responses. ``judges`` score the same free-running responses that length and repetition are
    read from.
    """

    def __init__(
        self,
        sets: Sequence[FrozenSet],
        config: ProbeConfig,
        *,
        max_response_tokens: int,
        seed: int,
        sampling_batch_size: int = SAMPLING_BATCH_SIZE,
        judges: Sequence[Judge] = (),
    ) -> None:
        self.sets = sets
        self.judges = judges
        self.config = config
        self.seed = seed
        self.seconds: float = 0.0
        self._max_response_tokens = max_response_tokens
        self._sampling_batch_size = sampling_batch_size
        proxy = next(s for s in sets if s.metric == "proxy")
        self.teacher: LanguageModel | ListingModel | None = (
            proxy.walker.model if isinstance(proxy.walker, CachedLogProbs) else proxy.walker
        )
        self.oracle: LanguageModel | ListingModel | CachedLogProbs | None = next(
            (s.walker for s in sets if s.metric == "golden"), None
        )
        self.shared_vocab_size: int | None = None
        self._of_the_teacher = proxy.of_the_walker()
        self.free_prompts: Sequence[Prompt] = proxy.prompts[: config.num_monitored]
        self.has_oracle: bool = any(s.metric == "golden" for s in sets)
        self.has_references: bool = any(s.metric == "reference_nll" for s in sets)

    @classmethod
    def build(
        cls,
        teacher: GivenModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Given],
        *,
        references: Sequence[str | None] | None = None,
        train_prompts: Sequence[Given] | None = None,
        train_responses: Sequence[str] | None = None,
        oracle: GivenModel | None = None,
        num_prompts: int = 128,
        num_train_prompts: int = 32,
        num_monitored: int = 16,
        max_prompt_tokens: int = 1024,
        max_response_tokens: int = 128,
        chat_template: bool = False,
        vocabulary: Literal["same", "shared"] = "same",
        batch_size: int | None = None,
        device: str = "cpu",
        seed: int = 0,
    ) -> Probe:
        """A probe for students that some other trainer trains: give it to ``HackingCallback``.

        ``teacher`` and ``oracle`` are models in memory, which stay as they are and must stay alive, or names, which
        are loaded onto ``device``. ``prompts`` are held out: texts, or conversations as lists of messages, which the
        tokenizer's chat template renders (texts too, with ``chat_template``: each as the one message of a user). The
        first ``num_prompts`` of them are used; a verdict needs 40. ``references`` follow their prompts directly, as
        completions do in TRL: they begin with a space where one belongs there. ``train_prompts`` are some of those that
        the student trains on; the train proxy walks on ``train_responses``, the stored responses of the teacher that it
        learns, or without them (responses are fresh every time) on new ones, to the first ``num_train_prompts``.
        Teacher and oracle write their responses here, once. ``batch_size`` sequences at a time are written and scored;
        None: up to 64, but of no more log-probabilities than ``MOST_LOG_PROBS``.

        ``vocabulary`` "shared" cuts the law of every model, the student's too, to the ids that the tokenizer can give
        (output rows that only pad are left out, the rest renormalised); "same" refuses models of unlike output rows.
        There is no ``kl_from_start``: it would take a copy of the student. Random number generators are left as found.
        Raises AssayError for prompts and models that do not fit together.
        """
        sizes = {"num_prompts": num_prompts, "num_train_prompts": num_train_prompts, "num_monitored": num_monitored,
                 "max_prompt_tokens": max_prompt_tokens, "max_response_tokens": max_response_tokens,
                 "batch_size": batch_size}  # fmt: skip
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise AssayError(f"{name} is {size}: it must be at least 1")
        lists = [("prompts", prompts, references, num_prompts)]
        if train_prompts is not None:
            lists.append(("train_prompts", train_prompts, train_responses, num_train_prompts))
        elif train_responses is not None:
            raise AssayError("train_responses belong to train_prompts: give both")
        with contextlib.ExitStack() as stack:
            shared = num_token_ids(tokenizer) if vocabulary == "shared" else None
            given_models: dict[Writer, GivenModel | None] = {"teacher": teacher, "oracle": oracle}
            models, framing = frozen_models(given_models, tokenizer, device, shared, stack)
            held_out, *trained = (
                prompts_of(
                    what,
                    given,
                    said,
                    tokenizer,
                    framing,
                    num_prompts=count,
                    max_prompt_tokens=max_prompt_tokens,
                    max_response_tokens=max_response_tokens,
                    chat_template=chat_template,
                )
                for what, given, said, count in lists
            )
            train = trained[0] if trained else []
            if batch_size is None:
                fitting = MOST_LOG_PROBS // (max_response_tokens * models["teacher"].vocab_size)
                batch_size = max(1, min(SCORING_BATCH_SIZE, fitting))
            _check_prompts(held_out, train, models, max_response_tokens)

            def answers(writer: Writer, asked: Sequence[Prompt], purpose: str) -> list[Response]:
                return write_responses(
                    models[writer], writer, asked, max_response_tokens, purpose=purpose, seed=seed,
                    batch_size=batch_size,
                )  # fmt: skip

            probe = build_probe(
                models,
                held_out,
                {writer: answers(writer, held_out, "held_out") for writer in models},
                (
                    train,
                    answers("teacher", train, "train_proxy")
                    if train_responses is None
                    else [
                        Response(p.id, p.reference_ids, "teacher", p.reference_ids[-1] != tokenizer.eos_token_id)
                        for p in train
                    ],
                ),
                ProbeConfig(len(held_out), len(train), num_monitored, num_shown=0),
                max_response_tokens=max_response_tokens,
                seed=seed,
                batch_size=batch_size,
            )
        probe.shared_vocab_size = shared
        return probe

    @property
    def eos_token_id(self) -> int:
        """What ends the teacher's responses, and has to end the student's."""
        assert self.teacher is not None
        return self.teacher.eos_token_id

    @property
    def digest(self) -> str:
        """A short hash of prompts and frozen responses: values of equal digests can be compared prompt by prompt."""
        total = hashlib.sha256()
        for frozen in self.sets:
            total.update(repr((frozen.metric, frozen.batch.prompt_ids, frozen.batch.response_ids)).encode())
        return total.hexdigest()[:16]

    def check_student(self, student: LanguageModel) -> None:
        """Raises AssayError when the student has another vocabulary than the teacher, or too short a context."""
        from assay.models.loading import check_same_vocabulary

        assert isinstance(self.teacher, LanguageModel)
        check_same_vocabulary(student, self.teacher)
        for frozen in self.sets:
            student.check_lengths(max(map(len, frozen.batch.prompt_ids)), self._max_response_tokens)

    def evaluate(self, student: LanguageModel, step: int) -> Evaluation:
        """All metrics at the student's present weights. The student's mode and RNG state are left as found."""
        started = time.perf_counter()
        per_prompt: list[PerPrompt] = []
        # without an oracle, references or training prompts there is no value, which is not 0 and not a missing column
        means: dict[str, float | None] = dict.fromkeys(
            f"{metric}_{u}"
            for metric in ("golden", "reference_nll", "train_proxy")
            for u in ("nats", "stderr", "nats_per_token")
        )
        for frozen in self.sets:
            values, company = frozen.against(student)
            per_prompt.append(values)
            means |= judge_columns(values) if frozen.is_of_a_judge else mean_columns(values)
            if frozen.metric == "proxy":
                means["student_entropy_nats_per_token"] = company["entropy_nats_per_token"]
                means["top_overlap"] = company["top_overlap"]
                means |= self._of_the_teacher
        samples = write_responses(
            student,
            "student",
            self.free_prompts,
            self._max_response_tokens,
            purpose="free_running",
            seed=self.seed,
            writer_step=step,
            batch_size=self._sampling_batch_size,
        )
        means |= degeneration(samples)
        for judge in self.judges:
            values = judged(judge, self.free_prompts, samples)
            per_prompt.append(values)
            means |= judge_columns(values)
        self.seconds += time.perf_counter() - started
        return Evaluation(per_prompt, means, samples[: self.config.num_shown])


def mean_columns(values: PerPrompt) -> dict[str, float | None]:
    """``<metric>_nats`` and ``_stderr`` per sequence, and ``<metric>_nats_per_token`` (a ratio of sums)."""
    estimate = mean_estimate(values.value_nats)
    per_token = float(values.value_nats.sum() / values.num_tokens.sum())
    return {
        f"{values.metric}_nats": estimate.value,
        f"{values.metric}_stderr": estimate.stderr,
        f"{values.metric}_nats_per_token": per_token,
    }


def judged(judge: Judge, prompts: Sequence[Prompt], responses: Sequence[Response]) -> PerPrompt:
    """What a judge says of these responses, prompt by prompt; several ranks ask it once."""
    lengths = np.array([len(response.token_ids) for response in responses])
    values = ranks.by_first(f"judge {judge.config.name!r}", lambda: judge.values(prompts, responses))
    return PerPrompt(judge.config.column, [p.id for p in prompts], values, lengths)


def judge_columns(values: PerPrompt) -> dict[str, float | None]:
    """``judge_<name>``, the mean over the prompts, and ``judge_<name>_stderr``."""
    estimate = mean_estimate(values.value_nats)
    return {values.metric: estimate.value, f"{values.metric}_stderr": estimate.stderr}


def degeneration(responses: Sequence[Response]) -> dict[str, float | None]:
    """Length, truncation, repetition and diversity of free-running responses.

    ``repetition_fraction``: share of a response's 3-grams that occurred in it before, averaged over responses.
    ``distinct_2``: different 2-grams over all 2-grams of the sample [Li et al. 2016].
    """
    repeated = [1 - len(set(grams)) / len(grams) for grams in (_ngrams(r.token_ids, 3) for r in responses) if grams]
    pairs = [pair for r in responses for pair in _ngrams(r.token_ids, 2)]
    return {
        "response_tokens_mean": math.fsum(len(r.token_ids) for r in responses) / len(responses),
        "truncated_fraction": sum(r.truncated for r in responses) / len(responses),
        "repetition_fraction": sum(repeated) / len(repeated) if repeated else 0.0,
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else 0.0,
    }


def build_probe(
    models: Mapping[Writer, LanguageModel | ListingModel],
    held_out: Sequence[Prompt],
    responses: Mapping[Writer, Sequence[Response]],
    train_pairs: tuple[Sequence[Prompt], Sequence[Response]],
    config: ProbeConfig,
    *,
    max_response_tokens: int,
    seed: int,
    teacher_cache: CachedLogProbs | None = None,
    batch_size: int | None = None,
    judges: Sequence[Judge] = (),
) -> Probe:
    """The probe of one arm. ``models`` holds teacher, any oracle, and as "student" the student's frozen start, if kept.

    ``responses`` are the held-out responses of these writers; ``train_pairs`` the distillation prompts with
    the teacher responses that the train proxy walks on; ``teacher_cache`` says how the teacher's word on both is kept
    (None: exact, in memory). Without an oracle there is no golden, and the references of all held-out prompts are
    scored: −log student of them is golden, up to a constant, with references as the truth. Without a teacher in
    ``models`` proxy and train proxy are −log student of its responses: what they are up to a constant.
    ``batch_size`` sequences are scored and written at a time; None leaves it to models/batching.py. A judge that walks
    on its own responses writes them here, with the random numbers that the teacher's were drawn with.
    """
    monitored, scoring = config.num_monitored, batch_size or SCORING_BATCH_SIZE
    teacher = teacher_cache or models.get("teacher")  # None: its text is all that is known
    sets = [FrozenSet("proxy", held_out, responses["teacher"], teacher, batch_size=scoring)]
    if train_pairs[0]:
        sets.append(FrozenSet("train_proxy", *train_pairs, teacher, batch_size=scoring))
    if "student" in models:
        start = responses["student"][:monitored]
        sets.append(FrozenSet("kl_from_start", held_out[:monitored], start, models["student"], batch_size=scoring))
    if "oracle" in models:
        sets.insert(0, FrozenSet("golden", held_out, responses["oracle"], models["oracle"], batch_size=scoring))
    asked = held_out[:monitored] if "oracle" in models else held_out
    with_reference = [prompt for prompt in asked if prompt.reference_ids]
    if with_reference:
        eos = next(iter(models.values())).eos_token_id
        references = [
            Response(p.id, p.reference_ids, "dataset", truncated=p.reference_ids[-1] != eos) for p in with_reference
        ]
        sets.append(FrozenSet("reference_nll", with_reference, references, None, batch_size=scoring))
    readers: list[Judge] = []
    for judge in judges:
        if isinstance(judge, ModelJudge) and judge.config.walks_on == "judge":
            sets.append(_set_of(judge, held_out, max_response_tokens, seed))
        else:
            readers.append(judge)
    return Probe(
        sets,
        config,
        max_response_tokens=max_response_tokens,
        seed=seed,
        sampling_batch_size=batch_size or SAMPLING_BATCH_SIZE,
        judges=readers,
    )


def _set_of(judge: ModelJudge, held_out: Sequence[Prompt], max_response_tokens: int, seed: int) -> FrozenSet:
    """A second teacher's responses to the held-out prompts, for KL(judge‖student) along them."""
    # they are stored nowhere, so nobody reads who wrote them
    responses = write_responses(judge.model, "teacher", held_out, max_response_tokens, purpose="held_out", seed=seed)
    return FrozenSet(judge.config.column, held_out, responses, judge.model, is_of_a_judge=True)


def _check_prompts(
    held_out: Sequence[Prompt], train: Sequence[Prompt], models: Mapping[Writer, LanguageModel], limit: int
) -> None:
    if len(held_out) < 2:
        raise AssayError(f"a probe needs at least 2 prompts, and a verdict 40, not {len(held_out)}: hold out more")
    for model in models.values():
        model.check_lengths(max(len(prompt.token_ids) for prompt in (*held_out, *train)), limit)
    shared = {prompt.token_ids for prompt in held_out} & {prompt.token_ids for prompt in train}
    if shared:
        example = next(prompt for prompt in held_out if prompt.token_ids in shared)
        raise AssayError(
            f"{len(shared)} of the held-out prompts are among train_prompts (such as {example.text[:40]!r}): hold out "
            "prompts that the student does not train on"
        )


def _ngrams(token_ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
