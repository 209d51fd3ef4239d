"""The probe: held-out prompts, frozen responses and frozen log-probabilities → golden, proxy and company.

Everything that does not depend on the student is computed once. An evaluation costs student forwards (and a
few free-running samples) only, and gives the same numbers at fixed weights whatever the batch size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from assay.buckets import lists_all, on_same_buckets
from assay.config import ProbeConfig
from assay.estimators import negative_log_likelihood, rao_blackwell
from assay.judges import Judge, ModelJudge
from assay.models.batching import SAMPLING_BATCH_SIZE
from assay.models.cached import CachedLogProbs, Kept, by_length
from assay.models.language_model import LanguageModel
from assay.models.sampling import response_seed
from assay.statistics import mean_estimate
from assay.types import Batch, Dense, Prompt, Response, TopK, Writer


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
    model: LanguageModel,
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
    """One response per prompt, drawn with seeds that depend on (purpose, seed, prompt) alone."""
    responses: list[Response] = []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        seeds = [response_seed(purpose, seed, prompt.id) for prompt in part]
        texts = model.sample([p.token_ids for p in part], seeds, max_response_tokens, sampling_temperature)
        responses += [
            Response(
                prompt_id=prompt.id,
                token_ids=text,
                writer=writer,
                truncated=text[-1] != model.eos_token_id,
                seed=drawn_with,
                sampling_temperature=sampling_temperature,
                writer_step=writer_step,
            )
            for prompt, text, drawn_with in zip(part, texts, seeds, strict=True)
        ]
    return responses


TOP = 8
"""How many of the most probable tokens ``top_overlap`` compares."""


@dataclass(frozen=True)
class PerPrompt:
    """One metric for every prompt of a set: nats per sequence and the response tokens that it sums over.

    Of a judge of the student's responses ``value_nats`` is what the judge says, in the judge's own unit.
    """

    metric: str
    prompt_ids: list[str]
    value_nats: np.ndarray
    num_tokens: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found: per-prompt values, their means (keys as in metrics.jsonl), sampled responses."""

    per_prompt: list[PerPrompt]
    means: dict[str, float | None]
    samples: list[Response]


@dataclass
class FrozenSet:
    """Fixed sequences with what a frozen walker says about them, scored against any student.

    ``walker`` is a model, or a cache that says how a model's word is kept; None scores the text alone.
    """

    metric: str
    prompts: Sequence[Prompt]
    responses: Sequence[Response]
    walker: LanguageModel | CachedLogProbs | None
    kept: list[Kept] = field(default_factory=list)
    is_of_a_judge: bool = False

    def __post_init__(self) -> None:
        self.batch = Batch([p.token_ids for p in self.prompts], [r.token_ids for r in self.responses])
        if self.walker is not None:
            self._cache = self.walker if isinstance(self.walker, CachedLogProbs) else CachedLogProbs(self.walker)
            self.kept = self._cache.compute(self.batch)

    @torch.no_grad()
    def against(self, student: LanguageModel) -> tuple[PerPrompt, dict[str, float]]:
        """KL(walker‖student) per sequence along the walker's responses; without a walker, −log student.

        Of a walker that lists its most probable tokens a lower bound: the KL on these and all others as one bucket.
        For the proxy also, averaged over its tokens: the student's entropy in nats, and ``top_overlap``, the share of
        the walker's ``TOP`` most probable tokens that are among the student's.
        """
        values = np.zeros(len(self.batch))
        entropy = overlap = 0.0
        for rows, part in by_length(self.batch):
            with student.evaluating():
                log_q_NV = student.log_probs(part)
            if self.walker is None:
                token_ids_N = torch.tensor([t for ids in part.response_ids for t in ids], device=log_q_NV.device)
                value_B = negative_log_likelihood(log_q_NV, token_ids_N, part.lengths)
            else:
                signal = self._cache.signal([self.kept[row] for row in rows])
                value_B = rao_blackwell(*on_same_buckets(signal, log_q_NV), part.lengths)
                if self.metric == "proxy":
                    entropy -= float((log_q_NV.exp() * log_q_NV).sum())
                    overlap += top_overlap(signal, log_q_NV)
            values[rows] = value_B.double().cpu().numpy()
        ids = [prompt.id for prompt in self.prompts]
        per_prompt = PerPrompt(self.metric, ids, values, np.array(self.batch.lengths))
        if self.metric != "proxy":
            return per_prompt, {}
        num_tokens = self.batch.num_tokens
        return per_prompt, {"entropy_nats_per_token": entropy / num_tokens, "top_overlap": overlap / num_tokens}

    @torch.no_grad()
    def of_the_walker(self) -> dict[str, float | None]:
        """Means over the tokens of what the walker says: its entropy in nats, and the mass of the tokens it lists.

        The entropy is None where a part of the law is all that is known; the mass is there for lists alone.
        """
        entropy, mass, is_whole = 0.0, 0.0, True
        for rows, _ in by_length(self.batch):
            signal = self._cache.signal([self.kept[row] for row in rows])
            if isinstance(signal, TopK):
                is_whole = is_whole and lists_all(signal, self._cache.model.vocab_size)
                mass += float(signal.log_p_NK.exp().sum())
            entropy -= _sum_p_log_p(signal.log_p_NV if isinstance(signal, Dense) else signal.log_p_NK)
        num_tokens = self.batch.num_tokens
        listed = {"captured_mass": mass / num_tokens} if self._cache.kind == "top_k" else {}
        return {"teacher_entropy_nats_per_token": entropy / num_tokens if is_whole else None, **listed}


