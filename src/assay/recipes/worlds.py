"""The quickstart's experiment in other worlds: three tasks, decoder-only and encoder-decoder models.

The number of prompts of each world was chosen on seed 100 so that an arm shows what it shows within minutes;
docs/log.md says what was tried. ``quickstart`` is the sixth world: define, decoder-only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from assay.config import Experiment, ModelsConfig, TaskConfig
from assay.models.bases import TEXTS, Family, base_name
from assay.recipes.quickstart import quickstart


def define_seq2seq() -> Experiment:
    """Offline against online on the task `define`, with encoder-decoder models (mBART)."""
    return _world("define", "seq2seq", define_seq2seq, num_prompts=192)


def translate_causal() -> Experiment:
    """Offline against online on the task `translate` (English to Spanish), with decoder-only models."""
    return _world("translate", "causal", translate_causal, num_prompts=128)


def translate_seq2seq() -> Experiment:
    """Offline against online on the task `translate` (English to Spanish), with encoder-decoder models (mBART)."""
    return _world("translate", "seq2seq", translate_seq2seq, num_prompts=128)


def summarize_causal() -> Experiment:
    """Offline against online on the task `summarize` (docstring to summary line), with decoder-only models."""
    return _world("summarize", "causal", summarize_causal, num_prompts=96)


def summarize_seq2seq() -> Experiment:
    """Offline against online on the task `summarize` (docstring to its first line), with encoder-decoder models."""
    return _world("summarize", "seq2seq", summarize_seq2seq, num_prompts=96)


WORLDS = (define_seq2seq, translate_causal, translate_seq2seq, summarize_causal, summarize_seq2seq)


def _world(task: str, family: Family, recipe: Callable[[], Experiment], num_prompts: int) -> Experiment:
    experiment, text = quickstart(), TEXTS[task]
    return dataclasses.replace(
        experiment,
        recipe=recipe.__name__,
        task=TaskConfig(task, max_prompt_tokens=text.max_prompt_tokens, max_response_tokens=text.max_response_tokens),
        models=ModelsConfig(
            oracle=base_name(task, family, "oracle"),
            teacher=base_name(task, family, "teacher"),
            student=base_name(task, family, "student"),
        ),
        distillation=dataclasses.replace(experiment.distillation, num_prompts=num_prompts),
    )
