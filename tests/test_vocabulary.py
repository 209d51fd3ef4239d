"""One vocabulary for models with unlike padding: laws cut to the tokenizer's ids, weights left whole."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from assay.buckets import resolved
from assay.checkpoints import save_model
from assay.config import Experiment, ModelsConfig, TaskConfig, TrainingConfig
from assay.data.sources import one_hot
from assay.errors import AssayError
from assay.frozen_set import FrozenSet
from assay.models.cached import CachedLogProbs
from assay.models.causal import CausalModel
from assay.models.ensemble import Ensemble
from assay.models.loading import load_model, load_tokenizer, num_token_ids, random_model
from assay.models.pretrained import PretrainedModel
from assay.preconditions import check_models
from assay.training import distillation_loss, train_step
from assay.types import Batch, Dense, Prompt, Response
from assay.workspace import Workspace
from tiny_models import bart, cut, gemma2, gpt2, llama, qwen3, t5

NUM_IDS = 150
PADDED: dict[str, Callable[[], PretrainedModel]] = {
    "gpt2": lambda: gpt2(3, vocab_size=152),
    "llama": lambda: llama(3, vocab_size=152),
    "qwen3": lambda: qwen3(3, vocab_size=152),
    "gemma2": lambda: gemma2(3, vocab_size=152),
    "t5": lambda: t5(3, vocab_size=152),
    "bart": lambda: bart(3, vocab_size=152),
}
BATCH = Batch([(5, 2), (7, 3, 9, 4), (6,)], [(3, 140, 0), (6, 8), (149,)])


@torch.no_grad()
def renormalised(model: PretrainedModel, batch: Batch) -> Tensor:
    """The whole model's law in float64, divided by what lies on the kept ids."""
    whole = copy.deepcopy(model)
    whole.module.double()
    whole.vocab_size = int(whole.module.get_output_embeddings().weight.shape[0])  # type: ignore[union-attr]
    p_NV = whole._logits(whole.hidden(batch)).softmax(-1)[:, :NUM_IDS]
    return (p_NV / p_NV.sum(-1, keepdim=True)).log()


@pytest.mark.parametrize("family", PADDED)
def test_a_cut_law_is_the_whole_law_renormalised_over_the_kept_ids(family: str) -> None:
    whole = PADDED[family]()
    model = cut(whole, NUM_IDS)
    expected = renormalised(whole, BATCH)
    assert model.log_probs(BATCH).shape == (6, NUM_IDS)
    assert torch.allclose(model.log_probs(BATCH).double(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whole.log_probs(BATCH)[:, :NUM_IDS].double(), expected, atol=1e-2)
    assert torch.allclose(model.head(model.hidden(BATCH)).double(), expected, rtol=1e-5, atol=1e-5)
    cache = CachedLogProbs(model)
    for cache.kind in ("log_probs", "hidden"):
        signal = resolved(cache.signal(cache.compute(BATCH)))
        assert isinstance(signal, Dense)
        assert torch.allclose(signal.log_p_NV.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", PADDED)
def test_no_cut_id_is_ever_sampled(family: str) -> None:
    whole = PADDED[family]()
    model = cut(whole, NUM_IDS)
    prompts, seeds = [(5, 2), (7, 3, 9)] * 100, list(range(200))
    assert max(t for r in whole.sample(prompts, seeds, 5) for t in r) >= NUM_IDS
    for temperature in (1.0, 3.0, 0.0):
        assert max(t for r in model.sample(prompts, seeds, 5, temperature) for t in r) < NUM_IDS


def test_the_mean_of_cut_laws_is_a_cut_law() -> None:
    wholes = [gpt2(1, vocab_size=152), gpt2(2, vocab_size=155)]
    ensemble = Ensemble([cut(whole, NUM_IDS) for whole in wholes], "both")
    expected = torch.stack([renormalised(whole, BATCH).exp() for whole in wholes]).mean(0)
    assert ensemble.vocab_size == NUM_IDS
    assert torch.allclose(ensemble.log_probs(BATCH).exp().double(), expected, atol=1e-6)
    assert max(t for r in ensemble.sample([(5, 2)] * 100, range(100), 5) for t in r) < NUM_IDS


def test_weights_and_digest_stay_those_of_the_whole_model(tmp_path: Path) -> None:
    whole = gpt2(3, vocab_size=152)
    model = cut(whole, NUM_IDS)
    assert model.digest == whole.digest
    save_model(model, tmp_path / "kept")
    assert load_model(str(tmp_path / "kept")).vocab_size == 152
    assert load_model(str(tmp_path / "kept")).digest == whole.digest
    again = load_model(str(tmp_path / "kept"), vocab_size=NUM_IDS)
    assert torch.equal(again.log_probs(BATCH), model.log_probs(BATCH))
    assert random_model(str(tmp_path / "kept"), 1, vocab_size=NUM_IDS).vocab_size == NUM_IDS


def test_a_cut_beyond_the_models_rows_or_before_its_end_token_is_refused() -> None:
    with pytest.raises(AssayError, match=r"predicts 23 tokens.*no law over the first 24"):
        CausalModel(gpt2().module, "small", vocab_size=24)
    with pytest.raises(AssayError, match=r"no law over the first 0"):
        CausalModel(gpt2().module, "small", vocab_size=0)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "hard_labels"])
