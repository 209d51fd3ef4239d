"""Measures of diversity: identities, invariances, and what a file of a run says."""

from __future__ import annotations

import dataclasses
import math
import zlib

import numpy as np
import pytest
import torch

from assay.data.diversity import (
    Embeddings,
    Pairs,
    measure,
    nearest_distance,
    ngram_vectors,
    similarity,
    text_diversity,
    unit_vectors,
    vendi_rows,
    vendi_score,
)
from assay.errors import AssayError
from assay.models.batching import MAX_VENDI_ROWS
from assay.models.embeddings import prompt_embeddings, response_embeddings
from assay.models.pretrained import PretrainedModel
from assay.types import Batch
from tiny_models import bart, gpt2, llama, t5

RNG = np.random.default_rng(0)


def unit(rows: int, width: int = 6, seed: int = 0) -> np.ndarray:
    raw = np.random.default_rng(seed).normal(size=(rows, width))
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_vendi_is_one_for_what_is_alike_and_n_for_what_shares_nothing(n: int) -> None:
    assert vendi_score(np.ones((n, n))) == pytest.approx(1)
    assert vendi_score(np.eye(n)) == pytest.approx(n)


def test_vendi_of_two_rows_is_that_of_their_two_eigenvalues() -> None:
    for cosine in (0.0, 0.3, -0.8, 1.0):
        values = [v for v in ((1 + cosine) / 2, (1 - cosine) / 2) if v > 0]
        expected = math.exp(-sum(v * math.log(v) for v in values))
        assert vendi_score(np.array([[1, cosine], [cosine, 1]])) == pytest.approx(expected)


def test_vendi_keeps_its_value_under_order_and_repetition_of_the_whole_set() -> None:
    rows = unit(9)
    score = vendi_score(similarity(rows))
    assert vendi_score(similarity(rows[RNG.permutation(9)])) == pytest.approx(score)
    assert vendi_score(similarity(np.tile(rows, (3, 1)))) == pytest.approx(score)
    assert 1 < score < 6


def test_duplicates_never_make_vendi_exceed_the_number_of_different_rows() -> None:
    different = np.eye(4)
    for repeated in ([0], [0, 0, 1], [0, 1, 2, 3], [3] * 40):
        assert vendi_score(similarity(np.vstack([different, different[repeated]]))) <= 4 + 1e-9
    assert vendi_score(similarity(np.vstack([different, different[[3] * 40]]))) < 2


def test_vendi_refuses_what_is_no_similarity() -> None:
    for matrix in (np.zeros((0, 0)), np.ones((2, 3)), 2 * np.eye(2), np.array([[1, 3.0], [3, 1]])):
        with pytest.raises(AssayError, match="Vendi"):
            vendi_score(matrix)


def test_more_rows_than_the_cap_are_drawn_without_repeats_and_always_the_same() -> None:
    assert vendi_rows(5).tolist() == [0, 1, 2, 3, 4]
    rows = vendi_rows(MAX_VENDI_ROWS + 500)
    assert len(set(rows.tolist())) == MAX_VENDI_ROWS
    assert rows.max() >= MAX_VENDI_ROWS  # not the first ones
    assert (rows == vendi_rows(MAX_VENDI_ROWS + 500)).all()


def test_text_measures_by_hand() -> None:
    found = text_diversity([(1, 2, 1), (1, 2)], ["aba", "ab"])
    assert (found.distinct_1, found.distinct_2, found.distinct_3) == (2 / 5, 2 / 3, 1)
    assert found.num_distinct_3 == 1
    assert found.compressed_bytes == len(zlib.compress(b"ab\naba", 9))
    assert found.compression_ratio == found.compressed_bytes / 6
    alone = text_diversity([(1,)], [""])
    assert (alone.distinct_1, alone.distinct_2, alone.compression_ratio) == (1.0, None, None)


def test_text_measures_do_not_hang_on_the_order_and_fall_with_repeats() -> None:
    token_ids = [tuple(RNG.integers(50, size=8).tolist()) for _ in range(200)]
    texts = [" ".join(map(str, ids)) for ids in token_ids]
    order = RNG.permutation(200)
    found = text_diversity(token_ids, texts)
    assert text_diversity([token_ids[i] for i in order], [texts[i] for i in order]) == found
    doubled = text_diversity(token_ids * 2, texts * 2)
    assert doubled.num_distinct_3 == found.num_distinct_3
    assert doubled.distinct_2 == pytest.approx((found.distinct_2 or 0) / 2)
    assert (doubled.compression_ratio or 0) < (found.compression_ratio or 0)


def test_ngram_vectors_are_cosines_of_counts() -> None:
    vectors = ngram_vectors([(1, 2), (1, 2), (3,), (2, 1)])
    cosines = (vectors @ vectors.T).toarray()
    assert np.allclose(np.diag(cosines), 1)
    assert cosines[0, 1] == pytest.approx(1)
    assert cosines[0, 2] == 0
    assert cosines[0, 3] == pytest.approx(2 / 3)  # two of three n-grams shared


