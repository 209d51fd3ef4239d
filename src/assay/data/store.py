"""Responses on disk: one parquet row each, with its provenance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from assay import runs
from assay.types import Prompt, Response

RESPONSES_SCHEMA = pa.schema(
    {
        "arm": pa.string(),
        "seed": pa.int64(),
        "step": pa.int64(),
        "prompt_id": pa.string(),
        "prompt": pa.string(),
        "split": pa.string(),
        "writer": pa.string(),
        "text": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "num_tokens": pa.int32(),
        "truncated": pa.bool_(),
        "response_seed": pa.uint64(),
        "sampling_temperature": pa.float32(),
    }
)
"""``arm`` is empty for responses that all arms share; ``step`` is the optimiser step of writing."""


def response_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """A response as people read it: without special tokens and the space around it."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()


def responses_table(
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str,
    seed: int,
    arm: str = "",
) -> pa.Table:
    """Prompts and their responses, row by row, as a table of RESPONSES_SCHEMA."""
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "step": response.writer_step,
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "split": split,
            "writer": response.writer,
            "text": response_text(tokenizer, response.token_ids),
            "token_ids": response.token_ids,
            "num_tokens": len(response.token_ids),
            "truncated": response.truncated,
            "response_seed": response.seed,
            "sampling_temperature": response.sampling_temperature,
        }
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    return pa.Table.from_pylist(rows, RESPONSES_SCHEMA)


def read_responses(path: Path) -> list[Response]:
    """The responses of a file written with ``responses_table``, in its order."""
    return [
        Response(
            prompt_id=row["prompt_id"],
            token_ids=tuple(row["token_ids"]),
            writer=row["writer"],
            truncated=row["truncated"],
            seed=row["response_seed"],
            sampling_temperature=row["sampling_temperature"],
            writer_step=row["step"],
        )
        for row in runs.read_table(path).cast(RESPONSES_SCHEMA).to_pylist()
    ]
