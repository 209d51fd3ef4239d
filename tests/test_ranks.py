"""Several processes, one model: real ranks under torchrun, against a process on its own."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from assay import runs
from assay.config import Experiment, to_dict
from assay.data.tasks import corpus_rows, get_task
from assay.errors import AssayError
from assay.validation import validate
from command_line import assay
from ranks_in_step import MODELS, PROMPTS, SPREAD, fitted
from runs_in_process import run_in_process
from test_experiment import small, without_times

TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
    *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"),
]


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two ranks on this machine that find each other by a port that is free."""
    return subprocess.run([*TORCHRUN, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)


IN_STEP = Path(__file__).with_name("ranks_in_step.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("found")
    ended = torchrun(IN_STEP, folder)
    assert ended.returncode == 0, ended.stderr
    values = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    assert [value["num_ranks"] for value in values] == [2, 2]
    return folder, values


Found = tuple[Path, list[dict[str, Any]]]


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_two_ranks_take_the_step_of_one_whatever_the_rows(found: Found, parallel: str) -> None:
    for value in found[1]:
        alone = value["alone"]["steps"]
        together = value["together"]["steps"] if parallel == "replicate" else value["divided"]
        assert alone.keys() == together.keys() == {f"{model}, {n} rows" for model in MODELS for n in SPREAD[1:]}
        for name in alone:
            assert together[name]["losses"] == pytest.approx(alone[name]["losses"], rel=1e-5)
            np.testing.assert_allclose(together[name]["weights"], alone[name]["weights"], rtol=1e-4, atol=1e-5)
            assert alone[name]["losses"][-1] < alone[name]["losses"][0]


def test_layers_are_divided_with_their_gradients_and_moments(found: Found) -> None:
    for value in found[1]:
        shares = value["shares"]
        assert sum(".h." in name for name in shares) == 24
        for name, (whole, *held) in shares.items():
            assert held == [whole // 2 if ".h." in name else whole] * 4, name


def test_a_checkpoint_of_divided_layers_is_whole(found: Found, tmp_path: Path) -> None:
    """Two ranks go on from it, and so does a process on its own."""
    folder, values = found
    assert [value["ended"] for value in values] == ["as was said"] * 2
    assert len(list((folder / "kept").glob("step-*"))) == 1
    alone = fitted(tmp_path / "whole")
    resumed_by_one = fitted(Path(shutil.copytree(folder / "kept", tmp_path / "kept")))
    for losses in (values[0]["resumed"], values[1]["resumed"], resumed_by_one):
        assert losses == pytest.approx(alone, rel=1e-4)


def test_both_ranks_hold_the_same_bits(found: Found) -> None:
    first, second = found[1]
    assert first["together"] == second["together"]
    assert first["divided"] == second["divided"]
    assert first["dropout_digest"] == second["dropout_digest"]


def test_responses_and_metrics_do_not_depend_on_the_number_of_ranks(found: Found) -> None:
    for value in found[1]:
        alone, together = value["alone"], value["together"]
        assert together["texts"] == alone["texts"]
        for name in ("nll", "kl"):
            assert len(alone[name]) == len(PROMPTS)
            np.testing.assert_allclose(together[name], alone[name], rtol=1e-5)
        assert together["monitors"] == pytest.approx(alone["monitors"], rel=1e-5)


def test_rows_are_shared_out_and_come_back_in_order(found: Found) -> None:
    first, second = found[1]
    assert first["shared"] == second["shared"] == [[10 * row + row % 2 for row in range(n)] for n in SPREAD]
    assert first["parts"] == [[], [], [0], [0, 1, 2, 3], [0]]
    assert second["parts"] == [[], [0], [1], [4], [1, 2]]


def test_a_gradient_is_summed_where_any_rank_has_one(found: Found) -> None:
    assert all(value["gradients"] == [[3.0, 3.0], [5.0, 5.0], None] for value in found[1])


def test_ranks_have_random_numbers_of_their_own_only_where_they_ask(found: Found) -> None:
    first, second = found[1]
    assert first["own_numbers"] != second["own_numbers"]
    assert first["common_numbers"] == second["common_numbers"]


def test_one_rank_writes_and_all_know_what_came_of_it(found: Found) -> None:
    folder, values = found
    assert runs.read_records(folder / "log.jsonl") == [{"rank": 0}]
    for value in values:
        assert value["read"] == "0"
        assert "No space left on device: free space; the same command then resumes" in value["full"]
        assert value["by_first"] == 100
    assert values[0]["full"] == values[1]["full"]
    assert not (folder / "text").exists()


def test_ranks_that_disagree_or_are_out_of_step_are_told(found: Found) -> None:
    for value in found[1]:
        assert "the 2 ranks do not agree on the weather" in value["disagreed"]
        assert "the ranks are not in step" in value["out_of_step"]


@pytest.mark.parametrize("how", ["killed", pytest.param("error", marks=pytest.mark.slow)])
def test_a_rank_that_ends_ends_all(tmp_path: Path, how: str) -> None:
    ended = torchrun("--monitor-interval", "5", IN_STEP, tmp_path, how)
    assert ended.returncode != 0
    said = (tmp_path / "said.txt").read_text()
    assert said.startswith("rank 0 of 2 has lost another at the loss")


def tiny() -> Experiment:
    """Responses of the frozen teacher, and of the student as it learns.

    What is drawn from trained weights may fall on the other side of a rounding (5 of 100,000 tokens): the teacher is
    not fine-tuned, and the student learns on its likeliest tokens, so that such an accident does not change a run.
    """
    experiment = small(num_steps=6)
    training = dataclasses.replace(experiment.distillation.training, checkpoint_every=2, batch_size=15)
    return dataclasses.replace(
        experiment,
        arms=(experiment.arms[0], dataclasses.replace(experiment.arms[2], policy="warn")),
        stage_one=dataclasses.replace(experiment.stage_one, num_oracle_prompts=64, batch_size=32, teacher_epochs=0.0),
        distillation=dataclasses.replace(
            experiment.distillation, num_prompts=32, sampling_temperature=0.0, training=training
        ),
        probe=dataclasses.replace(
            experiment.probe, num_prompts=33, num_train_pairs=16, num_monitored=5, num_evaluations=4, num_shown=5
        ),
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(to_dict(tiny())))
    return path


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    run_in_process(tiny(), folder)
    return folder


@pytest.fixture(scope="module")
def two(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "two"
    ended = torchrun("-m", "assay", "run", config, "--out", folder)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("assay: 2 ranks") == 1
    assert ended.stdout.count(str(folder / "report.html")) == 1
    assert runs.read_json(folder / "manifest.json")["num_ranks"] == 2
    return folder


FREE_RUNNING = ("response_tokens_mean", "truncated_fraction", "repetition_fraction", "distinct_2")
"""What a record says of responses that are drawn anew at every evaluation."""


def assert_same(records: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Up to float32 rounding, which AdamW's first steps magnify where a gradient is near 0."""
    assert [(r["arm"], r["step"]) for r in records] == [(r["arm"], r["step"]) for r in expected]
    for record, other in zip(records, expected, strict=True):
        assert record.keys() == other.keys()
        for key, value in record.items():
            near = pytest.approx(other[key], rel=1e-4, abs=1e-5) if isinstance(value, float) else other[key]
            assert key in ("seconds", *FREE_RUNNING) or value == near, (record["arm"], record["step"], key)


def assert_same_responses(folder: Path, expected: Path) -> None:
    """All that are stored to be learned from or walked on; of those that a trained student draws all but very few."""
    rows, others = (pq.read_table(f / "responses.parquet").to_pylist() for f in (folder, expected))
    assert [(r["arm"], r["step"], r["prompt_id"]) for r in rows] == [
        (r["arm"], r["step"], r["prompt_id"]) for r in others
    ]
    unequal = [row for row, other in zip(rows, others, strict=True) if row["token_ids"] != other["token_ids"]]
    assert {row["writer"] for row in unequal} <= {"student"}
    assert len(unequal) <= len(rows) / 50


def assert_same_tokens(folder: Path, expected: Path) -> None:
    """Of fixed responses: those that a trained student draws may differ."""
    tables = [pq.read_table(f / "tokens.parquet").filter(pc.field("writer") != "student") for f in (folder, expected)]
    log_probs = ["log_prob_student", "log_prob_teacher", "log_prob_oracle"]
    ours, theirs = (table.drop(log_probs) for table in tables)
    assert ours.num_rows > 0
    assert ours.equals(theirs)
    for name in log_probs:
        np.testing.assert_allclose(*(table[name] for table in tables), rtol=1e-3, atol=1e-4)


def test_a_run_of_two_ranks_is_that_of_one(one: Path, two: Path) -> None:
    assert_same(*(runs.read_records(folder / "metrics.jsonl") for folder in (two, one)))
    ours, theirs = (pq.read_table(folder / "probe.parquet") for folder in (two, one))
    assert ours.drop(["value_nats"]).equals(theirs.drop(["value_nats"]))
    np.testing.assert_allclose(ours["value_nats"], theirs["value_nats"], rtol=1e-3, atol=1e-4)
    assert_same_responses(two, one)
    assert_same_tokens(two, one)
    names = [{str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} for folder in (two, one)]
    assert names[0] - {".lock"} == names[1]


@pytest.mark.slow
def test_a_run_with_divided_layers_is_that_of_one(one: Path, tmp_path: Path) -> None:
    experiment, folder = tiny(), tmp_path / "divided"
    training = dataclasses.replace(experiment.distillation.training, parallel="shard")
    experiment = dataclasses.replace(
        experiment, distillation=dataclasses.replace(experiment.distillation, training=training)
    )
    path = tmp_path / "divided.json"
    path.write_text(json.dumps(to_dict(experiment)))
    ended = torchrun("-m", "assay", "run", path, "--out", folder)
    assert ended.returncode == 0, ended.stderr
    assert_same(*(runs.read_records(f / "metrics.jsonl") for f in (folder, one)))
    assert_same_responses(folder, one)


@pytest.mark.slow
def test_accelerate_launches_a_distillation_of_ones_own_prompts(tmp_path: Path) -> None:
    rows = [row for row in corpus_rows(get_task("define")) if row["split"] == "distillation"][:120]
    lines = [json.dumps({"prompt": f"{row['lemmas']}:", "reference": row["gloss"]}) + "\n" for row in rows]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    flags = [
        *("distill", "--teacher", "define-teacher", "--student", "define-student"),
        *("--prompts", str(tmp_path / "prompts.jsonl"), "--max-prompt-tokens", "24", "--max-response-tokens", "8"),
        *("--distillation.training.num-steps", "4", "--probe.num-evaluations", "4"),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", port]
    command = [sys.executable, *map(str, launch), "-m", "assay", *flags, "--out", str(tmp_path / "two")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("the student to keep of distill") == 1
    assert runs.read_json(tmp_path / "two" / "manifest.json")["num_ranks"] == 2
    alone = assay(*flags, "--out", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    assert_same(*(runs.read_records(tmp_path / name / "metrics.jsonl") for name in ("two", "one")))


def test_divided_layers_are_refused_beside_a_copy_of_another_kind() -> None:
    training = dataclasses.replace(tiny().distillation.training, parallel="shard", averaging_decay=0.9)
    distillation = dataclasses.replace(tiny().distillation, training=training)
    with pytest.raises(AssayError, match="'shard', which goes neither with averaging_decay nor with lora_rank"):
        validate(dataclasses.replace(tiny(), distillation=distillation))


def killed_in_its_second_arm(config: Path, folder: Path) -> None:
    """Starts the run with two ranks and kills them all at the second checkpoint of its last arm."""
    process = subprocess.Popen(
        [*TORCHRUN, "-m", "assay", "run", str(config), "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "arms" / "offline" / "checkpoints" / "step-00000004").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # the launcher gives each rank a session of its own
    started = psutil.Process(process.pid).children(recursive=True)
    for each in (process, *started):
        each.kill()
    process.wait()
    psutil.wait_procs(started)
    assert not (folder / "arms" / "offline" / "finished.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_killed_run_is_resumed_by_two_ranks_or_by_one(
    config: Path, two: Path, tmp_path: Path, num_ranks: int
) -> None:
    folder = tmp_path / "run"
    killed_in_its_second_arm(config, folder)
    command = ("-m", "assay", "run", config, "--out", folder)
    ended = torchrun(*command) if num_ranks == 2 else assay(*command[2:])
    assert ended.returncode == 0, ended.stderr
    found, expected = (runs.read_records(f / "metrics.jsonl") for f in (folder, two))
    assert_same(found, expected)
    assert_same_responses(folder, two)
    if num_ranks == 2:
        assert [without_times(r) for r in found] == [without_times(r) for r in expected]
        for name in ("probe", "responses"):
            assert pq.read_table(folder / f"{name}.parquet").equals(pq.read_table(two / f"{name}.parquet"))


def test_commands_of_one_process_are_refused_under_a_launcher() -> None:
    several = {**os.environ, "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command = [sys.executable, "-m", "assay", "recipes"]
    ended = subprocess.run(command, capture_output=True, text=True, env=several, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "`assay recipes` is not for several processes" in ended.stderr
