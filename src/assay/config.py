"""The config tree: frozen dataclasses, the same for Python, config files and command-line flags.

Importing this module is cheap: no torch, no transformers, and the config reader only once a file is read.
``load`` is strict: an unknown field is an error that names the nearest field.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from assay.errors import AssayError, unknown_name
from assay.types import Writer


@dataclass(frozen=True)
class TaskConfig:
    """What is asked and answered. A response ends with the end-of-sequence token or at its token limit."""

    name: str = "define"
    max_prompt_tokens: int = 16
    max_response_tokens: int = 24


@dataclass(frozen=True)
class ModelsConfig:
    """The three roles: names of embedded bases, local checkpoint folders, or hub ids.

    One tokenizer serves all three (the oracle's). ``teacher_is_oracle`` makes the oracle itself the teacher
    (control). ``student_initialisation`` "random" draws the student's weights instead of loading them (control).
    """

    oracle: str = "define-oracle"
    teacher: str = "define-teacher"
    student: str = "define-student"
    teacher_is_oracle: bool = False
    student_initialisation: Literal["pretrained", "random"] = "pretrained"
    device: str = "cpu"


@dataclass(frozen=True)
class TrainingConfig:
    """One training loop: AdamW, warm-up, a schedule, clipping, a token-normalised divergence."""

    num_steps: int = 300
    batch_size: int = 64
    num_micro_batches: int = 1
    learning_rate: float = 3e-4
    warmup_steps: int = 20
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    divergence: str = "forward_kl"
    divergence_parameters: dict[str, float] = field(default_factory=dict)
    softmax_temperature: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = 200


@dataclass(frozen=True)
class StageOneConfig:
    """Oracle responses for supervised fine-tuning (SFT) of teacher and student; passes over them may be 0."""

    num_oracle_prompts: int = 6000
    teacher_epochs: float = 2.0
    student_epochs: float = 1.0
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 10


@dataclass(frozen=True)
class SourceConfig:
    """Who writes the responses to train on, and how often a stored response is written anew.

    ``refresh_every`` None keeps the first response for good (offline); n with unit "epochs" writes a prompt's
    response anew every n-th time that it is drawn; with unit "steps" once it is n optimiser steps old.
    ``weight`` is the share of this source in a mixture.
    """

    writer: Writer = "teacher"
    refresh_every: int | None = None
    refresh_unit: Literal["epochs", "steps"] = "epochs"
    weight: float = 1.0


@dataclass(frozen=True)
class ArmConfig:
    """One way to distil from the common start: a named mixture of sources."""

    name: str
    sources: tuple[SourceConfig, ...]


ARMS: dict[str, ArmConfig] = {
    arm.name: arm
    for arm in (
        ArmConfig("offline", (SourceConfig("teacher"),)),
        ArmConfig("online_teacher", (SourceConfig("teacher", 1, "epochs"),)),
        ArmConfig("online_student", (SourceConfig("student", 1, "steps"),)),
    )
}
"""The paper's three data sources."""


@dataclass(frozen=True)
class DistillationConfig:
    """Stage 2: the diversity dials and the training loop, common to all arms."""

    num_prompts: int = 256
    completions_per_prompt: int = 1
    sampling_temperature: float = 1.0
    training: TrainingConfig = TrainingConfig()


@dataclass(frozen=True)
class ProbeConfig:
    """What is measured, how often. Evaluations are at step 0 and at geometrically spaced steps up to the end.

    Golden and proxy use all ``num_prompts`` held-out prompts; the monitors (human references, distance from the
    start, free-running samples) the first ``num_monitored`` of them.
    """

    num_prompts: int = 384
    num_train_pairs: int = 128
    num_monitored: int = 64
    num_evaluations: int = 14
    num_shown: int = 6


@dataclass(frozen=True)
class Experiment:
    """One controlled experiment: oracle → teacher → student, several arms from one start."""

    recipe: str = "quickstart"
    seed: int = 0
    task: TaskConfig = TaskConfig()
    models: ModelsConfig = ModelsConfig()
    stage_one: StageOneConfig = StageOneConfig()
    distillation: DistillationConfig = DistillationConfig()
    arms: tuple[ArmConfig, ...] = tuple(ARMS.values())
    probe: ProbeConfig = ProbeConfig()


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values, field by field."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(config: Any) -> str:
    """The first 16 hex digits of SHA-256 over the sorted JSON of the config."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]


def load(path: Path) -> Experiment:
    """An Experiment from a YAML or JSON file; unknown fields and wrong types are refused by name."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AssayError(f"cannot read config {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AssayError(f"config {str(path)!r} is neither YAML nor JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise AssayError(f"config {str(path)!r} must hold fields and values, such as 'seed: 1'")
    return from_dict(values)


def from_dict(values: dict[str, Any]) -> Experiment:
    """An Experiment from plain values; see ``load``."""
    import cattrs
    from cattrs.errors import ClassValidationError, IterableValidationError

    converter = cattrs.Converter(forbid_extra_keys=True, prefer_attrib_converters=True)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _exactly)
    try:
        return converter.structure(values, Experiment)
    except (ClassValidationError, IterableValidationError) as error:
        raise _first_error(error) from error


def _exactly(value: Any, kind: type) -> Any:
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise AssayError(f"expected {kind.__name__}, got {value!r}")
    return kind(value)


def _first_error(error: BaseException, where: str = "") -> AssayError:
    """The innermost cause as one sentence with the field's path."""
    from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

    if isinstance(error, ForbiddenExtraKeysError):
        known = [f.name for f in dataclasses.fields(error.cl)]
        return unknown_name(f"field in {where or 'the config'}", sorted(error.extra_fields)[0], known)
    if isinstance(error, ClassValidationError | IterableValidationError):
        inner = error.exceptions[0]
        notes = [note for note in getattr(inner, "__notes__", []) if hasattr(note, "name") or hasattr(note, "index")]
        step = str(getattr(notes[0], "name", None) or f"[{getattr(notes[0], 'index', '')}]") if notes else ""
        return _first_error(inner, f"{where}.{step}".strip("."))
    return AssayError(f"config field {where!r}: {error}")


def validate(experiment: Experiment) -> None:
    """Raises AssayError for values that cannot be run; checked before anything is computed."""
    training = experiment.distillation.training
    checks = {
        "distillation.num_prompts": experiment.distillation.num_prompts >= 1,
        "distillation.completions_per_prompt": experiment.distillation.completions_per_prompt >= 1,
        "distillation.sampling_temperature": experiment.distillation.sampling_temperature >= 0,
        "distillation.training.num_steps": training.num_steps >= 1,
        "distillation.training.batch_size": training.batch_size >= 1,
        "distillation.training.num_micro_batches": 1 <= training.num_micro_batches <= training.batch_size,
        "distillation.training.learning_rate": training.learning_rate > 0,
        "distillation.training.softmax_temperature": training.softmax_temperature > 0,
        "distillation.training.checkpoint_every": training.checkpoint_every >= 1,
        "stage_one.num_oracle_prompts": experiment.stage_one.num_oracle_prompts >= 1,
        "stage_one.batch_size": experiment.stage_one.batch_size >= 1,
        "probe.num_prompts": experiment.probe.num_prompts >= 16,
        "probe.num_train_pairs": experiment.probe.num_train_pairs >= 2,
        "probe.num_monitored": 2 <= experiment.probe.num_monitored <= experiment.probe.num_prompts,
        "probe.num_shown": 0 <= experiment.probe.num_shown <= experiment.probe.num_monitored,
        "probe.num_evaluations": experiment.probe.num_evaluations >= 4,
        "task.max_prompt_tokens": experiment.task.max_prompt_tokens >= 1,
        "task.max_response_tokens": experiment.task.max_response_tokens >= 1,
        "arms": len(experiment.arms) >= 1,
    }
    for name, holds in checks.items():
        if not holds:
            raise AssayError(f"config field {name!r} is out of range: see `assay run --help` for what it means")
    names = [arm.name for arm in experiment.arms]
    if len(set(names)) < len(names):
        raise AssayError(f"two arms have the same name: {names}")
    for arm in experiment.arms:
        if not re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-]", arm.name):
            raise AssayError(f"arm {arm.name!r} names a folder: use letters, digits, '_', '-' and '.'")
        if not arm.sources or any(source.weight <= 0 for source in arm.sources):
            raise AssayError(f"arm {arm.name!r} needs at least one source, each with a positive weight")
        if any(source.refresh_every is not None and source.refresh_every < 1 for source in arm.sources):
            raise AssayError(f"arm {arm.name!r}: refresh_every must be at least 1, or null for never")
