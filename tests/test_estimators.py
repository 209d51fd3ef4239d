"""Every estimator on exact worlds: bias by enumeration, rate, variance, coverage, and the golden identity."""

from __future__ import annotations

import math

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from assay.errors import AssayError
from assay.estimators import (
    ESTIMATORS,
    monte_carlo,
    negative_log_likelihood,
    oracle_walk,
    rao_blackwell,
    sum_per_sequence,
)
from assay.models.exact import HiddenMarkovModel, MarkovChain, enumerate_responses, exact_kl_by_enumeration
from assay.models.language_model import LanguageModel
from assay.statistics import mean_estimate, t_interval
from assay.types import Batch

PROMPT = (1, 3)
MAX_TOKENS = 4
ORACLE = MarkovChain.random(4, seed=0, name="oracle")
TEACHER = ORACLE.mixed_with(MarkovChain.random(4, seed=1), 0.4, name="teacher")
STUDENT = ORACLE.mixed_with(MarkovChain.random(4, seed=2), 0.6, name="student")
PAIRS = [
    pytest.param(ORACLE, STUDENT, id="chains"),
    pytest.param(HiddenMarkovModel.random(3, 4, seed=3), HiddenMarkovModel.random(2, 4, seed=4), id="hidden-markov"),
    pytest.param(HiddenMarkovModel.random(3, 4, seed=3), ORACLE, id="hidden-markov-and-chain"),
]
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)


def estimate(name: str, p: LanguageModel, q: LanguageModel, responses: list[tuple[int, ...]]) -> Tensor:
    """The estimator's value for each response."""
    batch = Batch([PROMPT] * len(responses), responses)
    available = {
        "log_p_NV": p.log_probs(batch),
        "log_q_NV": q.log_probs(batch),
        "token_ids": flat(responses),
        "lengths": batch.lengths,
    }
    row = ESTIMATORS[name]
    return row.function(*(available[argument] for argument in row.needs))


def flat(responses: list[tuple[int, ...]]) -> Tensor:
    return torch.tensor([token for response in responses for token in response])


def everything(name: str, p: LanguageModel, q: LanguageModel) -> tuple[Tensor, Tensor]:
    """The estimator's value at every response that p can give, and the probabilities of the responses."""
    responses, log_p_R = enumerate_responses(p, PROMPT, MAX_TOKENS)
    return estimate(name, p, q, responses), log_p_R.exp()


def target(name: str, p: LanguageModel, q: LanguageModel) -> float:
    kl = exact_kl_by_enumeration(p, q, PROMPT, MAX_TOKENS)
    _, log_p_R = enumerate_responses(p, PROMPT, MAX_TOKENS)
    entropy = -float((log_p_R.exp() * log_p_R).sum())
    return {"KL(p‖q)": kl, "KL(p‖q) + H(p)": kl + entropy}[ESTIMATORS[name].estimates]


def variance(values_R: Tensor, probability_R: Tensor) -> float:
    mean = (probability_R * values_R).sum()
    return float((probability_R * (values_R - mean) ** 2).sum())


def test_the_table_is_consistent() -> None:
    assert all(row.name == name for name, row in ESTIMATORS.items())
    for row in ESTIMATORS.values():
        assert (row.bias == "none") == (row.estimates == "KL(p‖q)")


# ---- what they converge to, and how fast ----


@every_estimator
@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_expectation_over_all_responses_is_the_target(name: str, p: LanguageModel, q: LanguageModel) -> None:
    values_R, probability_R = everything(name, p, q)
    assert float((probability_R * values_R).sum()) == pytest.approx(target(name, p, q), rel=1e-10)


@every_estimator
def test_responses_of_another_writer_estimate_something_else(name: str) -> None:
    responses, log_q_R = enumerate_responses(STUDENT, PROMPT, MAX_TOKENS)
    mean = float((log_q_R.exp() * estimate(name, ORACLE, STUDENT, responses)).sum())
    assert abs(mean - target(name, ORACLE, STUDENT)) > 0.01


