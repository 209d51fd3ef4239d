"""What a training loop leaves on disk to go on from, and models as folders that from_pretrained reads."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from assay import runs
from assay.errors import AssayError
from assay.models.averaging import Learner
from assay.models.pretrained import PretrainedModel
from assay.models.sharding import divided_like, whole

_READ_AGAIN = ("model.safetensors", "training.safetensors", "training.json")


class Stateful(Protocol):
    """What has a state of its own beside the model, as a source of batches has."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up such a state."""
        ...


@dataclass
class FitState:
    """Where a training loop stands; ``seconds`` are those of its phases so far, also before it was interrupted:
    "student" in ``train_step``, "checkpoint" in writing checkpoints, and what ``before_step`` adds.

    ``action_steps`` are those at which an action was carried out; ``stopped_at`` is the step whose student an action
    left as the last one.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    action_steps: list[int] = field(default_factory=list)
    stopped_at: int | None = None

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Adds the seconds of what is done within to a phase."""
        started = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def save_checkpoint(folder: Path, learner: Learner, optimizer: AdamW, source: Stateful, state: FitState) -> None:
    """Writes ``step-00000200`` (its step) atomically (weights readable by from_pretrained); keeps the two newest.

    ``digests.json`` in it holds the SHA-256 of what is read again.
    """
    tensors = {f"source.{key}": value for key, value in source.state().items()}
    tensors |= {f"learner.{key}": value for key, value in learner.state().items()}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": whole(value) for key, value in values.items()}
    tensors["rng"] = torch.get_rng_state()

    def write(path: Path) -> None:
        path.mkdir()
        save_model(learner.student, path)
        (path / "training.safetensors").write_bytes(save(tensors))
        (path / "training.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
        digests = {name: runs.file_digest(path / name) for name in _READ_AGAIN}
        (path / "digests.json").write_text(json.dumps(digests), encoding="utf-8")

    runs.write_atomically(folder / f"step-{state.step:08d}", write)
    for older in _checkpoints(folder)[: -runs.NUM_CHECKPOINTS]:
        runs.remove(older)


def load_newest_checkpoint(
    folder: Path,
    learner: Learner,
    optimizer: AdamW,
    source: Stateful,
    repaired: Callable[[str], None] = runs.say,
) -> FitState | None:
    """Restores the newest whole checkpoint into learner, optimiser, source and RNG; None when there is none.

    A damaged one is removed and ``repaired`` is told: what was done since the one before is done again, to the same
    end. Raises AssayError when one cannot be read at all, or is of another model.
    """
    for path in reversed(_checkpoints(folder)):
        try:
            weights, tensors, progress = _read_checkpoint(path)
        except _DamagedError as error:
            runs.remove(path)
            left = _checkpoints(folder)
            repaired(f"{str(path)!r} is damaged ({error}): removed; goes on from {left[-1].name if left else 'step 0'}")
            continue
        _take_up(path, weights, tensors, learner, optimizer, source)
        return FitState(**progress)
    return None


def _take_up(
    path: Path,
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    learner: Learner,
    optimizer: AdamW,
    source: Stateful,
) -> None:
    load_weights(learner.student, weights, path)
    learner.load_state({k.removeprefix("learner."): v for k, v in tensors.items() if k.startswith("learner.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
    groups, trained = optimizer.state_dict()["param_groups"], [p for g in optimizer.param_groups for p in g["params"]]
    moments = {i: {k: divided_like(trained[i], v) for k, v in values.items()} for i, values in moments.items()}
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    source.load_state({k.removeprefix("source."): v for k, v in tensors.items() if k.startswith("source.")})
    torch.set_rng_state(tensors["rng"])


def load_weights(student: PretrainedModel, weights: Mapping[str, Tensor], path: Path) -> None:
    """Puts weights read from ``path`` into a model; AssayError when they are of another architecture."""
    found_keys = student.module.load_state_dict(weights, strict=False)
    if found_keys.unexpected_keys or set(found_keys.missing_keys) - _tied_keys(student):
        raise AssayError(f"checkpoint {str(path)!r} is of another architecture: choose another folder")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a model's folder; AssayError when they are missing or damaged."""
    try:
        return load_file(path / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise runs.damaged(path, error) from error


class _DamagedError(Exception):
    """A checkpoint is not what was written."""


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, training tensors and progress. What may not be read, or not now, is no damage: AssayError."""
    with runs.readable_errors(path, "read"):
        try:
            digests = json.loads((path / "digests.json").read_bytes())
            for name in _READ_AGAIN:
                if digests[name] != runs.file_digest(path / name):
                    raise _DamagedError(f"{name} is not what was written")
            progress = json.loads((path / "training.json").read_bytes())
        except FileNotFoundError as error:
            raise _DamagedError(f"{Path(error.filename).name} is missing") from error
        except (ValueError, KeyError, TypeError) as error:  # no JSON, or of another shape
            raise _DamagedError("digests.json is not what was written") from error
        if progress.keys() != {each.name for each in fields(FitState)}:
            raise _DamagedError("training.json is of another version")
        return load_file(path / "model.safetensors"), load_file(path / "training.safetensors"), progress


def save_model(model: PretrainedModel, path: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Writes a folder that from_pretrained reads: configs, model.safetensors, and the tokenizer if given."""
    path.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.module.config)
    config.architectures = [type(model.module).__name__]  # by which vLLM knows that it writes text
    config.save_pretrained(path)
    if model.module.generation_config is not None:  # which tokens end a response, among other things
        model.module.generation_config.to_json_file(path / "generation_config.json")
    weights = {k: v.contiguous() for k, v in model.module.state_dict().items() if k not in _tied_keys(model)}
    (path / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    if tokenizer is not None:
        save_tokenizer(tokenizer, path)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Writes a tokenizer into a folder, beside its model."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        # tokenizers reports a full disk as a bare Exception; Python, writing the same bytes first, as an OSError
        (path / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    tokenizer.save_pretrained(path)


def _tied_keys(model: PretrainedModel) -> set[str]:
    """Weights that are another weight under a second name (some families tie a part whatever their config says)."""
    state, pairs = model.module.state_dict(), dict(model.module.all_tied_weights_keys)
    return {tied for tied, kept in pairs.items() if state[tied].data_ptr() == state[kept].data_ptr()}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name))