def top_overlap(signal: Dense | TopK, log_q_NV: Tensor) -> float:
    """Σ over tokens of the share of p's ``TOP`` most probable tokens that are among as many of q's.

    All of them, where p lists or the vocabulary has fewer.
    """
    log_p = signal.log_p_NV if isinstance(signal, Dense) else signal.log_p_NK
    top = min(TOP, log_p.shape[1])
    p_NK, q_NK = (log.topk(top, dim=1).indices for log in (log_p, log_q_NV))
    if isinstance(signal, Dense):
        return float((p_NK[:, :, None] == q_NK[:, None, :]).any(dim=2).sum()) / top
    is_listed_NK = signal.log_p_NK.gather(1, p_NK) > -torch.inf  # a row may be filled up
    p_NK = signal.token_ids_NK.gather(1, p_NK)
    is_shared_NK = is_listed_NK & (p_NK[:, :, None] == q_NK[:, None, :]).any(dim=2)
    return float((is_shared_NK.sum(1) / is_listed_NK.sum(1)).sum())


def _sum_p_log_p(log_p: Tensor) -> float:
    return float((log_p.exp() * log_p).nan_to_num(nan=0.0).sum())  # 0 · log 0 = 0


class Probe:
    """Golden, proxy, train proxy and the monitors of one run, on frozen held-out prompts.

    ``golden``, where there is an oracle, is KL(oracle‖student) along oracle responses, ``proxy`` KL(teacher‖student)
    along teacher responses to *the same* held-out prompts, ``train_proxy`` the same along teacher responses to
    distillation prompts; all Rao-Blackwellised, in nats per sequence, at sampling temperature 1.
    ``reference_nll`` is −log student of the human references, ``kl_from_start`` KL(start‖student) along
    responses of the student as it was before distillation. Where the teacher lists its most probable tokens, proxy and
    train proxy are lower bounds, and ``captured_mass`` says how much of its law is listed along the proxy's responses.
    ``judges`` score the same free-running responses that length and repetition are read from.
    """

    def __init__(
        self,
        sets: Sequence[FrozenSet],
        config: ProbeConfig,
        *,
        max_response_tokens: int,
        seed: int,
        judges: Sequence[Judge] = (),
    ) -> None:
        self.sets = sets
        self.judges = judges
        self.config = config
        self.seconds = 0.0
        self._max_response_tokens = max_response_tokens
        self._seed = seed
        proxy = next(s for s in sets if s.metric == "proxy")
        self._of_the_teacher = proxy.of_the_walker()
        self.free_prompts = proxy.prompts[: config.num_monitored]
        self.has_references = any(s.metric == "reference_nll" for s in sets)

    def evaluate(self, student: LanguageModel, step: int) -> Evaluation:
        """All metrics at the student's present weights. The student's mode and RNG state are left as found."""
        started = time.perf_counter()
        per_prompt: list[PerPrompt] = []
        # a run without an oracle, or a task without references, has no value, which is not 0 and not a missing column
        means: dict[str, float | None] = dict.fromkeys(
            f"{metric}_{u}" for metric in ("golden", "reference_nll") for u in ("nats", "stderr", "nats_per_token")
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
            seed=self._seed,
            writer_step=step,
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
    """What a judge says of these responses, prompt by prompt."""
    lengths = np.array([len(response.token_ids) for response in responses])
    return PerPrompt(judge.config.column, [p.id for p in prompts], judge.values(prompts, responses), lengths)


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
    models: Mapping[Writer, LanguageModel],
    held_out: Sequence[Prompt],
    responses: Mapping[Writer, Sequence[Response]],
    train_pairs: tuple[Sequence[Prompt], Sequence[Response]],
    config: ProbeConfig,
    *,
    max_response_tokens: int,
    seed: int,
    teacher_cache: CachedLogProbs | None = None,
    judges: Sequence[Judge] = (),
) -> Probe:
    """The probe of one arm. ``models`` holds teacher, as "student" the student's frozen start, and any oracle.

    ``responses`` are the held-out responses of these writers; ``train_pairs`` the distillation prompts with
    the teacher responses that the train proxy walks on; ``teacher_cache`` says how the teacher's word on both is kept
    (None: exact, in memory). Without an oracle there is no golden, and the references of all held-out prompts are
    scored: −log student of them is golden, up to a constant, with references as the truth. A judge that walks on its
    own responses writes them here, with the random numbers that the teacher's were drawn with.
    """
    monitored = config.num_monitored
    teacher = teacher_cache or models["teacher"]
    sets = [
        FrozenSet("proxy", held_out, responses["teacher"], teacher),
        FrozenSet("train_proxy", *train_pairs, teacher),
        FrozenSet("kl_from_start", held_out[:monitored], responses["student"][:monitored], models["student"]),
    ]
    if "oracle" in models:
        sets.insert(0, FrozenSet("golden", held_out, responses["oracle"], models["oracle"]))
    asked = held_out[:monitored] if "oracle" in models else held_out
    with_reference = [prompt for prompt in asked if prompt.reference_ids]
    if with_reference:
        eos = models["student"].eos_token_id
        references = [
            Response(p.id, p.reference_ids, "dataset", truncated=p.reference_ids[-1] != eos) for p in with_reference
        ]
        sets.append(FrozenSet("reference_nll", with_reference, references, None))
    readers: list[Judge] = []
    for judge in judges:
        if isinstance(judge, ModelJudge) and judge.config.walks_on == "judge":
            sets.append(_set_of(judge, held_out, max_response_tokens, seed))
        else:
            readers.append(judge)
    return Probe(sets, config, max_response_tokens=max_response_tokens, seed=seed, judges=readers)


def _set_of(judge: ModelJudge, held_out: Sequence[Prompt], max_response_tokens: int, seed: int) -> FrozenSet:
    """A second teacher's responses to the held-out prompts, for KL(judge‖student) along them."""
    # they are stored nowhere, so nobody reads who wrote them
    responses = write_responses(judge.model, "teacher", held_out, max_response_tokens, purpose="held_out", seed=seed)
    return FrozenSet(judge.config.column, held_out, responses, judge.model, is_of_a_judge=True)


def _ngrams(token_ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
