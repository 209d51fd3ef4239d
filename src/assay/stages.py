"""The stages of an experiment, each a function of the config and the files before it.

A stage whose output is on disk is not run again; that is also how an interrupted run resumes. Stages run in
worker processes with one thread each, so this module is the only one of the pipeline that loads models.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from assay import runs
from assay.checkpoints import save_model, save_tokenizer
from assay.config import ArmConfig, Experiment, SourceConfig, TrainingConfig
from assay.data.distillation_set import DistillationSet, choose_prompts, measure_diversity, present_pairs
from assay.data.signal_store import SignalStore, tokenizer_digest
from assay.data.sources import Counters, Mixture, ResponseSource
from assay.data.store import responses_table
from assay.data.tasks import corpus_digest
from assay.divergences import DIVERGENCES
from assay.errors import AssayError
from assay.evaluation import Probe, build_probe, write_responses
from assay.frozen_set import FrozenSet
from assay.models.batching import SIGNALS_IN_MEMORY_BYTES
from assay.models.cached import CachedLogProbs
from assay.models.ensemble import Ensemble
from assay.models.pretrained import PretrainedModel
from assay.preconditions import check_models
from assay.recorder import Recorder
from assay.training import fit
from assay.types import Progress, Prompt, Response, Writer
from assay.workload import num_held_signals, num_stored_signals
from assay.workspace import Teacher, Workspace

__all__ = ["answer_held_out", "check_models", "fine_tune", "run_arm", "write_oracle_responses"]

Report = Callable[[Progress], None]

_FRESH = SourceConfig("teacher", 1, "epochs")
"""What a policy may draw fresh responses from."""


def write_oracle_responses(experiment: Experiment, folder: Path, shard: int, num_shards: int, report: Report) -> None:
    """Stage 1a: the oracle answers every ``num_shards``-th oracle prompt; shard 0 also the held-out prompts."""
    work = Workspace(experiment, folder)
    path = work.stage_one / f"oracle-{shard}.parquet"
    if path.exists():
        return
    oracle = work.tuned("oracle")
    prompts = work.prompts("oracle", experiment.stage_one.num_oracle_prompts)[shard::num_shards]
    responses: list[Response] = []
    stage = f"oracle responses {shard + 1}/{num_shards}"
    for start in range(0, len(prompts), 512):
        report(Progress(stage, start, len(prompts)))
        responses += _answer(work, oracle, "oracle", prompts[start : start + 512], "stage_one")
    report(Progress(stage, len(prompts), len(prompts)))
    if shard == 0:
        _write_held_out(work, oracle, "oracle")
        _write_references(work)
    runs.write_table(path, responses_table(prompts, responses, work.tokenizer, split="oracle", seed=experiment.seed))


def answer_held_out(experiment: Experiment, folder: Path, role: Writer, report: Report) -> str:
    """In place of stage 1 where there is no oracle: a role's answers to the held-out prompts; returns its digest.

    That of a teacher which gives text only is the digest of the file with its text.
    """
    work = Workspace(experiment, folder)
    model = work.tuned(role) if role in experiment.models.names else None
    if not (work.stage_one / f"held_out-{role}.parquet").exists():
        stage = f"held-out responses of the {role}"
        report(Progress(stage, 0, 1))
        if role == "student":
            _write_references(work)
        _write_held_out(work, model, role)
        report(Progress(stage, 1, 1))
    return model.digest if model is not None else corpus_digest(work.text.corpus)


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
        parallel=experiment.distillation.training.parallel,
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
        repaired=functools.partial(runs.note_repair, work.folder),
    )
    return model


def run_arm(experiment: Experiment, folder: Path, name: str, report: Report) -> None:
    """Stage 2: distils one arm from the common start, evaluating on the way."""
    started = time.perf_counter()
    work = Workspace(experiment, folder)
    arm_folder = work.arm(name)
    if (arm_folder / "finished.json").exists():
        return
    arm = next(arm for arm in experiment.arms if arm.name == name)
    training = experiment.distillation.training
    student = work.student()
    models = work.frozen()
    embedder = _embedder(models, student)
    chosen = choose_prompts(
        experiment.distillation, work.distillation_pool(), work.held_out(), embedder, work.text, experiment.seed
    )
    counters = Counters()
    cache = signals = None
    if "teacher" in models:
        cache, signals = _teacher_cache(work, arm, models["teacher"])
        report(Progress(signals, 1, 1))
    sources = [
        _source(work, config, chosen.prompts, {**models, "student": student}, counters, cache, index)
        for index, config in enumerate(arm.sources)
    ]
    fresh = None
    if arm.policy == "auto":
        fresh = _source(work, _FRESH, chosen.prompts, models, counters, cache, len(sources))
    mixture = Mixture(sources, training.batch_size, fresh)
    train_pairs = _train_pairs(work, mixture, chosen.prompts, models.get("teacher"))
    table = responses_table(*train_pairs, work.tokenizer, split="distillation", seed=experiment.seed, arm=name)
    runs.write_table(arm_folder / "train_pairs.parquet", table)
    probe = _build_probe(work, train_pairs, models, cache)
    torch.manual_seed(experiment.seed)  # for dropout and low-rank updates: everything else has seeds of its own
    repaired = functools.partial(runs.note_repair, folder)
    recorder = Recorder(experiment, arm, arm_folder, probe, mixture, work.tokenizer, report, repaired, started)
    state = fit(
        student,
        mixture,
        training,
        before_step=lambda s: recorder(s, student),
        checkpoints=arm_folder / "checkpoints",
        kept=arm_folder / "kept",
        repaired=repaired,
    )
    runs.write_atomically(arm_folder / "student", lambda path: save_model(student, path, work.tokenizer))
    recommended = recorder.recommended_step()
    _keep_recommended(work, arm_folder, recommended)
    _write_diversity(work, arm_folder / "diversity.json", chosen, mixture, _embedder(models, work.student()))
    kept_step = state.step if state.stopped_at is None else state.stopped_at
    for folder_of_the_way in (arm_folder / "kept", arm_folder / "signals"):
        if folder_of_the_way.exists():
            runs.remove(folder_of_the_way)
    finished = {"step": state.step, "kept_step": kept_step, "recommended_step": recommended}
    seconds = recorder.seconds_at_the_end(state)
    runs.write_json(arm_folder / "finished.json", finished | {"teacher_signals": signals, "seconds": seconds})


def _embedder(models: Mapping[Writer, Teacher], student: PretrainedModel) -> PretrainedModel | Ensemble:
    """Whose hidden states compare texts: the teacher's; the student's start where the teacher shows none."""
    teacher = models.get("teacher")
    return teacher if isinstance(teacher, PretrainedModel | Ensemble) else student


def _keep_recommended(work: Workspace, arm_folder: Path, step: int | None) -> None:
    """Writes ``best`` from the student that was kept at ``step``; for None it was written on the way."""
    if step is None or (arm_folder / "best").exists():
        return

    def write(path: Path) -> None:
        shutil.copytree(arm_folder / "kept" / f"step-{step:08d}", path)
        save_tokenizer(work.tokenizer, path)

    runs.write_atomically(arm_folder / "best", write)


def _write_diversity(
    work: Workspace, path: Path, chosen: DistillationSet, mixture: Mixture, embedder: PretrainedModel | Ensemble
) -> None:
    """Measures of the pairs that the sources hold at the end, and what became of the augmentation."""
    pairs = present_pairs([source for source in mixture.sources if source.config.prompts == "distillation"])
    held_out, answers = work.held_out(), work.held_out_responses("teacher")
    found = dataclasses.asdict(measure_diversity(*pairs, held_out, answers, embedder, work.tokenizer))
    if chosen.augmented is not None:
        augmented = dataclasses.asdict(chosen.augmented)
        found["augmentation"] = {"num_added": len(augmented.pop("prompts")), **augmented}
    runs.write_json(path, {"schema": "assay.diversity/1", **found})


def _build_probe(
    work: Workspace,
    train_pairs: tuple[Sequence[Prompt], Sequence[Response]],
    models: Mapping[Writer, Teacher],
    teacher_cache: CachedLogProbs | None,
) -> Probe:
    experiment = work.experiment
    models = {**models, "student": work.tuned("student")}
    roles: set[Writer] = {"teacher", *models}
    responses: dict[Writer, list[Response]] = {role: work.held_out_responses(role) for role in roles}
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
    work: Workspace, mixture: Mixture, prompts: Sequence[Prompt], teacher: Teacher | None
) -> tuple[Sequence[Prompt], Sequence[Response]]:
    """What the train proxy walks on: the stored pairs of an offline source, else a fixed fresh teacher sample."""
    num_pairs = work.experiment.probe.num_train_pairs
    for source in mixture.sources:
        if source.config.is_offline:
            return source.stored_pairs(num_pairs)
    prompts = prompts[:num_pairs]
    if teacher is None:
        return prompts, work.text_of_the_teacher(prompts)
    return prompts, _answer(work, teacher, "teacher", prompts, "train_proxy")


def _teacher_cache(work: Workspace, arm: ArmConfig, teacher: Teacher) -> tuple[CachedLogProbs, str]:
    """How the teacher's word on responses is kept in an arm, and a sentence that says so.

    In memory, in a store that runs share, or, where that is more than memory is used for, in files of the arm alone.
    """
    experiment, config = work.experiment, work.experiment.distillation
    cache, limit = CachedLogProbs(teacher, config.teacher_top_k), experiment.task.max_response_tokens
    most = cache.most_bytes(num_held_signals(experiment, arm) * limit)
    is_large = most > SIGNALS_IN_MEMORY_BYTES
    place = "in memory"
    if is_large or config.signal_store is not None:
        store = work.arm(arm.name) / "signals" if config.signal_store is None else Path(config.signal_store)
        stored = num_held_signals if config.signal_store is None else num_stored_signals
        most = cache.most_bytes(stored(experiment, arm) * limit)
        cache = SignalStore(
            teacher,
            store,
            top_k=config.teacher_top_k,
            settings={"tokenizer": tokenizer_digest(work.tokenizer), "template": experiment.task.template},
            provenance={
                "seed": experiment.seed,
                "arm": arm.name,
                "sampling_temperature": config.sampling_temperature,
                "max_response_tokens": limit,
            },
            in_memory=not is_large,
        )
        place = "in files of the arm" if config.signal_store is None else f"in {cache.folder}"
        if is_large:
            place = f"more than the {SIGNALS_IN_MEMORY_BYTES / 1e9:.1f} GB that an arm keeps in memory, so {place}"
    return cache, f"signals of the teacher: {cache.kind_and_reason}; {most / 1e6:,.1f} MB at most {place}"


def _source(
    work: Workspace,
    config: SourceConfig,
    prompts: Sequence[Prompt],
    models: Mapping[Writer, Teacher],
    counters: Counters,
    cache: CachedLogProbs | None,
    index: int,
) -> ResponseSource:
    distillation = work.experiment.distillation
    is_met_again = cache is not None and not cache.in_memory and config.refresh_every != 1
    if config.writer == "student" and cache is not None and not is_met_again:  # by no other run in any case: no store
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
    if config.writer == "teacher" and "teacher" not in models:
        given = range(source.completions_per_prompt)
        source.preload([answer for i in given for answer in work.text_of_the_teacher(source.prompts, i)])
    if config.is_replay:
        source.preload(work.oracle_responses(len(list(work.stage_one.glob("oracle-*.parquet"))))[1])
    return source


def _answer(work: Workspace, model: Teacher, writer: Writer, prompts: Sequence[Prompt], purpose: str) -> list[Response]:
    limit = work.experiment.task.max_response_tokens
    return write_responses(model, writer, prompts, limit, purpose=purpose, seed=work.experiment.seed)


def _write_held_out(work: Workspace, model: Teacher | None, role: Writer) -> None:
    """The role's answers to the held-out prompts; written last in stage 1, so it marks the role as done."""
    prompts = work.held_out()
    if role == "teacher" and work.experiment.models.oracle is not None:
        golden = FrozenSet("golden", prompts, work.held_out_responses("oracle"), work.tuned("oracle"))
        assert isinstance(model, PretrainedModel | Ensemble)
        distance, _ = golden.against(model)
        d_oracle_teacher = dataclasses.replace(distance, metric="d_oracle_teacher")
        table = d_oracle_teacher.table(arm="", seed=work.experiment.seed, step=0)
        runs.write_table(work.stage_one / "d_oracle_teacher.parquet", table)
    if role == "teacher" and work.experiment.models.teacher_is_oracle:
        # one and the same held-out sample for both: golden is proxy by construction
        oracle_responses = work.held_out_responses("oracle")
        responses = [dataclasses.replace(response, writer="teacher") for response in oracle_responses]
    elif model is None:
        responses = work.text_of_the_teacher(prompts)
    else:
        responses = _answer(work, model, role, prompts, "held_out")
    table = responses_table(prompts, responses, work.tokenizer, split="held_out", seed=work.experiment.seed)
    runs.write_table(work.stage_one / f"held_out-{role}.parquet", table)


def _write_references(work: Workspace) -> None:
    """The human references of the held-out prompts, beside what the models answer."""
    prompts = [prompt for prompt in work.held_out() if prompt.reference_ids]
    eos = work.tokenizer.eos_token_id
    texts = [Response(p.id, p.reference_ids, "dataset", p.reference_ids[-1] != eos) for p in prompts]
    table = responses_table(prompts, texts, work.tokenizer, split="held_out", seed=work.experiment.seed)
    runs.write_table(work.stage_one / "held_out-dataset.parquet", table)
