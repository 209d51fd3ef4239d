"""Training and measuring from the tokens that a teacher lists, live: the loss, the sources, the probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.optim import SGD

from assay import evaluation
from assay.buckets import resolved, top_k
from assay.config import ProbeConfig, SourceConfig, TrainingConfig
from assay.data.sources import Mixture, ResponseSource, one_hot, one_listed
from assay.divergences import DIVERGENCES
from assay.errors import AssayError
from assay.evaluation import build_probe, write_responses
from assay.frozen_set import TOP, FrozenSet, top_overlap
from assay.models import cached
from assay.models.cached import CachedLogProbs
from assay.models.causal import CausalModel
from assay.models.language_model import LanguageModel, ListingModel
from assay.preconditions import check_temperature
from assay.recipes import get_recipe
from assay.training import distillation_loss, fit, train_step
from assay.types import Batch, Dense, Prompt, States, TopK
from assay.validation import validate
from tiny_models import VOCAB_SIZE, bart, gpt2, t5

PROMPTS = [Prompt(f"p{i}", "", (5 + i, 2, 3), "reference", (4, 6 + i, 0)) for i in range(8)]
BATCH = Batch([(5, 2), (7, 3, 9, 4), (6,)], [(3, 4, 0), (6, 8), (9, 1, 2, 0)])
NAMES = sorted(name for name, row in DIVERGENCES.items() if row.needs == "distribution")


class Listing:
    """A real model of which no more is known than a server would say: its most probable tokens, and its samples."""

    def __init__(self, inside: CausalModel, num_top: int) -> None:
        self.inside, self.num_top = inside, num_top
        self.name, self.vocab_size, self.eos_token_id = "listing", inside.vocab_size, inside.eos_token_id
        self.digest = inside.digest

    def top_k(self, batch: Batch) -> TopK:
        """One more than promised where the batch is long."""
        return top_k(self.inside.log_probs(batch), self.num_top + (len(batch) > 2))

    def sample(
        self, prompt_ids: Sequence[tuple[int, ...]], seeds: Sequence[int], max_response_tokens: int,
        sampling_temperature: float = 1.0,
    ) -> list[tuple[int, ...]]:  # fmt: skip
        return self.inside.sample(prompt_ids, seeds, max_response_tokens, sampling_temperature)


def with_signal(batch: Batch, cache: CachedLogProbs) -> Batch:
    return Batch(batch.prompt_ids, batch.response_ids, cache.signal(cache.compute(batch)))


def loss_and_gradient(batch: Batch, config: TrainingConfig, start: LanguageModel | None = None):  # type: ignore[no-untyped-def]
    student = gpt2(2)
    loss = distillation_loss(student, batch, config, start)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in student.module.parameters()])  # type: ignore[union-attr]


# --- the loss


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_tokens_listed_train_as_the_whole_law_does(name: str, temperature: float) -> None:
    """Value and gradient in every weight, in float32, within 1e-6 of the gradient's size."""
    config = TrainingConfig(divergence=name, softmax_temperature=temperature)
    value, gradient = loss_and_gradient(with_signal(BATCH, CachedLogProbs(gpt2(1))), config)
    listed, its_gradient = loss_and_gradient(with_signal(BATCH, CachedLogProbs(gpt2(1), VOCAB_SIZE)), config)
    assert listed == pytest.approx(value, rel=1e-6)
    assert (its_gradient - gradient).norm() < 1e-6 * gradient.norm()


