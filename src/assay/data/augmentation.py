"""New prompts made from a run's own, and the check that each still belongs to the task."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from assay.config import DistillationConfig, TaskConfig
from assay.data.encoding import Encoder
from assay.data.splitting import near_duplicates
from assay.data.tasks import Task, configured_task, refuse_conversations, under_template
from assay.errors import AssayError
from assay.models.batching import SAMPLING_BATCH_SIZE
from assay.models.cached import by_length, token_nll
from assay.models.language_model import LanguageModel
from assay.models.sampling import response_seed
from assay.types import Batch, Framing, Prompt

REASONS = ("empty or too long", "same as another prompt", "near a held-out prompt", "less likely for the teacher")
"""Why a new prompt is dropped; the first that holds counts."""


@dataclass(frozen=True)
class Text:
    """How text becomes prompts in this run."""

    task: TaskConfig
    tokenizer: PreTrainedTokenizerBase
    framing: Framing
    with_oracle: bool = True

    @property
    def corpus(self) -> Task:
        """The task that the run's prompts are of."""
        return configured_task(self.task, self.with_oracle)

    @property
    def encoder(self) -> Encoder:
        """How a text becomes the tokens of a prompt."""
        return Encoder(self.tokenizer, self.framing, self.task.chat_template)


@dataclass(frozen=True)
class Augmented:
    """The new prompts that passed, how many were tried, and how many were dropped by REASONS.

    ``fall_nats_per_token`` is the teacher's log-likelihood of the original's response under the original less that
    under the new prompt, averaged over the new prompts that were scored; None when none was.
    """

    prompts: list[Prompt]
    num_tried: int
    dropped: dict[str, int]
    fall_nats_per_token: float | None


def augment(
    config: DistillationConfig,
    originals: Sequence[Prompt],
    held_out: Sequence[Prompt],
    teacher: LanguageModel,
    text: Text,
    seed: int,
) -> Augmented:
    """New prompts from each of ``originals``, each with an id of its own; those that fail the check are dropped.

    The check, in order: it has text and fits ``task.max_prompt_tokens``; it is no other prompt of the set; it is not
    near a held-out prompt (``splitting.near_duplicates``, with the held-out prompts under the same template); and the
    teacher's mean log-likelihood per token of its own sampled response to the original is, under the new prompt, not
    lower by more than ``augmentation_tolerance``. One response for each original: a prompt that passes by luck may
    differ by more, one of a narrow miss by less.
    """
    if not originals:
        raise AssayError("there is no prompt to augment: raise distillation.num_prompts")
    made: list[tuple[Prompt, Prompt | None]] = []  # the original and the new one
    near: set[int] = set()  # places in ``made``
    for group, seen in _proposals(config, originals, held_out, teacher, text, seed):
        near |= {len(made) + place for place in _near(group, seen)}
        made += zip(originals, group, strict=True)
    dropped = Counter[str]()
    taken = {prompt.token_ids for prompt in [*originals, *held_out]}
    scored: list[tuple[Prompt, Prompt]] = []
    for place, (original, new) in enumerate(made):
        if new is None:
            dropped[REASONS[0]] += 1
        elif new.token_ids in taken:
            dropped[REASONS[1]] += 1
        elif place in near:
            dropped[REASONS[2]] += 1
        else:
            taken.add(new.token_ids)
            scored.append((original, new))
    falls = _falls(scored, teacher, text.task.max_response_tokens, seed)
    kept = [new for (_, new), fall in zip(scored, falls, strict=True) if fall <= config.augmentation_tolerance]
    dropped[REASONS[3]] = len(scored) - len(kept)
    mean = float(np.mean(falls)) if scored else None
    return Augmented(kept, len(made), {reason: dropped[reason] for reason in REASONS}, mean)


def paraphrase_instructions(config: DistillationConfig, prompts: Sequence[Prompt], text: Text) -> list[tuple[int, ...]]:
    """What the teacher is asked for a paraphrase of each prompt, as tokens."""
    assert config.paraphrase_template is not None
    refuse_conversations(text.corpus, "a paraphrase is of one text: set distillation.augmentation to 'none'")
    encoder = text.encoder
    return [encoder.prompt(config.paraphrase_template.format(prompt=prompt.text)) for prompt in prompts]