@every_estimator
def test_error_falls_at_the_stated_rate(name: str) -> None:
    values_R, probability_R = everything(name, ORACLE, STUDENT)
    rng = np.random.default_rng(0)
    sizes = [25, 100, 400, 1600]
    errors = []
    for size in sizes:
        draws = rng.choice(values_R.numpy(), size=(500, size), p=probability_R.numpy())
        errors.append(math.sqrt(np.mean((draws.mean(axis=1) - target(name, ORACLE, STUDENT)) ** 2)))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    # 500 repetitions give each error within 3 %, the slope over a factor of 64 within about 0.01.
    assert slope == pytest.approx(ESTIMATORS[name].rate, abs=0.05)


@every_estimator
def test_intervals_cover_the_target_as_often_as_they_say(name: str) -> None:
    values_R, probability_R = everything(name, ORACLE, STUDENT)
    rng = np.random.default_rng(1)
    truth, repetitions, covered = target(name, ORACLE, STUDENT), 1000, 0
    for draws_P in rng.choice(values_R.numpy(), size=(repetitions, 200), p=probability_R.numpy()):
        interval = t_interval(mean_estimate(draws_P), confidence=0.95)
        covered += interval.low <= truth <= interval.high
    three_sigma = 3 * math.sqrt(0.95 * 0.05 / repetitions)
    assert covered / repetitions == pytest.approx(0.95, abs=three_sigma)


@every_estimator
def test_own_samples_give_the_target_within_their_error(name: str) -> None:
    responses = ORACLE.sample([PROMPT] * 4000, range(4000), MAX_TOKENS)
    result = mean_estimate(estimate(name, ORACLE, STUDENT, responses))
    assert result.n == 4000
    assert result.stderr is not None
    assert abs(result.value - target(name, ORACLE, STUDENT)) < 4 * result.stderr
    assert result.stderr < 0.03


# ---- signs and variances ----


@every_estimator
@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_negative_values_occur_exactly_when_claimed(name: str, p: LanguageModel, q: LanguageModel) -> None:
    values_R, _ = everything(name, p, q)
    if ESTIMATORS[name].can_be_negative:
        assert values_R.min() < -0.01
    else:
        assert values_R.min() >= -1e-12


