"""Diverse subsets of a pool under a budget: greedy facility location and greedy k-centre, on unit vectors.

No torch. Both are a few lines of numpy: of the libraries that have them, kmedoids is under the GPL, apricot-select has
had no release since 2021, and scikit-matter would bring scikit-learn for one loop.
"""

from __future__ import annotations

import heapq

import numpy as np

from assay.data.diversity import similarity
from assay.errors import AssayError


def k_centre(vectors_NH: np.ndarray, num_chosen: int) -> list[int]:
    """Rows that keep max over the pool of the distance to the nearest chosen row small: at most twice the least.

    Farthest first, from row 0 on [Gonzalez 1985]; ties go to the lower row. Spreads to the rim of the pool, outliers
    included. Euclidean on unit vectors, so in the order of 1 − cosine.
    """
    _check(len(vectors_NH), num_chosen)
    chosen = [0]
    distance_N = 1 - vectors_NH @ vectors_NH[0]
    while len(chosen) < num_chosen:
        distance_N[chosen] = -1  # a duplicate is as near to the chosen as they are to themselves, but may be chosen
        chosen.append(int(distance_N.argmax()))
        distance_N = np.minimum(distance_N, 1 - vectors_NH @ vectors_NH[chosen[-1]])
    return chosen


def facility_location(vectors_NH: np.ndarray, num_chosen: int) -> list[int]:
    """Rows that make Σ over the pool of max over the chosen of (1 + cosine) large: at least 1 − 1/e of the most.

    Greedy [Nemhauser et al. 1978] with lazy gains [Minoux 1978]: gains only shrink, so most are not computed again.
    Ties go to the lower row. Stays in the middle of clusters. Keeps a matrix [N, N].
    """
    _check(len(vectors_NH), num_chosen)
    similarity_NN = 1 + similarity(vectors_NH.astype(np.float32))
    covered_N = np.zeros(len(vectors_NH), np.float32)
    queue = [(-float(total), row) for row, total in enumerate(similarity_NN.sum(axis=1, dtype=np.float64))]
    heapq.heapify(queue)
    chosen: list[int] = []
    while len(chosen) < num_chosen:
        _, row = heapq.heappop(queue)
        gain = float(np.maximum(similarity_NN[row] - covered_N, 0).sum(dtype=np.float64))
        if queue and (-gain, row) > queue[0]:
            heapq.heappush(queue, (-gain, row))
            continue
        chosen.append(row)
        covered_N = np.maximum(covered_N, similarity_NN[row])
    return chosen


SELECTIONS = {"k_centre": k_centre, "facility_location": facility_location}


def _check(num_candidates: int, num_chosen: int) -> None:
    if not 1 <= num_chosen <= num_candidates:
        raise AssayError(f"{num_chosen} prompts cannot be chosen from a pool of {num_candidates}: widen the pool")
