"""The pretrained models that ship inside the package: ordinary transformers checkpoints that share one tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from assay.errors import unknown_name


@dataclass(frozen=True)
class Base:
    """How an embedded base is made: a GPT-2 of this size, trained on the *base* split for so many passes."""

    name: str
    task: str
    num_layers: int
    hidden_size: int
    epochs: float
    learning_rate: float
    seed: int


BASES: dict[str, Base] = {
    base.name: base
    for base in (
        Base("define-oracle", "define", 3, 128, epochs=2.0, learning_rate=2e-3, seed=1),
        Base("define-teacher", "define", 3, 96, epochs=1.5, learning_rate=2e-3, seed=2),
        Base("define-student", "define", 2, 64, epochs=1.4, learning_rate=2e-3, seed=3),
    )
}

VOCAB_SIZE = 512
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