@pytest.mark.parametrize("name", NAMES)
def test_fewer_tokens_give_a_lower_bound_that_trains(name: str) -> None:
    config = TrainingConfig(divergence=name, num_steps=40, batch_size=4, learning_rate=3e-3)
    values = [
        loss_and_gradient(with_signal(BATCH, CachedLogProbs(gpt2(1), k)), config)[0] for k in (1, 2, 5, 12, VOCAB_SIZE)
    ]
    assert values == sorted(values)
    assert values[0] < 0.9 * values[-1]
    source = ResponseSource(
        SourceConfig(), PROMPTS, {"teacher": gpt2(1)}, max_response_tokens=5, cache=CachedLogProbs(gpt2(1), 5)
    )
    losses = fit(gpt2(2, scale=3.0), Mixture([source], 4), config).losses
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_softmax_temperature_on_a_part_of_the_law_is_refused() -> None:
    batch = with_signal(BATCH, CachedLogProbs(gpt2(1), 5))
    with pytest.raises(AssayError, match="softmax_temperature 2 needs the teacher's whole law, but it lists 5 of 23"):
        distillation_loss(gpt2(2), batch, TrainingConfig(softmax_temperature=2.0))
    experiment = get_recipe("quickstart")
    for k, temperature, is_refused in ((5, 2.0, True), (5, 1.0, False), (VOCAB_SIZE, 2.0, False), (None, 2.0, False)):
        training = dataclasses.replace(experiment.distillation.training, softmax_temperature=temperature)
        distillation = dataclasses.replace(experiment.distillation, training=training, teacher_top_k=k)
        changed = dataclasses.replace(experiment, distillation=distillation)
        validate(changed)
        if is_refused:
            with pytest.raises(AssayError, match="on all 23 tokens, but 5 are listed"):
                check_temperature(changed, gpt2(1))
        else:
            check_temperature(changed, gpt2(1))


def test_an_anchor_is_exact_beside_a_listed_teacher() -> None:
    anchored, plain = TrainingConfig(anchor_weight=0.5), TrainingConfig()
    terms = [
        loss_and_gradient(batch, anchored, gpt2(6))[0] - loss_and_gradient(batch, plain)[0]
        for batch in (with_signal(BATCH, CachedLogProbs(gpt2(1), k)) for k in (None, 3))
    ]
    assert terms[0] > 0.1
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)


def test_micro_batches_take_their_share_of_the_lists() -> None:
    batch = with_signal(Batch(BATCH.prompt_ids * 2, BATCH.response_ids * 2), CachedLogProbs(gpt2(1), 4))
    losses, weights = [], []
    for number in (1, 3):
        student = gpt2(2)
        config = TrainingConfig(num_micro_batches=number, learning_rate=1e-3, max_grad_norm=1e9)
        losses.append(train_step(student, SGD(student.module.parameters()), batch, 50, config))  # type: ignore[arg-type]
        weights.append(torch.cat([p.detach().flatten() for p in student.module.parameters()]))
    before = torch.cat([p.detach().flatten() for p in gpt2(2).module.parameters()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert (weights[1] - weights[0]).norm() < 1e-4 * (weights[0] - before).norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_top_k": 0}, "'distillation.teacher_top_k' is 0: it must be at least 1"),
        ({"signal_store": " "}, "signal_store is empty"),
    ],
)
def test_fields_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    experiment = get_recipe("quickstart")
    distillation = dataclasses.replace(experiment.distillation, **changes)  # type: ignore[arg-type]
    with pytest.raises(AssayError, match=message):
        validate(dataclasses.replace(experiment, distillation=distillation))


def test_hard_labels_have_no_use_for_listed_tokens() -> None:
    experiment = get_recipe("quickstart")
    training = dataclasses.replace(experiment.distillation.training, divergence="hard_labels")
    distillation = dataclasses.replace(experiment.distillation, training=training, teacher_top_k=5)
    with pytest.raises(AssayError, match="hard_labels learns from the teacher's text"):
        validate(dataclasses.replace(experiment, distillation=distillation))


# --- what is kept of a model


@pytest.mark.parametrize("make", [gpt2, t5, bart])
@pytest.mark.parametrize("k", [1, 5, VOCAB_SIZE, 99])
def test_kept_lists_are_those_of_the_live_law(make, k: int) -> None:  # type: ignore[no-untyped-def]
    cache = CachedLogProbs(make(1), k)
    kept = cache.compute(BATCH)
    assert {name: values.dtype for name, values in kept[0].items()} == {
        "token_ids": torch.int32,  # half of what torch needs to look them up, and more than any vocabulary has
        "log_p": torch.float32,
        "log_tail": torch.float32,
    }
    signal = cache.signal(kept)
    assert isinstance(signal, TopK)
    live = top_k(make(1).log_probs(BATCH), k)
    assert torch.equal(signal.token_ids_NK, live.token_ids_NK)
    torch.testing.assert_close(signal.log_p_NK, live.log_p_NK, rtol=0, atol=2e-5)
    torch.testing.assert_close(signal.log_tail_N, live.log_tail_N, rtol=0, atol=1e-4)


