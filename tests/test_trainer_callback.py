"""The referee inside other trainers: what it measures and writes, and that the host does not notice it."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from assay import AssayError, HackingCallback, Probe, read_log, runs
from assay.data.tasks import get_task, load_prompts
from assay.diagnosing import diagnose_log
from assay.evaluation import evaluation_steps
from assay.integrations.log_sheet import meaning_of
from assay.integrations.trainer_callback import LOGGED
from assay.models.bases import base_path
from assay.models.in_memory import adapted, left_as_found, unwrapped
from assay.output import Output
from tiny_models import gpt2

STEPS = 12
TOKENIZER = AutoTokenizer.from_pretrained(base_path("define-student"))
HELD_OUT, TRAINED = (
    load_prompts(get_task("define"), split, TOKENIZER, 16, 12, count)
    for split, count in (("held_out", 48), ("distillation", 16))
)
TEXTS, TRAIN_TEXTS = ([prompt.text for prompt in prompts] for prompts in (HELD_OUT, TRAINED))
REFERENCES = [f" {prompt.reference}" for prompt in HELD_OUT]
ROWS = [
    {"input_ids": [*p.token_ids, *p.reference_ids], "labels": [-100] * len(p.token_ids) + list(p.reference_ids)}
    for p in TRAINED
]


def base(name: str, dropout: float = 0.0) -> Any:
    config = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return AutoModelForCausalLM.from_pretrained(base_path(name), dtype=torch.float32, **config)


def build(teacher: Any = None, **changes: Any) -> Probe:
    given = {"references": REFERENCES, "train_prompts": TRAIN_TEXTS, "max_response_tokens": 12, "num_monitored": 4}
    prompts = changes.pop("prompts", TEXTS)
    tokenizer = changes.pop("tokenizer", TOKENIZER)
    return Probe.build(base("define-teacher") if teacher is None else teacher, tokenizer, prompts, **given | changes)


@pytest.fixture(scope="module")
def probe() -> Probe:
    return build()


def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": TOKENIZER.pad_token_id, "labels": -100}
    return {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
        for name, value in fill.items()
    } | {"attention_mask": torch.tensor([[int(i < len(row["labels"])) for i in range(longest)] for row in rows])}


def trainer_of(student: Any, folder: Path, *callbacks: TrainerCallback, **changes: Any) -> Trainer:
    given: dict[str, Any] = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
                             "lr_scheduler_type": "constant", "logging_steps": 3, "save_strategy": "no",
                             "use_cpu": True, "report_to": "none", "disable_tqdm": True}  # fmt: skip
    args = TrainingArguments(str(folder), **given | changes)
    return Trainer(student, args, padded, Dataset.from_list(ROWS), callbacks=list(callbacks))


def evaluations(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "assay/proxy_nats" in entry]


def host_entries(trainer: Trainer) -> list[dict[str, float]]:
    return [
        {name: value for name, value in entry.items() if "second" not in name and "time" not in name}
        for entry in trainer.state.log_history
        if "assay/proxy_nats" not in entry
    ]


@pytest.fixture(scope="module")
def run(probe: Probe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, HackingCallback]:
    folder = tmp_path_factory.mktemp("host")
    callback = HackingCallback(probe, num_evaluations=9)
    trainer = trainer_of(base("define-student"), folder, callback)
    trainer.train()
    return trainer, callback


def test_evaluations_are_at_geometric_steps_with_all_columns(run: tuple[Trainer, HackingCallback]) -> None:
    found = evaluations(run[0])
    assert [entry["step"] for entry in found] == evaluation_steps(STEPS, 9)
    expected = {f"assay/{name}" for name in LOGGED if name not in ("golden_nats",)}
    assert set(found[-1]) == expected | {"epoch", "step"}


def test_the_last_evaluation_is_that_of_the_student_that_training_leaves(
    run: tuple[Trainer, HackingCallback], probe: Probe
) -> None:
    means = probe.evaluate(adapted(run[0].model, "student", 0), STEPS).means
    for name in ("proxy_nats", "reference_nll_nats", "train_proxy_nats", "distinct_2"):
        assert evaluations(run[0])[-1][f"assay/{name}"] == means[name]


def test_reference_nll_is_that_of_the_text_under_the_plain_model(probe: Probe) -> None:
    student = base("define-student")
    values = next(s for s in probe.sets if s.metric == "reference_nll").against(adapted(student, "s", 0))[0].value_nats
    for i in (0, 7, 40):
        prompt = TOKENIZER.encode(TEXTS[i])
        row = [*prompt, *[*TOKENIZER.encode(REFERENCES[i]), TOKENIZER.eos_token_id][:12]]
        log_q_TV = student(torch.tensor([row])).logits[0].double().log_softmax(-1)
        nll = -sum(float(log_q_TV[t - 1, row[t]].detach()) for t in range(len(prompt), len(row)))
        assert values[i] == pytest.approx(nll, rel=1e-4)


def test_the_proxy_of_the_teacher_is_nothing(probe: Probe) -> None:
    found = probe.evaluate(adapted(base("define-teacher"), "teacher", 0), 0).means
    assert found["proxy_nats"] == pytest.approx(0, abs=1e-4)
    assert found["top_overlap"] == pytest.approx(1)


def test_with_an_oracle_golden_is_logged_and_no_reference_is_lost(tmp_path: Path) -> None:
    oracle = base("define-oracle")
    callback = HackingCallback(build(oracle=oracle), num_evaluations=2)
    trainer = trainer_of(base("define-student"), tmp_path, callback, max_steps=1)
    trainer.train()
    first, last = evaluations(trainer)
    assert first["assay/golden_nats"] > 1
    assert last["assay/reference_nll_nats"] > 0
    own = callback.probe.evaluate(adapted(oracle, "oracle", 0), 0).means
    assert own["golden_nats"] == pytest.approx(0, abs=1e-4)
    assert runs.read_json(tmp_path / "assay" / "verdict.json")["truth"] == "oracle"


def test_the_folder_is_read_by_diagnose(
    run: tuple[Trainer, HackingCallback], probe: Probe, tmp_path: Path, capsys: Any
) -> None:
    folder = Path(str(run[0].args.output_dir)) / "assay"
    log = read_log(folder)
    assert log.trajectory.steps.tolist() == evaluation_steps(STEPS, 9)
    assert log.trajectory.get("reference_nll") is not None
    assert log.trajectory.get("proxy_diff_stderr") is not None
    found = diagnose_log(folder, {}, [], None, Output(json=True), None)
    diagnosis, verdict = run[1].diagnosis, run[1].verdict
    assert diagnosis is not None
    assert verdict is not None
    assert found.score == pytest.approx(diagnosis.score, rel=1e-6)
    assert found.verdict == json.loads(capsys.readouterr().out)["verdict"] == verdict.name
    assert found.reasons[0] == verdict.reason
    shutil.copy(folder / "metrics.jsonl", tmp_path)  # of a run that is not at its end: the detector's word
    assert diagnose_log(tmp_path, {}, [], None, Output(json=True), None).verdict == diagnosis.verdict
    for damage in ('{"truth": "references"}', '{"truth": "oracle", "verdict": 3, "reason": "", "best_step": []}'):
        (tmp_path / "verdict.json").write_text(damage)
        with pytest.raises(AssayError, match=r"verdict\.json.* damaged"):
            diagnose_log(tmp_path, {}, [], None, Output(json=True), None)


def test_trainers_own_state_is_read_by_diagnose(run: tuple[Trainer, HackingCallback], tmp_path: Path) -> None:
    run[0].state.save_to_json(str(tmp_path / "trainer_state.json"))
    log = read_log(tmp_path / "trainer_state.json")
    assert log.trajectory.columns["proxy"].tolist() == [e["assay/proxy_nats"] for e in evaluations(run[0])]
    assert log.trajectory.columns["train_proxy"][-1] == evaluations(run[0])[-1]["assay/train_proxy_nats"]


def test_names_that_trackers_make_of_the_columns_are_understood() -> None:
    for name, meaning in (("proxy_nats", "proxy"), ("train_proxy_nats", "train_proxy"), ("distinct_2", "distinct")):
        assert (meaning_of(f"train/assay/{name}") or ("",))[0] == meaning
    assert (meaning_of("train/proxy_nats") or ("",))[0] == "train_proxy"  # of another tool: not held out


def test_the_verdict_is_judged_by_prompt_and_written(run: tuple[Trainer, HackingCallback]) -> None:
    verdict = run[1].verdict
    assert verdict is not None
    written = runs.read_json(Path(str(run[0].args.output_dir)) / "assay" / "verdict.json")
    assert (written["verdict"], written["best_step"]) == (verdict.name, verdict.best_step)
    assert written["truth"] == "references"
    nll = [entry["assay/reference_nll_nats"] for entry in evaluations(run[0])]
    assert written["keep"] == {"step": evaluations(run[0])[int(np.argmin(nll))]["step"], "checkpoint": None}
    table = pq.read_table(Path(str(run[0].args.output_dir)) / "assay" / "probe.parquet")
    assert table.num_rows == len(evaluations(run[0])) * (48 + 48 + 16)


def test_the_verdict_is_printed(probe: Probe, tmp_path: Path, capsys: Any) -> None:
    trainer_of(base("define-student"), tmp_path, HackingCallback(probe, num_evaluations=5)).train()
    said = capsys.readouterr().out
    written = runs.read_json(tmp_path / "assay" / "verdict.json")
    assert (
        f"assay (held-out references as the truth): {written['verdict'].replace('_', ' ')}: {written['reason']}."
        in said
    )
    assert f"keep the student of step {written['keep']['step']} " in said


class Fingerprint(TrainerCallback):
    """What the host is like after every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **host: Any) -> None:
        numbers = torch.get_rng_state().sum().item(), random.random(), np.random.random()
        modes = tuple(part.training for part in model.modules())
        grads = tuple(p.grad is None for p in model.parameters()), tuple(p.requires_grad for p in model.parameters())
        self.seen.append((numbers, modes, grads, model.config.use_cache, dict(vars(control))))


