"""A whole arm with every cure at once, on the embedded bases: two teachers, replay, references, and saved students."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from assay import runs
from assay.config import ArmConfig, Experiment, SourceConfig
from assay.data.store import read_responses
from assay.errors import AssayError
from assay.frozen_set import FrozenSet
from assay.models.ensemble import Ensemble
from assay.models.loading import load_model
from assay.stages import check_models, fine_tune, run_arm, write_oracle_responses
from assay.workspace import Workspace
from test_experiment import small


def with_cures() -> Experiment:
    base = small(num_steps=6)
    training = dataclasses.replace(
        base.distillation.training, anchor_weight=0.3, averaging_decay=0.5, dropout=0.1, lora_rank=4
    )
    sources = (
        SourceConfig("teacher", weight=60.0),
        SourceConfig("oracle", weight=20.0, prompts="oracle", learn="text"),
        SourceConfig("dataset", weight=20.0, learn="text"),
    )
    return dataclasses.replace(
        base,
        models=dataclasses.replace(base.models, num_teachers=2),
        distillation=dataclasses.replace(base.distillation, completions_per_prompt=2, training=training),
        arms=(ArmConfig("cured", sources),),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiment, folder = with_cures(), tmp_path_factory.mktemp("runs") / "run"
    check_models(experiment, folder, lambda progress: None)
    write_oracle_responses(experiment, folder, 0, 1, lambda progress: None)
    for role in ("teacher", "student"):
        fine_tune(experiment, folder, role, 1, lambda progress: None)
    run_arm(experiment, folder, "cured", lambda progress: None)
    return folder


def test_two_teachers_are_the_teacher(run: Path) -> None:
    """Each was trained on other responses; d(oracle, teacher) and the held-out responses are the ensemble's."""
    work = Workspace(with_cures(), run)
    teacher = work.tuned("teacher")
    assert isinstance(teacher, Ensemble)
    assert len({member.digest for member in teacher.members}) == 2
    assert not (run / "stage1" / "teacher").exists()
    distance, _ = FrozenSet("golden", work.held_out(), work.held_out_responses("oracle"), work.tuned("oracle")).against(
        teacher
    )
    stored = pq.read_table(run / "stage1" / "d_oracle_teacher.parquet")["value_nats"].to_pylist()
    assert stored == pytest.approx(distance.value_nats.tolist(), rel=1e-4)
    for response, prompt in list(zip(work.held_out_responses("teacher"), work.held_out(), strict=True))[:8]:
        assert teacher.sample([prompt.token_ids], [response.seed], 24) == [response.token_ids]


def test_the_saved_student_is_the_evaluated_one(run: Path) -> None:
    """Plain weights whose golden, computed from the files, is the last record's; the best one's is the lowest."""
    work = Workspace(with_cures(), run)
    golden = FrozenSet("golden", work.held_out(), work.held_out_responses("oracle"), work.tuned("oracle"))
    records = runs.read_records(run / "arms" / "cured" / "metrics.jsonl")
    for folder, expected in (
        ("student", records[-1]["golden_nats"]),
        ("best", min(record["golden_nats"] for record in records)),
    ):
        values, _ = golden.against(load_model(str(run / "arms" / "cured" / folder)))
        assert values.value_nats.mean() == pytest.approx(expected, rel=1e-6)


def test_the_train_proxy_walks_on_the_teachers_stored_pairs(run: Path) -> None:
    pairs = read_responses(run / "arms" / "cured" / "train_pairs.parquet")
    assert {response.writer for response in pairs} == {"teacher"}
    prompts = Workspace(with_cures(), run).prompts("distillation", 64)
    assert [response.prompt_id for response in pairs] == [prompt.id for prompt in prompts[:32]]


def test_replay_draws_the_stored_responses_and_costs_no_tokens(run: Path) -> None:
    from safetensors.torch import load_file

    checkpoint = max((run / "arms" / "cured" / "checkpoints").iterdir())
    state = load_file(checkpoint / "training.safetensors")
    oracle = read_responses(run / "stage1" / "oracle-0.parquet")
    lengths = state["source.1.stored"][:, 6].tolist()
    kept = [tuple(part.tolist()) for part in state["source.1.token_ids"].split(lengths)]
    assert kept == [response.token_ids for response in oracle]
    drawn = [int(state[f"source.{i}.rows_drawn"]) for i in range(3)]
    assert sum(drawn) == 6 * 64
    assert all(abs(rows - share * 6 * 64) <= 1 for rows, share in zip(drawn, (0.6, 0.2, 0.2), strict=True))
    teacher = state["source.0.stored"]
    written, scored = int(teacher[:, 6].sum()), int(teacher[teacher[:, 4] > 0][:, 6].sum())
    assert state["source.0.counters"].tolist()[1:3] == [written, written + scored]
    assert torch.equal(state["source.1.stored"][:, 4], torch.zeros(192, dtype=torch.long))


def test_references_that_are_not_there_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "noun: word number {i} of many"}}\n' for i in range(2000)))
    experiment = with_cures()
    experiment = dataclasses.replace(
        experiment, task=dataclasses.replace(experiment.task, name=str(path), template="{prompt}")
    )
    with pytest.raises(AssayError, match="writer 'dataset' needs a reference for every prompt"):
        check_models(experiment, tmp_path / "run", lambda progress: None)
    listening = ArmConfig("listening", (SourceConfig("teacher"),), "stop", "references")
    with pytest.raises(AssayError, match="'listening' listens to references, but the task has none"):
        check_models(dataclasses.replace(experiment, arms=(listening,)), tmp_path / "run", lambda progress: None)
