"""How diverse a distillation set is: measures of its prompts and of its pairs, from tokens, text and embeddings.

No model and no torch: embeddings come as arrays. ``models/embeddings.py`` makes them.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from assay.errors import AssayError
from assay.models.batching import MAX_VENDI_ROWS

TokenIds = Sequence[int]

COMPRESSION_LEVEL = 9
MAX_N = 3


@dataclass(frozen=True)
class TextDiversity:
    """Measures of a list of texts, each with its tokens.

    ``distinct_n``: different n-grams of tokens over all n-grams of the set [Li et al. 2016]; it falls as a set grows.
    ``num_distinct_3``: how many different 3-grams there are; it rises. ``compression_ratio``: bytes after zlib
    (level 9) over bytes before, of the texts sorted and joined by newlines (zlib looks back 32 kB, so order matters:
    sorting makes it a function of the set). ``compressed_bytes`` is its numerator. None without any n-gram or text.
    """

    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    num_distinct_3: int
    compression_ratio: float | None
    compressed_bytes: int


@dataclass(frozen=True)
class Diversity:
    """Measures of a distillation set: different prompts, and pairs of a prompt and a response.

    ``vendi_*`` are effective numbers [Friedman & Dieng 2023]: exp of the entropy (nats) of the eigenvalues of K/n, K
    the similarities of n rows. For prompts K is the cosine of their n-gram counts (``_ngrams``), or of their embeddings
    less the held-out prompts' mean (``_embedding``, which cannot exceed the width of the model); for pairs it is the
    mean of that of the prompts and that of the responses. At most MAX_VENDI_ROWS rows are used (``num_vendi_rows``).
    ``held_out_distance`` is the mean over held-out prompts of 1 − cosine to the nearest prompt, embeddings centred the
    same: the lower, the better covered. Embeddings are of the teacher: the mean last hidden state over the tokens.
    """

    num_prompts: int
    num_pairs: int
    prompts: TextDiversity
    responses: TextDiversity
    vendi_prompts_ngrams: float
    vendi_pairs_ngrams: float
    vendi_prompts_embedding: float
    vendi_pairs_embedding: float
    held_out_distance: float
    num_vendi_rows: tuple[int, int]


@dataclass(frozen=True)
class Pairs:
    """A distillation set: the different prompts' tokens and texts, and of each pair its prompt's place and response."""

    prompt_ids: Sequence[TokenIds]
    prompt_texts: Sequence[str]
    prompt_of_pair: Sequence[int]
    response_ids: Sequence[TokenIds]
    response_texts: Sequence[str]


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors: of all prompts, of the responses of the pairs in ``vendi_rows(num_pairs)``, of held-out prompts."""

    prompts_PH: np.ndarray
    responses_RH: np.ndarray
    held_out_QH: np.ndarray


def measure(pairs: Pairs, embeddings: Embeddings) -> Diversity:
    """All measures of ``Diversity``. Raises AssayError for a set without a prompt or a pair."""
    if not pairs.prompt_ids or not pairs.response_ids:
        raise AssayError("an empty distillation set has no diversity: give at least one prompt and one response")
    prompt_rows, pair_rows = vendi_rows(len(pairs.prompt_ids)), vendi_rows(len(pairs.response_ids))
    prompt_of_row = np.asarray(pairs.prompt_of_pair)[pair_rows]
    ngrams_PF = ngram_vectors([*pairs.prompt_ids])
    responses_RF = ngram_vectors([pairs.response_ids[row] for row in pair_rows])
    embedded_RH = embeddings.responses_RH
    return Diversity(
        num_prompts=len(pairs.prompt_ids),
        num_pairs=len(pairs.response_ids),
        prompts=text_diversity(pairs.prompt_ids, pairs.prompt_texts),
        responses=text_diversity(pairs.response_ids, pairs.response_texts),
        vendi_prompts_ngrams=vendi_score(_sparse_similarity(ngrams_PF[prompt_rows])),
        vendi_pairs_ngrams=vendi_score(
            (_sparse_similarity(ngrams_PF[prompt_of_row]) + _sparse_similarity(responses_RF)) / 2
        ),
        vendi_prompts_embedding=vendi_score(similarity(embeddings.prompts_PH[prompt_rows])),
        vendi_pairs_embedding=vendi_score(
            (similarity(embeddings.prompts_PH[prompt_of_row]) + similarity(embedded_RH)) / 2
        ),
        held_out_distance=nearest_distance(embeddings.held_out_QH, embeddings.prompts_PH),
        num_vendi_rows=(len(prompt_rows), len(pair_rows)),
    )


