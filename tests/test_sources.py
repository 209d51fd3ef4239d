"""Who writes, how often anew, in which proportions, and what it costs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from assay.config import ArmConfig, SourceConfig, TrainingConfig
from assay.data.sources import Counters, Mixture, ResponseSource
from assay.divergences import DIVERGENCES
from assay.errors import AssayError
from assay.models.cached import CachedLogProbs, Kept
from assay.models.causal import CausalModel
from assay.recipes import get_recipe
from assay.training import distillation_loss
from assay.types import Batch, Dense, Prompt, Response
from assay.validation import validate
from tiny_models import gpt2

PROMPTS = [Prompt(f"p{i}", "", (5 + i, 2, 3), "reference", (4, 6 + i, 0)) for i in range(8)]


class CountingModel(CausalModel):
    """A model that remembers how many sequences it scored and sampled."""

    num_scored = 0
    num_sampled = 0

    def log_probs(self, batch: Batch) -> torch.Tensor:
        self.num_scored += len(batch)
        return super().log_probs(batch)

    def sample(self, prompt_ids: Sequence[tuple[int, ...]], *arguments: object, **named: object):  # type: ignore[override,no-untyped-def]
        self.num_sampled += len(prompt_ids)
        return super().sample(prompt_ids, *arguments, **named)  # type: ignore[arg-type]


def counting(seed: int) -> CountingModel:
    plain = gpt2(seed)
    model = CountingModel(plain.module, plain.name)
    model.num_scored = 0  # the model was tried once when it was made
    return model


def source(config: SourceConfig, teacher: CausalModel | None = None, **named: object) -> ResponseSource:
    models = {"teacher": teacher or gpt2(1), "oracle": gpt2(3)}
    return ResponseSource(config, PROMPTS, models, max_response_tokens=5, **named)  # type: ignore[arg-type]


def test_response_uses_count_draws_over_all_responses_written() -> None:
    """Offline they grow with the passes, whether responses were stored before or not; fresh ones are used once."""
    offline, online = (Mixture([source(SourceConfig("teacher", every))], 4) for every in (None, 1))
    preloaded = source(SourceConfig("teacher"))
    preloaded.preload(source(SourceConfig("teacher")).stored_pairs(preloaded.num_pairs)[1])
    stored = Mixture([preloaded], 4)
    assert (offline.response_uses, stored.response_uses) == (0.0, 0.0)
    student = gpt2(2)
    per_pass = preloaded.num_pairs // 4
    for step in range(2 * per_pass):
        for mixture in (offline, online, stored):
            mixture.batch(step, student)
        if step == 0:
            assert (offline.response_uses, stored.response_uses) == (1.0, 4 / preloaded.num_pairs)
    assert (offline.response_uses, online.response_uses, stored.response_uses) == (2.0, 1.0, 2.0)
    counters = Counters()
    both = Mixture([source(SourceConfig("teacher"), index=i, counters=counters) for i in range(2)], 16)
    for step in range(3):
        both.batch(step, student)
    assert both.response_uses == 3.0


def epoch(mixture: Mixture, student: CausalModel, first_step: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Prompt → response over the two steps of one pass."""
    pairs: dict[tuple[int, ...], tuple[int, ...]] = {}
    for step in (first_step, first_step + 1):
        batch = mixture.batch(step, student)
        pairs |= dict(zip(batch.prompt_ids, batch.response_ids, strict=True))
    return pairs


def test_every_pass_meets_every_pair_once_in_a_new_order() -> None:
    drawn = source(SourceConfig("teacher"), completions_per_prompt=3)
    student, orders = gpt2(2), []
    for _ in range(2):
        batch = drawn.draw(24, 0, student)
        assert Counter(batch.prompt_ids) == {prompt.token_ids: 3 for prompt in PROMPTS}
        orders.append(batch.prompt_ids)
    assert orders[0] != orders[1]


def test_completions_of_a_prompt_differ() -> None:
    batch = source(SourceConfig("teacher"), completions_per_prompt=4).draw(32, 0, gpt2(2))
    by_prompt: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for prompt, response in zip(batch.prompt_ids, batch.response_ids, strict=True):
        by_prompt.setdefault(prompt, set()).add(response)
    assert sum(map(len, by_prompt.values())) > 24


def test_offline_keeps_its_responses_and_asks_the_teacher_once() -> None:
    teacher = counting(1)
    mixture = Mixture([source(SourceConfig("teacher"), teacher)], 4)
    first = epoch(mixture, gpt2(2), 0)
    for step in (2, 4, 6):
        assert epoch(mixture, gpt2(2), step) == first
    assert (teacher.num_sampled, teacher.num_scored) == (8, 8)


def test_online_teacher_writes_anew_every_pass_from_the_offline_start() -> None:
    offline = epoch(Mixture([source(SourceConfig("teacher"))], 4), gpt2(2), 0)
    online = Mixture([source(SourceConfig("teacher", 1))], 4)
    first, second, third = (epoch(online, gpt2(2), step) for step in (0, 2, 4))
    assert first == offline, "the first pass is common to both arms"
    assert first != second != third


