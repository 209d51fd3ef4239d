"""Facility location and k-centre: their guarantees against every subset, the greedy rule, ties and refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from assay.data.selection import SELECTIONS, facility_location, k_centre
from assay.errors import AssayError


def unit(rows: int, width: int = 3, seed: int = 0) -> np.ndarray:
    raw = np.random.default_rng(seed).normal(size=(rows, width))
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def coverage(vectors: np.ndarray, chosen: list[int]) -> float:
    return float((1 + vectors @ vectors[chosen].T).max(axis=1).sum())


def radius(vectors: np.ndarray, chosen: list[int]) -> float:
    return float(np.linalg.norm(vectors[:, None] - vectors[chosen][None], axis=2).min(axis=1).max())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_chosen", [1, 2, 4])
def test_the_guarantees_hold_against_every_subset(seed: int, num_chosen: int) -> None:
    vectors = unit(11, seed=seed)
    subsets = [list(rows) for rows in itertools.combinations(range(11), num_chosen)]
    best = max(coverage(vectors, rows) for rows in subsets)
    assert coverage(vectors, facility_location(vectors, num_chosen)) >= (1 - 1 / math.e) * best - 1e-5
    smallest = min(radius(vectors, rows) for rows in subsets)
    assert radius(vectors, k_centre(vectors, num_chosen)) <= 2 * smallest + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_lazy_gains_choose_what_computing_them_all_chooses(seed: int) -> None:
    vectors = unit(60, width=5, seed=seed)
    expected: list[int] = []
    for _ in range(25):
        left = [row for row in range(60) if row not in expected]
        gains = [coverage(vectors, [*expected, row]) for row in left]
        expected.append(left[int(np.argmax(gains))])
    assert facility_location(vectors, 25) == expected


def test_k_centre_takes_the_farthest_next() -> None:
    angles = np.array([0.0, 0.1, 3.0, 1.5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert k_centre(vectors, 3) == [0, 2, 3]


def test_clusters_are_served_before_their_members_are_repeated() -> None:
    centres = np.eye(5)
    rows = np.concatenate([centres + 0.01 * np.random.default_rng(seed).normal(size=(5, 5)) for seed in range(8)])
    vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for name, choose in sorted(SELECTIONS.items()):
        assert sorted(row % 5 for row in choose(vectors, 5)) == [0, 1, 2, 3, 4], name


@pytest.mark.parametrize("name", sorted(SELECTIONS))
def test_all_rows_can_be_chosen_once_each_even_if_they_are_alike(name: str) -> None:
    vectors = np.concatenate([unit(6), unit(6), np.tile(unit(1, seed=3), (5, 1))])
    chosen = SELECTIONS[name](vectors, len(vectors))
    assert sorted(chosen) == list(range(len(vectors)))
    assert SELECTIONS[name](vectors, len(vectors)) == chosen
    assert SELECTIONS[name](vectors, 4) == chosen[:4]


@pytest.mark.parametrize("name", sorted(SELECTIONS))
@pytest.mark.parametrize(("pool", "chosen"), [(3, 4), (3, 0), (0, 1)])
def test_a_pool_that_is_too_small_is_refused(name: str, pool: int, chosen: int) -> None:
    with pytest.raises(AssayError, match="pool"):
        SELECTIONS[name](unit(pool), chosen)
