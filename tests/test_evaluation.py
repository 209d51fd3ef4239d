"""The probe: the right quantities, the same number whatever the batch, and nothing touched on the way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from assay import evaluation
from assay.config import ProbeConfig
from assay.evaluation import build_probe, degeneration, evaluation_steps, write_responses
from assay.frozen_set import top_overlap
from assay.models import cached
from assay.models.causal import CausalModel
from assay.models.exact import MarkovChain
from assay.statistics import mean_estimate
from assay.types import Dense, Prompt, Response
from tiny_models import gpt2

PROMPTS = [Prompt(f"p{i}", "", (1 + i % 20, 2, 3 + i % 5), "r", (4, 6, 0)) for i in range(40)]
CONFIG = ProbeConfig(num_prompts=40, num_monitored=10, num_shown=3)


def probe_of(oracle, teacher, start, prompts=PROMPTS, limit=5):  # type: ignore[no-untyped-def]
    models = {"oracle": oracle, "teacher": teacher, "student": start}
    responses = {
        role: write_responses(model, role, prompts, limit, purpose="held_out", seed=0) for role, model in models.items()
    }
    train = (prompts[:10], write_responses(teacher, "teacher", prompts[:10], limit, purpose="train", seed=0))
    return build_probe(models, prompts, responses, train, CONFIG, max_response_tokens=limit, seed=0)


@pytest.fixture(scope="module")
def probe() -> evaluation.Probe:
    return probe_of(gpt2(3), gpt2(1), gpt2(2))


def values(found: evaluation.Evaluation, metric: str) -> np.ndarray:
    return next(v for v in found.per_prompt if v.metric == metric).value_nats


def test_distances_vanish_where_the_student_is_the_walker(probe: evaluation.Probe) -> None:
    for student, metrics in ((gpt2(3), ["golden"]), (gpt2(1), ["proxy", "train_proxy"]), (gpt2(2), ["kl_from_start"])):
        found = probe.evaluate(student, 0)
        for metric in ("golden", "proxy", "train_proxy", "kl_from_start"):
            if metric in metrics:
                assert np.abs(values(found, metric)).max() < 1e-4
            else:
                assert values(found, metric).mean() > 0.1


def test_top_overlap_counts_the_tokens_that_both_rank_first(probe: evaluation.Probe) -> None:
    log_p_NV = torch.arange(20.0).expand(3, 20).log_softmax(dim=1)
    assert top_overlap(Dense(log_p_NV), log_p_NV) == 3
    assert top_overlap(Dense(log_p_NV), log_p_NV.flip(1)) == 0
    assert top_overlap(Dense(log_p_NV), log_p_NV.roll(-2, dims=1)) == pytest.approx(3 * 6 / 8)
    assert top_overlap(Dense(log_p_NV[:, :5]), log_p_NV[:, :5].flip(1)) == 3  # all five of five
    assert probe.evaluate(gpt2(1), 0).means["top_overlap"] == pytest.approx(1)
    assert 0 < (probe.evaluate(gpt2(2), 0).means["top_overlap"] or 0) < 1


def test_a_student_that_became_the_teacher_sits_at_d_oracle_teacher(probe: evaluation.Probe) -> None:
    golden = next(s for s in probe.sets if s.metric == "golden")
    distance, _ = golden.against(gpt2(1))
    assert np.allclose(values(probe.evaluate(gpt2(1), 5), "golden"), distance.value_nats)


def test_golden_and_proxy_are_the_exact_kls_of_exact_worlds() -> None:
    """Against the closed form: within four standard errors, on many prompts of three Markov chains."""
    oracle, teacher, student = (MarkovChain.random(9, seed=s) for s in (1, 2, 3))
    prompts = [Prompt(f"p{i}", "", (1 + i % 8,)) for i in range(800)]
    found = probe_of(oracle, teacher, student, prompts, limit=6).evaluate(student, 0)
    for metric, walker in (("golden", oracle), ("proxy", teacher)):
        exact = np.mean([walker.exact_kl(student, p.token_ids, 6) for p in prompts])
        estimate = mean_estimate(values(found, metric))
        assert estimate.stderr is not None
        assert abs(estimate.value - exact) < 4 * estimate.stderr
        assert estimate.stderr < 0.1 * exact


def test_reference_nll_is_minus_log_q_of_the_references(probe: evaluation.Probe) -> None:
    student = gpt2(6)
    found = values(probe.evaluate(student, 0), "reference_nll")
    for i in (0, 7):
        context = torch.tensor([[*PROMPTS[i].token_ids, *PROMPTS[i].reference_ids]])
        log_q = student.module(input_ids=context).logits[0].log_softmax(-1)
        expected = -sum(log_q[2 + t, token].item() for t, token in enumerate(PROMPTS[i].reference_ids))
        assert found[i] == pytest.approx(expected, rel=1e-4)


def test_the_same_numbers_for_any_batch_size(probe: evaluation.Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    student = gpt2(6)
    before = probe.evaluate(student, 0)
    monkeypatch.setattr(cached.by_length, "__defaults__", (7,))
    after = probe.evaluate(student, 0)
    for a, b in zip(before.per_prompt, after.per_prompt, strict=True):
        assert np.allclose(a.value_nats, b.value_nats, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_evaluation_leaves_weights_mode_gradients_and_rng_alone(probe: evaluation.Probe, dropout: float) -> None:
    student: CausalModel = gpt2(6, dropout=dropout)
    expected = probe.evaluate(student, 0)
    student.module.train()
    digest, rng, numpy_rng = student.digest, torch.get_rng_state(), np.random.get_state()[1].copy()
    first = probe.evaluate(student, 0)
    assert student.module.training
    assert student.digest == digest
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.array_equal(np.random.get_state()[1], numpy_rng)
    assert all(p.grad is None for p in student.module.parameters())
    again = probe.evaluate(student, 1)
    for a, b, c in zip(expected.per_prompt, first.per_prompt, again.per_prompt, strict=True):
        assert np.array_equal(a.value_nats, b.value_nats)
        assert np.array_equal(a.value_nats, c.value_nats)
    assert [r.token_ids for r in first.samples] == [r.token_ids for r in again.samples]


def test_evaluation_steps_begin_at_zero_end_at_the_end_and_spread_geometrically() -> None:
    for num_steps in (1, 2, 5, 40, 1000, 390_625):
        for number in (4, 16, 30):
            steps = evaluation_steps(num_steps, number)
            assert steps == sorted(set(steps))
            assert (steps[0], steps[-1]) == (0, num_steps)
            assert len(steps) <= number or len(steps) == num_steps + 1
    steps = evaluation_steps(1000, 16)
    assert len(steps) == 16
    ratios = [b / a for a, b in itertools.pairwise(steps[6:])]
    assert max(ratios) < 1.3 * min(ratios)


def test_degeneration_counts() -> None:
    plain = Response("a", (1, 2, 3, 4, 5, 0), "student", truncated=False)
    stuck = Response("b", (7, 7, 7, 7, 7, 7), "student", truncated=True)
    means = degeneration([plain, stuck])
    assert means["response_tokens_mean"] == 6
    assert means["truncated_fraction"] == 0.5
    assert means["repetition_fraction"] == pytest.approx((0 + 3 / 4) / 2)
    assert means["distinct_2"] == pytest.approx(6 / 10)