def test_a_model_has_no_distance_to_itself_on_any_response() -> None:
    for name in ("rao_blackwell", "monte_carlo"):
        values_R, _ = everything(name, ORACLE, ORACLE)
        torch.testing.assert_close(values_R, torch.zeros_like(values_R), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_rao_blackwell_varies_less_than_monte_carlo(p: LanguageModel, q: LanguageModel) -> None:
    assert variance(*everything("rao_blackwell", p, q)) < 0.5 * variance(*everything("monte_carlo", p, q))


def test_rao_blackwell_never_varies_more_at_one_position() -> None:
    # One token: the exact KL of the row is a constant, the log-ratio is not.
    for seed in range(20):
        p, q = MarkovChain.random(4, seed=seed), MarkovChain.random(4, seed=50 + seed)
        responses, log_p_R = enumerate_responses(p, PROMPT, 1)
        assert variance(estimate("rao_blackwell", p, q, responses), log_p_R.exp()) < 1e-20
        assert variance(estimate("monte_carlo", p, q, responses), log_p_R.exp()) > 1e-3


def test_rao_blackwell_can_vary_more_over_a_whole_response() -> None:
    """Monte Carlo is exact here: the second log-ratio makes up for the first, in every response."""
    p = MarkovChain([[0, 0.5, 0.5, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]], eos_token_id=3)
    q = MarkovChain([[0, 0.25, 0.75, 0], [0, 0, 0, 1], [2 / 3, 0, 0, 1 / 3], [0, 0, 0, 1]], eos_token_id=3)
    batch = Batch([(0,), (0,)], [(1, 3), (2, 3)])
    log_p_NV, log_q_NV = p.log_probs(batch), q.log_probs(batch)
    sampled = monte_carlo(log_p_NV, log_q_NV, torch.tensor([1, 3, 2, 3]), batch.lengths)
    exact = rao_blackwell(log_p_NV, log_q_NV, batch.lengths)
    assert sampled.tolist() == pytest.approx([math.log(2), math.log(2)])
    assert p.exact_kl(q, (0,), 2) == pytest.approx(math.log(2))
    assert float(exact.mean()) == pytest.approx(math.log(2))
    assert float(exact.var()) > 0.1


# ---- golden = d(oracle, teacher) + the oracle walk ----


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_golden_identity_holds_for_every_sequence(dtype: torch.dtype, tolerance: float) -> None:
    responses = ORACLE.sample([PROMPT] * 50, range(50), 12)
    batch = Batch([PROMPT] * 50, responses)
    log_o, log_t, log_s = (model.log_probs(batch).to(dtype) for model in (ORACLE, TEACHER, STUDENT))
    golden = rao_blackwell(log_o, log_s, batch.lengths)
    distance = rao_blackwell(log_o, log_t, batch.lengths)
    walk = oracle_walk(log_o, log_t, log_s, batch.lengths)
    torch.testing.assert_close(golden, distance + walk, rtol=tolerance, atol=tolerance)
    assert walk.abs().max() > 0.1


def test_oracle_walk_is_unbiased_for_the_difference_of_two_exact_distances() -> None:
    responses, log_o_R = enumerate_responses(ORACLE, PROMPT, MAX_TOKENS)
    batch = Batch([PROMPT] * len(responses), responses)
    walk = oracle_walk(*(m.log_probs(batch) for m in (ORACLE, TEACHER, STUDENT)), batch.lengths)
    golden, distance = (ORACLE.exact_kl(m, PROMPT, MAX_TOKENS) for m in (STUDENT, TEACHER))
    assert float((log_o_R.exp() * walk).sum()) == pytest.approx(golden - distance, rel=1e-10)


def test_with_the_oracle_as_teacher_golden_is_proxy() -> None:
    batch = Batch([PROMPT] * 20, ORACLE.sample([PROMPT] * 20, range(20), 12))
    log_o, log_s = ORACLE.log_probs(batch), STUDENT.log_probs(batch)
    walk = oracle_walk(log_o, log_o, log_s, batch.lengths)
    assert torch.equal(walk, rao_blackwell(log_o, log_s, batch.lengths))


def test_oracle_walk_ignores_tokens_that_the_oracle_excludes() -> None:
    log_o = torch.tensor([[0.5, 0.5, 0.0]]).log()
    log_t = torch.tensor([[0.4, 0.6, 0.0]]).log()
    log_s = torch.tensor([[0.3, 0.7, 0.0]]).log()
    expected = 0.5 * math.log(0.4 / 0.3) + 0.5 * math.log(0.6 / 0.7)
    assert float(oracle_walk(log_o, log_t, log_s, [1])) == pytest.approx(expected, rel=1e-5)


def test_likelihood_differences_are_golden_differences() -> None:
    """Between two students the unknown entropy drops out: truth without an oracle model."""
    responses, log_o_R = enumerate_responses(ORACLE, PROMPT, MAX_TOKENS)
    batch = Batch([PROMPT] * len(responses), responses)
    first, second = (
        float((log_o_R.exp() * negative_log_likelihood(m.log_probs(batch), flat(responses), batch.lengths)).sum())
        for m in (STUDENT, TEACHER)
    )
    expected = ORACLE.exact_kl(STUDENT, PROMPT, MAX_TOKENS) - ORACLE.exact_kl(TEACHER, PROMPT, MAX_TOKENS)
    assert first - second == pytest.approx(expected, rel=1e-10)


# ---- sums over sequences ----


def test_sum_per_sequence_is_a_sum_over_slices() -> None:
    values = torch.arange(10, dtype=torch.float64) ** 2
    assert sum_per_sequence(values, [3, 0, 1, 6]).tolist() == [5.0, 0.0, 9.0, 16.0 + 25 + 36 + 49 + 64 + 81]
    with pytest.raises(ValueError, match="10 token values, but the lengths add up to 9"):
        sum_per_sequence(values, [3, 6])


@every_estimator
def test_a_sequence_is_worth_the_same_in_any_batch(name: str) -> None:
    responses = ORACLE.sample([PROMPT] * 20, range(20), 9)
    together = estimate(name, ORACLE, STUDENT, responses)
    assert together.shape == (20,)
    alone = [estimate(name, ORACLE, STUDENT, [response])[0] for response in responses]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-13, atol=1e-13)


def test_two_vocabulary_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # The run-time shape checks of the test suite would answer first; users do not have them.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(AssayError, match="4 and 5"):
        rao_blackwell(torch.zeros(2, 4), torch.zeros(2, 5), [2])
