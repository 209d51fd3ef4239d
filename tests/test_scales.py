"""The large scales: valid as they stand, and run on stand-ins by the very code path that they would take."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from assay import run_experiment, runs
from assay.checkpoints import save_model
from assay.config import Experiment, to_dict
from assay.config_file import from_dict
from assay.data.hub import HUB, split_rows
from assay.data.splitting import SHARES
from assay.data.tasks import TASKS, corpus_rows, fetch_corpus, get_task
from assay.forecast import forecast
from assay.models.bases import END_OF_TEXT, PAD
from assay.models.causal import CausalModel
from assay.models.loading import load_tokenizer
from assay.models.pretrained import PretrainedModel
from assay.models.seq2seq import Seq2SeqModel
from assay.recipes.scales import SCALES, paper_xsum, small_xsum_gpt2, small_xsum_t5
from assay.validation import validate

EVERYTHING = [(scale, world) for scale, worlds in SCALES.items() for world in worlds]
TRAIN_ROWS = {"xsum": 204_045, "wmt14-de-en": 300_000, "natural-instructions": 400_000}
"""Rows that a fetch reads: all of XSum's train split, else what hub.py says."""


@pytest.mark.parametrize(("scale", "world"), EVERYTHING)
def test_every_world_is_a_valid_config_under_its_own_name(scale: str, world: str) -> None:
    experiment = SCALES[scale][world]()
    validate(experiment)
    assert experiment.recipe == f"{scale}_{world}" == SCALES[scale][world].__name__
    assert from_dict(to_dict(experiment)) == experiment
    assert experiment.models.device == "cuda"
    assert experiment.distillation.training.precision == "bfloat16"


@pytest.mark.parametrize(("scale", "world"), EVERYTHING)
def test_every_world_fits_into_its_task(scale: str, world: str) -> None:
    """With a 2 % margin for repeats and joined groups; that a data set has this many rows is not tested here."""
    experiment = SCALES[scale][world]()
    dataset = HUB[experiment.task.name]
    num_train = TRAIN_ROWS[experiment.task.name]
    assert num_train <= dataset.num_train
    assert experiment.stage_one.num_oracle_prompts < 0.98 * dataset.oracle_share * num_train
    assert experiment.distillation.num_prompts < 0.98 * (1 - dataset.oracle_share) * num_train
    assert experiment.probe.num_prompts < dataset.num_held_out / 2


@pytest.mark.parametrize("world", sorted(SCALES["paper"]))
def test_the_paper_is_repeated_where_it_is_known(world: str) -> None:
    experiment = SCALES["paper"][world]()
    training = experiment.distillation.training
    assert (training.num_steps * training.batch_size, training.batch_size) == (12_500_000, 32)
    assert (training.learning_rate, training.warmup_steps, training.schedule) == (3e-4, 100, "constant")
    assert (experiment.task.max_prompt_tokens, experiment.task.max_response_tokens) == (1024, 128)
    assert [arm.name for arm in experiment.arms] == ["offline", "online_teacher", "online_student"]
    expected = 170_000 if world == "xsum" else 200_000
    assert experiment.distillation.num_prompts == expected


# --- stand-ins


def stand_ins(folder: Path, make: Callable[[int, str], PretrainedModel]) -> dict[str, str]:
    """Random models of three sizes with a real tokenizer, in checkpoint folders."""
    tokenizer = load_tokenizer("define-oracle")
    names = {}
    for width, role in ((32, "oracle"), (24, "teacher"), (16, "student")):
        save_model(make(width, role), folder / role, tokenizer)
        names[role] = str(folder / role)
    return names


def tiny_t5(width: int, role: str) -> PretrainedModel:
    """A T5; as the oracle one of version 1.1 as Flan-T5 is: gated, its head not tied."""
    tokenizer = load_tokenizer("define-oracle")
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in (("eos", END_OF_TEXT), ("pad", PAD))}
    torch.manual_seed(width)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
        eos_token_id=ids["eos"],
        pad_token_id=ids["pad"],
        decoder_start_token_id=ids["pad"],
        feed_forward_proj="gated-gelu" if role == "oracle" else "relu",
    )
    module: Any = T5ForConditionalGeneration(config)
    if role == "oracle":
        module.lm_head.weight = torch.nn.Parameter(torch.randn_like(module.lm_head.weight))
    return Seq2SeqModel(module.eval(), role)


