"""`assay distill` and `assay lab` on checkpoints of many architectures: tied and untied heads, padded vocabularies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MT5Config,
    Qwen3Config,
    T5Config,
)

from assay import runs
from assay.config import Experiment
from assay.data.tasks import corpus_rows, get_task
from assay.models.loading import _family, load_model, load_tokenizer
from assay.recipes.own import Distill, Lab, filled
from assay.workspace import survey
from runs_in_process import run_in_process

TOKENIZER_IDS = 512
_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_T5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
_ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
ARCHITECTURES: dict[str, Callable[[int, bool], Any]] = {
    "gpt2": lambda v, tied: GPT2Config(
        vocab_size=v,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        tie_word_embeddings=tied,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **_ENDS,
    ),
    "llama": lambda v, tied: LlamaConfig(vocab_size=v, tie_word_embeddings=tied, **_SMALL, **_ENDS),
    "qwen3": lambda v, tied: Qwen3Config(vocab_size=v, tie_word_embeddings=tied, **_SMALL, **_ENDS),
    "gemma2": lambda v, tied: Gemma2Config(
        vocab_size=v,
        tie_word_embeddings=tied,
        final_logit_softcapping=2.0,
        sliding_window=8,
        attn_logit_softcapping=1.0,
        query_pre_attn_scalar=8,
        **_SMALL,
        **_ENDS,
    ),
    "t5": lambda v, tied: (T5Config if tied else MT5Config)(
        vocab_size=v, decoder_start_token_id=1, eos_token_id=0, pad_token_id=1, **_T5
    ),
}


def checkpoint(folder: Path, architecture: str, vocab_size: int, tied: bool, seed: int) -> str:
    """A random model on disk, as a user has one, with the tokenizer of an embedded base."""
    torch.manual_seed(seed)
    config = ARCHITECTURES[architecture](vocab_size, tied)
    _, auto_class = _family(config)
    auto_class.from_config(config).save_pretrained(folder)
    load_tokenizer("define-student").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row for row in corpus_rows(get_task("define")) if row["split"] == "distillation"][:300]
    lines = [json.dumps({"prompt": row["lemmas"].split(", ")[0], "reference": row["gloss"]}) for row in rows]
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tiny(experiment: Experiment) -> Experiment:
    """The same on few prompts and steps."""
    training = dataclasses.replace(experiment.distillation.training, num_steps=3, batch_size=8, learning_rate=1e-3)
    return dataclasses.replace(
        experiment,
        stage_one=dataclasses.replace(experiment.stage_one, num_oracle_prompts=32, batch_size=16, teacher_epochs=1.0),
        distillation=dataclasses.replace(experiment.distillation, num_prompts=16, training=training),
        probe=dataclasses.replace(
            experiment.probe, num_prompts=16, num_monitored=8, num_train_pairs=8, num_shown=2, num_evaluations=4
        ),
    )


@pytest.mark.parametrize(
    ("architecture", "teacher_is_tied"),
    [
        pytest.param(name, tied, marks=[] if tied == (name in ("gpt2", "qwen3", "t5")) else [pytest.mark.slow])
        for name in ARCHITECTURES
        for tied in (True, False)
    ],
)
def test_distill_and_lab_run_on_padded_checkpoints(
    architecture: str, teacher_is_tied: bool, prompts: Path, tmp_path: Path
) -> None:
    """Vocabularies of 512, 520 and 516 rows over one tokenizer of 512 ids; teacher and student of unlike heads."""
    oracle = checkpoint(tmp_path / "oracle", architecture, TOKENIZER_IDS, True, 0)
    teacher = checkpoint(tmp_path / "teacher", architecture, 520, teacher_is_tied, 1)
    student = checkpoint(tmp_path / "student", architecture, 516, not teacher_is_tied, 2)
    limits = {"max_prompt_tokens": 12, "max_response_tokens": 8}
    for wish in (
        Distill(teacher=teacher, student=student, prompts=str(prompts), source="online_student", **limits),
        Lab(oracle=oracle, teacher=teacher, student=student, prompts=str(prompts), **limits),
    ):
        draft = wish.draft()
        experiment = tiny(filled(wish, draft, survey(draft)))
        folder = tmp_path / experiment.recipe
        run_in_process(experiment, folder)
        summary = runs.read_json(folder / "summary.json")
        assert summary["truth"] == ("references" if experiment.recipe == "distill" else "oracle")
        for arm in summary["arms"]:
            assert arm["train_proxy"]["final"] > 0
            best = folder / "arms" / arm["source"] / "best"
            assert AutoConfig.from_pretrained(best).model_type == AutoConfig.from_pretrained(student).model_type
            assert load_model(str(best)).vocab_size == 516, "weights are saved whole"
            assert json.loads((best / "config.json").read_text())["architectures"] == [
                type(load_model(student).module).__name__
            ]