def plain_host(folder: Path, *callbacks: TrainerCallback) -> Trainer:
    student = base("define-student", dropout=0.1)
    student.transformer.wpe.weight.requires_grad_(False)
    return trainer_of(student, folder, *callbacks, gradient_accumulation_steps=2, logging_steps=1)


def trl_arguments() -> dict[str, Any]:
    return {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 3e-4, "logging_steps": 2,
            "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none",
            "save_strategy": "no", "disable_tqdm": True}  # fmt: skip


def gkd_host(folder: Path, *callbacks: TrainerCallback) -> Trainer:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = [
        {"prompt": p.text, "input_ids": r["input_ids"], "completion_mask": [int(i >= 0) for i in r["labels"]]}
        for p, r in zip(TRAINED, ROWS, strict=True)
    ]
    args = GKDConfig(str(folder), lmbda=0.5, max_new_tokens=8, **trl_arguments())
    return GKDTrainer(
        base("define-student"), base("define-teacher"), args, train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER, callbacks=list(callbacks),
    )  # fmt: skip


def distillation_host(folder: Path, *callbacks: TrainerCallback) -> Trainer:
    from trl import DistillationConfig, DistillationTrainer

    args = DistillationConfig(str(folder), max_completion_length=8, **trl_arguments())
    return DistillationTrainer(
        base("define-student"), base("define-teacher"), args, processing_class=TOKENIZER,
        train_dataset=Dataset.from_list([{"prompt": text} for text in TRAIN_TEXTS]), callbacks=list(callbacks),
    )  # fmt: skip


