"""Which prompts a run distils on, and how diverse what it distilled on was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from assay.config import DistillationConfig
from assay.data.augmentation import Augmented, Text, augment
from assay.data.diversity import Diversity, Embeddings, Pairs, measure, unit_vectors, vendi_rows
from assay.data.selection import SELECTIONS
from assay.data.sources import ResponseSource
from assay.models.embeddings import prompt_embeddings, response_embeddings
from assay.models.ensemble import Ensemble
from assay.models.pretrained import PretrainedModel
from assay.types import Batch, Prompt, Response

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class DistillationSet:
    """The prompts of a run in their order, and what became of the augmentation (None without one)."""

    prompts: list[Prompt]
    augmented: Augmented | None = None


def pool_size(config: DistillationConfig) -> int:
    """How many prompts of the distillation split a run reads."""
    return config.num_candidates or config.num_prompts


def choose_prompts(
    config: DistillationConfig,
    pool: Sequence[Prompt],
    held_out: Sequence[Prompt],
    teacher: PretrainedModel | Ensemble,
    text: Text,
    seed: int,
) -> DistillationSet:
    """The prompts to distil on: chosen from ``pool`` (in an order drawn with the seed), then augmented.

    Deterministic given the seed. What was chosen or added is shuffled, so that the first prompts, on which the train
    proxy walks, are a random part. With the default dials the pool's first prompts, as they are.
    Raises AssayError when the pool is smaller than what is to be chosen.
    """
    chosen = list(pool[: config.num_prompts])
    if config.selection != "random":
        raw_PH = prompt_embeddings(teacher, [prompt.token_ids for prompt in pool])
        rows = SELECTIONS[config.selection](unit_vectors(raw_PH, raw_PH.mean(axis=0)), config.num_prompts)
        chosen = [pool[row] for row in _shuffled(rows, seed)]
    if config.augmentation == "none":
        return DistillationSet(chosen)
    augmented = augment(config, chosen, held_out, teacher, text, seed)
    return DistillationSet(_shuffled([*chosen, *augmented.prompts], seed), augmented)


def present_pairs(sources: Sequence[ResponseSource]) -> tuple[list[Prompt], list[TokenIds]]:
    """The prompt and the response of every pair that a source holds now, source after source."""
    prompts: list[Prompt] = []
    responses: list[TokenIds] = []
    for source in sources:
        state = source.state()
        lengths = state["stored"][:, -1].tolist()
        prompts += [source.prompts[pair % len(source.prompts)] for pair in state["stored"][:, 0].tolist()]
        responses += [tuple(ids.tolist()) for ids in state["token_ids"].split(lengths)] if lengths else []
    return prompts, responses


def measure_diversity(
    prompts: Sequence[Prompt],
    responses: Sequence[TokenIds],
    held_out: Sequence[Prompt],
    held_out_responses: Sequence[Response],
    teacher: PretrainedModel | Ensemble,
    tokenizer: PreTrainedTokenizerBase,
) -> Diversity:
    """``diversity.measure`` of these pairs, with the teacher's embeddings centred at the held-out means.

    ``held_out_responses`` are the teacher's.
    """
    different = list({prompt.id: prompt for prompt in prompts}.values())
    place = {prompt.id: i for i, prompt in enumerate(different)}
    rows = vendi_rows(len(responses))
    held_out_ids = [prompt.token_ids for prompt in held_out]
    held_out_QH = prompt_embeddings(teacher, held_out_ids)
    answered = response_embeddings(teacher, Batch(held_out_ids, [r.token_ids for r in held_out_responses]))
    batch = Batch([prompts[row].token_ids for row in rows], [responses[row] for row in rows])
    centre_H = held_out_QH.mean(axis=0)
    embeddings = Embeddings(
        unit_vectors(prompt_embeddings(teacher, [prompt.token_ids for prompt in different]), centre_H),
        unit_vectors(response_embeddings(teacher, batch), answered.mean(axis=0)),
        unit_vectors(held_out_QH, centre_H),
    )
    texts = [str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in responses]
    pairs = Pairs(
        [prompt.token_ids for prompt in different],
        [prompt.text for prompt in different],
        [place[prompt.id] for prompt in prompts],
        responses,
        texts,
    )
    return measure(pairs, embeddings)


def _shuffled(values: Sequence, seed: int) -> list:
    return [values[i] for i in np.random.default_rng([seed, len(values)]).permutation(len(values))]
