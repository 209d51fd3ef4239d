"""The config tree: frozen dataclasses, the same for Python, config files and command-line flags.

Importing this module is cheap: no torch, no transformers. ``config_file`` reads configs, ``validation`` says what
can be run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from assay.types import Writer

PolicyName = Literal["off", "warn", "stop", "auto"]


@dataclass(frozen=True)
class TaskConfig:
    """What is asked and answered. A response ends with the end-of-sequence token or at its token limit.

    ``name`` is a task from ``assay tasks``, the path of a .jsonl or .parquet file with a column ``prompt`` or
    ``messages``, or "dataset:ID" for a data set of the hub or a local folder with such a column.
    ``template`` shows columns in braces, as in "{prompt} =": None keeps a named task's own, and "{prompt}" for a file.
    ``reference`` names the column with the human answer (None: the task's own, "reference" in a file), ``responses``
    one with the responses of a teacher that gives text only: a text or a list of texts. ``chat_template`` renders
    prompts with the tokenizer's chat template, a text as the one message of a user.
    """

    name: str = "define"
    template: str | None = None
    reference: str | None = None
    responses: str | None = None
    chat_template: bool = False
    max_prompt_tokens: int = 16
    max_response_tokens: int = 24


@dataclass(frozen=True)
class ServerConfig:
    """How a teacher behind an OpenAI-compatible server is asked; its URL is ``models.teacher``.

    ``model`` is the name that the server gives it (null: the only one served). ``top_k`` is the number of likeliest
    tokens that it lists at each position. The server's key is no field: set the environment variable
    ASSAY_SERVER_API_KEY.
    """

    model: str | None = None
    top_k: int = 32
    timeout_seconds: float = 60.0
    max_retries: int = 5
    concurrency: int = 8


@dataclass(frozen=True)
class ModelsConfig:
    """The three roles: names of embedded bases, local checkpoint folders, or hub ids; the teacher may be served.

    One tokenizer serves all of them: the oracle's. ``oracle`` None is a run without one: there is no stage 1, teacher
    and student begin as they are, the tokenizer is the student's, and the truth is what held-out references say, if
    there are any. ``teacher`` None is a teacher that gives text only, its responses being a column of the prompts'
    file (``task.responses``); it needs a run without an oracle.
    ``teacher_is_oracle`` makes the oracle itself the teacher (control). ``student_initialisation`` "random" draws the
    student's weights instead of loading them (control). ``num_teachers`` above 1: so many teachers from one base, each
    fine-tuned on a bootstrap resample of the oracle's responses of its own, are the teacher together: the mean of their
    next-token laws. A ``teacher`` that is a URL ("http://host:port/v1") is asked as ``server`` says.

    ``vocabulary`` "same" wants models with as many output rows; "shared" cuts the law of every model to the ids up to
    the tokenizer's largest, renormalised over them: rows that pad a vocabulary go, the weights on disk stay whole.
    ``allow_pickle`` reads pickled weights where there are no safetensors; ``trust_remote_code`` runs the Python code
    that a checkpoint brings along. Both are for checkpoints whose makers you trust. ``frozen_precision`` "bfloat16"
    holds oracle and teacher in half of the memory where they are not trained (a teacher is, where there is an oracle);
    their laws are then rounded, which proxy and golden carry along. ``num_threads`` above 1 gives so many cores to each
    worker process, of which there are fewer then: for one arm of a large model. It changes the order of float sums.
    """

    oracle: str | None = "define-oracle"
    teacher: str | None = "define-teacher"
    student: str = "define-student"
    teacher_is_oracle: bool = False
    num_teachers: int = 1
    student_initialisation: Literal["pretrained", "random"] = "pretrained"
    device: str = "cpu"
    vocabulary: Literal["same", "shared"] = "same"
    frozen_precision: Literal["float32", "bfloat16"] = "float32"
    num_threads: int = 1
    allow_pickle: bool = False
    trust_remote_code: bool = False
    server: ServerConfig = ServerConfig()

    @property
    def teacher_url(self) -> str | None:
        """The URL of the server that is the teacher, where one is."""
        served = self.teacher is not None and "://" in self.teacher and not self.teacher_is_oracle
        return self.teacher if served else None

    @property
    def names(self) -> dict[Writer, str]:
        """The models that a run loads, by their roles."""
        teacher = self.oracle if self.teacher_is_oracle else self.teacher
        roles: dict[Writer, str | None] = {"oracle": self.oracle, "teacher": teacher, "student": self.student}
        return {role: name for role, name in roles.items() if name is not None}

    @property
    def tokenizer_home(self) -> str:
        """The model whose tokenizer serves all."""
        return self.student if self.oracle is None else self.oracle


@dataclass(frozen=True)
class TrainingConfig:
    """One training loop: AdamW, warm-up, a schedule, clipping, a token-normalised divergence; and four cures.

    ``anchor_weight`` λ adds λ · KL(q‖q at the start) per response token. ``averaging_decay`` d: what is evaluated and
    saved is the average a ← d · a + (1 − d) · weights, which begins at the first weights; None: the weights themselves.
    ``dropout`` 0 leaves the model's own. ``lora_rank``: low-rank updates of all linear layers instead of all weights.

    ``hard_label_weight`` w: the loss is (1 − w) · divergence + w · (−log q(token of the response)) per response token.
    ``gradient_checkpointing`` computes activations anew going backward: less memory, and up to a third more time.
    ``packing`` (decoder-only models) puts several sequences in one row while the student trains, so that less of a
    batch is padding. Neither of the two changes a loss beyond float rounding, nor does ``parallel``: with several ranks
    (docs/scale.md) "replicate" trains the whole student on each, "shard" divides the weights of its layers, their
    gradients and the optimiser's memory between them.
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
    hard_label_weight: float = 0.0
    gradient_checkpointing: bool = False
    packing: bool = False
    parallel: Literal["replicate", "shard"] = "replicate"
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = 200


@dataclass(frozen=True)
class StageOneConfig:
    """Oracle responses for supervised fine-tuning (SFT) of teacher and student; passes over them may be 0.

    A run without an oracle has no stage 1 and leaves these numbers unused.
    """

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


def fresh_arm(percent: int) -> ArmConfig:
    """So many percent of every batch are fresh responses of the teacher, the others stored ones."""
    sources = (SourceConfig("teacher", weight=100.0 - percent), SourceConfig("teacher", 1, weight=float(percent)))
    return ArmConfig(f"fresh_{percent}", sources)


def refresh_arm(num_passes: int) -> ArmConfig:
    """Every stored response of the teacher is written anew after so many passes."""
    return ArmConfig(f"refresh_{num_passes}", (SourceConfig("teacher", num_passes),))


@dataclass(frozen=True)
class DistillationConfig:
    """Stage 2: the diversity dials and the training loop, common to all arms.

    ``selection`` chooses the ``num_prompts`` prompts from a pool of ``num_candidates`` ("random": its first ones, the
    same as without a pool). ``augmentation`` adds new prompts to them: one for each of ``templates``, or one that the
    teacher writes when asked with ``paraphrase_template`` ("Say it in other words: {prompt}"). A new prompt is dropped
    when the teacher's log-likelihood of the original's response falls by more than ``augmentation_tolerance`` (nats
    per token) under it; docs/diversity.md says what else it must be.

    ``teacher_top_k``: of the teacher's law at each token its so many most probable tokens are kept, and the mass of all
    others as one bucket; the loss, the proxy and the train proxy are then lower bounds. None: exact. ``signal_store``:
    a folder, relative to the current one, where what the teacher says about responses is kept for other students and
    runs (docs/signals.md).
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
    teacher_top_k: int | None = None
    signal_store: str | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class JudgeConfig:
    """Someone else who scores the student at every evaluation: a column ``judge_NAME`` beside golden and proxy.

    ``kind`` says what ``target`` is. "model": a second teacher, by the name or folder of a checkpoint with the run's
    tokenizer. "function": your own Python code, as "package.module:function", imported by the run's workers and called
    with (prompt, response, reference or None). "command": a program with its arguments, started without a shell once
    for each evaluation; it reads a JSON object from each line of its stdin and answers each with a number on a line.
    Functions and commands, and a model with ``walks_on`` "student", score the free-running responses to the monitored
    prompts; a model with ``walks_on`` "judge" is measured as the teacher is, KL(judge‖student) along the judge's own
    responses to all held-out prompts. ``higher_is_better`` is for reports and tables; None: False for a model, whose
    values are distances, else True. ``timeout_seconds`` bounds one start of a command.
    """

    name: str
    kind: Literal["model", "function", "command"]
    target: str
    walks_on: Literal["judge", "student"] = "judge"
    higher_is_better: bool | None = None
    timeout_seconds: float = 60.0

    @property
    def column(self) -> str:
        """Its column in metrics.jsonl, and its metric in probe.parquet."""
        return f"judge_{self.name}"


@dataclass(frozen=True)
class ProbeConfig:
    """What is measured, how often. Evaluations are at step 0 and at geometrically spaced steps up to the end.

    Golden and proxy use all ``num_prompts`` held-out prompts; the monitors (human references, distance from the
    start, free-running samples) the first ``num_monitored`` of them. Without an oracle the references of all of them
    are scored: they are the truth then. ``judges`` add columns and decide nothing.
    """

    num_prompts: int = 384
    num_train_pairs: int = 128
    num_monitored: int = 64
    num_evaluations: int = 14
    num_shown: int = 6
    judges: tuple[JudgeConfig, ...] = ()

    @property
    def judging_models(self) -> dict[str, str]:
        """The models among the judges, by their columns."""
        return {judge.column: judge.target for judge in self.judges if judge.kind == "model"}


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