def test_modes_and_generators_come_back_whatever_is_done_meanwhile() -> None:
    student = base("define-student").train()
    student.transformer.ln_f.eval()
    before = [part.training for part in student.modules()], torch.get_rng_state(), random.getstate()
    drawn = np.random.RandomState(0)
    np.random.set_state(drawn.get_state())
    with contextlib.suppress(KeyError), left_as_found(student):
        assert not any(part.training for part in student.modules())
        torch.rand(3), random.random(), np.random.rand()
        raise KeyError
    assert [part.training for part in student.modules()] == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]
    assert np.random.rand() == drawn.rand()


@pytest.mark.parametrize("host", [plain_host, gkd_host, distillation_host])
def test_the_host_is_the_same_with_and_without_bit_for_bit(
    host: Callable[..., Trainer], probe: Probe, tmp_path: Path
) -> None:
    def trained(*callbacks: TrainerCallback, reports: bool = False) -> tuple[Trainer, Fingerprint]:
        set_seed(3)
        prints = Fingerprint()
        trainer = host(tmp_path / str(len(callbacks)), *callbacks, prints)
        for callback in callbacks:
            assert isinstance(callback, HackingCallback)
            callback.trainer = trainer if reports else None
        trainer.train()
        return trainer, prints

    (alone, alone_prints), (watched, watched_prints), (reported, reported_prints) = (
        trained(),
        trained(HackingCallback(probe, every=1)),
        trained(HackingCallback(probe, every=1), reports=True),
    )
    assert len(evaluations(watched)) == alone.state.max_steps + 1
    for trainer, prints in ((watched, watched_prints), (reported, reported_prints)):
        assert host_entries(trainer) == host_entries(alone)
        assert prints.seen == alone_prints.seen
        theirs = trainer.model.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in alone.model.state_dict().items())


