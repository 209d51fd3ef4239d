"""Which prompts a run distils on: selection, new prompts and the check that they belong to the task."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from assay import get_recipe
from assay.config import DistillationConfig, SourceConfig, TaskConfig
from assay.data.augmentation import REASONS, Augmented, Text, augment
from assay.data.distillation_set import choose_prompts, measure_diversity, pool_size, present_pairs
from assay.data.sources import ResponseSource
from assay.data.tasks import get_task, load_prompts
from assay.errors import AssayError
from assay.models.bases import base_name
from assay.models.loading import load_framing, load_model, load_tokenizer
from assay.models.pretrained import PretrainedModel
from assay.recipes.diversity import diversity
from assay.recipes.studies import ALL_WORLDS
from assay.types import Prompt, Response
from assay.validation import validate
from assay.workload import num_new_prompts, num_pairs

OWN = "{part_of_speech}: {lemmas}:"
NAME = base_name("define", "causal", "teacher")


@pytest.fixture(scope="module")
def teacher() -> PretrainedModel:
    return load_model(NAME)


@pytest.fixture(scope="module")
def text() -> Text:
    tokenizer = load_tokenizer(NAME)
    return Text(TaskConfig(), tokenizer, load_framing(NAME, tokenizer))


def prompts_of(text: Text, split: Any, num_prompts: int) -> list[Prompt]:
    limits = text.task.max_prompt_tokens, text.task.max_response_tokens
    return load_prompts(get_task("define"), split, text.tokenizer, *limits, num_prompts, 3, text.framing)


@pytest.fixture(scope="module")
def pool(text: Text) -> list[Prompt]:
    return prompts_of(text, "distillation", 48)


@pytest.fixture(scope="module")
def held_out(text: Text) -> list[Prompt]:
    return prompts_of(text, "held_out", 16)


def templates(*names: str, tolerance: float = 1e9) -> DistillationConfig:
    return DistillationConfig(
        num_prompts=12, augmentation="templates", templates=names, augmentation_tolerance=tolerance
    )


def test_the_default_dials_take_the_first_prompts_as_they_are(
    pool: list[Prompt], held_out: list[Prompt], teacher: PretrainedModel, text: Text
) -> None:
    config = DistillationConfig(num_prompts=12)
    found = choose_prompts(config, pool[: pool_size(config)], held_out, teacher, text, seed=3)
    assert (found.prompts, found.augmented) == (pool[:12], None)
    with_pool = dataclasses.replace(config, num_candidates=48)
    assert choose_prompts(with_pool, pool, held_out, teacher, text, seed=3).prompts == pool[:12]


@pytest.mark.parametrize("selection", ["facility_location", "k_centre"])
def test_a_selection_is_a_part_of_the_pool_in_an_order_of_the_seed(
    selection: Any, pool: list[Prompt], held_out: list[Prompt], teacher: PretrainedModel, text: Text
) -> None:
    config = DistillationConfig(num_prompts=12, num_candidates=48, selection=selection)
    first, again, other = (choose_prompts(config, pool, held_out, teacher, text, seed).prompts for seed in (3, 3, 4))
    assert first == again
    assert len({prompt.id for prompt in first}) == 12
    assert {prompt.id for prompt in first} <= {prompt.id for prompt in pool}
    assert first != other
    assert {prompt.id for prompt in first} == {prompt.id for prompt in other}  # one pool: only the order is drawn
    assert first != pool[:12]


def test_a_template_makes_prompts_with_ids_of_their_own(
    pool: list[Prompt], held_out: list[Prompt], teacher: PretrainedModel, text: Text
) -> None:
    config = templates("{part_of_speech}, {lemmas}:", "{lemmas}:")
    found = augment(config, pool[:12], held_out, teacher, text, seed=3)
    assert found.num_tried == 24
    assert len(found.prompts) + sum(found.dropped.values()) == 24
    assert len({prompt.id for prompt in found.prompts}) == len(found.prompts) > 12
    assert len({prompt.token_ids for prompt in [*pool[:12], *found.prompts]}) == 12 + len(found.prompts)
    by_id = {prompt.id: prompt for prompt in pool}
    for prompt in found.prompts:
        original = by_id[prompt.id.split("-template")[0]]
        assert (prompt.reference, prompt.reference_ids) == (original.reference, original.reference_ids)
        assert prompt.token_ids == text.encoder.prompt(prompt.text)
    whole = choose_prompts(config, pool[:12], held_out, teacher, text, seed=3).prompts
    assert {prompt.id for prompt in whole} == {prompt.id for prompt in [*pool[:12], *found.prompts]}
    assert any("template" in prompt.id for prompt in whole[:12])


def test_the_own_template_makes_nothing_new(
    pool: list[Prompt], held_out: list[Prompt], teacher: PretrainedModel, text: Text
) -> None:
    found = augment(templates(OWN), pool[:12], held_out, teacher, text, seed=3)
    assert found == Augmented([], 12, dict.fromkeys(REASONS, 0) | {"same as another prompt": 12}, None)


def test_the_check_drops_by_the_tolerance_and_no_other_way(
    pool: list[Prompt], held_out: list[Prompt], teacher: PretrainedModel, text: Text
) -> None:
    """Templates that keep the word lose less likelihood than one that hides it, and the tolerance is a threshold."""
    kept = [
        {p.id for p in augment(templates("{lemmas}:", tolerance=t), pool, held_out, teacher, text, 3).prompts}
        for t in (0.0, 0.2, 1e9)
    ]
    assert kept[0] <= kept[1] <= kept[2]
    assert len(kept[0]) < len(kept[2])
    near = augment(templates("{part_of_speech}, {lemmas}:"), pool, held_out, teacher, text, 3)
    blind = augment(templates("{part_of_speech} {{}}:"), pool, held_out, teacher, text, 3)
    assert near.fall_nats_per_token is not None
    assert blind.fall_nats_per_token is not None
    assert blind.fall_nats_per_token > near.fall_nats_per_token


def test_a_new_prompt_near_a_held_out_one_is_dropped(pool: list[Prompt], teacher: PretrainedModel, text: Text) -> None:
    found = augment(templates("{lemmas}:"), pool[:12], pool[:4], teacher, text, seed=3)
    assert found.dropped["near a held-out prompt"] >= 4
    left = {prompt.id.split("-template")[0] for prompt in found.prompts}
    assert not left & {prompt.id for prompt in pool[:4]}


def test_paraphrases_are_checked_too(
    pool: list[Prompt], held_out: list[Prompt], teacher: PretrainedModel, text: Text
) -> None:
    config = DistillationConfig(
        num_prompts=12, augmentation="paraphrases", paraphrase_template="{prompt}", augmentation_tolerance=1e9
    )
    found = augment(config, pool[:12], held_out, teacher, text, seed=3)
    assert found.num_tried == 12
    assert len(found.prompts) + sum(found.dropped.values()) == 12
    assert all(prompt.id.endswith("-paraphrase") and prompt.text.strip() for prompt in found.prompts)
    assert all(len(prompt.token_ids) <= text.task.max_prompt_tokens for prompt in found.prompts)
    assert augment(config, pool[:12], held_out, teacher, text, seed=3) == found


def test_what_cannot_be_made_is_refused(
    pool: list[Prompt], held_out: list[Prompt], teacher: PretrainedModel, text: Text
) -> None:
    for template, words in (("{gloss}", "column"), ("{lemma}:", "lemmas")):
        with pytest.raises(AssayError, match=words):
            augment(templates(template), pool[:2], held_out, teacher, text, seed=3)
    with pytest.raises(AssayError, match="no prompt to augment"):
        augment(templates("{lemmas}:"), [], held_out, teacher, text, seed=3)


def test_pairs_that_a_source_holds_are_measured(
    pool: list[Prompt], held_out: list[Prompt], teacher: PretrainedModel, text: Text
) -> None:
    source = ResponseSource(
        SourceConfig(), pool[:6], {"teacher": teacher}, max_response_tokens=8, completions_per_prompt=2, seed=3
    )
    asked, written = source.stored_pairs(12)
    prompts, responses = present_pairs([source])
    assert (prompts, responses) == (asked, [response.token_ids for response in written])
    answers = [Response(prompt.id, prompt.reference_ids, "teacher", False) for prompt in held_out]
    found = measure_diversity(prompts, responses, held_out, answers, teacher, text.tokenizer)
    assert (found.num_prompts, found.num_pairs) == (6, 12)
    assert 1 < found.vendi_prompts_ngrams <= 6
    assert 1 < found.vendi_pairs_ngrams <= 12
    covered = measure_diversity(prompts, responses, pool[:6], answers[:6], teacher, text.tokenizer)
    assert covered.held_out_distance == pytest.approx(0, abs=1e-6)
    assert found.held_out_distance > 0.01


@pytest.mark.parametrize("name", ALL_WORLDS)
def test_every_variant_of_every_world_is_valid_and_the_first_is_the_world(name: str) -> None:
    world = get_recipe(name)
    variants = diversity(world)
    assert variants["random"].distillation == world.distillation
    for experiment in variants.values():
        validate(experiment)
        assert [arm.name for arm in experiment.arms] == ["offline"]
        most = num_new_prompts(experiment) + world.distillation.num_prompts
        assert num_pairs(experiment, experiment.arms[0].sources[0]) == most * world.distillation.completions_per_prompt
    assert len({str(experiment) for experiment in variants.values()}) == len(variants)


def test_shuffling_leaves_no_trace_of_the_order_of_selection(
    pool: list[Prompt], held_out: list[Prompt], teacher: PretrainedModel, text: Text
) -> None:
    """The train proxy walks on the first pairs: over seeds each chosen prompt is among them about equally often."""
    config = DistillationConfig(num_prompts=8, num_candidates=48, selection="k_centre")
    first = [choose_prompts(config, pool, held_out, teacher, text, seed).prompts[0].id for seed in range(24)]
    assert len(set(first)) >= 5
    assert np.unique(first, return_counts=True)[1].max() <= 10
