"""The pretrained models that ship inside the package: ordinary transformers checkpoints, one tokenizer per task."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from assay.errors import unknown_name

Family = Literal["causal", "seq2seq"]


@dataclass(frozen=True)
class Text:
    """What the bases of one task have in common: the tokenizer's size and the lengths that they were trained on."""

    task: str
    vocab_size: int
    max_prompt_tokens: int
    max_response_tokens: int


TEXTS: dict[str, Text] = {
    text.task: text
    for text in (
        Text("define", 512, 16, 24),
        Text("translate", 1024, 28, 24),
        Text("summarize", 1024, 40, 24),
    )
}


@dataclass(frozen=True)
class Base:
    """How an embedded base is made: a model of this size, trained on the *base* split for so many passes.

    "causal" is a GPT-2 of ``num_layers`` layers; "seq2seq" an mBART (a BART that normalises before each layer) with
    ``num_layers`` layers in its encoder and as many in its decoder.
    """

    name: str
    task: str
    family: Family
    num_layers: int
    hidden_size: int
    epochs: float
    learning_rate: float
    seed: int


def base_name(task: str, family: Family, role: str) -> str:
    """``define-teacher`` and the like; encoder-decoder bases say so, ``define-seq2seq-teacher``."""
    return f"{task}-{role}" if family == "causal" else f"{task}-{family}-{role}"


def _bases(task: str, family: Family, epochs: tuple[float, float, float], first_seed: int) -> list[Base]:
    """Oracle, teacher and student: each smaller than the one before."""
    sizes = {"causal": ((3, 128), (3, 96), (2, 64)), "seq2seq": ((2, 128), (2, 96), (1, 64))}[family]
    return [
        Base(
            base_name(task, family, role),
            task,
            family,
            *size,
            epochs=passes,
            learning_rate=2e-3,
            seed=first_seed + i,
        )
        for i, (role, size, passes) in enumerate(zip(("oracle", "teacher", "student"), sizes, epochs, strict=True))
    ]


BASES: dict[str, Base] = {
    base.name: base
    for base in (
        *_bases("define", "causal", (2.0, 1.5, 1.4), first_seed=1),
        # the study of sizes wants a student smaller than the student
        Base("define-small", "define", "causal", 1, 64, epochs=1.3, learning_rate=2e-3, seed=4),
        *_bases("define", "seq2seq", (1.5, 1.1, 1.0), first_seed=11),
        *_bases("translate", "causal", (4.0, 3.0, 2.8), first_seed=21),
        *_bases("translate", "seq2seq", (5.0, 4.0, 3.6), first_seed=31),
        *_bases("summarize", "causal", (6.0, 4.5, 4.2), first_seed=41),
        *_bases("summarize", "seq2seq", (6.0, 4.5, 4.2), first_seed=51),
    )
}

MAX_CONTEXT_TOKENS = 64
HEAD_SIZE = 32
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"


def bases_folder() -> Path:
    """The folder inside the installed package that holds one checkpoint folder per base."""
    return Path(str(resources.files("assay.models"))) / "embedded"


def base_path(name: str) -> Path:
    """The checkpoint folder of an embedded base; AssayError with the nearest name when there is none."""
    if name not in BASES:
        raise unknown_name("base", name, BASES)
    return bases_folder() / name
