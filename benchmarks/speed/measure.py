"""What the scripts of this folder share: the worlds that both sides work in, pairing, rows, and records.

The rules are in README.md, beside this file.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from assay import get_recipe
from assay.config import TrainingConfig
from assay.models.causal import CausalModel
from assay.models.pretrained import PretrainedModel
from assay.models.seq2seq import Seq2SeqModel
from assay.provenance import PACKAGES, processor
from assay.types import Prompt, Response
from assay.workspace import Workspace

EOS, PAD, FIRST_WORD = 0, 1, 2
PEERS = ("trl", "accelerate", "liger_kernel")


@dataclass(frozen=True)
class Row:
    """One line of a table: medians of what was measured, and ratios with one value for each repetition.

    ``aims`` says of a ratio what it should be, as in "≥ 4"; ``note`` what a reader must know about the row.
    """

    name: str
    figures: dict[str, float]
    ratios: dict[str, np.ndarray]
    aims: dict[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class World:
    """Teacher, student and stored pairs for both sides; ``fresh_student`` is a copy to train."""

    name: str
    teacher: PretrainedModel
    student: PretrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    responses: Sequence[Response]
    batch_size: int
    max_response_tokens: int

    def fresh_student(self) -> PretrainedModel:
        """The student with weights of its own."""
        return copy.deepcopy(self.student)

    def training(self, num_steps: int, divergence: str = "forward_kl") -> TrainingConfig:
        """What both sides train with."""
        return TrainingConfig(num_steps, self.batch_size, warmup_steps=0, divergence=divergence)

    def first(self, num_pairs: int, batch_size: int | None = None) -> World:
        """The same with fewer pairs, in smaller batches."""
        prompts, responses = self.prompts[:num_pairs], self.responses[:num_pairs]
        return dataclasses.replace(self, prompts=prompts, responses=responses, batch_size=batch_size or self.batch_size)


@dataclass(frozen=True)
class Sizes:
    """Of a random world: the shapes of its models and the numbers of its pairs."""

    family: str
    vocab_size: int
    student: tuple[int, int]
    teacher: tuple[int, int]
    batch_size: int
    num_pairs: int
    response_tokens: tuple[int, int]
    max_response_tokens: int


SIZES = {
    "V 1k": Sizes("gpt2", 1024, (2, 128), (4, 256), 32, 128, (24, 48), 32),
    "V 32k": Sizes("llama", 32_000, (2, 64), (4, 192), 16, 32, (16, 32), 24),
    "V 152k": Sizes("llama", 151_936, (2, 64), (3, 256), 4, 8, (12, 24), 24),
}
"""The random worlds of the rules."""


def random_world(name: str) -> World:
    """A world of ``SIZES``: models of one seed, random prompts and responses."""
    return world_of(name, SIZES[name])


def world_of(name: str, sizes: Sizes) -> World:
    """Models of these sizes and random pairs."""
    rng = np.random.default_rng(0)
    prompts = random_prompts(sizes.num_pairs, sizes.vocab_size)
    shortest, longest = sizes.response_tokens
    responses = [
        Response(prompt.id, (*random_tokens(rng, length - 1, sizes.vocab_size), EOS), "teacher", truncated=False)
        for prompt, length in zip(prompts, rng.integers(shortest, longest + 1, len(prompts)).tolist(), strict=True)
    ]
    teacher, student = (
        random_model(sizes.family, *shape, sizes.vocab_size) for shape in (sizes.teacher, sizes.student)
    )
    tokenizer = word_tokenizer(sizes.vocab_size)
    return World(name, teacher, student, tokenizer, prompts, responses, sizes.batch_size, sizes.max_response_tokens)


def define_world() -> World:
    """The bases *define* with prompts of their task, and the teacher's own answers."""
    work = quickstart_workspace()
    limit = work.experiment.task.max_response_tokens
    prompts = work.prompts("distillation", work.experiment.distillation.num_prompts)
    teacher = work.base("teacher")
    texts = teacher.sample([prompt.token_ids for prompt in prompts], list(range(len(prompts))), limit)
    responses = [
        Response(prompt.id, text, "teacher", text[-1] != teacher.eos_token_id)
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    batch_size = work.experiment.distillation.training.batch_size
    return World("define", teacher, work.base("student"), work.tokenizer, prompts, responses, batch_size, limit)


def quickstart_workspace() -> Workspace:
    """Prompts and bases of the quickstart: nothing is written."""
    return Workspace(get_recipe("quickstart"), Path())


def random_model(family: str, num_layers: int, width: int, vocab_size: int) -> PretrainedModel:
    """A random GPT-2, Llama or T5 with heads of 32 features, whose head and embeddings are tied."""
    torch.manual_seed(0)
    heads, special = width // 32, {"eos_token_id": EOS, "pad_token_id": PAD}
    if family == "gpt2":
        gpt2 = GPT2Config(
            vocab_size=vocab_size,
            n_positions=512,
            n_embd=width,
            n_layer=num_layers,
            n_head=heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=EOS,
            **special,
        )
        return CausalModel(GPT2LMHeadModel(gpt2).eval(), family)
    if family == "llama":
        llama = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=num_layers,
            num_attention_heads=heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=EOS,
            **special,
        )
        return CausalModel(LlamaForCausalLM(llama).eval(), family)
    t5 = T5Config(
        vocab_size=vocab_size,
        d_model=width,
        d_kv=32,
        d_ff=4 * width,
        num_layers=num_layers,
        num_heads=heads,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        **special,
    )
    return Seq2SeqModel(T5ForConditionalGeneration(t5).eval(), family)