def text_diversity(token_ids: Sequence[TokenIds], texts: Sequence[str]) -> TextDiversity:
    """See ``TextDiversity``; independent of the order of the texts."""
    ratio: dict[int, float | None] = {}
    num_distinct = 0
    for n in range(1, MAX_N + 1):
        grams = [gram for ids in token_ids for gram in _ngrams(ids, n)]
        num_distinct = len(set(grams))
        ratio[n] = num_distinct / len(grams) if grams else None
    whole = "\n".join(sorted(texts)).encode()
    compressed = len(zlib.compress(whole, COMPRESSION_LEVEL))
    return TextDiversity(
        distinct_1=ratio[1],
        distinct_2=ratio[2],
        distinct_3=ratio[3],
        num_distinct_3=num_distinct,
        compression_ratio=compressed / len(whole) if whole else None,
        compressed_bytes=compressed,
    )


def vendi_rows(num_rows: int) -> np.ndarray:
    """The rows that a Vendi score looks at: all, or MAX_VENDI_ROWS of them, always the same for one ``num_rows``."""
    if num_rows <= MAX_VENDI_ROWS:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(0).permutation(num_rows)[:MAX_VENDI_ROWS])


def vendi_score(similarity_NN: np.ndarray) -> float:
    """exp(−Σ λ log λ), λ the eigenvalues of K/n: 1 for n rows that are alike, n for n rows that share nothing.

    ``similarity_NN``: symmetric, positive semi-definite, with ones on its diagonal. Repeating the whole set changes
    nothing; repeating some rows raises it only where that evens them out, and never above the number of different rows.
    Order does not matter. Raises AssayError for a matrix of another kind. [Friedman & Dieng 2023]
    """
    size = len(similarity_NN)
    if similarity_NN.shape != (size, size) or not size or not np.allclose(np.diag(similarity_NN), 1, atol=1e-6):
        raise AssayError("a Vendi score needs a square matrix of similarities, each row 1 to itself: give one")
    values = np.linalg.eigvalsh(similarity_NN.astype(np.float64) / size)
    if values[0] < -1e-6:
        raise AssayError(
            "a Vendi score needs similarities that some vectors have: the matrix has a negative eigenvalue; "
            "take the cosines of embeddings"
        )
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def similarity(vectors_NH: np.ndarray) -> np.ndarray:
    """Cosines of unit vectors, [N, N]; a row's own is 1."""
    return vectors_NH @ vectors_NH.T


def nearest_distance(from_QH: np.ndarray, to_PH: np.ndarray) -> float:
    """Mean over the first of 1 − cosine to the nearest of the second, both unit vectors: 0 (covered) to 2."""
    nearest = [(part_QH @ to_PH.T).max(axis=1) for part_QH in np.array_split(from_QH, -(-len(from_QH) // 256))]
    return float(1 - np.concatenate(nearest).mean())


def unit_vectors(rows_NH: np.ndarray, centre_H: np.ndarray) -> np.ndarray:
    """(x − centre) / |x − centre| for each row.

    Hidden states of a language model share a large common part, which makes all cosines nearly 1; the centre takes it
    away. It is fixed (the mean over held-out prompts), so that a row's vector does not hang on the set that it is in.
    Raises AssayError for a row at the centre, which has no direction.
    """
    shifted_NH = rows_NH - centre_H
    norm_N1 = np.linalg.norm(shifted_NH, axis=1, keepdims=True)
    if not (norm_N1 > 0).all():
        raise AssayError(
            "a prompt or response has the embedding of the held-out mean itself, which has no direction: leave it out"
        )
    return shifted_NH / norm_N1


def ngram_vectors(token_ids: Sequence[TokenIds]) -> csr_array:
    """Counts of all n-grams, n = 1 to 3, of each sequence, as sparse unit vectors [N, F] over the grams that occur."""
    column: dict[tuple[int, ...], int] = {}
    rows, columns, counts = [], [], []
    for row, ids in enumerate(token_ids):
        found = Counter(gram for n in range(1, MAX_N + 1) for gram in _ngrams(ids, n))
        norm = sum(count**2 for count in found.values()) ** 0.5
        for gram, count in found.items():
            rows.append(row)
            columns.append(column.setdefault(gram, len(column)))
            counts.append(count / norm)
    return csr_array((counts, (rows, columns)), shape=(len(token_ids), len(column)))


def _sparse_similarity(vectors_NF: csr_array) -> np.ndarray:
    return (vectors_NF @ vectors_NF.T).toarray()


def _ngrams(token_ids: TokenIds, n: int) -> list[tuple[int, ...]]:
    return [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
