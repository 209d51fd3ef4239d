"""One of the two models as its files describe it: config, generation config, tokenizer; its weights when asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from assay.errors import AssayError
from assay.models.loading import checkpoint_of, describe, load_framing, load_tokenizer, ships_tokenizer
from assay.models.pretrained import PretrainedModel
from assay.models.sizes import ModelSize, size_from_shapes
from assay.types import Framing, Writer
from assay.workspace import Workspace


@dataclass(frozen=True)
class Side:
    """A model by its role, "teacher" or "student". ``tokenizer`` is None for a folder that ships none."""

    role: Writer
    name: str
    work: Workspace
    config: PreTrainedConfig
    shapes: dict[str, tuple[int, ...]]
    generation: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase | None

    @cached_property
    def model(self) -> PretrainedModel:
        """The weights as a run has them, loaded once: with its end-of-sequence token and its vocabulary.

        Raises AssayError when they cannot be loaded, or do not run as their family does.
        """
        return self.work.base(self.role)

    @cached_property
    def size(self) -> ModelSize:
        """Parameters and widths, from the config alone."""
        return size_from_shapes(self.name, self.config.get_text_config().to_dict(), self.shapes)

    @property
    def vocab_size(self) -> int:
        """Output rows, as the config says."""
        size = getattr(self.config.get_text_config(), "vocab_size", None)
        if not isinstance(size, int):
            raise AssayError(
                f"the config.json of model {self.name!r} states no vocab_size: it is no language model: "
                "name a causal or an encoder-decoder one"
            )
        return size

    @property
    def eos_token_ids(self) -> set[int]:
        """Every token that ends a response according to config.json and generation_config.json."""
        config = self.config.get_text_config()
        return _ids(getattr(config, "eos_token_id", None)) | _ids(self.generation.get("eos_token_id"))

    @property
    def context_tokens(self) -> int | None:
        """Positions that the model has; None where its config states none (relative positions)."""
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return limit if isinstance(limit, int) else None

    @property
    def chat_template(self) -> str | None:
        """The template that the tokenizer renders with by default."""
        template = None if self.tokenizer is None else self.tokenizer.chat_template
        return template.get("default") if isinstance(template, dict) else template

    def framing(self, tokenizer: PreTrainedTokenizerBase) -> Framing:
        """The special tokens that ``tokenizer`` puts around a prompt of this model's family."""
        return load_framing(self.name, tokenizer, self.work.experiment.models.trust_remote_code)

    def token(self, token_id: int) -> str:
        """A token as its tokenizer writes it, with its id."""
        text = None if self.tokenizer is None else self.tokenizer.convert_ids_to_tokens(token_id)
        return f"{text} ({token_id})" if text is not None else f"token {token_id}"


def read_side(role: Writer, work: Workspace) -> Side:
    """The description of one of a run's models, without its weights.

    Raises AssayError when it cannot be read, and for a folder whose weights are pickled unasked, missing or damaged.
    """
    models = work.experiment.models
    name = models.names[role]
    config, shapes = describe(name, models.trust_remote_code)
    folder = Path(checkpoint_of(name))
    if folder.is_dir():
        _check_weight_files(name, folder, models.allow_pickle)
    tokenizer = load_tokenizer(name, models.trust_remote_code) if ships_tokenizer(name) else None
    return Side(role, name, work, config, shapes, _generation_config(name), tokenizer)


def _check_weight_files(name: str, folder: Path, allow_pickle: bool) -> None:
    files = sorted(folder.glob("*.safetensors"))
    pickled = [file.name for file in sorted(folder.iterdir()) if file.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if not files and pickled and not allow_pickle:
        raise AssayError(
            f"model {name!r} holds only pickled weights ({pickled[0]}), which can run code: save it as safetensors, or "
            "give --allow-pickle if you trust it"
        )
    if not files and not pickled:
        raise AssayError(f"model {name!r} holds no weights: save it as safetensors")
    for file in files:
        try:
            with safe_open(file, framework="np") as opened:
                opened.keys()
        except (OSError, SafetensorError) as error:
            raise AssayError(f"cannot read the weights {str(file)!r}: {error}; fetch or save them again") from error


def _generation_config(name: str) -> dict[str, Any]:
    """The content of generation_config.json; empty without one."""
    try:
        path = cached_file(checkpoint_of(name), "generation_config.json", _raise_exceptions_for_missing_entries=False)
        content = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AssayError(
            f"cannot read generation_config.json of model {name!r}: {error}; mend it, or delete it"
        ) from error
    if not isinstance(content, dict):
        raise AssayError(f"generation_config.json of model {name!r} is no JSON object: mend it, or delete it")
    return content


def _ids(value: object) -> set[int]:
    several = value if isinstance(value, list | tuple) else [value]
    return {token_id for token_id in several if isinstance(token_id, int)}
