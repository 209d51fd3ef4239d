"""Making the embedded bases from the *base* split: tokenizer, then one model after the other, resumable."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from assay import runs
from assay.checkpoints import FitState, save_model
from assay.config import SourceConfig, TrainingConfig
from assay.data.sources import Mixture, ResponseSource
from assay.data.tasks import corpus_rows, get_task, load_prompts, prompt_text
from assay.models import bases
from assay.models.causal import CausalModel
from assay.models.pretrained import PretrainedModel
from assay.models.seq2seq import Seq2SeqModel
from assay.training import fit

BATCH_SIZE = 64


def build_tokenizer(task_name: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the task's base split; deterministic."""
    task = get_task(task_name)
    rows = [row for row in corpus_rows(task) if row["split"] == "base"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        (f"{prompt_text(task, row)} {row[task.reference]}" for row in rows),
        vocab_size=bases.TEXTS[task_name].vocab_size,
        special_tokens=[bases.END_OF_TEXT, bases.PAD],
        show_progress=False,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=bases.END_OF_TEXT,
        eos_token=bases.END_OF_TEXT,
        pad_token=bases.PAD,
    )


def new_model(base: bases.Base) -> PretrainedModel:
    """The untrained model of a base, its weights drawn with the base's seed; no dropout, tied embeddings."""
    torch.manual_seed(base.seed)
    vocab_size, num_heads = bases.TEXTS[base.task].vocab_size, base.hidden_size // bases.HEAD_SIZE
    if base.family == "seq2seq":
        config = MBartConfig(
            vocab_size=vocab_size,
            d_model=base.hidden_size,
            encoder_layers=base.num_layers,
            decoder_layers=base.num_layers,
            encoder_attention_heads=num_heads,
            decoder_attention_heads=num_heads,
            encoder_ffn_dim=4 * base.hidden_size,
            decoder_ffn_dim=4 * base.hidden_size,
            max_position_embeddings=bases.MAX_CONTEXT_TOKENS,
            dropout=0.0,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
            forced_eos_token_id=None,
        )
        config.decoder_start_token_id = 0
        return Seq2SeqModel(MBartForConditionalGeneration(config), base.name)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=bases.MAX_CONTEXT_TOKENS,
        n_embd=base.hidden_size,
        n_layer=base.num_layers,
        n_head=num_heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return CausalModel(GPT2LMHeadModel(config), base.name)


def build_base(base: bases.Base, out: Path, progress: Callable[[str], None]) -> Path:
    """Trains one base and writes its checkpoint (half precision) and card into ``out``; kept if it is there.

    Interrupted, it goes on from its last checkpoint in ``out/unfinished``.
    """
    path = out / base.name
    if path.exists():
        return path
    tokenizer = build_tokenizer(base.task)
    limits = bases.TEXTS[base.task]
    prompts = load_prompts(get_task(base.task), "base", tokenizer, limits.max_prompt_tokens, limits.max_response_tokens)
    model = new_model(base)
    source = ResponseSource(
        SourceConfig("dataset"),
        prompts,
        {"teacher": model},
        max_response_tokens=limits.max_response_tokens,
        seed=base.seed,
        signal=False,
    )
    config = TrainingConfig(
        num_steps=round(base.epochs * len(prompts) / BATCH_SIZE),
        batch_size=BATCH_SIZE,
        learning_rate=base.learning_rate,
        warmup_steps=50,
        schedule="cosine",
        divergence="hard_labels",
        checkpoint_every=100,
    )

    def report(state: FitState) -> None:
        if state.step % 50 == 0:
            recent = state.losses[-50:]
            loss = sum(recent) / len(recent) if recent else float("nan")
            progress(f"{base.name}: step {state.step}/{config.num_steps}, loss {loss:.3f} nats/token")

    started = time.perf_counter()
    state = fit(
        model, Mixture([source], BATCH_SIZE), config, before_step=report, checkpoints=out / "unfinished" / base.name
    )
    model.module.half()
    digest = type(model)(copy.deepcopy(model.module).float(), base.name).digest  # as it will be loaded
    card = {
        "name": base.name,
        "task": base.task,
        "family": base.family,
        "split": "base",
        "num_prompts": len(prompts),
        "num_parameters": sum(p.numel() for p in model.module.parameters()),
        "num_steps": config.num_steps,
        "batch_size": BATCH_SIZE,
        "epochs": base.epochs,
        "learning_rate": base.learning_rate,
        "seed": base.seed,
        "final_loss_nats_per_token": round(sum(state.losses[-100:]) / len(state.losses[-100:]), 4),
        "digest": digest,
        "licence": get_task(base.task).licence,
        "seconds_on_one_core": round(time.perf_counter() - started),
    }

    def write(temporary: Path) -> None:
        save_model(model, temporary)
        tokenizer.save_pretrained(temporary)
        runs.write_json(temporary / "card.json", card)

    runs.write_atomically(path, write)
    return path


def build_bases(names: Sequence[str], out: Path, progress: Callable[[str], None]) -> None:
    """Builds the named bases in ``out`` with one thread, and says whether each equals the one that ships."""
    torch.set_num_threads(1)
    for name in names:
        bases.base_path(name)  # an unknown name is refused before anything is built
    for name in names:
        built = runs.read_json(build_base(bases.BASES[name], out, progress) / "card.json")["digest"]
        shipped = bases.base_path(name) / "card.json"
        if not shipped.exists():
            progress(f"{name}: {built}; none ships yet")
            continue
        digest = runs.read_json(shipped)["digest"]
        same = "the same weights as" if built == digest else f"other weights ({built}) than"
        progress(f"{name}: {same} the base that ships ({digest})")
