"""What can be run: ranges of fields, and fields that contradict each other. Checked before anything is computed."""

from __future__ import annotations

import functools
import math
import re
import reprlib
import shlex
import string
from urllib.parse import urlsplit

from assay.config import ArmConfig, DistillationConfig, Experiment, JudgeConfig, SourceConfig, TrainingConfig
from assay.errors import AssayError

_TRAINING = "distillation.training."
LARGEST = 2**63
"""No number of a config reaches it: what is counted must fit into 64 bits."""
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
        "models.num_threads",
        "models.server.top_k",
        "models.server.concurrency",
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
        "models.server.max_retries",
    ),
    (1e-12, math.inf): (
        "models.server.timeout_seconds",
        "stage_one.learning_rate",
        f"{_TRAINING}learning_rate",
        f"{_TRAINING}softmax_temperature",
        f"{_TRAINING}max_grad_norm",
    ),
    (0, LARGEST): ("seed",),
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
            if not low <= value < high or value >= LARGEST:  # type: ignore[operator]
                raise AssayError(
                    f"config field {name!r} is {reprlib.repr(value)}: it must be at least {low:g} and below 2^63"
                )
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
    if experiment.task.responses is not None and experiment.task.responses == experiment.task.reference:
        raise AssayError("task.reference and task.responses name one column: the truth must not be the teacher's word")
    _check_judges(probe.judges)
    _check_diversity(experiment.distillation)
    _check_signals(experiment.distillation)
    _check_name("recipe", experiment.recipe)
    _check_arms(experiment.arms)
    _check_cures(training)
    _check_teachers(experiment)
    _check_roles(experiment)
    for arm in experiment.arms:
        if arm.policy == "auto" and training.lora_rank is not None:
            raise AssayError(f"arm {arm.name!r}: policy 'auto' may go back, low-rank updates cannot: use 'stop'")
        for source in arm.sources:
            _check_source(arm.name, source, training)


def _check_judges(judges: tuple[JudgeConfig, ...]) -> None:
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise AssayError(f"two judges have the same name: {names}; rename one")
    for judge in judges:
        name, target = judge.name, judge.target
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or name.endswith(("_stderr", "_nats")):
            raise AssayError(
                f"judge {name!r} names a column: use up to 40 small letters, digits and '_', with a letter first and "
                "neither '_stderr' nor '_nats' at the end"
            )
        if not target.strip():
            raise AssayError(f"judge {name!r} has no target: name a model, a function or a command")
        if judge.kind == "model" and "://" in target:
            raise AssayError(f"judge {name!r} is behind a server: a judging model must be a local or a hub checkpoint")
        if judge.kind == "model" and judge.higher_is_better:
            raise AssayError(f"judge {name!r} measures a distance in nats: leave higher_is_better out")
        if judge.kind != "model" and judge.walks_on != "judge":
            raise AssayError(f"judge {name!r} is no model and reads the student's responses: leave walks_on out")
        if judge.kind == "function" and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", target):
            raise AssayError(f"judge {name!r} has the target {target!r}: write it as package.module:function")
        if judge.kind == "command":
            command_words(judge)
        if not 0 < judge.timeout_seconds < math.inf:
            raise AssayError(f"judge {name!r} has a timeout of {judge.timeout_seconds:g} seconds: it must be above 0")


def command_words(judge: JudgeConfig) -> list[str]:
    """The program of a judge of kind "command" and its arguments, split as a shell would, without running one."""
    try:
        words = shlex.split(judge.target)
    except ValueError as error:
        raise AssayError(
            f"the command of judge {judge.name!r} cannot be read: {error}; quote it as a shell would"
        ) from error
    if not words or not words[0]:
        raise AssayError(f"the command of judge {judge.name!r} names no program: {judge.target!r}")
    return words


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