def retold(config: DistillationConfig, prompts: Sequence[Prompt], text: Text) -> list[list[Prompt | None]]:
    """The prompts under each of ``config.templates``, with ids that end in the template's number."""
    limits = text.task.max_prompt_tokens, text.task.max_response_tokens
    return [
        [
            None if new is None else dataclasses.replace(new, id=f"{new.id}-template{number}")
            for new in under_template(text.corpus, prompts, template, text.tokenizer, *limits, text.framing)
        ]
        for number, template in enumerate(config.templates)
    ]


def _proposals(
    config: DistillationConfig,
    originals: Sequence[Prompt],
    held_out: Sequence[Prompt],
    teacher: LanguageModel,
    text: Text,
    seed: int,
) -> list[tuple[list[Prompt | None], list[str]]]:
    """Groups of new prompts, one for each original (None: unusable), and the held-out texts to compare each with."""
    if config.augmentation == "paraphrases":
        return [(_paraphrases(config, originals, teacher, text, seed), [prompt.text for prompt in held_out])]
    shown = retold(config, held_out, text)
    return [
        (group, [prompt.text for prompt in seen if prompt is not None])
        for group, seen in zip(retold(config, originals, text), shown, strict=True)
    ]


def _paraphrases(
    config: DistillationConfig, originals: Sequence[Prompt], teacher: LanguageModel, text: Text, seed: int
) -> list[Prompt | None]:
    """What the teacher writes when asked; None where it is empty or, framed, longer than a prompt may be."""
    asked = paraphrase_instructions(config, originals, text)
    limit, encoder = text.task.max_prompt_tokens, text.encoder
    found: list[Prompt | None] = []
    for start in range(0, len(asked), SAMPLING_BATCH_SIZE):
        part = originals[start : start + SAMPLING_BATCH_SIZE]
        seeds = [response_seed("paraphrase", seed, prompt.id) for prompt in part]
        written = teacher.sample(asked[start : start + SAMPLING_BATCH_SIZE], seeds, limit, 1.0)
        for prompt, token_ids in zip(part, written, strict=True):
            words = str(text.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()
            framed = encoder.prompt(words)
            fits = words and len(framed) <= limit
            new = dataclasses.replace(prompt, id=f"{prompt.id}-paraphrase", text=words, token_ids=framed)
            found.append(new if fits else None)
    return found


def _near(group: Sequence[Prompt | None], held_out_texts: Sequence[str]) -> set[int]:
    """Places of the group's prompts that are near-duplicates of a held-out text."""
    places = [place for place, prompt in enumerate(group) if prompt is not None]
    texts = [*held_out_texts, *(prompt.text for prompt in group if prompt is not None)]
    labels = [True] * len(held_out_texts) + [False] * len(places)
    return {places[i - len(held_out_texts)] for i, _ in near_duplicates(texts, labels)}


def _falls(
    pairs: Sequence[tuple[Prompt, Prompt]], teacher: LanguageModel, max_response_tokens: int, seed: int
) -> np.ndarray:
    """Nats per token by which the response to each original is less likely under its new prompt."""
    response_of: dict[str, tuple[int, ...]] = {}
    originals = list({original.id: original for original, _ in pairs}.values())
    for start in range(0, len(originals), SAMPLING_BATCH_SIZE):
        part = originals[start : start + SAMPLING_BATCH_SIZE]
        seeds = [response_seed("augmentation", seed, prompt.id) for prompt in part]
        written = teacher.sample([prompt.token_ids for prompt in part], seeds, max_response_tokens, 1.0)
        response_of |= {prompt.id: ids for prompt, ids in zip(part, written, strict=True)}
    responses = [response_of[original.id] for original, _ in pairs]
    before, after = (
        _log_likelihood(teacher, Batch([p.token_ids for p in side], responses))
        for side in (([o for o, _ in pairs]), ([n for _, n in pairs]))
    )
    return before - after


def _log_likelihood(model: LanguageModel, batch: Batch) -> np.ndarray:
    """Mean over a response's tokens of log p, in nats; one value for each sequence."""
    found = np.zeros(len(batch))
    for rows, part in by_length(batch):
        found[rows] = [-float(values.mean()) for values in token_nll(model, part).double().split(part.lengths)]
    return found
