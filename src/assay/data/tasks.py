"""Tasks: prompts with a human reference, in four splits that share no near-duplicates.

``base`` serves pretraining and the tokenizer only, ``oracle`` stage 1 (oracle responses for SFT),
``distillation`` stage 2, ``held_out`` the probe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from assay.errors import AssayError, unknown_name
from assay.types import Prompt

Split = Literal["base", "oracle", "distillation", "held_out"]
SPLITS: tuple[Split, ...] = ("base", "oracle", "distillation", "held_out")


@dataclass(frozen=True)
class Task:
    """A corpus embedded in the package and how its rows become prompts.

    ``template`` is filled with a row's columns; the response is a space and the ``reference`` column.
    ``shrinkable`` names a column that is a comma-separated list: items are dropped from its end until the
    prompt fits the token limit; rows whose prompt cannot fit are left out.
    """

    name: str
    corpus: str
    template: str
    reference: str
    shrinkable: str
    licence: str


TASKS: dict[str, Task] = {
    "define": Task(
        name="define",
        corpus="define.parquet",
        template="{part_of_speech}: {lemmas}:",
        reference="gloss",
        shrinkable="lemmas",
        licence="WordNet 3.0 licence (corpora/define.LICENSE.txt)",
    ),
}


def get_task(name: str) -> Task:
    """The task of that name; AssayError with the nearest name when there is none."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]


def load_prompts(
    task: Task,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int,
    max_response_tokens: int,
    num_prompts: int | None = None,
    seed: int = 0,
) -> list[Prompt]:
    """``num_prompts`` prompts of a split, in an order drawn with ``seed`` (all of them when None).

    A larger ``num_prompts`` with the same seed keeps the smaller selection as its beginning. References are
    tokenised with the end-of-sequence token and cut at ``max_response_tokens``.
    Raises AssayError when the split holds fewer prompts than asked for.
    """
    rows = corpus_rows(task)
    row_ids = np.random.default_rng(seed).permutation([i for i, row in enumerate(rows) if row["split"] == split])
    prompts: list[Prompt] = []
    for i in row_ids:
        if len(prompts) == num_prompts:
            break
        prompt = _to_prompt(task, int(i), rows[i], tokenizer, max_prompt_tokens, max_response_tokens)
        if prompt is not None:
            prompts.append(prompt)
    if num_prompts is not None and len(prompts) < num_prompts:
        raise AssayError(
            f"task {task.name!r} has {len(prompts)} prompts of at most {max_prompt_tokens} tokens in its split "
            f"{split!r}, but {num_prompts} were asked for: ask for fewer"
        )
    return prompts


@cache
def corpus_rows(task: Task) -> Sequence[dict[str, str]]:
    """The rows of the embedded corpus, in the order of the file."""
    with resources.files("assay.data.corpora").joinpath(task.corpus).open("rb") as file:
        return pq.read_table(file).to_pylist()


def corpus_digest(name: str) -> str:
    """The first 16 hex digits of SHA-256 over a task's embedded corpus."""
    corpus = resources.files("assay.data.corpora").joinpath(get_task(name).corpus)
    return hashlib.sha256(corpus.read_bytes()).hexdigest()[:16]


def prompt_text(task: Task, row: dict[str, str], num_items: int | None = None) -> str:
    """The template filled with a row, keeping the first ``num_items`` items of the shrinkable column."""
    items = row[task.shrinkable].split(", ")[:num_items]
    return task.template.format(**{**row, task.shrinkable: ", ".join(items)})


def _to_prompt(
    task: Task,
    index: int,
    row: dict[str, str],
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> Prompt | None:
    for num_items in range(row[task.shrinkable].count(", ") + 1, 0, -1):
        text = prompt_text(task, row, num_items)
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        if len(token_ids) <= max_prompt_tokens:
            break
    else:
        return None
    reference_ids = tokenizer.encode(f" {row[task.reference]}{tokenizer.eos_token}", add_special_tokens=False)
    return Prompt(
        id=f"{task.name}-{index:06d}",
        text=text,
        token_ids=tuple(token_ids),
        reference=row[task.reference],
        reference_ids=tuple(reference_ids[:max_response_tokens]),
    )
