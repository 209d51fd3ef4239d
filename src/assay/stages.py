"""The stages of an experiment, each a function of the config and the files before it.

A stage whose output is on disk is not run again; that is also how an interrupted run resumes. Stages run in
worker processes with one thread each, so this module is the only one of the pipeline that loads models.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from assay import provenance, runs
from assay.config import ArmConfig, Experiment, SourceConfig, TrainingConfig
from assay.data.augmentation import Text, paraphrase_instructions, retold
from assay.data.chat import chat_template_digest
from assay.data.distillation_set import DistillationSet, choose_prompts, measure_diversity, pool_size, present_pairs
from assay.data.signal_store import SignalStore, tokenizer_digest
from assay.data.sources import Counters, Mixture, ResponseSource
from assay.data.store import read_responses, response_text, responses_table
from assay.data.tasks import Split, corpus_digest, load_prompts
from assay.divergences import DIVERGENCES, divergence
from assay.errors import AssayError
from assay.evaluation import FrozenSet, Probe, build_probe, judged, write_responses
from assay.judges import Judge, ModelJudge, open_judge
from assay.models.averaging import Learner
from assay.models.cached import CachedLogProbs
from assay.models.ensemble import Ensemble
from assay.models.language_model import LanguageModel
from assay.models.loading import (
    check_fits,
    check_same_tokenizer,
    check_same_vocabulary,
    load_framing,
    load_model,
    load_tokenizer,
    num_token_ids,
    random_model,
)
from assay.models.pretrained import PretrainedModel
from assay.models.served import ServedModel
from assay.recorder import Recorder, probe_table
from assay.training import fit, save_model, save_tokenizer
from assay.types import Progress, Prompt, Response, Writer
from assay.workload import num_stored_signals

Report = Callable[[Progress], None]
Teacher = PretrainedModel | Ensemble | ServedModel

_FRESH = SourceConfig("teacher", 1, "epochs")
"""What a policy may draw fresh responses from."""


class Workspace:
    """Paths, prompts and models of one run, made on demand."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment = experiment
        self.folder = folder
        models = experiment.models
        home = models.tokenizer_home
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(home, models.trust_remote_code)
        self.framing = load_framing(home, self.tokenizer, models.trust_remote_code)

    @property
    def stage_one(self) -> Path:
        """The folder of stage 1: oracle responses and the two fine-tuned models."""
        return self.folder / "stage1"

    def arm(self, name: str) -> Path:
        """The folder of one arm."""
        return self.folder / "arms" / name

    def prompts(self, split: Split, num_prompts: int | None) -> list[Prompt]:
        """The run's prompts of a split, drawn with the run's seed; all that fit for None."""
        task = self.experiment.task
        corpus = self.text.corpus
        manifest = self.folder / "manifest.json"
        if manifest.exists():  # within a run: its text must not change under it
            provenance.pin_digests(runs.read_json(manifest), {"corpus": corpus_digest(corpus)})
        return load_prompts(
            corpus,
            split,
            self.tokenizer,
            task.max_prompt_tokens,
            task.max_response_tokens,
            num_prompts,
            self.experiment.seed,
            self.framing,
        )

    def source_prompts(self, source: SourceConfig, distillation: Sequence[Prompt]) -> Sequence[Prompt]:
        """The prompts of a source, of those to distil on; AssayError when it needs references and they have none."""
        prompts = distillation
        if source.prompts == "oracle":
            prompts = self.prompts("oracle", self.experiment.stage_one.num_oracle_prompts)
        if source.writer == "dataset" and not all(prompt.reference_ids for prompt in prompts):
            raise AssayError(
                f"writer 'dataset' needs a reference for every prompt of task {self.experiment.task.name!r}"
            )
        return prompts

    def distillation_pool(self) -> list[Prompt]:
        """The prompts of the distillation split that those of the run are chosen from."""
        return self.prompts("distillation", pool_size(self.experiment.distillation))

    @property
    def text(self) -> Text:
        """How text becomes prompts."""
        return Text(self.experiment.task, self.tokenizer, self.framing, self.experiment.models.oracle is not None)

    def held_out(self) -> list[Prompt]:
        """The probe's prompts."""
        return self.prompts("held_out", self.experiment.probe.num_prompts)

    def held_out_responses(self, role: Writer) -> list[Response]:
        """A role's frozen answers to the held-out prompts (the student's as it was after stage 1)."""
        return read_responses(self.stage_one / f"held_out-{role}.parquet")

    def base(self, role: Writer) -> PretrainedModel:
        """A role's model before stage 1; not of a served teacher."""
        models = self.experiment.models
        is_random = role == "student" and models.student_initialisation == "random"
        return self._load(models.names[role], is_random)

    @functools.cached_property
    def served_teacher(self) -> ServedModel | None:
        """The teacher behind a server, which is asked once whether it fits; None where there is none."""
        models = self.experiment.models
        if models.teacher_url is None:
            return None
        if self.framing.after:
            raise AssayError(
                f"a served teacher would see the tokens that close a prompt of {models.student!r}, an encoder-decoder "
                "model: distil from its text instead (models.teacher null, its responses in a column task.responses)"
            )
        return ServedModel(models.teacher_url, self.tokenizer, models.server)

    def tuned(self, role: Writer) -> Teacher:
        """A role's model after stage 1 (the oracle is never trained); several teachers are one ensemble."""
        models = self.experiment.models
        if role == "teacher" and self.served_teacher is not None:
            return self.served_teacher
        if role == "oracle" or (role == "teacher" and models.teacher_is_oracle):
            return self.base("oracle")
        if models.oracle is None:
            return self.base(role)
        members = [self._load(str(self.stage_one / name)) for name in self.tuned_names(role)]
        return members[0] if len(members) == 1 else Ensemble(members, f"{len(members)} teachers")

    def student(self) -> PretrainedModel:
        """The student as it is before distillation."""
        student = self.tuned("student")
        assert isinstance(student, PretrainedModel)
        return student

    def frozen(self) -> dict[Writer, LanguageModel]:
        """The models that a student is measured against, and learns from: oracle and teacher, as far as they are."""
        return {role: self.tuned(role) for role in self.experiment.models.names if role != "student"}

    def judges(self) -> list[Judge]:
        """Those who score the student's responses beside the truth."""
        decode = functools.partial(response_text, self.tokenizer)
        load = functools.cache(self._load)  # two judges may be one model
        return [open_judge(config, load, decode) for config in self.experiment.probe.judges]

    @property
    def vocab_size(self) -> int | None:
        """To how many tokens the law of every model is cut; None where it is left whole."""
        return num_token_ids(self.tokenizer) if self.experiment.models.vocabulary == "shared" else None

    def _load(self, name: str, is_random: bool = False) -> PretrainedModel:
        """All models of a run end responses with its tokenizer's token, and have laws over one vocabulary."""
        models = self.experiment.models
        alike: Any = {
            "eos_token_id": self.tokenizer.eos_token_id,
            "vocab_size": self.vocab_size,
            "trust_remote_code": models.trust_remote_code,
        }
        if is_random:
            return random_model(name, self.experiment.seed, models.device, **alike)
        return load_model(name, models.device, allow_pickle=models.allow_pickle, **alike)

    def tuned_names(self, role: Writer) -> list[str]:
        """The folders, in stage 1, of a role's fine-tuned models."""
        number = self.experiment.models.num_teachers
        return [f"teacher-{i}" for i in range(number)] if role == "teacher" and number > 1 else [role]

    def oracle_responses(self, num_shards: int) -> tuple[list[Prompt], list[Response]]:
        """The oracle prompts with the oracle's answers, as stage 1 has written them."""
        prompts = self.prompts("oracle", self.experiment.stage_one.num_oracle_prompts)
        paths = [self.stage_one / f"oracle-{i}.parquet" for i in range(num_shards)]
        stored = {response.prompt_id: response for path in paths for response in read_responses(path)}
        return prompts, [stored[prompt.id] for prompt in prompts]


