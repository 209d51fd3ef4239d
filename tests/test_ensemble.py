"""Several models as one: the mean of their laws, scored, cached and sampled."""

from __future__ import annotations

import copy

import pytest
import torch

from assay.buckets import resolved
from assay.errors import AssayError
from assay.models.cached import CachedLogProbs
from assay.models.ensemble import Ensemble
from assay.models.language_model import LanguageModel
from assay.models.pretrained import PretrainedModel
from assay.types import Batch, Dense
from tiny_models import VOCAB_SIZE, bart, gpt2, t5

BATCH = Batch([(5, 2), (7, 3, 9, 4), (6,)], [(3, 4, 0), (6, 8), (9,)])
FAMILIES = {
    "gpt2": [gpt2(1), gpt2(2), gpt2(3)],
    "t5": [t5(1), t5(2)],
    "bart": [bart(1), bart(2)],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_law_is_the_mean_of_the_members_laws(family: str) -> None:
    """Against float64 probabilities, whole and through hidden states, dense and kept."""
    members = FAMILIES[family]
    ensemble = Ensemble(members, "both")
    assert isinstance(ensemble, LanguageModel)
    doubles = [copy.deepcopy(member) for member in members]
    for double in doubles:
        double.module.double()
    laws = [m._logits(m.hidden(BATCH)).softmax(-1) for m in doubles]
    expected = torch.stack(laws).mean(0)
    assert torch.allclose(ensemble.log_probs(BATCH).exp().double(), expected, atol=1e-6)
    hidden = ensemble.hidden(BATCH)
    assert hidden.shape == (BATCH.num_tokens, 16 * len(members))
    assert torch.allclose(ensemble.head(hidden[[4, 0]]), ensemble.log_probs(BATCH)[[4, 0]], atol=1e-5)
    for kind in ("log_probs", "hidden"):
        cache = CachedLogProbs(ensemble)
        cache.kind = kind
        signal = resolved(cache.signal(cache.compute(BATCH)))
        assert isinstance(signal, Dense)
        assert torch.allclose(signal.log_p_NV.exp().double(), expected, atol=1e-5)


def test_one_member_is_that_member() -> None:
    alone = Ensemble([gpt2(1)], "alone")
    assert torch.allclose(alone.log_probs(BATCH), gpt2(1).log_probs(BATCH), atol=1e-6)
    seeds = list(range(50))
    assert alone.sample([(5, 2)] * 50, seeds, 6) == gpt2(1).sample([(5, 2)] * 50, seeds, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_is_what_scoring_says(family: str) -> None:
    """Greedy responses of prompts of unlike length take the most likely token of the mean law at every step."""
    ensemble = Ensemble(FAMILIES[family], "both")
    prompts = [(5, 2), (7, 3, 9, 4), (6,), (8, 8, 8)]
    responses = ensemble.sample(prompts, [0, 1, 2, 3], 6, 0.0)
    scored = ensemble.log_probs(Batch(prompts, responses)).argmax(-1)
    assert scored.tolist() == [token for response in responses for token in response]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_frequencies_are_those_of_the_mean_law(temperature: float) -> None:
    """A chi-squared of the second token, over all first tokens drawn: a mixture of whole responses has another law."""
    ensemble = Ensemble([gpt2(1, scale=4.0), gpt2(2, scale=4.0)], "both")
    number = 4000
    responses = ensemble.sample([(5, 2)] * number, list(range(number)), 2, temperature)
    log_p = ensemble.log_probs(Batch([(5, 2)], [(1,)]))[0]
    first = (log_p / temperature).softmax(-1).double()
    seconds = Batch([(5, 2)] * (VOCAB_SIZE - 1), [(token, 1) for token in range(1, VOCAB_SIZE)])
    law = (ensemble.log_probs(seconds)[1::2] / temperature).softmax(-1).double()
    joint = {(0,): first[0].item()} | {
        (a, b): (first[a] * law[a - 1, b]).item() for a in range(1, VOCAB_SIZE) for b in range(VOCAB_SIZE)
    }
    assert sum(joint.values()) == pytest.approx(1.0)
    expected = {pair: number * p for pair, p in joint.items()}
    often = [pair for pair, count in expected.items() if count >= 5]
    rare = number - sum(expected[pair] for pair in often)
    seen = [responses.count(pair) for pair in often]
    statistic = sum((s - expected[pair]) ** 2 / expected[pair] for s, pair in zip(seen, often, strict=True))
    statistic += (number - sum(seen) - rare) ** 2 / max(rare, 1.0)
    freedom = len(often)
    assert len(often) > 10
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_a_response_depends_on_its_prompt_and_seed_alone() -> None:
    ensemble = Ensemble([gpt2(1), gpt2(2)], "both")
    prompts, seeds = [(5, 2), (7, 3, 9, 4), (6,)], [4, 5, 6]
    together = ensemble.sample(prompts, seeds, 6)
    assert together == [ensemble.sample([p], [s], 6)[0] for p, s in zip(prompts, seeds, strict=True)]


def test_members_keep_their_mode_and_make_the_digest() -> None:
    members: list[PretrainedModel] = [gpt2(1, dropout=0.3), gpt2(2, dropout=0.3)]
    ensemble = Ensemble(members, "both")
    for member in members:
        member.module.train()
    with ensemble.evaluating():
        assert torch.equal(ensemble.log_probs(BATCH), ensemble.log_probs(BATCH))
    assert all(member.module.training for member in members)
    assert len({ensemble.digest, Ensemble(members[::-1], "x").digest, Ensemble([members[0]] * 2, "x").digest}) == 3


def test_members_that_do_not_fit_are_refused() -> None:
    for members in ([gpt2(1), gpt2(1, vocab_size=29)], [gpt2(1), t5(1)]):
        with pytest.raises(AssayError, match="differ in family, vocabulary or end-of-sequence token"):
            Ensemble(members, "mixed")
    with pytest.raises(AssayError, match="ensemble of no models"):
        Ensemble([], "none")
    with pytest.raises(AssayError, match="context of 32"):
        Ensemble([gpt2(1), gpt2(2)], "both").sample([(5,)], [0], 40)