def test_refresh_every_second_pass() -> None:
    mixture = Mixture([source(SourceConfig("teacher", 2))], 4)
    passes = [epoch(mixture, gpt2(2), 2 * i) for i in range(4)]
    assert passes[0] == passes[1] != passes[2] == passes[3]


def test_online_student_writes_what_the_student_says_now() -> None:
    mixture = Mixture([source(SourceConfig("student", 1, "steps"))], 8)
    for step, student in enumerate((gpt2(2), gpt2(7))):
        batch = mixture.batch(step, student)
        assert isinstance(batch.signal, Dense)
        assert torch.allclose(batch.signal.log_p_NV, gpt2(1).log_probs(Batch(batch.prompt_ids, batch.response_ids)))
    stored = mixture.sources[0]._stored.values()
    assert {(s.response.writer, s.response.writer_step) for s in stored} == {("student", 1)}


def test_stored_signal_equals_the_live_teacher() -> None:
    drawn = source(SourceConfig("teacher"))
    for _ in range(3):
        batch = drawn.draw(4, 0, gpt2(2))
        assert isinstance(batch.signal, Dense)
        live = gpt2(1).log_probs(Batch(batch.prompt_ids, batch.response_ids))
        assert torch.allclose(batch.signal.log_p_NV, live, atol=1e-5)


def test_dataset_writer_gives_the_references() -> None:
    batch = source(SourceConfig("dataset")).draw(8, 0, gpt2(2))
    assert set(batch.response_ids) == {prompt.reference_ids for prompt in PROMPTS}
    with pytest.raises(AssayError, match="one reference per prompt"):
        source(SourceConfig("dataset"), completions_per_prompt=2)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (0.62, 0.27, 0.11), (0.999, 0.001)])
def test_realised_fractions_are_exact(weights: tuple[float, ...]) -> None:
    mixture = Mixture([source(SourceConfig("teacher", weight=w), signal=False) for w in weights], 7)
    for step in range(60):
        mixture.batch(step, gpt2(2))
        total = 7 * (step + 1)
        for drawn, weight in zip(mixture.sources, weights, strict=True):
            assert abs(drawn.rows_drawn - weight * total) <= 1


def test_sources_of_a_mixture_draw_other_pairs_and_other_responses() -> None:
    mixture = Mixture([source(SourceConfig("teacher"), index=i) for i in range(2)], 16)
    batch = mixture.batch(0, gpt2(2))
    halves = [dict(zip(batch.prompt_ids[s], batch.response_ids[s], strict=True)) for s in (slice(8), slice(8, 16))]
    assert halves[0].keys() == halves[1].keys()
    assert list(halves[0]) != list(halves[1])
    assert sum(halves[0][prompt] != halves[1][prompt] for prompt in halves[0]) >= 6
    assert mixture.epoch == 1.0


def test_tokens_are_counted_once() -> None:
    drawn = source(SourceConfig("teacher"))
    tokens = drawn.draw(8, 0, gpt2(2)).num_tokens
    drawn.draw(8, 1, gpt2(2))
    assert (drawn.counters.generated_tokens, drawn.counters.teacher_tokens) == (tokens, 2 * tokens)
    by_student = source(SourceConfig("student", 1, "steps"))
    tokens = by_student.draw(8, 0, gpt2(2)).num_tokens
    assert (by_student.counters.generated_tokens, by_student.counters.teacher_tokens) == (tokens, tokens)


def test_preloaded_responses_are_used_and_must_fit() -> None:
    ready = [Response(p.id, (9, 0), "oracle", False) for p in PROMPTS]
    drawn = source(SourceConfig("oracle"), signal=False)
    drawn.preload(ready)
    assert set(drawn.draw(8, 0, gpt2(2)).response_ids) == {(9, 0)}
    with pytest.raises(AssayError, match="7 stored responses for 8 pairs"):
        drawn.preload(ready[1:])
    with pytest.raises(AssayError, match="belongs to prompt"):
        drawn.preload(ready[::-1])


# --- text as the law to learn


@pytest.mark.parametrize("writer", ["dataset", "oracle", "teacher"])
def test_forward_kl_from_text_is_the_cross_entropy(writer: str) -> None:
    """The same value and gradient as hard labels on the same responses; the teacher is not asked."""
    teacher = counting(1)
    batch = source(SourceConfig(writer, learn="text"), teacher).draw(8, 0, gpt2(2))  # type: ignore[arg-type]
    assert teacher.num_scored == 0
    results = []
    for divergence in ("forward_kl", "hard_labels"):
        student = gpt2(2)
        loss = distillation_loss(student, batch, TrainingConfig(divergence=divergence))
        loss.backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in student.module.parameters()])))  # type: ignore[union-attr]
    (value, gradient), (expected, expected_gradient) = results
    assert value == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(gradient, expected_gradient, atol=1e-6)