def test_a_teacher_of_152_rows_teaches_a_student_of_151(divergence: str) -> None:
    """Loss against float64, then steps that bring the student's cut law to the teacher's."""
    teacher, whole = cut(gpt2(1, vocab_size=152), NUM_IDS), llama(2, vocab_size=151)
    student = cut(whole, NUM_IDS)
    config = TrainingConfig(divergence=divergence, warmup_steps=0, learning_rate=3e-3)
    with torch.no_grad():
        batch = Batch(BATCH.prompt_ids, BATCH.response_ids, Dense(teacher.log_probs(BATCH)))
    log_p, log_q = renormalised(teacher, BATCH), renormalised(whole, BATCH)
    expected = {
        "forward_kl": (log_p.exp() * (log_p - log_q)).sum(),
        "reverse_kl": (log_q.exp() * (log_q - log_p)).sum(),
        "hard_labels": -sum(row[t] for row, t in zip(log_q, (3, 140, 0, 6, 8, 149), strict=True)),
    }[divergence]
    assert distillation_loss(student, batch, config).item() == pytest.approx(float(expected), rel=1e-5)
    optimizer = AdamW(student.module.parameters(), lr=3e-3)
    losses = [train_step(student, optimizer, batch, step, config) for step in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    frozen = FrozenSet("golden", [Prompt("a", "", (5, 2))], [Response("a", (3, 0), "teacher", False)], teacher)
    assert frozen.against(student)[0].value_nats > 0
    assert one_hot(BATCH, teacher).log_p_NV.shape == (6, NUM_IDS)


def word_tokenizer() -> PreTrainedTokenizerBase:
    words = ["<end>", "<unk>", *(f"w{i}" for i in range(NUM_IDS - 2))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unk>")


def test_the_ids_of_a_tokenizer_are_counted_by_the_largest() -> None:
    assert num_token_ids(word_tokenizer()) == NUM_IDS
    tokenizer = load_tokenizer("define-oracle")
    assert num_token_ids(tokenizer) == 512
    tokenizer.add_tokens(["<another>"])
    assert num_token_ids(tokenizer) == 513


def padded_base(name: str, folder: Path, num_rows: int) -> str:
    """An embedded base with rows that its tokenizer has no ids for, and mass on them."""
    model = load_model(f"define-{name}")
    torch.manual_seed(num_rows)
    module = model.module
    module.resize_token_embeddings(num_rows, mean_resizing=False)
    save_model(type(model)(module, name), folder / name, load_tokenizer("define-oracle"))
    return str(folder / name)


@pytest.fixture
def padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    models = ModelsConfig(
        oracle=padded_base("oracle", tmp_path, 512),
        teacher=padded_base("teacher", tmp_path, 520),
        student=padded_base("student", tmp_path, 516),
        vocabulary="shared",
    )
    return Experiment(task=TaskConfig("define"), models=models)


def test_all_roles_of_a_run_agree_on_one_vocabulary(padded: Experiment, tmp_path: Path) -> None:
    digests = check_models(padded, tmp_path / "run", lambda _: None)
    work = Workspace(padded, tmp_path / "run")
    batch = Batch([(15, 12)], [(13, 140, 0)])
    for role in ("oracle", "teacher", "student"):
        model, bare = work.base(role), load_model(f"define-{role}")
        assert (model.vocab_size, model.eos_token_id) == (512, 0)
        assert model.digest == digests[role]
        assert torch.allclose(model.log_probs(batch), bare.log_probs(batch), atol=1e-5)
        save_model(model, work.stage_one / role)
        tuned = work.tuned(role)
        assert torch.equal(tuned.log_probs(batch), model.log_probs(batch))
    assert work.student().vocab_size == 512
    drawn = dataclasses.replace(padded.models, student_initialisation="random")
    assert Workspace(dataclasses.replace(padded, models=drawn), tmp_path).base("student").vocab_size == 512


def test_unequal_vocabularies_are_refused_unless_told_that_they_are_shared(padded: Experiment, tmp_path: Path) -> None:
    same = dataclasses.replace(padded, models=dataclasses.replace(padded.models, vocabulary="same"))
    with pytest.raises(AssayError, match=r"512 tokens and .*520.*models\.vocabulary to 'shared'"):
        check_models(same, tmp_path / "run", lambda _: None)


def test_ids_that_nothing_proves_equal_are_not_cut(padded: Experiment, tmp_path: Path) -> None:
    for path in (tmp_path / "student").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(AssayError, match="ships no tokenizer, so nothing proves"):
        check_models(padded, tmp_path / "run", lambda _: None)
    word_tokenizer().save_pretrained(tmp_path / "student")
    with pytest.raises(AssayError, match="tokens other ids than the oracle's"):
        check_models(padded, tmp_path / "run", lambda _: None)


def test_a_student_that_does_not_know_the_runs_end_token_is_refused(padded: Experiment, tmp_path: Path) -> None:
    """A base student beside a teacher that was taught to end its turns."""
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    (tmp_path / "student" / "config.json").write_text(json.dumps(config | {"eos_token_id": 301}))
    (tmp_path / "student" / "generation_config.json").unlink()
    with pytest.raises(AssayError, match=r"ends sequences with token 0, but .*student' with \[301\]"):
        check_models(padded, tmp_path / "run", lambda _: None)
    (tmp_path / "student" / "config.json").write_text(json.dumps(config | {"eos_token_id": [301, 0]}))
    check_models(padded, tmp_path / "run", lambda _: None)


def test_a_run_reads_pickles_and_foreign_code_where_its_config_says_so(padded: Experiment, tmp_path: Path) -> None:
    student = tmp_path / "student"
    torch.save(load_file(student / "model.safetensors"), student / "pytorch_model.bin")
    (student / "model.safetensors").unlink()
    for role in ("oracle", "student"):
        config = json.loads((tmp_path / role / "config.json").read_text())
        auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        (tmp_path / role / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": auto_map}))
        (tmp_path / role / "own.py").write_text(
            "from transformers import GPT2Config, GPT2LMHeadModel\n"
            "class OwnConfig(GPT2Config):\n    model_type = 'own'\n"
            "class OwnModel(GPT2LMHeadModel):\n    config_class = OwnConfig\n"
        )

    def check(**allowed: bool) -> None:
        models = dataclasses.replace(padded.models, **allowed)  # type: ignore[arg-type]
        check_models(dataclasses.replace(padded, models=models), tmp_path / "run", lambda _: None)

    with pytest.raises(AssayError, match=r"Python code in its own repository.*models\.trust_remote_code"):
        check(allow_pickle=True)
    with pytest.raises(AssayError, match=r"safetensors only.*models\.allow_pickle"):
        check(trust_remote_code=True)
    check(allow_pickle=True, trust_remote_code=True)


def test_a_tokenizer_with_more_ids_than_a_model_has_rows_is_refused(padded: Experiment, tmp_path: Path) -> None:
    for name in ("oracle", "teacher", "student"):
        tokenizer = load_tokenizer("define-oracle")
        tokenizer.add_tokens(["<another>"])
        tokenizer.save_pretrained(tmp_path / name)
    with pytest.raises(AssayError, match=r"predicts 512 tokens.*no law over the first 513"):
        check_models(padded, tmp_path / "run", lambda _: None)
