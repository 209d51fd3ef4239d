"""How much models take and keep at a time: the computing and the forecast of its cost go by the same; no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAMPLING_BATCH_SIZE = 256
"""Responses that are written at once, where nothing else is said."""

SCORING_BATCH_SIZE = 64

MOST_LOG_PROBS = 2**28
"""Response tokens times vocabulary of the sequences that a probe beside another trainer reads at a time.

Log-probabilities are made in chunks: this bounds the activations of the large models that have large vocabularies.
"""

LOG_PROBS_AT_ONCE = 6 * 2**20
"""Log-probabilities of a model that a loss or a score makes at a time: 24 MB in float32.

An array of 32 MB or more goes back to the system when it is freed, and the next one is taken anew page by page, which
takes a processor as long again as the loss itself. Arrays much smaller than that run the head on few rows.
"""

PASS_POSITIONS = 256
"""What one more forward and backward pass costs a CPU beside its work, as positions of the smallest embedded model.

A pass over a wider model costs as much beside its work, and its positions more: there this is on the high side.
"""

DENSE_VOCABULARY_LIMIT = 4096
"""Up to this vocabulary log-probabilities are kept; beyond it hidden states, from which the head makes them."""

MAX_VENDI_ROWS = 1024
"""Rows that a Vendi score looks at, drawn at random from a larger set: above it, scores no longer grow with the set."""

SIGNALS_IN_MEMORY_BYTES = 2**32
"""What an arm keeps in memory of what its teacher says about responses; more goes into files, and is read from there.

A constant, so that a run does not depend on the memory that is free; the system serves files from what is free anyway.
"""


def forecast_bytes(num_tokens: int, hidden_size: int, vocab_size: int, top_k: int | None = None) -> int:
    """What is kept of a model's law at ``num_tokens`` response tokens, in memory or on disk, in float32.

    Of each listed token its id and its log-probability, and the mass of the others; without ``top_k`` the whole law of
    a small vocabulary, else the hidden state.
    """
    exact = vocab_size if vocab_size <= DENSE_VOCABULARY_LIMIT else hidden_size
    return 4 * num_tokens * (exact if top_k is None else 2 * min(top_k, vocab_size) + 1)


def tokens_at_once(vocab_size: int, hidden_size: int = 0) -> int:
    """Response tokens whose log-probabilities are there together: thousands for a small vocabulary, at least one.

    Where the head is trained, ``hidden_size`` is given: every chunk then makes a gradient [V, H] to be added up, which
    is there twice. Some eight arrays of H / 4 tokens take no more than these two, and 128 tokens are enough for the
    head's products to take far longer than the additions.
    """
    return max(1, LOG_PROBS_AT_ONCE // vocab_size, min(hidden_size // 4, 128))


def cut_by_length(lengths: Sequence[int], most_rows: int) -> list[slice]:
    """Cuts a list of rows into consecutive parts of at most ``most_rows`` that cost least together.

    A part costs its rows times the longest of them, which is what the others are padded to, and ``PASS_POSITIONS`` for
    being a pass of its own. So rows of like lengths stay together, and long ones are set apart where that pays.
    """
    lengths_B = np.asarray(lengths)
    cost_B = np.zeros(len(lengths) + 1, dtype=np.int64)  # of the first so many rows
    begins_B = np.zeros(len(lengths) + 1, dtype=np.int64)  # where their last part begins
    for end in range(1, len(lengths) + 1):
        first = max(0, end - most_rows)
        longest = np.maximum.accumulate(lengths_B[first:end][::-1])[::-1]
        costs = cost_B[first:end] + np.arange(end - first, 0, -1) * longest + PASS_POSITIONS
        begins_B[end] = first + costs.argmin()
        cost_B[end] = costs.min()
    parts, end = [], len(lengths)
    while end > 0:
        parts.append(slice(int(begins_B[end]), end))
        end = int(begins_B[end])
    return parts[::-1]