def count_prompts(experiment: Experiment, splits: Sequence[Split]) -> dict[Split, int]:
    """How many prompts of each split fit the task's token limit; of a run's config before it has a folder."""
    work = Workspace(experiment, Path(os.devnull))
    return {split: len(work.prompts(split, None)) for split in splits}


def check_models(experiment: Experiment, folder: Path, report: Report) -> dict[str, str]:
    """Refuses what could only fail later: models, prompts, divergence. Returns the digests of the models' weights."""
    report(Progress("loading models", 0, 1))
    divergence(experiment.distillation.training.divergence, **experiment.distillation.training.divergence_parameters)
    work = Workspace(experiment, folder)
    config = experiment.models
    local = {role: name for role, name in config.names.items() if role != "teacher" or config.teacher_url is None}
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
        _check_temperature(experiment, everyone["teacher"])
    _check_references(work)
    stage_one = work.prompts("oracle", experiment.stage_one.num_oracle_prompts) if "oracle" in models else []
    _check_leaks(work.held_out(), stage_one, work.distillation_pool())
    if "teacher" in models:
        _check_augmentation(work, models["teacher"])
    digests: dict[str, str] = {role: model.digest for role, model in everyone.items()} | {
        "corpus": corpus_digest(work.text.corpus)
    }
    if experiment.task.chat_template:
        digests["chat_template"] = str(chat_template_digest(work.tokenizer))
    return digests | _check_judges(work, first)