def tiny_gpt2(width: int, role: str) -> PretrainedModel:
    tokenizer = load_tokenizer("define-oracle")
    torch.manual_seed(width)
    eos = int(tokenizer.convert_tokens_to_ids(END_OF_TEXT))  # type: ignore[arg-type]
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=width, n_layer=1, n_head=2, bos_token_id=eos, eos_token_id=eos
    )
    return CausalModel(GPT2LMHeadModel(config).eval(), role)


def shrunk(experiment: Experiment, models: Mapping[str, str], task: str | None = None) -> Experiment:
    """The same experiment with smaller counts, other models, on a processor."""
    training = dataclasses.replace(experiment.distillation.training, num_steps=5, batch_size=8, warmup_steps=2)
    if training.num_micro_batches > 4:
        training = dataclasses.replace(training, num_micro_batches=4)
    return dataclasses.replace(
        experiment,
        task=dataclasses.replace(
            experiment.task, name=task or experiment.task.name, max_prompt_tokens=40, max_response_tokens=12
        ),
        models=dataclasses.replace(experiment.models, **models, device="cpu"),
        stage_one=dataclasses.replace(experiment.stage_one, num_oracle_prompts=32, warmup_steps=2),
        distillation=dataclasses.replace(experiment.distillation, num_prompts=24, training=training),
        probe=dataclasses.replace(
            experiment.probe, num_prompts=16, num_train_pairs=8, num_monitored=8, num_evaluations=4
        ),
    )


def check_run(experiment: Experiment, folder: Path) -> None:
    """Runs it, and holds its files against the forecast."""
    run_experiment(experiment, folder)
    summary = runs.read_json(folder / "summary.json")
    assert [arm["source"] for arm in summary["arms"]] == ["offline", "online_teacher", "online_student"]
    assert summary["task"] == experiment.task.name
    assert all(arm["golden"]["final"] != arm["golden"]["initial"] for arm in summary["arms"])
    for arm, bound in zip(summary["arms"], forecast(experiment).arms, strict=True):
        assert arm["generated_tokens"] <= bound.generated_tokens
        assert arm["teacher_tokens"] <= bound.teacher_tokens


@pytest.fixture
def xsum_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task ``xsum`` with embedded text in the place of the hub's, through the hub's own rows and splits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # worker processes inherit it
    texts = list(corpus_rows(get_task("summarize")))[:400]
    examples = [{"document": row["body"], "summary": row["summary"], "id": str(i)} for i, row in enumerate(texts)]

    def fetch() -> tuple[list[dict[str, str]], dict[str, Any]]:
        return split_rows(HUB["xsum"], examples[:320], examples[320:]), {}

    fetch_corpus(dataclasses.replace(TASKS["xsum"], fetch=fetch))
    sizes = Counter(row["split"] for row in corpus_rows(get_task("xsum")))
    assert set(sizes) == set(SHARES)


@pytest.mark.usefixtures("xsum_in_the_cache")
@pytest.mark.slow
def test_the_papers_path_runs_on_stand_ins(tmp_path: Path) -> None:
    """Three T5s of two versions, bfloat16, micro-batches, the task xsum: all but the sizes is the paper's."""
    check_run(shrunk(paper_xsum(), stand_ins(tmp_path / "models", tiny_t5)), tmp_path / "run")


@pytest.mark.slow
def test_the_small_gpt2_path_runs_on_stand_ins(tmp_path: Path) -> None:
    check_run(shrunk(small_xsum_gpt2(), stand_ins(tmp_path / "models", tiny_gpt2), "summarize"), tmp_path / "run")


def test_the_small_t5_world_differs_from_the_gpt2_one_in_models_and_lengths_alone() -> None:
    first, second = small_xsum_gpt2(), small_xsum_t5()
    assert dataclasses.replace(second, recipe=first.recipe, models=first.models, task=first.task) == first