def _check_signals(config: DistillationConfig) -> None:
    if config.teacher_top_k is not None and config.teacher_top_k < 1:
        raise AssayError(
            f"config field 'distillation.teacher_top_k' is {config.teacher_top_k}: it must be at least 1, or null for "
            "the whole law"
        )
    if config.teacher_top_k is not None and config.training.divergence == "hard_labels":
        raise AssayError(
            "hard_labels learns from the teacher's text, not from its law: leave distillation.teacher_top_k out, or "
            "choose another divergence"
        )
    if config.signal_store is not None and not config.signal_store.strip():
        raise AssayError("distillation.signal_store is empty: name a folder, or leave it out")


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
        raise AssayError(f"two arms have the same name: {[arm.name for arm in arms]}; rename one")
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
    weight = training.hard_label_weight
    if not 0 <= weight <= 1:
        raise AssayError(f"config field '{_TRAINING}hard_label_weight' is {weight}: it must be between 0 and 1")
    if weight > 0 and training.divergence == "hard_labels":
        raise AssayError(
            f"config field '{_TRAINING}hard_label_weight' is {weight:g}, but divergence 'hard_labels' has no other "
            "part: set it to 0"
        )
    if training.parallel == "shard" and (decay is not None or rank is not None):
        raise AssayError(
            f"config field '{_TRAINING}parallel' is 'shard', which goes neither with averaging_decay nor with "
            "lora_rank: set it to 'replicate'"
        )
    if rank is not None and rank < 1:
        raise AssayError(f"config field '{_TRAINING}lora_rank' is {rank}: it must be at least 1, or null for no LoRA")


def _check_teachers(experiment: Experiment) -> None:
    number, url = experiment.models.num_teachers, experiment.models.teacher_url
    if number > 1 and experiment.models.teacher_is_oracle:
        raise AssayError(f"models.num_teachers is {number}, but the oracle is the teacher: set it to 1")
    if number > 1 and experiment.stage_one.teacher_epochs == 0:
        raise AssayError(f"{number} teachers without SFT are all the same: raise stage_one.teacher_epochs")
    if url is None:
        return
    check_server_url(url)
    if number > 1:
        raise AssayError(f"models.num_teachers is {number}, but a server is one teacher: set it to 1")
    if experiment.models.oracle is not None:
        raise AssayError(
            "a served teacher cannot be fine-tuned on an oracle's responses: set models.oracle to null, or name a "
            "local teacher"
        )
    distillation = experiment.distillation
    if distillation.selection != "random" or distillation.augmentation != "none":
        raise AssayError(
            "a served teacher lists its likeliest tokens alone: set distillation.selection to random and "
            "distillation.augmentation to none"
        )


def check_server_url(url: str) -> None:
    """Raises AssayError unless ``url`` names a server and nothing else: what is in it is written into manifests."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        parts, usable = urlsplit(""), False
    if not usable or not url.isprintable() or " " in url:
        raise AssayError("the teacher's server is no URL of the form http://host:port/v1: write it so")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise AssayError(
            "the URL of the teacher's server holds more than http://host:port/v1: leave out user names, passwords and "
            "what follows '?' or '#'; a key belongs into the environment variable ASSAY_SERVER_API_KEY"
        )


def _check_roles(experiment: Experiment) -> None:
    """What needs an oracle, and what a teacher that gives text only cannot do."""
    models, training = experiment.models, experiment.distillation.training
    sources = [(arm.name, source) for arm in experiment.arms for source in arm.sources]
    if models.oracle is None:
        for field, is_set in (
            ("teacher_is_oracle", models.teacher_is_oracle),
            ("num_teachers", models.num_teachers > 1),
        ):
            if is_set:
                raise AssayError(f"models.{field} needs an oracle: name models.oracle, or leave it out")
        for arm, source in sources:
            if source.writer == "oracle" or source.prompts == "oracle":
                raise AssayError(f"arm {arm!r} takes from the oracle, but there is none: name models.oracle")
    if models.teacher is not None or models.teacher_is_oracle:
        return
    if models.oracle is not None:
        raise AssayError("models.teacher is null, but stage 1 makes the teacher: name it, or set models.oracle to null")
    if training.divergence != "hard_labels":
        raise AssayError(
            f"without a teacher model there is only its text, and {training.divergence} needs its probabilities: set "
            "distillation.training.divergence to hard_labels, or name models.teacher"
        )
    for arm, source in sources:
        if source.writer == "student" or (source.writer == "teacher" and source.refresh_every is not None):
            raise AssayError(
                f"arm {arm!r} asks for new responses, but the teacher's are a column of a file: keep them for good "
                "(writer 'teacher', refresh_every null), or name models.teacher"
            )
    if any(arm.policy == "auto" for arm in experiment.arms):
        raise AssayError("policy 'auto' asks for new responses, but the teacher's are a column of a file: use 'stop'")


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
    if re.fullmatch(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", name.casefold()):
        raise AssayError(f"{what} {name!r} names a folder, but a device on Windows: choose another name")