def _check_temperature(experiment: Experiment, teacher: Teacher) -> None:
    """Refuses a softmax temperature where a part of the teacher's law is kept: it changes the mass of every token."""
    config = experiment.distillation
    listed = teacher.num_top if isinstance(teacher, ServedModel) else config.teacher_top_k or teacher.vocab_size
    if listed < teacher.vocab_size and config.training.softmax_temperature != 1:
        raise AssayError(
            f"a softmax temperature needs the teacher's law on all {teacher.vocab_size} tokens, but {listed} are "
            "listed (distillation.teacher_top_k, models.server.top_k): set softmax_temperature to 1, or list them all"
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


def write_oracle_responses(experiment: Experiment, folder: Path, shard: int, num_shards: int, report: Report) -> None:
    """Stage 1a: the oracle answers every ``num_shards``-th oracle prompt; shard 0 also the held-out prompts."""
    work = Workspace(experiment, folder)
    path = work.stage_one / f"oracle-{shard}.parquet"
    if path.exists():
        return
    oracle = work.tuned("oracle")
    prompts = work.prompts("oracle", experiment.stage_one.num_oracle_prompts)[shard::num_shards]
    responses: list[Response] = []
    for start in range(0, len(prompts), 512):
        report(Progress(f"oracle responses {shard + 1}/{num_shards}", start, len(prompts)))
        responses += _answer(work, oracle, "oracle", prompts[start : start + 512], "stage_one")
    if shard == 0:
        _write_held_out(work, oracle, "oracle")
        _write_references(work, oracle.eos_token_id)
    runs.write_table(path, responses_table(prompts, responses, work.tokenizer, split="oracle", seed=experiment.seed))


def answer_held_out(experiment: Experiment, folder: Path, role: Writer, report: Report) -> str:
    """In place of stage 1 where there is no oracle: a role's answers to the held-out prompts; returns its digest."""
    work = Workspace(experiment, folder)
    model = work.tuned(role)
    if not (work.stage_one / f"held_out-{role}.parquet").exists():
        report(Progress(f"held-out responses of the {role}", 0, 1))
        if role == "student":
            _write_references(work, model.eos_token_id)
        _write_held_out(work, model, role)
    return model.digest


def fine_tune(experiment: Experiment, folder: Path, role: Writer, num_shards: int, report: Report) -> str:
    """Stage 1b: SFT of teacher or student on the oracle responses, then its answers to the held-out prompts.

    Returns the digest of the fine-tuned weights.
    """
    work = Workspace(experiment, folder)
    if (work.stage_one / f"held_out-{role}.parquet").exists():
        return work.tuned(role).digest
    if role == "teacher" and experiment.models.teacher_is_oracle:
        _write_held_out(work, work.tuned("oracle"), role)
        return work.tuned("oracle").digest
    stage = experiment.stage_one
    epochs = {"teacher": stage.teacher_epochs, "student": stage.student_epochs}[role]
    num_steps = round(epochs * stage.num_oracle_prompts / stage.batch_size)
    if epochs > 0 and num_steps == 0:
        raise AssayError(
            f"SFT of the {role}: {epochs} passes over {stage.num_oracle_prompts} oracle responses make no batch of "
            f"{stage.batch_size}: lower stage_one.batch_size, or set stage_one.{role}_epochs to 0"
        )
    prompts, responses = work.oracle_responses(num_shards)
    names = work.tuned_names(role)
    for member, name in enumerate(names):
        if (work.stage_one / name).exists():
            continue
        rows = list(range(len(prompts)))
        if len(names) > 1:  # a bootstrap resample
            rows = np.random.default_rng([experiment.seed, member]).integers(len(prompts), size=len(prompts)).tolist()
        drawn = [prompts[row] for row in rows], [responses[row] for row in rows]
        model = _fine_tuned(work, role, name, *drawn, num_steps, member, report)
        runs.write_atomically(work.stage_one / name, functools.partial(save_model, model, tokenizer=work.tokenizer))
    tuned = work.tuned(role)
    _write_held_out(work, tuned, role)
    return tuned.digest


def _fine_tuned(
    work: Workspace,
    role: Writer,
    name: str,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    num_steps: int,
    index: int,
    report: Report,
) -> PretrainedModel:
    """A role's base after ``num_steps`` steps on these responses; ``index`` fixes their order."""
    experiment, stage = work.experiment, work.experiment.stage_one
    model = work.base(role)
    if num_steps == 0:
        return model
    config = TrainingConfig(
        num_steps=num_steps,
        batch_size=stage.batch_size,
        learning_rate=stage.learning_rate,
        warmup_steps=stage.warmup_steps,
        divergence="hard_labels",
        checkpoint_every=100,
    )
    source = ResponseSource(
        SourceConfig("oracle"),
        prompts,
        {role: model},
        max_response_tokens=experiment.task.max_response_tokens,
        seed=experiment.seed,
        signal=False,
        index=index,
    )
    source.preload(responses)
    fit(
        model,
        Mixture([source], stage.batch_size),
        config,
        before_step=lambda state: report(Progress(f"SFT of {name}", state.step, num_steps)),
        checkpoints=work.stage_one / f"checkpoints-{name}",
    )
    return model


def run_arm(experiment: Experiment, folder: Path, name: str, report: Report) -> None:
    """Stage 2: distils one arm from the common start, evaluating on the way."""
    work = Workspace(experiment, folder)
    arm_folder = work.arm(name)
    if (arm_folder / "finished.json").exists():
        return
    arm = next(arm for arm in experiment.arms if arm.name == name)
    training = experiment.distillation.training
    student = work.student()
    models = work.frozen()
    teacher = models["teacher"]
    chosen = choose_prompts(
        experiment.distillation, work.distillation_pool(), work.held_out(), teacher, work.text, experiment.seed
    )
    counters = Counters()
    cache = _teacher_cache(work, arm, teacher, report)
    sources = [
        _source(work, config, chosen.prompts, models, counters, cache, index)
        for index, config in enumerate(arm.sources)
    ]
    fresh = None
    if arm.policy == "auto":
        fresh = _source(work, _FRESH, chosen.prompts, models, counters, cache, len(sources))
    mixture = Mixture(sources, training.batch_size, fresh)
    train_pairs = _train_pairs(work, mixture, chosen.prompts, teacher)
    table = responses_table(*train_pairs, work.tokenizer, split="distillation", seed=experiment.seed, arm=name)
    runs.write_table(arm_folder / "train_pairs.parquet", table)
    probe = _build_probe(work, train_pairs, models, cache)
    torch.manual_seed(experiment.seed)  # for dropout and low-rank updates: everything else has seeds of its own
    recorder = Recorder(experiment, arm, arm_folder, probe, mixture, work.tokenizer, report)
    state = fit(
        student,
        mixture,
        training,
        before_step=lambda s: recorder(s, student),
        checkpoints=arm_folder / "checkpoints",
        kept=arm_folder / "kept",
    )
    runs.write_atomically(arm_folder / "student", lambda path: save_model(student, path, work.tokenizer))
    _keep_recommended(work, arm_folder, recorder.recommended_step())
    _write_diversity(work, arm_folder / "diversity.json", chosen, mixture, teacher)
    kept_step = state.step if state.stopped_at is None else state.stopped_at
    if (arm_folder / "kept").exists():
        runs.remove(arm_folder / "kept")
    runs.write_json(arm_folder / "finished.json", {"step": state.step, "kept_step": kept_step})


def _keep_recommended(work: Workspace, arm_folder: Path, step: int | None) -> None:
    """Writes ``best`` from the student that was kept at ``step``; for None it was written on the way."""
    if step is None or (arm_folder / "best").exists():
        return

    def write(path: Path) -> None:
        shutil.copytree(arm_folder / "kept" / f"step-{step:08d}", path)
        save_tokenizer(work.tokenizer, path)

    runs.write_atomically(arm_folder / "best", write)


def _write_diversity(
    work: Workspace, path: Path, chosen: DistillationSet, mixture: Mixture, teacher: PretrainedModel | Ensemble
) -> None:
    """Measures of the pairs that the sources hold at the end, and what became of the augmentation."""
    pairs = present_pairs([source for source in mixture.sources if source.config.prompts == "distillation"])
    held_out, answers = work.held_out(), work.held_out_responses("teacher")
    found = dataclasses.asdict(measure_diversity(*pairs, held_out, answers, teacher, work.tokenizer))
    if chosen.augmented is not None:
        augmented = dataclasses.asdict(chosen.augmented)
        found["augmentation"] = {"num_added": len(augmented.pop("prompts")), **augmented}
    runs.write_json(path, {"schema": "assay.diversity/1", **found})


def _build_probe(
    work: Workspace,
    train_pairs: tuple[Sequence[Prompt], Sequence[Response]],
    models: Mapping[Writer, LanguageModel],
    teacher_cache: CachedLogProbs,
) -> Probe:
    experiment = work.experiment
    models = {**models, "student": work.tuned("student")}
    responses = {role: work.held_out_responses(role) for role in models}
    return build_probe(
        models,
        work.held_out(),
        responses,
        train_pairs,
        experiment.probe,
        max_response_tokens=experiment.task.max_response_tokens,
        seed=experiment.seed,
        teacher_cache=teacher_cache,
        judges=work.judges(),
    )


def _train_pairs(
    work: Workspace, mixture: Mixture, prompts: Sequence[Prompt], teacher: LanguageModel
) -> tuple[Sequence[Prompt], Sequence[Response]]:
    """What the train proxy walks on: the stored pairs of an offline source, else a fixed fresh teacher sample."""
    num_pairs = work.experiment.probe.num_train_pairs
    for source in mixture.sources:
        if source.config.is_offline:
            return source.stored_pairs(num_pairs)
    prompts = prompts[:num_pairs]
    return prompts, _answer(work, teacher, "teacher", prompts, "train_proxy")


def _teacher_cache(work: Workspace, arm: ArmConfig, teacher: Teacher, report: Report) -> CachedLogProbs:
    """How the teacher's word on responses is kept in an arm: in memory, or in a store that other runs share."""
    experiment, config = work.experiment, work.experiment.distillation
    if config.signal_store is None:
        return CachedLogProbs(teacher, config.teacher_top_k)
    return SignalStore(
        teacher,
        Path(config.signal_store),
        top_k=config.teacher_top_k,
        settings={"tokenizer": tokenizer_digest(work.tokenizer), "template": experiment.task.template},
        provenance={
            "seed": experiment.seed,
            "arm": arm.name,
            "sampling_temperature": config.sampling_temperature,
            "max_response_tokens": experiment.task.max_response_tokens,
        },
        expected_tokens=num_stored_signals(experiment, arm) * experiment.task.max_response_tokens,
        announce=lambda text: report(Progress(text, 1, 1)),
    )


def _source(
    work: Workspace,
    config: SourceConfig,
    prompts: Sequence[Prompt],
    models: Mapping[Writer, LanguageModel],
    counters: Counters,
    cache: CachedLogProbs,
    index: int,
) -> ResponseSource:
    distillation = work.experiment.distillation
    if config.writer == "student":  # its responses are never met again: no store
        cache = CachedLogProbs(models["teacher"], distillation.teacher_top_k)
    source = ResponseSource(
        config,
        work.source_prompts(config, prompts),
        models,
        max_response_tokens=work.experiment.task.max_response_tokens,
        completions_per_prompt=config.completions(distillation.completions_per_prompt),
        sampling_temperature=1.0 if config.is_replay else distillation.sampling_temperature,
        seed=work.experiment.seed,
        signal=DIVERGENCES[distillation.training.divergence].needs == "distribution",
        cache=cache,
        index=index,
        counters=counters,
    )
    if config.is_replay:
        source.preload(work.oracle_responses(len(list(work.stage_one.glob("oracle-*.parquet"))))[1])
    return source


def _answer(
    work: Workspace, model: LanguageModel, writer: Writer, prompts: Sequence[Prompt], purpose: str
) -> list[Response]:
    limit = work.experiment.task.max_response_tokens
    return write_responses(model, writer, prompts, limit, purpose=purpose, seed=work.experiment.seed)


def _write_held_out(work: Workspace, model: LanguageModel, role: Writer) -> None:
    """The role's answers to the held-out prompts; written last in stage 1, so it marks the role as done."""
    prompts = work.held_out()
    if role == "teacher" and work.experiment.models.oracle is not None:
        golden = FrozenSet("golden", prompts, work.held_out_responses("oracle"), work.tuned("oracle"))
        distance, _ = golden.against(model)
        d_oracle_teacher = dataclasses.replace(distance, metric="d_oracle_teacher")
        table = probe_table(d_oracle_teacher, arm="", seed=work.experiment.seed, step=0)
        runs.write_table(work.stage_one / "d_oracle_teacher.parquet", table)
    if role == "teacher" and work.experiment.models.teacher_is_oracle:
        # one and the same held-out sample for both: golden is proxy by construction
        oracle_responses = work.held_out_responses("oracle")
        responses = [dataclasses.replace(response, writer="teacher") for response in oracle_responses]
    else:
        responses = _answer(work, model, role, prompts, "held_out")
    table = responses_table(prompts, responses, work.tokenizer, split="held_out", seed=work.experiment.seed)
    runs.write_table(work.stage_one / f"held_out-{role}.parquet", table)


def _write_references(work: Workspace, eos_token_id: int) -> None:
    """The human references of the held-out prompts, beside what the models answer."""
    prompts = [prompt for prompt in work.held_out() if prompt.reference_ids]
    texts = [Response(p.id, p.reference_ids, "dataset", p.reference_ids[-1] != eos_token_id) for p in prompts]
    table = responses_table(prompts, texts, work.tokenizer, split="held_out", seed=work.experiment.seed)
    runs.write_table(work.stage_one / "held_out-dataset.parquet", table)
