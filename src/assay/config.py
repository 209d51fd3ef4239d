"""The config tree: frozen dataclasses, the same for Python, config files and command-line flags.

Importing this module is cheap: no torch, no transformers, and the config reader only once a file is read.
``load`` is strict: an unknown field is an error that names the nearest field.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from assay.errors import AssayError, unknown_name
from assay.types import Writer

PolicyName = Literal["off", "warn", "stop", "auto"]


@dataclass(frozen=True)
class TaskConfig:
    """What is asked and answered. A response ends with the end-of-sequence token or at its token limit.

    ``name`` is a task from ``assay tasks``, or the path of a .jsonl or .parquet file with a column ``prompt``.
    ``template`` shows columns in braces, as in "{prompt} =": None keeps a named task's own, and "{prompt}" for a file.
    """

    name: str = "define"
    template: str | None = None
    max_prompt_tokens: int = 16
    max_response_tokens: int = 24


@dataclass(frozen=True)
class ModelsConfig:
    """The three roles: names of embedded bases, local checkpoint folders, or hub ids.

    One tokenizer serves all three (the oracle's). ``teacher_is_oracle`` makes the oracle itself the teacher
    (control). ``student_initialisation`` "random" draws the student's weights instead of loading them (control).
    ``num_teachers`` above 1: so many teachers from one base, each fine-tuned on a bootstrap resample of the oracle's
    responses of its own, are the teacher together: the mean of their next-token laws.
    """

    oracle: str = "define-oracle"
    teacher: str = "define-teacher"
    student: str = "define-student"
    teacher_is_oracle: bool = False
    num_teachers: int = 1
    student_initialisation: Literal["pretrained", "random"] = "pretrained"
    device: str = "cpu"


@dataclass(frozen=True)
class TrainingConfig:
    """One training loop: AdamW, warm-up, a schedule, clipping, a token-normalised divergence; and four cures.

    ``anchor_weight`` λ adds λ · KL(q‖q at the start) per response token. ``averaging_decay`` d: what is evaluated and
    saved is the average a ← d · a + (1 − d) · weights, which begins at the first weights; None: the weights themselves.
    ``dropout`` 0 leaves the model's own. ``lora_rank``: low-rank updates of all linear layers instead of all weights.
    """

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
    anchor_weight: float = 0.0
    averaging_decay: float | None = None
    dropout: float = 0.0
    lora_rank: int | None = None
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
    ``weight`` is the share of this source in a mixture. ``prompts`` "oracle" takes the prompts of stage 1; with writer
    "oracle" the responses too, as they are on disk: replay. ``learn`` "text" takes the response's own tokens as the
    law to learn (one-hot) instead of the teacher's. References and replay have one response for each prompt, whatever
    ``completions_per_prompt`` says.
    """

    writer: Writer = "teacher"
    refresh_every: int | None = None
    refresh_unit: Literal["epochs", "steps"] = "epochs"
    weight: float = 1.0
    prompts: Literal["distillation", "oracle"] = "distillation"
    learn: Literal["teacher", "text"] = "teacher"

    @property
    def is_replay(self) -> bool:
        """Whether the responses are those of stage 1."""
        return self.writer == "oracle" and self.prompts == "oracle"

    @property
    def is_offline(self) -> bool:
        """Whether these are stored responses of the teacher to distillation prompts: the train proxy walks on them."""
        return self.writer == "teacher" and self.prompts == "distillation" and self.refresh_every is None

    def completions(self, per_prompt: int) -> int:
        """Responses to each prompt: ``per_prompt``, but one where they are not sampled."""
        return 1 if self.writer == "dataset" or self.is_replay else per_prompt


@dataclass(frozen=True)
class ArmConfig:
    """One way to distil from the common start: a named mixture of sources, and who watches over it.

    ``policy`` acts on an alarm and never looks at golden: "warn" notes it, "stop" keeps the recommended student and
    ends the arm, "auto" adds responses first. The alarm is the detector's, or rises when the held-out proxy
    ("patience") or the likelihood of references ("references") was worse than its best at the last two evaluations.
    """

    name: str
    sources: tuple[SourceConfig, ...]
    policy: PolicyName = "off"
    alarm: Literal["detector", "patience", "references"] = "detector"


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
    """Stage 2: the diversity dials and the training loop, common to all arms.

    ``selection`` chooses the ``num_prompts`` prompts from a pool of ``num_candidates`` ("random": its first ones, the
    same as without a pool). ``augmentation`` adds new prompts to them: one for each of ``templates``, or one that the
    teacher writes when asked with ``paraphrase_template`` ("Say it in other words: {prompt}"). A new prompt is dropped
    when the teacher's log-likelihood of the original's response falls by more than ``augmentation_tolerance`` (nats
    per token) under it; docs/diversity.md says what else it must be.
    """

    num_prompts: int = 256
    completions_per_prompt: int = 1
    sampling_temperature: float = 1.0
    selection: Literal["random", "facility_location", "k_centre"] = "random"
    num_candidates: int | None = None
    augmentation: Literal["none", "templates", "paraphrases"] = "none"
    templates: tuple[str, ...] = ()
    paraphrase_template: str | None = None
    augmentation_tolerance: float = 0.1
    training: TrainingConfig = field(default_factory=TrainingConfig)


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


def with_policy(experiment: Experiment, policy: PolicyName) -> Experiment:
    """The experiment with this policy in every arm."""
    return dataclasses.replace(
        experiment, arms=tuple(dataclasses.replace(arm, policy=policy) for arm in experiment.arms)
    )


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values, field by field."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(config: Any) -> str:
    """The digest of a config; equal for equal configs."""
    return digest_of(to_dict(config))


def flat(value: Any, prefix: str = "", in_lists: bool = False) -> dict[str, Any]:
    """Nested objects as dotted names; lists whole, or where ``in_lists`` those of objects by position."""
    if in_lists and isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        value = {str(position): entry for position, entry in enumerate(value)}
    if not isinstance(value, dict):
        return {prefix: value}
    inner = (flat(entry, f"{prefix}.{key}" if prefix else key, in_lists) for key, entry in value.items())
    return {name: entry for part in inner for name, entry in part.items()}


def digest_of(value: Any) -> str:
    """The first 16 hex digits of SHA-256 over the sorted JSON of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def load(path: Path) -> Experiment:
    """An Experiment from a YAML or JSON file; unknown fields and wrong types are refused by name.

    A file without ``recipe`` is a recipe of its own, named after the file.
    """
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"field {key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(
                    problem="aliases are not supported", problem_mark=self.peek_event().start_mark
                )
            return super().compose_node(parent, index)

    if path.exists() and not path.is_file():
        raise AssayError(f"cannot read config {str(path)!r}: it is not a file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)  # a SafeLoader
    except OSError as error:
        raise AssayError(f"cannot read config {str(path)!r}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise AssayError(f"config {str(path)!r} is not valid{where}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, RecursionError) as error:  # of yaml's constructors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AssayError(f"config {str(path)!r} is neither YAML nor JSON: {reason}") from error
    if not isinstance(values, dict):
        raise AssayError(f"config {str(path)!r} must hold fields and values, such as 'seed: 1'")
    return from_dict({"recipe": path.stem, **values})


def from_dict(values: dict[str, Any]) -> Experiment:
    """An Experiment from plain values; see ``load``."""
    import cattrs
    from cattrs.errors import ClassValidationError, IterableValidationError

    _check_keys(values)
    converter = cattrs.Converter(forbid_extra_keys=True, prefer_attrib_converters=True)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _exactly)
    try:
        return converter.structure(values, Experiment)
    except (ClassValidationError, IterableValidationError) as error:
        raise _first_error(error) from error


def _check_keys(values: Any) -> None:
    for key in values if isinstance(values, dict) else ():
        if not isinstance(key, str):
            raise AssayError(f"config field {key!r} is no name: fields are words, such as 'seed'")
    for inner in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        _check_keys(inner)


def _exactly(value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, str) and re.fullmatch(r"[+-]?[0-9.]+[eE][+-]?[0-9]+", value):
        return float(value)  # YAML 1.1 reads 1e-3 as text
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise AssayError(f"expected {kind.__name__}, got {value!r}")
    return kind(value)


def _first_error(error: BaseException, where: str = "") -> AssayError:
    """The innermost cause as one sentence with the field's path."""
    from cattrs import AttributeValidationNote, IterableValidationNote
    from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

    if isinstance(error, ForbiddenExtraKeysError):
        known = [f.name for f in dataclasses.fields(error.cl)]
        return unknown_name(f"field in {where or 'the config'}", sorted(error.extra_fields)[0], known)
    if isinstance(error, ClassValidationError | IterableValidationError):
        inner = error.exceptions[0]
        steps = [
            note.name if isinstance(note, AttributeValidationNote) else f"[{note.index}]"
            for note in getattr(inner, "__notes__", [])
            if isinstance(note, AttributeValidationNote | IterableValidationNote)
        ]
        return _first_error(inner, ".".join([where, *steps[:1]]).strip("."))
    if isinstance(error, AttributeError | TypeError):
        return AssayError(f"config field {where!r} must hold fields and values, or a list of them")
    return AssayError(f"config field {where!r}: {error}")


_TRAINING = "distillation.training."
_RANGES: dict[tuple[float, float], tuple[str, ...]] = {
    (1, math.inf): (
        "task.max_prompt_tokens",
        "task.max_response_tokens",
        "stage_one.num_oracle_prompts",
        "stage_one.batch_size",
        "distillation.num_prompts",
        "distillation.completions_per_prompt",
        f"{_TRAINING}num_steps",
        f"{_TRAINING}batch_size",
        f"{_TRAINING}num_micro_batches",
        f"{_TRAINING}checkpoint_every",
        "models.num_teachers",
    ),
    (0, math.inf): (
        "stage_one.teacher_epochs",
        "stage_one.student_epochs",
        "stage_one.warmup_steps",
        "distillation.sampling_temperature",
        "distillation.augmentation_tolerance",
        f"{_TRAINING}warmup_steps",
        f"{_TRAINING}weight_decay",
        f"{_TRAINING}anchor_weight",
        "probe.num_shown",
    ),
    (1e-12, math.inf): (
        "stage_one.learning_rate",
        f"{_TRAINING}learning_rate",
        f"{_TRAINING}softmax_temperature",
        f"{_TRAINING}max_grad_norm",
    ),
    (0, 2**63): ("seed",),
    (16, math.inf): ("probe.num_prompts",),
    (2, math.inf): ("probe.num_monitored", "probe.num_train_pairs"),
    (4, math.inf): ("probe.num_evaluations",),
}
"""Fields by their range: at least the first number and below the second."""


MAX_COMPARED_CANDIDATES = 16_384
"""Candidates of a facility location: their similarities take a gigabyte."""


def validate(experiment: Experiment) -> None:
    """Raises AssayError for values that cannot be run; checked before anything is computed."""
    for (low, high), names in _RANGES.items():
        for name in names:
            value = functools.reduce(getattr, name.split("."), experiment)
            if not low <= value < high:  # type: ignore[operator]
                raise AssayError(f"config field {name!r} is {value!r}: it must be at least {low:g} and finite")
    training, probe = experiment.distillation.training, experiment.probe
    if training.num_micro_batches > training.batch_size:
        raise AssayError(f"{training.num_micro_batches} micro-batches of {training.batch_size} sequences: lower them")
    if not all(0 <= beta < 1 for beta in training.betas):
        raise AssayError(f"config field '{_TRAINING}betas' is {training.betas}: both must be at least 0 and below 1")
    if not all(map(math.isfinite, training.divergence_parameters.values())):
        raise AssayError(f"config field '{_TRAINING}divergence_parameters' must be finite")
    if not probe.num_shown <= probe.num_monitored <= probe.num_prompts:
        raise AssayError("the probe needs num_shown <= num_monitored <= num_prompts: each is a part of the next")
    if experiment.task.template is not None:
        template_columns(experiment.task.template)
    _check_diversity(experiment.distillation)
    _check_name("recipe", experiment.recipe)
    _check_arms(experiment.arms)
    _check_cures(training)
    _check_teachers(experiment)
    for arm in experiment.arms:
        if arm.policy == "auto" and training.lora_rank is not None:
            raise AssayError(f"arm {arm.name!r}: policy 'auto' may go back, low-rank updates cannot: use 'stop'")
        for source in arm.sources:
            _check_source(arm.name, source, training)


def _check_diversity(config: DistillationConfig) -> None:
    if config.num_candidates is not None and config.num_candidates < config.num_prompts:
        raise AssayError(
            f"{config.num_prompts} prompts cannot be chosen from {config.num_candidates} candidates: raise "
            "distillation.num_candidates, or lower distillation.num_prompts"
        )
    if config.selection != "random" and config.num_candidates is None:
        raise AssayError(
            f"selection {config.selection!r} needs a pool to choose from: set distillation.num_candidates, "
            f"such as {8 * config.num_prompts}"
        )
    if config.selection == "facility_location" and (config.num_candidates or 0) > MAX_COMPARED_CANDIDATES:
        raise AssayError(
            f"selection 'facility_location' compares all candidates with each other; {config.num_candidates} are too "
            f"many: lower distillation.num_candidates to {MAX_COMPARED_CANDIDATES}, or select by 'k_centre'"
        )
    if config.templates and config.augmentation != "templates":
        raise AssayError(
            f"distillation.templates are given, but distillation.augmentation is {config.augmentation!r}: set it to "
            "'templates', or leave them out"
        )
    if config.paraphrase_template is not None and config.augmentation != "paraphrases":
        raise AssayError(
            f"distillation.paraphrase_template is given, but distillation.augmentation is {config.augmentation!r}: set "
            "it to 'paraphrases', or leave it out"
        )
    if config.augmentation == "templates":
        if not config.templates:
            raise AssayError("augmentation 'templates' has none: give distillation.templates")
        if len(set(config.templates)) < len(config.templates):
            raise AssayError("distillation.templates names a template twice: give each once")
        for template in config.templates:
            template_columns(template)
    if config.augmentation == "paraphrases":
        if config.paraphrase_template is None:
            raise AssayError("augmentation 'paraphrases' needs distillation.paraphrase_template, which shows {prompt}")
        if set(template_columns(config.paraphrase_template)) != {"prompt"}:
            raise AssayError("distillation.paraphrase_template may show {prompt} alone, which is the whole prompt")


def template_columns(template: str) -> list[str]:
    """The columns that a template shows, in its order.

    Raises AssayError unless each is a plain name in braces: no attributes, indexes, conversions or format codes, so
    that filling a template can do nothing but insert text.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise AssayError(f"template {template!r} cannot be read: {error} (write {{{{ and }}}} for braces)") from error
    columns: list[str] = []
    for _, name, code, conversion in parts:
        if name is None:
            continue
        if not re.fullmatch(r"[^\W\d]\w*", name) or code or conversion:
            field = name + (f"!{conversion}" if conversion else "") + (f":{code}" if code else "")
            raise AssayError(
                f"template {template!r} holds {{{field}}}: show columns by their plain names, as {{prompt}}"
            )
        columns.append(name)
    if not columns:
        raise AssayError(f"template {template!r} shows no column: all prompts would be the same; write {{prompt}}")
    return columns


def _check_arms(arms: tuple[ArmConfig, ...]) -> None:
    if not arms:
        raise AssayError("config field 'arms' is empty: an experiment needs at least one")
    names = [arm.name.casefold() for arm in arms]
    if len(set(names)) < len(names):
        raise AssayError(f"two arms have the same name: {[arm.name for arm in arms]}")
    for arm in arms:
        _check_name("arm", arm.name)
        if not arm.sources or not all(0 < source.weight < math.inf for source in arm.sources):
            raise AssayError(f"arm {arm.name!r} needs at least one source, each with a positive weight")
        if any(source.refresh_every is not None and source.refresh_every < 1 for source in arm.sources):
            raise AssayError(f"arm {arm.name!r}: refresh_every must be at least 1, or null for never")
        if arm.policy == "auto" and all(source.writer == "dataset" for source in arm.sources):
            raise AssayError(f"arm {arm.name!r}: policy 'auto' asks for new responses, a data set has none: use 'stop'")
        if arm.alarm != "detector" and arm.policy != "stop":
            raise AssayError(f"arm {arm.name!r}: alarm {arm.alarm!r} serves policy 'stop' alone, not {arm.policy!r}")


def _check_cures(training: TrainingConfig) -> None:
    decay, rank = training.averaging_decay, training.lora_rank
    if decay is not None and not 0 <= decay < 1:
        raise AssayError(f"config field '{_TRAINING}averaging_decay' is {decay}: it must be at least 0 and below 1")
    if not 0 <= training.dropout < 1:
        raise AssayError(f"config field '{_TRAINING}dropout' is {training.dropout}: it must be at least 0 and below 1")
    if rank is not None and rank < 1:
        raise AssayError(f"config field '{_TRAINING}lora_rank' is {rank}: it must be at least 1, or null for no LoRA")


def _check_teachers(experiment: Experiment) -> None:
    number = experiment.models.num_teachers
    if number > 1 and experiment.models.teacher_is_oracle:
        raise AssayError(f"models.num_teachers is {number}, but the oracle is the teacher: set it to 1")
    if number > 1 and experiment.stage_one.teacher_epochs == 0:
        raise AssayError(f"{number} teachers without SFT are all the same: raise stage_one.teacher_epochs")


def _check_source(arm: str, source: SourceConfig, training: TrainingConfig) -> None:
    if source.is_replay and source.refresh_every is not None:
        raise AssayError(f"arm {arm!r}: replayed responses of stage 1 are kept for good: set refresh_every to null")
    if source.learn == "teacher" or training.divergence == "hard_labels":
        return
    if source.writer == "student":
        raise AssayError(f"arm {arm!r}: a student that learns its own text learns nothing: set learn to 'teacher'")
    parameters = training.divergence_parameters
    to_reverse_kl = {"skew_reverse_kl": parameters.get("alpha") == 0, "generalised_jsd": parameters.get("beta") == 1}
    if to_reverse_kl.get(training.divergence, training.divergence in ("reverse_kl", "jeffreys")):
        raise AssayError(
            f"arm {arm!r}: {training.divergence} from the one law that a text gives is infinite: choose forward_kl, or "
            "set learn to 'teacher'"
        )
    if training.softmax_temperature != 1:
        raise AssayError(
            f"arm {arm!r}: a text has no softmax temperature, but training has {training.softmax_temperature:g}: set "
            "distillation.training.softmax_temperature to 1, or learn to 'teacher'"
        )


def _check_name(what: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{0,99}[A-Za-z0-9_-]", name):
        raise AssayError(f"{what} {name!r} names a folder: use up to 100 letters, digits, '_', '-' and '.'")