def test_a_model_that_lists_is_taken_at_its_word() -> None:
    model = Listing(gpt2(1), 4)
    assert isinstance(model, ListingModel)
    assert not isinstance(model, LanguageModel)
    assert not isinstance(gpt2(1), ListingModel)
    cache = CachedLogProbs(model, 3)
    kept = cache.compute(BATCH) + cache.compute(BATCH[:1])
    assert [k["log_p"].shape for k in kept] == [(3, 5), (2, 5), (4, 5), (3, 4)]
    signal = cache.signal(kept)
    assert isinstance(signal, TopK)
    assert torch.equal(signal.log_p_NK[9:, 4], torch.full((3,), -torch.inf))
    assert torch.equal(signal.token_ids_NK[9:, 4], signal.token_ids_NK[9:, 0])
    with pytest.raises(AssayError, match="lists 4 tokens, fewer than 5: lower teacher_top_k"):
        CachedLogProbs(model, 5)


# --- sources


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("reverse_kl", "jeffreys")])
def test_a_text_as_a_list_of_one_token_is_the_one_hot_law(name: str) -> None:
    """For the divergences that are finite from it, which the config asks for."""
    laws = [one_hot(BATCH, gpt2(1)), one_listed(BATCH, gpt2(1))]
    results = [
        loss_and_gradient(Batch(BATCH.prompt_ids, BATCH.response_ids, law), TrainingConfig(divergence=name))
        for law in laws
    ]
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert (results[1][1] - results[0][1]).norm() < 1e-5 * results[0][1].norm()


def test_text_stands_beside_listed_tokens_in_one_batch() -> None:
    teacher = Listing(gpt2(1), 4)
    configs = [SourceConfig(weight=75.0), SourceConfig("dataset", weight=25.0, learn="text")]
    mixture = Mixture(
        [
            ResponseSource(config, PROMPTS, {"teacher": teacher}, max_response_tokens=5, index=i)  # type: ignore[dict-item]
            for i, config in enumerate(configs)
        ],
        8,
    )
    batch = mixture.batch(0, gpt2(2))
    together = distillation_loss(gpt2(2), batch, TrainingConfig()).item()
    of_teacher, of_text = batch[:6], batch[6:]
    listed = Batch(of_teacher.prompt_ids, of_teacher.response_ids, teacher.top_k(of_teacher))
    hard = distillation_loss(gpt2(2), of_text, TrainingConfig(divergence="hard_labels")).item()
    assert set(of_text.response_ids) <= {prompt.reference_ids for prompt in PROMPTS}
    assert together == pytest.approx(distillation_loss(gpt2(2), listed, TrainingConfig()).item() + hard, rel=1e-5)


def test_sources_of_one_batch_must_keep_the_teacher_alike() -> None:
    caches = [CachedLogProbs(gpt2(1), k) for k in (None, 3)]
    sources = [
        ResponseSource(SourceConfig(), PROMPTS, {"teacher": gpt2(1)}, max_response_tokens=5, index=i, cache=cache)
        for i, cache in enumerate(caches)
    ]
    with pytest.raises(AssayError, match="kinds Dense and TopK"):
        Mixture(sources, 4).batch(0, gpt2(2))


# --- the probe


def probe_of(teacher_cache: CachedLogProbs | None) -> evaluation.Probe:
    prompts = [Prompt(f"p{i}", "", (1 + i % 20, 2, 3 + i % 5)) for i in range(30)]
    models = {"oracle": gpt2(3), "teacher": gpt2(1), "student": gpt2(2)}
    responses = {
        role: write_responses(model, role, prompts, 5, purpose="held_out", seed=0)  # type: ignore[arg-type]
        for role, model in models.items()
    }
    train = (prompts[:10], write_responses(models["teacher"], "teacher", prompts[:10], 5, purpose="train", seed=0))
    config = ProbeConfig(num_prompts=30, num_monitored=4, num_shown=2)
    return build_probe(
        models,  # type: ignore[arg-type]
        prompts,
        responses,  # type: ignore[arg-type]
        train,
        config,
        max_response_tokens=5,
        seed=0,
        teacher_cache=teacher_cache,
    )