def test_distance_to_the_nearest_is_zero_for_a_subset_and_two_for_opposites() -> None:
    rows = unit(40)
    assert nearest_distance(rows[:7], rows) == pytest.approx(0, abs=1e-9)
    assert nearest_distance(rows[:1], -rows[:1]) == pytest.approx(2)
    far = nearest_distance(rows, rows[:3])
    assert far >= nearest_distance(rows, rows[:9]) > 0
    brute = np.mean([min(1 - float(a @ b) for b in rows[:3]) for a in rows])
    assert far == pytest.approx(brute)


def test_a_row_at_the_centre_has_no_direction() -> None:
    with pytest.raises(AssayError, match="no direction"):
        unit_vectors(np.ones((2, 3)), np.ones(3))


def test_an_empty_set_is_refused() -> None:
    empty = Pairs([], [], [], [], [])
    with pytest.raises(AssayError, match="empty"):
        measure(empty, Embeddings(unit(1), unit(1), unit(1)))


def pairs_of(num_prompts: int, completions: int) -> tuple[Pairs, Embeddings]:
    rng = np.random.default_rng(num_prompts)
    prompts = [tuple(rng.integers(90, size=6).tolist()) for _ in range(num_prompts)]
    responses = [tuple(rng.integers(90, size=9).tolist()) for _ in range(num_prompts * completions)]
    places = list(range(num_prompts)) * completions
    texts = [[" ".join(map(str, ids)) for ids in side] for side in (prompts, responses)]
    pairs = Pairs(prompts, texts[0], places, responses, texts[1])
    return pairs, Embeddings(unit(num_prompts), unit(len(responses), seed=1), unit(5, seed=2))


def test_a_set_without_repeats_has_more_effective_pairs_than_prompts_and_the_order_of_pairs_is_nothing() -> None:
    pairs, embeddings = pairs_of(20, 4)
    found = measure(pairs, embeddings)
    assert (found.num_prompts, found.num_pairs, found.num_vendi_rows) == (20, 80, (20, 80))
    assert 1 < found.vendi_prompts_ngrams < 20
    assert found.vendi_prompts_ngrams < found.vendi_pairs_ngrams < 80
    order = RNG.permutation(80)
    moved = dataclasses.replace(
        pairs,
        prompt_of_pair=[pairs.prompt_of_pair[i] for i in order],
        response_ids=[pairs.response_ids[i] for i in order],
        response_texts=[pairs.response_texts[i] for i in order],
    )
    again = measure(moved, dataclasses.replace(embeddings, responses_RH=embeddings.responses_RH[order]))
    one, other = dataclasses.asdict(found), dataclasses.asdict(again)
    for name, value in one.items():
        assert other[name] == pytest.approx(value), name


def test_one_completion_repeated_adds_pairs_and_no_effective_ones() -> None:
    pairs, embeddings = pairs_of(12, 1)
    repeated = dataclasses.replace(
        pairs,
        prompt_of_pair=[*pairs.prompt_of_pair] * 3,
        response_ids=[*pairs.response_ids] * 3,
        response_texts=[*pairs.response_texts] * 3,
    )
    once = measure(pairs, embeddings)
    thrice = measure(repeated, dataclasses.replace(embeddings, responses_RH=np.tile(embeddings.responses_RH, (3, 1))))
    assert thrice.num_pairs == 3 * once.num_pairs
    assert thrice.vendi_pairs_ngrams == pytest.approx(once.vendi_pairs_ngrams)
    assert thrice.vendi_pairs_embedding == pytest.approx(once.vendi_pairs_embedding)


@pytest.mark.parametrize("make", [gpt2, llama, t5, bart], ids=lambda make: make.__name__)
def test_an_embedding_is_the_mean_state_whatever_the_batch(make: object) -> None:
    model: PretrainedModel = make()  # type: ignore[operator]
    prompts = [(3, 4, 5), (6,), (3, 4, 5, 7, 8), (9, 2)]
    together = prompt_embeddings(model, prompts)
    alone = np.concatenate([prompt_embeddings(model, [prompt]) for prompt in prompts])
    assert np.allclose(together, alone, atol=1e-4)
    body = model.module.get_encoder() if model.module.config.is_encoder_decoder else model.module.base_model
    for prompt, row in zip(prompts, together, strict=True):
        with torch.no_grad():
            states = body(input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt))).last_hidden_state
        assert np.allclose(row, states[0].double().mean(dim=0).numpy(), atol=1e-4)


def test_a_response_is_embedded_by_the_states_that_predict_it() -> None:
    model = gpt2()
    batch = Batch([(3, 4), (5,)], [(6, 7, 0), (8, 0)])
    with torch.no_grad():
        first, second = model.hidden(batch).split([3, 2])
    expected = [part.double().mean(dim=0).numpy() for part in (first, second)]
    assert np.allclose(response_embeddings(model, batch), expected, atol=1e-5)
