"""How much models take and keep at a time: the computing and the forecast of its cost go by the same; no torch."""

SAMPLING_BATCH_SIZE = 256
"""Responses that are written at once, where nothing else is said."""

SCORING_BATCH_SIZE = 64

MOST_LOG_PROBS = 2**28
"""Log-probabilities of a model that a probe beside another trainer holds at a time: 1 GB in float32."""

DENSE_VOCABULARY_LIMIT = 4096
"""Up to this vocabulary log-probabilities are kept; beyond it hidden states, from which the head makes them."""

MAX_VENDI_ROWS = 1024
"""Rows that a Vendi score looks at, drawn at random from a larger set: above it, scores no longer grow with the set."""