def test_building_a_probe_leaves_models_and_generators_as_found() -> None:
    teacher = base("define-teacher", dropout=0.1).train()
    teacher.transformer.h[1].eval()
    set_seed(5)
    modes = [part.training for part in teacher.modules()]
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    build(teacher, prompts=TEXTS[:4], references=REFERENCES[:4])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
    assert [part.training for part in teacher.modules()] == modes


def test_a_trainer_that_is_given_hands_the_values_to_its_trackers(probe: Probe, tmp_path: Path) -> None:
    heard: list[tuple[int, dict[str, float]]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **host: Any) -> None:
            heard.append((state.global_step, dict(logs)))

    trainer = trainer_of(base("define-student"), tmp_path, Tracker(), max_steps=4, logging_steps=1)
    trainer.add_callback(HackingCallback(probe, every=2, trainer=trainer))
    trainer.train()
    assert [step for step, logs in heard if "assay/proxy_nats" in logs] == [0, 2, 4]
    assert [step for step, logs in heard if "loss" in logs] == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def without_references() -> Probe:
    return build(references=None)


def test_an_alarm_stops_the_run(without_references: Probe, tmp_path: Path) -> None:
    callback = HackingCallback(without_references, every=1, on_alarm="stop")
    trainer = trainer_of(base("define-student"), tmp_path, callback, max_steps=40, learning_rate=3e-3)
    trainer.train()
    records = runs.read_records(tmp_path / "assay" / "metrics.jsonl")
    assert trainer.state.global_step == records[-1]["step"] < 40
    assert [record["alarm"] for record in records] == [False] * (len(records) - 1) + [True]
    written = runs.read_json(tmp_path / "assay" / "verdict.json")
    assert written["verdict"] == "hacking_suspected"
    assert written["alarm_step"] == trainer.state.global_step
    assert written["keep"]["step"] == evaluations(trainer)[-1]["assay/recommended_step"] < trainer.state.global_step
    assert callback.verdict is None


