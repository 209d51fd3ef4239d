"""Exact worlds: their closed forms against enumeration, their samples against their laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from assay.errors import AssayError
from assay.models.exact import (
    HiddenMarkovModel,
    MarkovChain,
    enumerate_responses,
    exact_kl_by_enumeration,
)
from assay.models.language_model import LanguageModel
from assay.types import Batch

CHAIN = MarkovChain.random(4, seed=0, name="chain")
HIDDEN = HiddenMarkovModel.random(3, 4, seed=1, eos_token_id=2, name="hidden")
WORLDS = [pytest.param(CHAIN, id="chain"), pytest.param(HIDDEN, id="hidden")]
PROMPTS = [(1,), (3, 3), (2, 1, 3), (0,)]
World = MarkovChain | HiddenMarkovModel
every_world = pytest.mark.parametrize("world", WORLDS)


# ---- closed forms ----


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_response_tokens", [1, 2, 6])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_chain_kl_and_entropy_equal_enumeration(seed: int, max_response_tokens: int, prompt: tuple[int, ...]) -> None:
    p = MarkovChain.random(4, seed=seed, concentration=0.5)
    q = MarkovChain.random(4, seed=100 + seed, concentration=0.5)
    _, log_p_R = enumerate_responses(p, prompt, max_response_tokens)
    expected_kl = exact_kl_by_enumeration(p, q, prompt, max_response_tokens)
    expected_entropy = -float((log_p_R.exp() * log_p_R).sum())
    assert p.exact_kl(q, prompt, max_response_tokens) == pytest.approx(expected_kl, rel=1e-10)
    assert p.exact_entropy(prompt, max_response_tokens) == pytest.approx(expected_entropy, rel=1e-10)


def test_chain_kl_of_one_token_is_the_kl_of_two_rows() -> None:
    p = MarkovChain([[0.5, 0.5], [0.9, 0.1]], eos_token_id=0)
    q = MarkovChain([[0.2, 0.8], [0.5, 0.5]], eos_token_id=0)
    row = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert p.exact_kl(q, (0, 1), 1) == pytest.approx(row, rel=1e-12)
    # Token 1 goes on, with probability 0.1 each time: a geometric series.
    assert p.exact_kl(q, (0, 1), 5) == pytest.approx(row * (1 + 0.1 + 0.01 + 0.001 + 0.0001), rel=1e-12)


def test_chain_kl_is_infinite_only_where_the_excluded_token_is_reached() -> None:
    p = MarkovChain([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]], eos_token_id=0)
    q = MarkovChain([[0.4, 0.6, 0.0], [1.0, 0.0, 0.0], [0.2, 0.8, 0.0]], eos_token_id=0)
    for prompt, expected in (((0,), False), ((1,), False), ((2,), True)):
        kl = p.exact_kl(q, prompt, 3)
        assert math.isinf(kl) is expected
        assert kl == pytest.approx(exact_kl_by_enumeration(p, q, prompt, 3))


def test_kl_is_zero_to_itself_and_grows_with_the_share_of_another_chain() -> None:
    other = MarkovChain.random(4, seed=9)
    assert CHAIN.exact_kl(CHAIN, (1,), 20) == pytest.approx(0, abs=1e-13)
    distances = [CHAIN.exact_kl(CHAIN.mixed_with(other, weight), (1,), 20) for weight in (0.0, 0.01, 0.1, 0.5, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] == pytest.approx(0, abs=1e-13)
    assert distances[-1] == pytest.approx(CHAIN.exact_kl(other, (1,), 20))


@every_world
@pytest.mark.parametrize("max_response_tokens", [1, 5])
def test_enumerated_responses_are_all_and_different(world: World, max_response_tokens: int) -> None:
    responses, log_p_R = enumerate_responses(world, (1,), max_response_tokens)
    assert float(log_p_R.exp().sum()) == pytest.approx(1, abs=1e-12)
    # Full support: each position goes on with any of 3 tokens or ends; at the limit all 4 end.
    assert len(responses) == sum(3**k for k in range(max_response_tokens)) + 3**max_response_tokens
    assert len(set(responses)) == len(responses)
    for response in responses:
        assert world.eos_token_id not in response[:-1]
        assert response[-1] == world.eos_token_id or len(response) == max_response_tokens


def test_impossible_responses_are_not_enumerated() -> None:
    chain = MarkovChain([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], eos_token_id=0)
    responses, log_p_R = enumerate_responses(chain, (0,), 6)
    assert responses == [(1, 2, 0)]
    assert log_p_R.tolist() == [0.0]


def test_enumeration_agrees_with_the_scores_of_whole_responses() -> None:
    responses, log_p_R = enumerate_responses(HIDDEN, (1, 3), 4)
    for response, log_p in zip(responses, log_p_R.tolist(), strict=True):
        rows = HIDDEN.log_probs(Batch([(1, 3)], [response]))
        assert float(sum(row[token] for row, token in zip(rows, response, strict=True))) == pytest.approx(log_p)


def test_hidden_markov_model_equals_a_sum_over_hidden_paths() -> None:
    def probability(tokens: tuple[int, ...]) -> float:
        total = 0.0
        for path in itertools.product(range(3), repeat=len(tokens)):
            weight = float(HIDDEN.initial_H[path[0]])
            for here, there in itertools.pairwise(path):
                weight *= float(HIDDEN.transitions_HH[here, there])
            for state, token in zip(path, tokens, strict=True):
                weight *= float(HIDDEN.emissions_HV[state, token])
            total += weight
        return total

    prompt, response = (1, 3), (0, 1, 2)
    rows = HIDDEN.log_probs(Batch([prompt], [response]))
    for i in range(3):
        for token in range(4):
            expected = probability((*prompt, *response[:i], token)) / probability((*prompt, *response[:i]))
            assert float(rows[i, token].exp()) == pytest.approx(expected, rel=1e-12)


def test_one_hidden_state_is_a_chain_with_equal_rows() -> None:
    laws = [[0.2, 0.5, 0.3], [0.4, 0.1, 0.5]]
    p, q = (HiddenMarkovModel([1.0], [[1.0]], [law], eos_token_id=0) for law in laws)
    p_chain, q_chain = (MarkovChain([law] * 3, eos_token_id=0) for law in laws)
    assert exact_kl_by_enumeration(p, q, (1,), 6) == pytest.approx(p_chain.exact_kl(q_chain, (1,), 6))
    assert exact_kl_by_enumeration(p, q_chain, (1,), 6) == pytest.approx(p_chain.exact_kl(q_chain, (1,), 6))


def test_the_prompt_conditions_the_response() -> None:
    for world in (CHAIN, HIDDEN):
        first, second = (world.log_probs(Batch([prompt], [(0,)]))[0] for prompt in ((1, 3), (3, 1)))
        assert (first - second).abs().max() > 1e-3


# ---- the LanguageModel promises ----


@every_world
def test_satisfies_the_protocol(world: World) -> None:
    assert isinstance(world, LanguageModel)
    batch = Batch([(1,), (3, 1)], [(1, 3, 0), (1,)])
    log_p_NV = world.log_probs(batch)
    assert log_p_NV.shape == (4, 4)
    assert log_p_NV.dtype == torch.float64
    torch.testing.assert_close(log_p_NV.exp().sum(-1), torch.ones(4).double())
    rows = torch.tensor([3, 1])
    torch.testing.assert_close(world.head(world.hidden(batch)[rows]), log_p_NV[rows], rtol=0, atol=1e-14)


@every_world
def test_scores_do_not_depend_on_the_batch(world: World) -> None:
    prompts, responses = [(1,), (3, 1, 1, 0, 2), (0, 3)], [(1, 3, 3, 1), (2,), (3, 0)]
    together = world.log_probs(Batch(prompts, responses))
    alone = [world.log_probs(Batch([x], [y])) for x, y in zip(prompts, responses, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-13)
    backwards = world.log_probs(Batch(prompts[::-1], responses[::-1]))
    torch.testing.assert_close(backwards, torch.cat(alone[::-1]), rtol=0, atol=1e-13)


@every_world
@pytest.mark.parametrize("prompt", [(1,), (3, 1)])
def test_sampled_frequencies_are_the_enumerated_probabilities(world: World, prompt: tuple[int, ...]) -> None:
    responses, log_p_R = enumerate_responses(world, prompt, 3)
    index = {response: i for i, response in enumerate(responses)}
    counts = np.zeros(len(responses))
    for response in world.sample([prompt] * 5000, range(5000), 3):
        counts[index[response]] += 1
    expected = 5000 * log_p_R.exp().numpy()
    common = expected > 5
    observed = np.append(counts[common], counts[~common].sum())
    assert chisquare(observed, np.append(expected[common], expected[~common].sum())).pvalue > 1e-3


@every_world
def test_responses_end_at_the_end_token_or_at_the_limit(world: World) -> None:
    sampled = world.sample([(1,), (3,)] * 200, range(400), 5)
    ends = [response[-1] == world.eos_token_id for response in sampled]
    assert any(ends)
    assert not all(ends)
    for response, ended in zip(sampled, ends, strict=True):
        assert world.eos_token_id not in response[:-1]
        assert 1 <= len(response) <= 5
        assert ended or len(response) == 5


@every_world
def test_the_end_token_is_scored_and_the_limit_is_not(world: World) -> None:
    eos = world.eos_token_id
    with_end, without_end = Batch([(1,)], [(3, eos)]), Batch([(1,)], [(3,)])
    assert world.log_probs(with_end).shape == (2, 4)
    assert torch.equal(world.log_probs(without_end), world.log_probs(with_end)[:1])
    responses, log_p_R = enumerate_responses(world, (1,), 2)
    assert float(log_p_R[responses.index((3, eos))]) == pytest.approx(
        float(world.log_probs(with_end)[0, 3] + world.log_probs(with_end)[1, eos])
    )


@every_world
def test_a_sample_depends_on_its_own_prompt_and_seed_alone(world: World) -> None:
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(40)]
    seeds = [1000 + 7 * i for i in range(40)]
    together = world.sample(prompts, seeds, 8)
    alone = [world.sample([x], [seed], 8)[0] for x, seed in zip(prompts, seeds, strict=True)]
    assert together == alone
    assert world.sample(prompts[::-1], seeds[::-1], 8) == together[::-1]
    assert len(set(together)) > 10
    # A longer limit only lets a response go on.
    longer = world.sample(prompts, seeds, 12)
    assert [response[:8] for response in longer] == together


def test_sampling_temperature_sharpens_the_law() -> None:
    tempered = CHAIN.transitions_VV ** (1 / 0.4)
    sharp = MarkovChain(tempered / tempered.sum(-1, keepdim=True), CHAIN.eos_token_id)
    prompts, seeds = [(1,)] * 300, range(300)
    assert CHAIN.sample(prompts, seeds, 6, sampling_temperature=0.4) == sharp.sample(prompts, seeds, 6)
    assert CHAIN.sample(prompts, seeds, 6, sampling_temperature=0.4) != CHAIN.sample(prompts, seeds, 6)


@every_world
def test_temperature_zero_takes_the_likeliest_token(world: World) -> None:
    greedy = world.sample([(1,), (3, 3)], [5, 6], 4, sampling_temperature=0.0)
    assert greedy == world.sample([(1,), (3, 3)], [7, 8], 4, sampling_temperature=0.0)
    log_p_NV = world.log_probs(Batch([(1,), (3, 3)], greedy))
    assert log_p_NV.argmax(-1).tolist() == [token for response in greedy for token in response]


# ---- digests, construction, refusals ----


def test_digest_tells_distributions_apart_and_ignores_names() -> None:
    assert MarkovChain.random(4, seed=0, name="other").digest == CHAIN.digest
    different = {
        CHAIN.digest,
        MarkovChain.random(4, seed=1).digest,
        MarkovChain.random(4, seed=0, eos_token_id=1).digest,
        HIDDEN.digest,
        HiddenMarkovModel.random(3, 4, seed=1, eos_token_id=3).digest,
        HiddenMarkovModel(HIDDEN.initial_H.flip(0), HIDDEN.transitions_HH, HIDDEN.emissions_HV, 2).digest,
        HiddenMarkovModel(HIDDEN.initial_H, HIDDEN.transitions_HH.flip(0), HIDDEN.emissions_HV, 2).digest,
        HiddenMarkovModel(HIDDEN.initial_H, HIDDEN.transitions_HH, HIDDEN.emissions_HV.flip(0), 2).digest,
    }
    assert len(different) == 8


def test_a_world_keeps_its_own_copy_of_its_parameters() -> None:
    rows = np.array([[0.5, 0.5], [0.5, 0.5]])
    chain = MarkovChain(rows, eos_token_id=0)
    before = chain.digest
    rows[:] = 0.25
    assert chain.digest == before


def test_small_concentration_makes_peaked_chains() -> None:
    peaked, flat = (MarkovChain.random(8, seed=3, concentration=c) for c in (0.1, 10.0))
    assert peaked.exact_entropy((1,), 10) < flat.exact_entropy((1,), 10)


@pytest.mark.parametrize("rows", [[[0.5, 0.6], [0.5, 0.5]], [[1.5, -0.5], [0.5, 0.5]], [[math.nan, 1.0], [0.5, 0.5]]])
def test_rows_that_are_no_distributions_are_refused(rows: list[list[float]]) -> None:
    with pytest.raises(AssayError, match="transitions_VV must hold distributions"):
        MarkovChain(rows, eos_token_id=0)


def test_parameters_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(AssayError, match="square"):
        MarkovChain([[0.5, 0.5]], eos_token_id=0)
    with pytest.raises(AssayError, match="eos_token_id 2"):
        MarkovChain([[0.5, 0.5], [0.5, 0.5]], eos_token_id=2)
    with pytest.raises(AssayError, match="2 hidden states"):
        HiddenMarkovModel([1.0], [[1.0]], [[0.5, 0.5], [0.5, 0.5]], eos_token_id=0)
    with pytest.raises(AssayError, match="emissions_HV has zeros"):
        HiddenMarkovModel([1.0], [[1.0]], [[1.0, 0.0]], eos_token_id=0)


@every_world
def test_impossible_requests_are_refused(world: World) -> None:
    with pytest.raises(AssayError, match="empty"):
        world.sample([()], [0], 3)
    with pytest.raises(AssayError, match="empty"):
        world.log_probs(Batch([(1,)], [()]))
    for token in (-1, 4):
        with pytest.raises(AssayError, match=r"outside 0 ... 3"):
            world.log_probs(Batch([(1,)], [(1, token)]))
        with pytest.raises(AssayError, match=r"outside 0 ... 3"):
            world.sample([(token, 1)], [0], 3)
    with pytest.raises(AssayError, match="sampling_temperature"):
        world.sample([(1,)], [0], 3, sampling_temperature=-1.0)
    with pytest.raises(ValueError, match="2 prompts, 1 seeds"):
        world.sample([(1,), (1,)], [0], 3)
    with pytest.raises(AssayError, match="more than 200,000"):
        enumerate_responses(world, (1,), 40)


def test_models_of_two_vocabularies_are_not_compared() -> None:
    for other in (MarkovChain.random(5, seed=0), MarkovChain.random(4, seed=0, eos_token_id=1)):
        with pytest.raises(AssayError, match="one vocabulary"):
            CHAIN.exact_kl(other, (1,), 3)
        with pytest.raises(AssayError, match="one vocabulary"):
            CHAIN.mixed_with(other, 0.5)
        with pytest.raises(AssayError, match="one vocabulary"):
            exact_kl_by_enumeration(CHAIN, other, (1,), 3)
