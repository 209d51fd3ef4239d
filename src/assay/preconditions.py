"""What is refused before anything is computed: models, prompts and options that do not go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from assay.config import Experiment
from assay.data.augmentation import paraphrase_instructions, retold
from assay.data.chat import chat_template_digest
from assay.data.tasks import corpus_digest
from assay.divergences import divergence
from assay.errors import AssayError
from assay.evaluation import judged
from assay.judges import ModelJudge
from assay.models.averaging import Learner
from assay.models.loading import check_fits, check_same_tokenizer, check_same_vocabulary
from assay.models.pretrained import PretrainedModel
from assay.models.served import ServedModel
from assay.types import Progress, Prompt, Response, Writer
from assay.workspace import Teacher, Workspace

Report = Callable[[Progress], None]


def check_models(experiment: Experiment, folder: Path, report: Report) -> dict[str, str]:
    """Refuses what could only fail later: models, prompts, divergence. Returns the digests of the models' weights."""
    report(Progress("loading models", 0, 1))
    divergence(experiment.distillation.training.divergence, **experiment.distillation.training.divergence_parameters)
    work = Workspace(experiment, folder)
    config = experiment.models
    local: dict[Writer, str] = {
        role: name for role, name in config.names.items() if role != "teacher" or config.teacher_url is None
    }
    for name in local.values():
        check_same_tokenizer(
            work.tokenizer,
            name,
            on_trust=config.vocabulary == "same",
            trust_remote_code=config.trust_remote_code,
        )
    models: dict[Writer, PretrainedModel] = {role: work.base(role) for role in local}
    Learner(models["student"], experiment.distillation.training)  # dropout without a place, peft not installed
    first, *others = models.values()
    for model in others:
        check_same_vocabulary(first, model)
    check_fits(work.tokenizer, first)
    everyone: dict[Writer, Teacher] = {**models}
    if work.served_teacher is not None:
        everyone["teacher"] = work.served_teacher
    for model in everyone.values():
        model.check_lengths(experiment.task.max_prompt_tokens, experiment.task.max_response_tokens)
    if "teacher" in everyone:
        check_temperature(experiment, everyone["teacher"])
    _check_references(work)
    stage_one = work.prompts("oracle", experiment.stage_one.num_oracle_prompts) if "oracle" in models else []
    _check_leaks(work.held_out(), stage_one, work.distillation_pool())
    if "teacher" in models:
        _check_augmentation(work, models["teacher"])
    elif work.served_teacher is None:
        _check_texts(work)
    digests: dict[str, str] = {role: model.digest for role, model in everyone.items()} | {
        "corpus": corpus_digest(work.text.corpus)
    }
    if experiment.task.chat_template:
        digests["chat_template"] = str(chat_template_digest(work.tokenizer))
    digests |= _check_judges(work, first)
    report(Progress("loading models", 1, 1))
    return digests


def check_temperature(experiment: Experiment, teacher: Teacher) -> None:
    """Refuses a softmax temperature where a part of the teacher's law is kept: it changes the mass of every token."""
    config = experiment.distillation
    listed = teacher.num_top if isinstance(teacher, ServedModel) else config.teacher_top_k or teacher.vocab_size
    if listed < teacher.vocab_size and config.training.softmax_temperature != 1:
        raise AssayError(
            f"a softmax temperature needs the teacher's law on all {teacher.vocab_size} tokens, but {listed} are "
            "listed (distillation.teacher_top_k, models.server.top_k): set softmax_temperature to 1, or list them all"
        )


def _check_texts(work: Workspace) -> None:
    """Refuses a teacher that gives text only where a prompt has fewer responses of it than are asked for."""
    wanted = work.experiment.distillation.completions_per_prompt
    for prompts, number in ((work.distillation_pool(), wanted), (work.held_out(), 1)):
        short = [prompt for prompt in prompts if len(prompt.response_ids) < number]
        if short:
            raise AssayError(
                f"{len(short)} of {len(prompts)} prompts have fewer than {number} responses of the teacher (such as "
                f"{short[0].text!r}): name their column in task.responses, or lower distillation.completions_per_prompt"
            )


def _check_references(work: Workspace) -> None:
    """Refuses arms that learn from references, or listen to them, where there are none."""
    monitored = work.held_out()[: work.experiment.probe.num_monitored]
    for arm in work.experiment.arms:
        for source in arm.sources:
            if source.writer == "dataset":
                work.source_prompts(source, work.distillation_pool())
        if arm.alarm == "references" and not any(prompt.reference_ids for prompt in monitored):
            raise AssayError(f"arm {arm.name!r} listens to references, but the task has none: use another alarm")


def _check_judges(work: Workspace, model: PretrainedModel) -> dict[str, str]:
    """Asks each judge for a score, so that none fails after stage 1; returns the digests of those that are models."""
    task, digests = work.experiment.task, {}
    for config in work.experiment.probe.judges:
        if config.kind == "model":
            models = work.experiment.models
            check_same_tokenizer(
                work.tokenizer,
                config.target,
                on_trust=models.vocabulary == "same",
                trust_remote_code=models.trust_remote_code,
            )
    prompts = work.held_out()[:2] if work.experiment.probe.judges else []
    responses = [
        Response(prompt.id, prompt.token_ids[: task.max_response_tokens], "dataset", True) for prompt in prompts
    ]
    for judge in work.judges():
        if isinstance(judge, ModelJudge):
            assert isinstance(judge.model, PretrainedModel)
            check_same_vocabulary(model, judge.model)
            judge.model.check_lengths(task.max_prompt_tokens, task.max_response_tokens)
            digests[f"judge {judge.config.target}"] = judge.model.digest
        else:
            judged(judge, prompts, responses)
    return digests


def _check_leaks(held_out: Sequence[Prompt], *others: Sequence[Prompt]) -> None:
    """Splits are made on whole texts: two of them may become one prompt when they are shortened."""
    seen = {prompt.token_ids for prompts in others for prompt in prompts}
    alike = [prompt for prompt in held_out if prompt.token_ids in seen]
    if alike:
        raise AssayError(
            f"{len(alike)} held-out prompts are, shortened, also prompts to train on (such as {alike[0].text!r}): "
            "raise task.max_prompt_tokens"
        )


def _check_augmentation(work: Workspace, teacher: PretrainedModel) -> None:
    """Refuses templates that cannot be filled, and instructions for paraphrases that the teacher has no room for."""
    config, task = work.experiment.distillation, work.experiment.task
    if config.augmentation == "templates":
        retold(config, work.distillation_pool()[:1], work.text)
    if config.augmentation == "paraphrases":
        asked = paraphrase_instructions(config, work.distillation_pool(), work.text)
        teacher.check_lengths(max(map(len, asked)), task.max_prompt_tokens)