def test_an_alarm_warns_once(without_references: Probe, tmp_path: Path, caplog: Any) -> None:
    callback = HackingCallback(without_references, every=1)
    trainer = trainer_of(base("define-student"), tmp_path, callback, max_steps=14, learning_rate=3e-3)
    with caplog.at_level(logging.WARNING, "assay"):
        trainer.train()
    assert trainer.state.global_step == 14
    assert sum(runs_alarm["alarm"] for runs_alarm in runs.read_records(tmp_path / "assay" / "metrics.jsonl")) > 1
    assert sum("alarm" in record.getMessage() for record in caplog.records) == 1


def test_the_best_student_is_marked_and_named(probe: Probe, tmp_path: Path) -> None:
    callback = HackingCallback(probe, every=2, mark_checkpoint=True)
    trainer = trainer_of(base("define-student"), tmp_path, callback, max_steps=8, learning_rate=3e-5)
    trainer.train()
    nll = {e["step"]: e["assay/reference_nll_nats"] for e in evaluations(trainer)}
    so_far = [step for step in nll if step > 0 and nll[step] < min(nll[s] for s in nll if s < step)]
    assert so_far
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in so_far]
    keep = runs.read_json(tmp_path / "assay" / "verdict.json")["keep"]
    assert keep == {"step": so_far[-1], "checkpoint": str(tmp_path / f"checkpoint-{so_far[-1]}")}
    kept = AutoModelForCausalLM.from_pretrained(keep["checkpoint"], dtype=torch.float32)
    assert probe.evaluate(adapted(kept, "kept", 0), 0).means["reference_nll_nats"] == pytest.approx(min(nll.values()))


def test_a_run_that_another_callback_ends_has_its_last_student_measured(probe: Probe, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **host: Any) -> None:
            control.should_training_stop = state.global_step == 4

        def on_step_end(self, args: Any, state: Any, control: Any, **host: Any) -> None:
            control.should_training_stop = state.global_step == 5

    trainer = trainer_of(base("define-student"), tmp_path, HackingCallback(probe, every=100), Stop())
    trainer.train()
    assert [entry["step"] for entry in evaluations(trainer)] == [0, 5]


