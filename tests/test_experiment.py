"""The whole path on the embedded bases, at a tenth of the size: real text, real files, real processes."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from assay import get_recipe, run_experiment, runs
from assay.config import Experiment, TaskConfig, to_dict
from assay.config_file import load
from assay.data.tasks import corpus_rows, get_task
from assay.errors import AssayError
from assay.report.next_steps import next_steps
from assay.report.tables import read_run, read_study
from assay.types import Progress
from pasted import understand

ARMS = ["offline", "online_teacher", "online_student"]


def small(recipe: str = "quickstart", seed: int = 7, num_steps: int = 12) -> Experiment:
    experiment = get_recipe(recipe)
    training = dataclasses.replace(experiment.distillation.training, num_steps=num_steps, checkpoint_every=5)
    return dataclasses.replace(
        experiment,
        seed=seed,
        stage_one=dataclasses.replace(experiment.stage_one, num_oracle_prompts=192),
        distillation=dataclasses.replace(experiment.distillation, num_prompts=64, training=training),
        probe=dataclasses.replace(
            experiment.probe, num_prompts=64, num_train_pairs=32, num_monitored=16, num_evaluations=5
        ),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_experiment(small(), folder)
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "seconds"}


def test_summary_has_the_promised_shape(run: Path) -> None:
    summary = summary_of(run)
    assert summary["schema"] == "assay.summary/1"
    assert summary["unit"] == "nats_per_sequence"
    assert summary["task"] == "define"
    assert set(summary["references"]) == {"d_oracle_teacher", "golden_at_start", "proxy_at_start"}
    assert [arm["source"] for arm in summary["arms"]] == ARMS
    for arm in summary["arms"]:
        assert arm["verdict"] in {"healthy", "teacher_hacking", "overfitting", "benign_disagreement", "undecided"}
        for curve in ("golden", "proxy"):
            assert set(arm[curve]) == {"initial", "best", "best_step", "final", "final_stderr"}
            assert arm[curve]["best"] <= min(arm[curve]["initial"], arm[curve]["final"])
        low, high = arm["ci95"]
        assert low <= high
        assert arm["severity_nats"] == pytest.approx(arm["severity_hacking_nats"] + arm["severity_overfitting_nats"])


def test_all_arms_start_from_one_point_and_meet_the_references(run: Path) -> None:
    summary = summary_of(run)
    for arm in summary["arms"]:
        assert arm["golden"]["initial"] == summary["references"]["golden_at_start"]
        assert arm["proxy"]["initial"] == summary["references"]["proxy_at_start"]
    starts = [r for r in runs.read_records(run / "metrics.jsonl") if r["step"] == 0]
    assert (
        len({json.dumps({k: r[k] for k in ("golden_nats", "proxy_nats", "reference_nll_nats")}) for r in starts}) == 1
    )
    assert all(r["kl_from_start_nats"] == pytest.approx(0, abs=1e-4) for r in starts)


def test_training_moves_every_arm_towards_the_teacher_where_it_trains(run: Path) -> None:
    records = runs.read_records(run / "metrics.jsonl")
    for arm in ARMS:
        train_proxy = [r["train_proxy_nats"] for r in records if r["arm"] == arm]
        assert train_proxy[-1] < train_proxy[0]


def test_probe_table_agrees_with_the_log(run: Path) -> None:
    probe = pq.read_table(run / "probe.parquet")
    rows = probe.to_pylist()
    for record in runs.read_records(run / "metrics.jsonl"):
        for metric in ("golden", "proxy", "train_proxy", "reference_nll", "kl_from_start"):
            values = [
                r["value_nats"]
                for r in rows
                if (r["arm"], r["step"], r["metric"]) == (record["arm"], record["step"], metric)
            ]
            assert np.mean(values) == pytest.approx(record[f"{metric}_nats"])
    assert {r["metric"] for r in rows if r["arm"] == ""} == {"d_oracle_teacher"}


def test_responses_carry_their_provenance(run: Path) -> None:
    rows = pq.read_table(run / "responses.parquet").to_pylist()
    kinds = {(r["arm"], r["split"], r["writer"]) for r in rows}
    assert {("", "oracle", "oracle"), ("", "held_out", "oracle"), ("", "held_out", "teacher")} <= kinds
    assert {("", "held_out", "student"), ("", "held_out", "dataset"), ("offline", "distillation", "teacher")} <= kinds
    assert {("online_student", "held_out", "student")} <= kinds
    assert all(r["num_tokens"] == len(r["token_ids"]) <= 24 for r in rows)
    assert all(r["truncated"] == (r["token_ids"][-1] != 0) for r in rows)


def test_shown_tokens_are_those_of_the_responses_of_the_first_prompts_at_every_evaluation(run: Path) -> None:
    responses = pq.read_table(run / "responses.parquet").to_pylist()
    held_out = {
        (r["arm"], r["step"] if r["arm"] else None, r["prompt_id"], r["writer"]): r
        for r in responses
        if r["split"] == "held_out"
    }
    shown = list(dict.fromkeys(r["prompt_id"] for r in responses if r["split"] == "held_out" and r["arm"]))[:6]
    tokens: dict[tuple[str, int, str, str], list[dict[str, Any]]] = {}
    for row in pq.read_table(run / "tokens.parquet").to_pylist():
        tokens.setdefault((row["arm"], row["step"], row["prompt_id"], row["writer"]), []).append(row)
    evaluated = {(r["arm"], r["step"]) for r in runs.read_records(run / "metrics.jsonl")}
    writers = ("student", "oracle", "teacher", "dataset")
    assert set(tokens) == {(*when, prompt, writer) for when in evaluated for prompt in shown for writer in writers}
    for (arm, step, prompt, writer), rows in tokens.items():
        response = held_out[(arm, step, prompt, writer) if writer == "student" else ("", None, prompt, writer)]
        assert len(rows) == response["num_tokens"]
        assert rows[-1]["token"] == "<|endoftext|>" or response["truncated"]
        text = "".join(row["token"] for row in rows if row["token"] != "<|endoftext|>")
        assert text.strip() == response["text"]


def test_train_proxy_walks_on_the_stored_pairs_offline_and_on_a_fresh_sample_online(run: Path) -> None:
    """Offline, the pairs of the table are the ones that the arm has stored and trained on; online, none of them."""
    from safetensors.torch import load_file

    rows = pq.read_table(run / "responses.parquet").to_pylist()
    pairs = {
        arm: {
            (r["prompt_id"], r["response_seed"], tuple(r["token_ids"])) for r in rows if (r["arm"], r["split"]) == key
        }
        for arm, key in ((arm, (arm, "distillation")) for arm in ARMS)
    }
    state = load_file(run / "arms/offline/checkpoints/step-00000012/training.safetensors")
    stored_seeds = set(state["source.0.seeds"].numpy().view(np.uint64).tolist())
    assert {seed for _, seed, _ in pairs["offline"]} <= stored_seeds
    assert pairs["online_teacher"] == pairs["online_student"]
    assert {prompt for prompt, _, _ in pairs["offline"]} == {prompt for prompt, _, _ in pairs["online_teacher"]}
    assert not {seed for _, seed, _ in pairs["online_teacher"]} & stored_seeds


def test_manifest_explains_the_run(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["config"] == to_dict(small())
    assert set(manifest["digests"]) == {
        *("oracle", "teacher", "student", "corpus"),
        *("teacher_after_sft", "student_after_sft"),
    }
    assert manifest["wall_seconds"] >= sum(manifest["stage_seconds"].values()) * 0.9
    assert manifest["worker_seconds"].keys() == manifest["stage_seconds"].keys() - {"report"}
    assert all(0 < s["busy"] <= s["available"] for s in manifest["worker_seconds"].values())
    last = {record["arm"]: record["seconds"] for record in runs.read_records(run / "metrics.jsonl")}
    phases = {"setup", "sample", "teacher", "data", "student", "probe", "checkpoint", "write", "rest"}
    assert all(seconds.keys() == phases | {"end"} for seconds in last.values())
    for arm, seconds in last.items():
        recorded = runs.read_records(run / "arms" / arm / "metrics.jsonl")[-1]["seconds"]
        assert recorded.keys() == phases
        assert all(recorded[phase] <= seconds[phase] for phase in phases)
    assert sum(sum(seconds.values()) for seconds in last.values()) <= manifest["worker_seconds"]["arms"]["busy"]
    assert {"torch", "transformers", "python"} <= set(manifest["versions"])


def test_the_last_and_the_best_student_are_ordinary_checkpoints(run: Path) -> None:
    from assay import load_model, load_tokenizer

    for arm in ARMS:
        load_tokenizer(str(run / "arms" / arm / "best"))
        best, last = (load_model(str(run / "arms" / arm / name)) for name in ("best", "student"))
        record = next(a for a in summary_of(run)["arms"] if a["source"] == arm)
        assert (best.digest == last.digest) == (record["golden"]["best_step"] == 12)


def test_the_manifest_is_the_config_of_its_run_and_what_the_page_says_to_paste_is_understood(run: Path) -> None:
    assert load(run / "manifest.json") == small()
    study, pasted = read_study([run]), set()
    for verdict in ("healthy", "undecided", "teacher_hacking"):
        for curve in study.curves:
            assert curve.summary is not None
            curve.summary["verdict"] = verdict
        pasted |= {step.paste for step in next_steps(study)}
    assert len(pasted) >= 5
    for paste in pasted:
        if paste.startswith("assay"):
            understand(paste, run.parent)
        else:
            assert (run / paste).is_dir()


def test_a_finished_run_answers_at_once_and_touches_nothing(run: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    started = time.perf_counter()
    assert run_experiment(small(), run) == run / "report.html"
    assert time.perf_counter() - started < 2
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_folder_of_another_config_or_of_other_files_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(AssayError, match=r"another config.*seed: 7 there, 8 here"):
        run_experiment(small(seed=8), run)
    (tmp_path / "letter.txt").write_text("dear diary")
    with pytest.raises(AssayError, match="not empty and holds no run"):
        run_experiment(small(), tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == ["letter.txt"]


def test_oracle_as_teacher_has_no_hacking_by_construction(tmp_path: Path) -> None:
    experiment = dataclasses.replace(small("oracle_as_teacher"), arms=small().arms[:1])
    run_experiment(experiment, tmp_path / "run")
    (arm,) = summary_of(tmp_path / "run")["arms"]
    assert arm["golden"] == arm["proxy"]
    assert summary_of(tmp_path / "run")["references"]["d_oracle_teacher"] == pytest.approx(0, abs=1e-4)
    assert arm["severity_hacking_nats"] == pytest.approx(0, abs=1e-3)
    assert arm["verdict"] != "teacher_hacking"


def start(config: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "assay", "run", str(config), "--out", str(folder)]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore Ctrl-C, and a child inherits that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_that_is_stopped_by_ctrl_c_resumes_to_the_same_records(run: Path, tmp_path: Path) -> None:
    """Kills are in test_chaos.py."""
    config, folder = tmp_path / "config.json", tmp_path / "run"
    config.write_text(json.dumps(to_dict(small())))
    process = start(config, folder)
    wait_for(folder, "arms/*/probe/00000001.parquet", process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in stderr
    assert "Traceback" not in stderr
    assert not (folder / "arms" / "online_student" / "finished.json").exists()
    run_experiment(small(), folder)
    expected = [without_times(r) for r in runs.read_records(run / "metrics.jsonl")]
    assert [without_times(r) for r in runs.read_records(folder / "metrics.jsonl")] == expected
    assert pq.read_table(folder / "probe.parquet").equals(pq.read_table(run / "probe.parquet"))
    assert pq.read_table(folder / "responses.parquet").equals(pq.read_table(run / "responses.parquet"))
    assert (folder / "tokens.parquet").read_bytes() == (run / "tokens.parquet").read_bytes()
    assert summary_of(folder)["arms"] == summary_of(run)["arms"]


def test_a_second_process_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    runs.prepare_folder(tmp_path)
    with runs.locked(tmp_path):
        command = [sys.executable, "-m", "assay", "quickstart", "--out", str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "another process is working" in second.stderr


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "arms/offline/metrics.jsonl").unlink(), "lacks the evaluations at steps"),
        (lambda f: (f / "stage1/held_out-teacher.parquet").write_bytes(b"x"), "damaged"),
        (lambda f: (f / "manifest.json").write_text("[]"), "not the manifest of a run"),
        (lambda f: change_digest(f / "manifest.json"), "student has changed since this run was begun"),
    ],
)
def test_a_damaged_file_of_an_unfinished_run_is_refused(run: Path, tmp_path: Path, damage: Any, words: str) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    manifest = runs.read_json(folder / "manifest.json")
    runs.write_json(folder / "manifest.json", manifest | {"status": "running"})
    (folder / "arms/offline/finished.json").unlink()
    damage(folder)
    with pytest.raises(AssayError, match=words):
        run_experiment(small(), folder)


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(run: Path, tmp_path: Path) -> None:
    """Records that it had seen are dropped and made again, the same; the run says so for good."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    manifest = runs.read_json(folder / "manifest.json")
    runs.write_json(folder / "manifest.json", manifest | {"status": "running"})
    (folder / "arms/offline/finished.json").unlink()
    (folder / "arms/offline/checkpoints/step-00000012/training.safetensors").write_bytes(b"x")
    (folder / "arms/offline/tokens/00000012.parquet").unlink()
    run_experiment(small(), folder)
    expected = [without_times(r) for r in runs.read_records(run / "metrics.jsonl")]
    assert [without_times(r) for r in runs.read_records(folder / "metrics.jsonl")] == expected
    assert summary_of(folder)["arms"] == summary_of(run)["arms"]
    student = "arms/offline/student/model.safetensors"
    assert (folder / student).read_bytes() == (run / student).read_bytes()
    assert (folder / "tokens.parquet").read_bytes() == (run / "tokens.parquet").read_bytes()
    (repair,) = runs.read_records(folder / runs.REPAIRS)
    assert "step-00000012' is damaged (training.safetensors is not what was written)" in repair["repair"]
    assert repair["repair"].endswith("removed; goes on from step-00000010")


