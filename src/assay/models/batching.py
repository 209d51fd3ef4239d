"""How much models take and keep at a time: the computing and the forecast of its cost go by the same; no torch."""

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

DENSE_VOCABULARY_LIMIT = 4096
"""Up to this vocabulary log-probabilities are kept; beyond it hidden states, from which the head makes them."""

MAX_VENDI_ROWS = 1024
"""Rows that a Vendi score looks at, drawn at random from a larger set: above it, scores no longer grow with the set."""


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