def test_peft_adapters_are_part_of_the_student(probe: Probe, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    student = peft.get_peft_model(base("define-student"), config)
    trainer = trainer_of(student, tmp_path, HackingCallback(probe, num_evaluations=3), learning_rate=1e-2)
    trainer.train()
    first, *_, last = evaluations(trainer)
    merged = copy.deepcopy(trainer.model).merge_and_unload()
    expected = probe.evaluate(adapted(merged, "merged", 0), 0).means["proxy_nats"]
    assert last["assay/proxy_nats"] == pytest.approx(expected, rel=1e-4)
    assert abs(first["assay/proxy_nats"] - last["assay/proxy_nats"]) > 0.1


def test_an_encoder_decoder_student(tmp_path: Path) -> None:
    teacher, student = (
        AutoModelForSeq2SeqLM.from_pretrained(base_path(f"define-seq2seq-{role}"), dtype=torch.float32)
        for role in ("teacher", "student")
    )
    tokenizer = AutoTokenizer.from_pretrained(base_path("define-seq2seq-student"))
    probe = build(teacher, tokenizer=tokenizer)
    args = Seq2SeqTrainingArguments(str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True,
                                    report_to="none", disable_tqdm=True, save_strategy="no")  # fmt: skip
    trainer = Seq2SeqTrainer(student, args, padded, Dataset.from_list(ROWS), callbacks=[HackingCallback(probe)])
    trainer.train()
    assert [entry["step"] for entry in evaluations(trainer)] == [0, 1, 2]
    own = probe.evaluate(adapted(teacher, "teacher", 0), 0).means
    assert own["proxy_nats"] == pytest.approx(0, abs=1e-3)
    assert evaluations(trainer)[0]["assay/proxy_nats"] > 1


def test_a_resumed_run_repeats_what_lies_beyond_its_checkpoint(probe: Probe, tmp_path: Path, caplog: Any) -> None:
    def go(checkpoint: str | None = None) -> list[dict[str, Any]]:
        callback = HackingCallback(probe, every=2)
        student = base("define-student", dropout=0.1)
        trainer = trainer_of(student, tmp_path, callback, max_steps=8, save_strategy="steps", save_steps=4)
        trainer.train(resume_from_checkpoint=checkpoint)
        assert [entry["step"] for entry in evaluations(trainer)] == [0, 2, 4, 6, 8]
        return [
            {name: value for name, value in record.items() if name != "seconds"}
            for record in runs.read_records(tmp_path / "assay" / "metrics.jsonl")
        ]

    whole, table = go(), pq.read_table(tmp_path / "assay" / "probe.parquet")
    log = tmp_path / "assay" / "metrics.jsonl"
    with log.open("a") as file:
        file.write('{"step": 1')  # killed while it wrote
    assert go(str(tmp_path / "checkpoint-4")) == whole
    assert pq.read_table(tmp_path / "assay" / "probe.parquet") == table
    assert "dropped 2 evaluations" in caplog.text
    other = HackingCallback(build(seed=1), every=2)
    trainer = trainer_of(base("define-student"), tmp_path, other, max_steps=8)
    with pytest.raises(AssayError, match="other prompts or responses"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_student_in_another_precision_is_measured_in_its_own(probe: Probe, tmp_path: Path) -> None:
    mixed = HackingCallback(probe, num_evaluations=2)
    trainer = trainer_of(base("define-student"), tmp_path / "mixed", mixed, bf16=True, max_steps=1)
    trainer.train()
    exact = probe.evaluate(adapted(base("define-student"), "student", 0), 0).means["proxy_nats"]
    assert evaluations(trainer)[0]["assay/proxy_nats"] == exact
    half = base("define-student").to(torch.bfloat16)
    trainer = trainer_of(half, tmp_path / "half", HackingCallback(probe, num_evaluations=2), max_steps=1)
    trainer.train()
    found = evaluations(trainer)[0]["assay/proxy_nats"]
    assert found != exact
    assert found == pytest.approx(exact, rel=0.02)


def test_a_student_that_is_lost_is_left_out_and_said_so(probe: Probe, tmp_path: Path, caplog: Any) -> None:
    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **host: Any) -> None:
            if state.global_step == 2:
                model.transformer.wte.weight.data.fill_(float("nan"))

    trainer = trainer_of(base("define-student"), tmp_path, Break(), HackingCallback(probe, every=1), max_steps=3)
    trainer.train()
    assert [entry["step"] for entry in evaluations(trainer)] == [0, 1]
    assert "the evaluation at step 2 is left out" in caplog.text
    assert [r["step"] for r in runs.read_records(tmp_path / "assay" / "metrics.jsonl")] == [0, 1]


def test_wrappers_come_off_and_nothing_else() -> None:
    student = base("define-student")
    assert unwrapped(torch.compile(student, backend="eager")) is student
    assert unwrapped(torch.nn.DataParallel(student)) is student
    with pytest.raises(AssayError, match="is a Linear, and assay can measure transformers models only"):
        unwrapped(torch.nn.Linear(2, 2))
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(AssayError, match="PROMPT_TUNING adds to the prompt"):
        unwrapped(peft.get_peft_model(student, config))
    next(student.parameters()).ds_id = 0  # as DeepSpeed ZeRO-3 marks what it has sharded
    with pytest.raises(AssayError, match="sharded over processes"):
        unwrapped(student)


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}=>{% endif %}"
)


