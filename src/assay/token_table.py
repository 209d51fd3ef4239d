"""tokens.parquet: what each model says of the responses that the report shows, token by token."""

from __future__ import annotations

import pyarrow as pa

LOG_PROBS = ("log_prob_student", "log_prob_teacher", "log_prob_oracle")
NUM_SAMPLE_PROMPTS = 6
"""The first held-out prompts of which an arm keeps samples: so many are shown with their responses."""

LOWEST_NATS = -1e4
"""What is less likely, impossible too, is written as this: infinity has no place in JSON."""

TOKENS_SCHEMA = pa.schema(
    {
        "arm": pa.string(),
        "seed": pa.int64(),
        "step": pa.int64(),
        "prompt_id": pa.string(),
        "writer": pa.string(),
        "position": pa.int32(),
        "token": pa.string(),
        **dict.fromkeys(LOG_PROBS, pa.float32()),
    }
)
"""One row for each token: those of a response follow each other, ``position`` from 0.

``writer`` "student" is the response that the arm's student has sampled at ``step``; "oracle", "teacher" and "dataset"
are the fixed responses to the same prompts, as the student of that step sees them. Log-probabilities are in nats,
given the prompt and the tokens before; those of teacher and oracle are null where there is no such model, or where it
is known by its text or its lists only.
"""