def test_proxies_of_listed_tokens_are_lower_bounds_and_say_how_much_is_listed() -> None:
    """For every prompt, nearer the more tokens are listed; golden and its company do not change."""
    student = gpt2(6)
    exact = probe_of(None).evaluate(student, 0)
    assert "captured_mass" not in exact.means
    before, masses = [np.zeros(30), np.zeros(10)], [0.0]
    for k in (1, 3, 8, VOCAB_SIZE):
        found = probe_of(CachedLogProbs(gpt2(1), k)).evaluate(student, 0)
        for i, metric in ((0, "proxy"), (1, "train_proxy")):
            bound, whole = (next(v for v in e.per_prompt if v.metric == metric).value_nats for e in (found, exact))
            assert (before[i] <= bound + 1e-5).all()
            assert (bound <= whole + 1e-5).all()
            before[i] = bound
        masses.append(found.means["captured_mass"])  # type: ignore[arg-type]
        for name in ("golden_nats", "student_entropy_nats_per_token", "kl_from_start_nats"):
            assert found.means[name] == exact.means[name]
        if k >= TOP:
            assert found.means["top_overlap"] == pytest.approx(exact.means["top_overlap"], rel=1e-6)
        entropy = found.means["teacher_entropy_nats_per_token"]
        assert entropy == (pytest.approx(exact.means["teacher_entropy_nats_per_token"]) if k == VOCAB_SIZE else None)
    assert masses == sorted(set(masses))
    assert masses[-1] == pytest.approx(1, rel=1e-6)
    assert found.means["proxy_nats"] == pytest.approx(exact.means["proxy_nats"], rel=1e-6)


def test_captured_mass_is_the_mean_over_response_tokens() -> None:
    prompts = [Prompt("a", "", (5, 2)), Prompt("b", "", (7, 3, 9))]
    responses = write_responses(gpt2(1), "teacher", prompts, 6, purpose="x", seed=1)
    frozen = FrozenSet("proxy", prompts, responses, CachedLogProbs(gpt2(1), 2))
    live = gpt2(1).log_probs(frozen.batch).double().exp().topk(2).values.sum(1)
    assert frozen.of_the_walker()["captured_mass"] == pytest.approx(live.mean().item(), rel=1e-5)


def test_a_teacher_that_lists_tokens_can_be_walked_on() -> None:
    listing = Listing(gpt2(1), 5)
    bound = probe_of(CachedLogProbs(listing)).evaluate(gpt2(6), 0)
    exact = probe_of(None).evaluate(gpt2(6), 0)
    assert 0 < bound.means["proxy_nats"] < exact.means["proxy_nats"]  # type: ignore[operator]
    assert bound.means["golden_nats"] == exact.means["golden_nats"]


def test_overlap_leaves_out_what_only_fills_a_list() -> None:
    log_q_NV = torch.arange(20.0).expand(2, 20).log_softmax(dim=1)
    token_ids_NK = torch.tensor([[19, 18, 17, 0], [0, 19, 0, 0]])
    log_p_NK = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.6, 0.4, 0.0, 0.0]]).log()
    signal = TopK(token_ids_NK, log_p_NK, torch.full((2,), -torch.inf))
    assert top_overlap(signal, log_q_NV) == pytest.approx(3 / 4 + 1 / 2)  # q's first four: 19 18 17 16
    order = torch.tensor([2, 0, 3, 1])  # in any order
    assert top_overlap(TopK(token_ids_NK[:1, order], log_p_NK[:1, order], signal.log_tail_N[:1]), log_q_NV[:1]) == 3 / 4


def test_large_vocabularies_are_kept_as_hidden_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "DENSE_VOCABULARY_LIMIT", 0)
    cache = CachedLogProbs(gpt2(1))
    assert cache.kind == "hidden"
    assert cache.compute(BATCH)[0]["hidden"].shape == (3, 16)
    signal = cache.signal(cache.compute(BATCH))
    assert isinstance(signal, States)
    law = resolved(signal)
    assert isinstance(law, Dense)
    assert torch.allclose(law.log_p_NV, gpt2(1).log_probs(BATCH), atol=2e-5)