def test_the_train_proxy_walks_on_the_stored_responses_where_they_are_given(probe: Probe) -> None:
    """What is learned by heart, not new responses to the same prompts."""
    given = build(train_responses=[f" {prompt.reference}" for prompt in TRAINED])
    stored, fresh = (next(s for s in p.sets if s.metric == "train_proxy") for p in (given, probe))
    assert stored.batch.prompt_ids == fresh.batch.prompt_ids
    assert stored.batch.response_ids == [prompt.reference_ids for prompt in TRAINED]
    assert stored.batch.response_ids != fresh.batch.response_ids
    assert [r.truncated for r in stored.responses] == [
        ids[-1] != TOKENIZER.eos_token_id for ids in stored.batch.response_ids
    ]


def test_messages_are_rendered_by_the_chat_template() -> None:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = TEMPLATE
    chats = [[{"role": "user", "content": text}] for text in ("a dog", "a cat")]
    sizes: dict[str, Any] = {"references": None, "train_prompts": None, "tokenizer": tokenizer}
    rendered = build(prompts=chats, **sizes).free_prompts
    assert [prompt.text for prompt in rendered] == ["user: a dog\n=>", "user: a cat\n=>"]
    assert rendered[0].token_ids == tuple(tokenizer.encode("user: a dog\n=>"))
    assert [p.text for p in build(prompts=["a dog", "a cat"], chat_template=True, **sizes).free_prompts] == [
        prompt.text for prompt in rendered
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "a list of texts or of message lists"),
        ({"prompts": "one text"}, "a list of texts or of message lists"),
        ({"prompts": ["noun: dog:"], "references": None}, "at least 2 prompts, and a verdict 40, not 1"),
        ({"prompts": ["noun: dog:", " "], "references": None}, r"prompts\[1\] is empty"),
        ({"prompts": ["noun: dog:", "a " * 80], "references": None}, "has a context of 64"),
        ({"max_prompt_tokens": 2}, r"prompts\[0\] has \d+ tokens, more than max_prompt_tokens"),
        ({"references": REFERENCES[:3]}, "48 prompts have 3 references"),
        ({"references": [*REFERENCES[:47], ""]}, r"the reference of prompts\[47\] is empty"),
        ({"train_prompts": TEXTS[5:9]}, "4 of the held-out prompts are among train_prompts"),
        ({"train_prompts": []}, "train_prompts must be a list"),
        ({"train_responses": [" a"] * 3}, "16 train_prompts have 3 references"),
        ({"train_prompts": None, "train_responses": [" a"]}, "train_responses belong to train_prompts"),
        ({"prompts": [[{"role": "user", "content": "a"}]] * 2, "references": None}, "the tokenizer has none"),
        ({"vocabulary": "shared", "oracle": gpt2().module}, "has no law over the first 512"),
        ({"oracle": gpt2().module}, "the tokenizer has ids up to 511, but 'the oracle' predicts 23"),
        ({"num_monitored": 0}, "num_monitored is 0"),
        ({"max_response_tokens": 60}, "has a context of 64"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AssayError, match=message) as refusal:
        build(**changes)
    assert "\n" not in str(refusal.value)


def test_messages_that_the_template_cannot_render_are_refused() -> None:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(AssayError, match=r"prompts\[0\] cannot be used: .* roles must alternate"):
        build(prompts=[[{"role": "user", "content": "a"}]] * 2, references=None, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_evaluations": 1}, "num_evaluations is 1"),
        ({"every": 0}, "every is 0"),
        ({"on_alarm": "shout"}, "on_alarm is 'shout'"),
    ],
)
def test_a_callback_refuses_what_it_cannot_do(probe: Probe, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AssayError, match=message):
        HackingCallback(probe, **changes)


def test_a_student_that_cannot_be_compared_is_refused_before_the_first_step(probe: Probe, tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="predicts 23 tokens and 'the teacher' 512"):
        trainer_of(gpt2().module, tmp_path, HackingCallback(probe)).train()
    teacher = base("define-teacher")
    with pytest.raises(AssayError, match="the very model that is trained"):
        trainer_of(teacher, tmp_path, HackingCallback(build(teacher))).train()
    assert not (tmp_path / "assay").exists()