def test_text_and_teacher_stand_in_one_batch_each_with_its_own_law() -> None:
    mixture = Mixture(
        [
            source(SourceConfig("teacher", weight=75.0)),
            source(SourceConfig("dataset", weight=25.0, learn="text"), index=1),
        ],
        8,
    )
    for step in range(3):
        batch = mixture.batch(step, gpt2(2))
        assert isinstance(batch.signal, Dense)
        numbers = [len(rows) for rows in (batch[:6].response_ids, batch[6:].response_ids)]
        assert numbers == [6, 2]
        live = gpt2(1).log_probs(Batch(batch[:6].prompt_ids, batch[:6].response_ids))
        assert torch.allclose(batch[:6].signal.log_p_NV, live, atol=1e-5)  # type: ignore[union-attr]
        references = batch[6:]
        assert set(references.response_ids) <= {prompt.reference_ids for prompt in PROMPTS}
        law = references.signal.log_p_NV.exp()  # type: ignore[union-attr]
        assert law.argmax(-1).tolist() == [token for ids in references.response_ids for token in ids]
        assert torch.equal(law.sum(-1), torch.ones(references.num_tokens))
    assert [s.rows_drawn for s in mixture.sources] == [18, 6]


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_only_divergences_that_are_finite_on_a_text_may_learn_one(name: str) -> None:
    """What the config refuses, against the divergences themselves, at their defaults and at their ends."""
    log_q = torch.tensor([[0.5, 0.3, 0.2]]).log()
    log_p = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    row = DIVERGENCES[name]
    ends = {"skew_reverse_kl": [{}, {"alpha": 0.0}], "generalised_jsd": [{}, {"beta": 0.0}, {"beta": 1.0}]}
    for parameters in ends.get(name, [{}]):
        experiment = get_recipe("quickstart")
        training = dataclasses.replace(
            experiment.distillation.training, divergence=name, divergence_parameters=parameters
        )
        experiment = dataclasses.replace(
            experiment,
            distillation=dataclasses.replace(experiment.distillation, training=training),
            arms=(ArmConfig("text", (SourceConfig("dataset", learn="text"),)),),
        )
        if row.needs == "tokens" or row.function(log_p, log_q, **parameters).isfinite().all():
            validate(experiment)
        else:
            with pytest.raises(AssayError, match=f"{name} from the one law that a text gives is infinite"):
                validate(experiment)


def test_a_replay_resumes_with_its_responses() -> None:
    ready = [Response(p.id, (9 + i, 0), "oracle", False) for i, p in enumerate(PROMPTS)]
    replay, again = (source(SourceConfig("oracle", prompts="oracle", learn="text")) for _ in range(2))
    replay.preload(ready)
    replay.draw(5, 0, gpt2(2))
    state = replay.state()
    again.preload(ready)
    again.load_state(state)
    assert (replay.counters.generated_tokens, replay.counters.teacher_tokens) == (0, 0)
    for _ in range(2):
        assert again.draw(5, 1, gpt2(2)).response_ids == replay.draw(5, 1, gpt2(2)).response_ids
    assert again.counters.as_list()[:3] == replay.counters.as_list()[:3]  # the others are seconds


class RememberedBatches(CachedLogProbs):
    """Keeps which responses the teacher was given together."""

    def __init__(self, model: CausalModel) -> None:
        super().__init__(model)
        self.batches: list[list[tuple[int, ...]]] = []

    def compute(self, batch: Batch, batch_size: int = 64) -> list[Kept]:
        self.batches.append([(*p, *r) for p, r in zip(batch.prompt_ids, batch.response_ids, strict=True)])
        return super().compute(batch, batch_size)


def test_a_resumed_source_scores_again_in_the_same_batches() -> None:
    """A law depends in its last bits on the batch that it is computed in, and another grouping would be another run."""
    caches = [RememberedBatches(gpt2(1)) for _ in range(2)]
    whole, resumed = (source(SourceConfig("teacher"), cache=cache, completions_per_prompt=2) for cache in caches)
    for step in range(3):  # 15 of 16 pairs, so that the batches of the next pass are others
        whole.draw(5, step, gpt2(2))
    resumed.load_state(whole.state())
    first = list(caches[0].batches)
    for step in range(3, 7):
        drawn, expected = resumed.draw(5, step, gpt2(2)), whole.draw(5, step, gpt2(2))
        assert drawn.response_ids == expected.response_ids
        assert isinstance(drawn.signal, Dense)
        assert isinstance(expected.signal, Dense)
        assert torch.equal(drawn.signal.log_p_NV, expected.signal.log_p_NV)
    fresh = caches[0].batches[len(first) :]
    assert sorted(map(len, first)) == [5, 5, 5]
    assert sorted(caches[1].batches) == sorted(first + fresh)
    assert resumed.counters.teacher_tokens == whole.counters.teacher_tokens