@pytest.mark.slow
def test_a_worker_that_the_system_kills_is_said_and_the_same_command_resumes(run: Path, tmp_path: Path) -> None:
    """SIGKILL to a worker, as the kernel does when memory runs out."""
    experiment = dataclasses.replace(small(), arms=small().arms[:1])
    killed: list[int] = []

    def kill_one(progress: Progress) -> None:
        if progress.stage.startswith("SFT") and not killed:
            killed.append(multiprocessing.active_children()[0].pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(AssayError, match=r"killed from outside, by the system when memory runs out \(then lower dist"):
        run_experiment(experiment, tmp_path, kill_one)
    assert killed
    run_experiment(experiment, tmp_path)
    assert summary_of(tmp_path)["arms"] == summary_of(run)["arms"][:1]


def change_digest(path: Path) -> None:
    manifest = runs.read_json(path)
    manifest["digests"]["student"] = "0" * 16
    runs.write_json(path, manifest)


def test_missing_results_of_a_finished_run_are_made_again(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "summary.json").unlink()
    (folder / "report.html").unlink()
    (folder / "tokens.parquet").unlink()
    run_experiment(small(), folder)
    assert summary_of(folder)["arms"] == summary_of(run)["arms"]
    assert (folder / "report.html").exists()
    assert (folder / "tokens.parquet").read_bytes() == (run / "tokens.parquet").read_bytes()


def test_a_finished_run_of_an_older_version_has_no_tokens_and_its_report(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "tokens.parquet").unlink()
    for arm in ARMS:
        shutil.rmtree(folder / "arms" / arm / "tokens")
    run_experiment(small(), folder)
    assert summary_of(folder)["arms"] == summary_of(run)["arms"]
    assert pq.read_table(folder / "tokens.parquet").num_rows == 0
    assert read_run(folder).tokens is None
    assert read_run(run).tokens is not None


def test_sft_without_a_single_batch_is_refused(tmp_path: Path) -> None:
    experiment = small()
    stage_one = dataclasses.replace(experiment.stage_one, batch_size=1000)
    with pytest.raises(AssayError, match="make no batch of 1000"):
        run_experiment(dataclasses.replace(experiment, stage_one=stage_one), tmp_path / "run")


def test_the_callers_own_processes_are_left_alone(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    child.start()
    try:
        with pytest.raises(AssayError):
            run_experiment(dataclasses.replace(small(), task=TaskConfig(name="absent")), tmp_path / "run")
        assert child.is_alive()
    finally:
        child.kill()


def begun_with_an_arm_that_will_fail(experiment: Experiment, folder: Path) -> Experiment:
    """Interrupts a run of two arms before its stage 1, and damages the log of the first."""
    failing = dataclasses.replace(experiment.arms[0], name="failing")
    experiment = dataclasses.replace(experiment, arms=(failing, experiment.arms[0]))

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, folder, interrupt)
    (folder / "arms" / "failing").mkdir(parents=True)
    (folder / "arms" / "failing" / "metrics.jsonl").write_text("damaged\n")
    return experiment


@pytest.mark.slow
def test_an_arm_that_fails_costs_the_others_nothing(tmp_path: Path) -> None:
    experiment = begun_with_an_arm_that_will_fail(small(num_steps=6), tmp_path)
    with pytest.raises(AssayError, match=r"arms/failing/metrics\.jsonl"):
        run_experiment(experiment, tmp_path)
    assert [arm["source"] for arm in summary_of(tmp_path)["arms"]] == ["offline"]
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_a_finished_run_repeats_an_arm_that_was_deleted(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(folder / "arms" / "offline")
    (folder / "report.html").unlink()
    run_experiment(small(), folder)
    assert summary_of(folder)["arms"] == summary_of(run)["arms"]
    assert (folder / "probe.parquet").read_bytes() == (run / "probe.parquet").read_bytes()


@pytest.mark.slow
def test_a_run_that_was_refused_before_it_computed_anything_leaves_its_folder_free(tmp_path: Path) -> None:
    mistaken = dataclasses.replace(small(), task=TaskConfig(name="defin"))
    with pytest.raises(AssayError, match="did you mean 'define'"):
        run_experiment(mistaken, tmp_path)
    experiment = dataclasses.replace(small(num_steps=4), arms=small().arms[:1])
    run_experiment(experiment, tmp_path)
    assert len(summary_of(tmp_path)["arms"]) == 1


def test_a_users_own_text_without_references_runs_to_its_report(tmp_path: Path) -> None:
    rows = [r for r in corpus_rows(get_task("define")) if r["split"] == "oracle"][:600]
    text = tmp_path / "prompts.jsonl"
    text.write_text("".join(json.dumps({"prompt": f"{r['part_of_speech']}: {r['lemmas'][:20]}:"}) + "\n" for r in rows))
    experiment = dataclasses.replace(small(num_steps=4), task=TaskConfig(name=str(text)), arms=small().arms[:1])
    experiment = dataclasses.replace(
        experiment,
        stage_one=dataclasses.replace(experiment.stage_one, num_oracle_prompts=64),
        probe=dataclasses.replace(experiment.probe, num_prompts=32),
    )
    run_experiment(experiment, tmp_path / "run")
    record = runs.read_records(tmp_path / "run" / "metrics.jsonl")[-1]
    assert record["reference_nll_nats"] is None
    assert record["golden_nats"] > 0
    assert summary_of(tmp_path / "run")["task"] == str(text)


@pytest.mark.slow
def test_an_encoder_decoder_world_runs_to_its_report_and_resumes_nothing_when_finished(tmp_path: Path) -> None:
    experiment = small("translate_seq2seq", num_steps=8)
    page = run_experiment(experiment, tmp_path)
    summary = summary_of(tmp_path)
    assert summary["task"] == "translate"
    assert [arm["source"] for arm in summary["arms"]] == ARMS
    assert all(arm["train_proxy"]["final"] > 0 for arm in summary["arms"])
    tokens = read_run(tmp_path).tokens
    assert tokens is not None
    assert "<|endoftext|>" in tokens["token"].to_pylist()
    assert tokens["log_prob_oracle"].null_count == tokens["log_prob_teacher"].null_count == 0
    before = page.stat().st_mtime_ns
    assert run_experiment(experiment, tmp_path).stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_dials_of_a_world_act_as_their_names_say(tmp_path: Path) -> None:
    """A larger teacher is nearer to the oracle, a larger student starts nearer; no passes of SFT leave a base alone."""

    def references(name: str, **models: str) -> dict[str, float]:
        experiment = dataclasses.replace(small(num_steps=4), arms=small().arms[:1])
        stage_one = dataclasses.replace(experiment.stage_one, teacher_epochs=0.0, student_epochs=0.0)
        changed = dataclasses.replace(experiment.models, **models)
        run_experiment(dataclasses.replace(experiment, models=changed, stage_one=stage_one), tmp_path / name)
        digests = json.loads((tmp_path / name / "manifest.json").read_text())["digests"]
        assert digests["teacher_after_sft"] == digests["teacher"]
        assert digests["student_after_sft"] == digests["student"]
        return summary_of(tmp_path / name)["references"]

    plain = references("plain")
    large = references("large", student="define-teacher")
    small_teacher = references("small_teacher", teacher="define-student")
    assert large["golden_at_start"] < plain["golden_at_start"] - 1
    assert large["d_oracle_teacher"] == plain["d_oracle_teacher"] < small_teacher["d_oracle_teacher"] - 1


def test_held_out_prompts_that_shortening_turns_into_training_prompts_are_refused(tmp_path: Path) -> None:
    experiment = dataclasses.replace(small(), task=TaskConfig(template="{part_of_speech}:"))
    with pytest.raises(AssayError, match=r"64 held-out prompts are, shortened, also prompts to train on"):
        run_experiment(experiment, tmp_path)
