"""The embedded text: what a prompt looks like, and that near-duplicates never straddle two splits."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from importlib import resources

import pytest

from assay.data.tasks import SPLITS, TASKS, Task, corpus_digest, corpus_rows, get_task, load_prompts, prompt_text
from assay.errors import AssayError
from assay.models.loading import load_tokenizer

TASK = TASKS["define"]


def test_no_lemma_and_no_gloss_is_in_two_splits_however_it_is_spelled() -> None:
    splits_of: dict[str, set[str]] = {}
    for row in corpus_rows(TASK):
        for key in [f"lemma:{lemma}" for lemma in row["lemmas"].split(", ")] + [f"gloss:{row['gloss']}"]:
            splits_of.setdefault("".join(filter(str.isalnum, key.casefold())), set()).add(row["split"])
    assert len(splits_of) > 200_000
    assert [key for key, splits in splits_of.items() if len(splits) > 1] == []


def test_glosses_that_are_nearly_alike_across_splits_are_few() -> None:
    """What a key cannot see, such as the 11th and the 28th president: a stated limit of the splits."""
    words = {split: [set(r["gloss"].split()) for r in corpus_rows(TASK) if r["split"] == split] for split in SPLITS}
    held_out = words["held_out"][::20]
    by_word: dict[str, list[set[str]]] = {}
    for gloss in words["distillation"]:
        for word in gloss:
            by_word.setdefault(word, []).append(gloss)
    alike = 0
    for gloss in held_out:
        rarest = min(gloss, key=lambda word: len(by_word.get(word, ())))
        near = (
            other
            for word in gloss
            if word == rarest or len(by_word.get(word, ())) < 200
            for other in by_word.get(word, ())
        )
        alike += any(len(gloss & other) >= 0.7 * len(gloss | other) for other in near)
    assert alike < 0.06 * len(held_out)


def test_the_splits_are_four_and_large_enough() -> None:
    sizes = Counter(row["split"] for row in corpus_rows(TASK))
    assert set(sizes) == set(SPLITS)
    assert sizes["base"] > 60_000
    assert min(sizes["oracle"], sizes["distillation"]) > 15_000
    assert sizes["held_out"] > 6_000


def test_the_corpus_is_small_and_carries_its_notice() -> None:
    corpora = resources.files("assay.data.corpora")
    assert len(corpora.joinpath(TASK.corpus).read_bytes()) < 3_000_000
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in corpora.joinpath("define.LICENSE.txt").read_text()


def test_prompts_read_as_the_template_says_and_fit() -> None:
    tokenizer = load_tokenizer("define-oracle")
    prompts = load_prompts(TASK, "held_out", tokenizer, 16, 24, num_prompts=300)
    assert all(re.fullmatch(r"(noun|verb|adjective|adverb): .+:", prompt.text) for prompt in prompts)
    assert all(len(prompt.token_ids) <= 16 and len(prompt.reference_ids) <= 24 for prompt in prompts)
    assert all(tokenizer.decode(prompt.token_ids) == prompt.text for prompt in prompts)
    complete = [p for p in prompts if p.reference_ids[-1] == tokenizer.eos_token_id]
    assert len(complete) > 100
    assert all(tokenizer.decode(p.reference_ids[:-1]) == f" {p.reference}" for p in complete)


def test_a_larger_selection_begins_with_the_smaller_and_a_seed_draws_another() -> None:
    tokenizer = load_tokenizer("define-oracle")
    small = load_prompts(TASK, "distillation", tokenizer, 16, 24, num_prompts=20, seed=1)
    large = load_prompts(TASK, "distillation", tokenizer, 16, 24, num_prompts=50, seed=1)
    other = load_prompts(TASK, "distillation", tokenizer, 16, 24, num_prompts=20, seed=2)
    assert large[:20] == small != other


def test_synonyms_are_dropped_until_the_prompt_fits() -> None:
    row = {"part_of_speech": "noun", "lemmas": "dog, domestic dog, Canis familiaris", "gloss": "", "split": "base"}
    assert prompt_text(TASK, row) == "noun: dog, domestic dog, Canis familiaris:"
    assert prompt_text(TASK, row, 1) == "noun: dog:"


def test_asking_for_too_many_prompts_or_an_unknown_task_is_refused() -> None:
    with pytest.raises(AssayError, match="99999 were asked for"):
        load_prompts(TASK, "held_out", load_tokenizer("define-oracle"), 16, 24, num_prompts=99_999)
    with pytest.raises(AssayError, match="did you mean 'define'"):
        get_task("defin")


def test_the_prompts_that_the_shipped_bases_and_results_rest_on_stay_as_they_are() -> None:
    prompts = load_prompts(TASK, "held_out", load_tokenizer("define-oracle"), 16, 24, num_prompts=100)
    found = repr([(p.id, p.text, p.token_ids, p.reference, p.reference_ids) for p in prompts])
    assert corpus_digest(TASK) == "079f0c8984b90192"
    assert hashlib.sha256(found.encode()).hexdigest()[:32] == "0c32db87d6c1e10260530f3b9545d38d"


@pytest.mark.parametrize("max_prompt_tokens", [6, 9, 16, 33])
def test_the_longest_prompt_that_fits_is_the_one_taken(max_prompt_tokens: int) -> None:
    """Against a count from the longest down; a row of which nothing fits is left out."""
    tokenizer = load_tokenizer("define-oracle")
    prompts = load_prompts(TASK, "oracle", tokenizer, max_prompt_tokens, 24, num_prompts=400)
    shortened = 0
    for prompt in prompts:
        row = corpus_rows(TASK)[int(prompt.id.removeprefix("define-"))]
        texts = [prompt_text(TASK, row, num) for num in range(row["lemmas"].count(", ") + 1, 0, -1)]
        lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        assert prompt.text == next(t for t, n in zip(texts, lengths, strict=True) if n <= max_prompt_tokens)
        shortened += prompt.text != texts[0]
    assert shortened > 0


def test_a_template_of_ones_own_shows_columns_of_the_task_but_never_its_answer() -> None:
    tokenizer = load_tokenizer("define-oracle")
    prompts = load_prompts(get_task("define", "{lemmas} ({part_of_speech}) ="), "oracle", tokenizer, 16, 24, 20)
    assert all(re.fullmatch(r".+ \((noun|verb|adjective|adverb)\) =", prompt.text) for prompt in prompts)
    for column, nearest in (
        ("lemma", "lemmas"),
        ("gloss", "lemmas|part_of_speech"),
        ("split", "lemmas|part_of_speech"),
    ):
        with pytest.raises(AssayError, match=f"unknown column in the template .*{column}.*did you mean '({nearest})'"):
            load_prompts(get_task("define", f"{{{column}}}"), "oracle", tokenizer, 16, 24, 1)


@pytest.mark.parametrize("name", sorted(name for name, task in TASKS.items() if task.fetch is None))
def test_every_task_that_ships_has_its_corpus_columns_and_licence(name: str) -> None:
    task: Task = TASKS[name]
    tokenizer = load_tokenizer("define-oracle")
    assert {row["split"] for row in corpus_rows(task)} == set(task.splits)
    end = task.template.rpartition("}")[2]
    for split in ("oracle", "distillation", "held_out"):
        prompts = load_prompts(task, split, tokenizer, 64, 64, num_prompts=100)
        assert all(prompt.reference and len(prompt.token_ids) <= 64 for prompt in prompts)
        assert all(prompt.text.endswith(end) for prompt in prompts)
    assert resources.files("assay.data.corpora").joinpath(f"{name}.LICENSE.txt").read_text()


def test_the_split_that_a_task_does_not_have_is_refused() -> None:
    task = dataclasses.replace(TASK, splits=("oracle", "distillation", "held_out"))
    with pytest.raises(AssayError, match=r"has no split 'base'.*pretrained"):
        load_prompts(task, "base", load_tokenizer("define-oracle"), 16, 24)