def test_rows_that_only_pad_are_cut_where_the_vocabulary_is_shared(probe: Probe, tmp_path: Path) -> None:
    padded_student = base("define-student")
    padded_student.resize_token_embeddings(520)
    padded_student.get_input_embeddings().weight.data[512:] = 1.0
    cut = HackingCallback(build(vocabulary="shared"), num_evaluations=2)
    trainer = trainer_of(padded_student, tmp_path, cut, max_steps=1)
    trainer.train()
    whole = probe.evaluate(adapted(base("define-student"), "student", 0), 0).means
    assert evaluations(trainer)[0]["assay/proxy_nats"] == pytest.approx(whole["proxy_nats"], rel=1e-5)
    with pytest.raises(AssayError, match="predicts 520 tokens and 'the teacher' 512"):
        trainer_of(padded_student, tmp_path, HackingCallback(probe)).train()


def test_few_prompts_give_no_verdict_but_undecided(tmp_path: Path) -> None:
    small = build(prompts=TEXTS[:5], references=REFERENCES[:5])
    callback = HackingCallback(small, num_evaluations=5)
    trainer_of(base("define-student"), tmp_path, callback).train()
    assert callback.verdict is not None
    assert callback.verdict.name == "undecided"
    assert "at least 4 evaluations and 40" in callback.verdict.reason


PROCESSES = """
import gc
import sys
from pathlib import Path
import torch.distributed.nn.functional  # its functions, if defined later, hold the process group as a default
sys.path.insert(0, sys.argv[1])
from test_trainer_callback import HackingCallback, base, build, trainer_of
folder = Path(sys.argv[2])
callback = HackingCallback(build(references=None), every=1, on_alarm="stop")
trainer = trainer_of(base("define-student"), folder, callback, max_steps=40, learning_rate=3e-3, ddp_backend="gloo")
trainer.train()
assert trainer.args.world_size == 2
rank = trainer.args.process_index
(folder / f"rank-{rank}").write_text(f"{trainer.state.global_step} {callback.diagnosis is not None}")
del trainer, callback  # the wrapped model holds the group too
gc.collect()
torch.distributed.destroy_process_group()  # whose threads may else end the interpreter with SIGABRT on its way out
threads = [(task / "comm").read_text() for task in Path("/proc/self/task").glob("*")]
assert not any("gloo" in name for name in threads), threads
"""


@pytest.mark.slow
def test_of_two_processes_one_measures_and_both_stop(tmp_path: Path) -> None:
    script = tmp_path / "host.py"
    script.write_text(PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    subprocess.run([*command, str(Path(__file__).parent), str(tmp_path)], check=True, timeout=240)
    records = runs.read_records(tmp_path / "assay" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(len(records)))
    last = records[-1]["step"]
    assert last < 40
    assert (tmp_path / "rank-0").read_text() == f"{last} True"
    assert (tmp_path / "rank-1").read_text() == f"{last} False"


@pytest.mark.slow
def test_the_example_prints_the_curve_and_the_verdict(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / "attach_to_trl.py"
    done = subprocess.run([sys.executable, script, tmp_path], check=True, timeout=600, capture_output=True, text=True)
    records = runs.read_records(tmp_path / "assay" / "metrics.jsonl")
    assert [record["step"] for record in records] == evaluation_steps(800, 14)
    for record in records:
        assert f"{record['step']:>6}{record['proxy_nats']:>8.2f}{record['train_proxy_nats']:>13.2f}" in done.stdout
    name = runs.read_json(tmp_path / "assay" / "verdict.json")["verdict"].replace("_", " ")
    assert f"assay (held-out references as the truth): {name}: " in done.stdout