def random_prompts(num_prompts: int, vocab_size: int) -> list[Prompt]:
    """Prompts of 8 to 16 random words, the same ones every time."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(8, 17, num_prompts).tolist()
    token_ids = [random_tokens(rng, length, vocab_size) for length in lengths]
    return [Prompt(str(i), " ".join(f"w{t}" for t in ids), ids) for i, ids in enumerate(token_ids)]


def random_tokens(rng: np.random.Generator, length: int, vocab_size: int) -> tuple[int, ...]:
    """So many words, none of them special."""
    return tuple(rng.integers(FIRST_WORD, vocab_size, length).tolist())


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One word for each token: the text of a random prompt gives its tokens back."""
    words = {"<eos>": EOS, "<pad>": PAD} | {f"w{t}": t for t in range(FIRST_WORD, vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


Prepare = Callable[[int], Callable[[], Any]]
"""Makes a side ready for a repetition, which is not counted, and returns what is."""


def alternate(repetitions: int, *sides: Prepare) -> list[tuple[np.ndarray, list[Any]]]:
    """CPU seconds and results of every side in every repetition: in turn, the order turned around each time.

    Each side runs once before.
    """
    for side in sides:
        side(0)()
    measured = [(np.zeros(repetitions), [None] * repetitions) for _ in sides]
    for repetition in range(repetitions):
        for i in range(len(sides))[:: 1 if repetition % 2 == 0 else -1]:
            run = sides[i](repetition)
            started = cpu_seconds()
            measured[i][1][repetition] = run()
            measured[i][0][repetition] = cpu_seconds() - started
    return measured


def plainly(run: Callable[[int], Any]) -> Prepare:
    """A side that needs no preparation: ``run(repetition)`` is what counts."""
    return lambda repetition: lambda: run(repetition)


def cpu_seconds() -> float:
    """Of this process, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main(script: str, rules: str | None, make_rows: Callable[[int, bool], Iterator[Row]], repetitions: int = 5) -> None:
    """The command line of a script: prints its rows as they come; with --write its record, too.

    ``make_rows`` is called with the number of repetitions and whether sizes shall be tiny.
    """
    parser = argparse.ArgumentParser(description=rules, formatter_class=argparse.RawTextHelpFormatter)
    record_path = Path(__file__).with_name(f"{Path(script).stem}.json")
    parser.add_argument("--write", nargs="?", type=Path, const=record_path, metavar="FILE", help=record_path.name)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repetition: the numbers mean nothing")
    arguments = parser.parse_args()
    repetitions = 1 if arguments.quick else repetitions
    started, started_cpu = time.perf_counter(), cpu_seconds()
    torch.set_num_threads(1)
    print(f"{Path(script).stem}: n = {repetitions}, median [smallest, largest]", flush=True)
    rows = []
    for row in make_rows(repetitions, arguments.quick):
        rows.append(row)
        print(line(row), flush=True)
    seconds = time.perf_counter() - started
    record: dict[str, Any] = {
        "schema": "assay.speed/2",
        "script": Path(script).name,
        "machine": {"processor": processor(), "isa": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()} | versions(),
        "repetitions": repetitions,
        "quick": arguments.quick,
        "seconds": seconds,
        "cpu_share": (cpu_seconds() - started_cpu) / seconds,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    print(f"  {seconds:.0f} s, {record['cpu_share']:.0%} of a core", flush=True)
    if arguments.write:
        arguments.write.write_text(
            json.dumps(record, indent=1, default=np.ndarray.tolist, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def versions() -> dict[str, str]:
    """Of what computes, and of the peers that are installed."""
    installed = {distribution.name.replace("-", "_") for distribution in metadata.distributions()}
    return {name: metadata.version(name) for name in (*PACKAGES, *PEERS) if name in installed}


def line(row: Row) -> str:
    """Name, ratios as median [smallest, largest], and what they are made of."""
    ratios = [f"{name} {spread(values)}" for name, values in row.ratios.items()]
    figures = [f"{name.replace('_per_', '/')} {short(value)}" for name, value in row.figures.items()]
    return f"  {row.name:<24} " + "   ".join([*ratios, *figures, *([row.note] if row.note else [])])


def spread(values: Sequence[float] | np.ndarray) -> str:
    """median [smallest, largest]"""
    return f"{np.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def short(value: float) -> str:
    """Three digits, or all those before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
