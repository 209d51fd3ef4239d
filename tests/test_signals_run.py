"""Whole arms on the embedded bases: from a store as without one, again from a full one, and from listed tokens."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from assay import runs, stages
from assay.config import ARMS, Experiment
from assay.forecast import forecast
from assay.models.pretrained import PretrainedModel
from assay.stages import fine_tune, run_arm, write_oracle_responses
from assay.types import Batch, Progress
from assay.workspace import Workspace
from test_experiment import small, without_times


def with_signals(**changes: Any) -> Experiment:
    base = small(num_steps=6)
    distillation = dataclasses.replace(base.distillation, **changes)
    return dataclasses.replace(base, distillation=distillation, arms=(ARMS["offline"], ARMS["online_student"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_oracle_responses(with_signals(), folder, 0, 1, lambda progress: None)
    for role in ("teacher", "student"):
        fine_tune(with_signals(), folder, role, 1, lambda progress: None)  # type: ignore[arg-type]
    return folder


def records_of(
    experiment: Experiment, folder: Path, arm: str = "offline", said: list[str] | None = None
) -> list[dict[str, Any]]:
    """What a new arm logs, and with it the digest of its last student."""

    def listen(progress: Progress) -> None:
        if said is not None and progress.stage not in said:
            said.append(progress.stage)

    run_arm(experiment, folder, arm, listen)
    records = [without_times(record) for record in runs.read_records(folder / "arms" / arm / "metrics.jsonl")]
    student = (folder / "arms" / arm / "student" / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "arms")
    return [*records, {"student": student}]


def test_arms_from_a_store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filled store gives every record and weight again, without the teacher; without one they are within rounding."""
    stored = with_signals(signal_store=str(tmp_path / "store"))
    plain = records_of(with_signals(), folder)
    said: list[str] = []
    first = records_of(stored, folder, said=said)
    assert said[0].startswith("signals of ")
    assert said[0].endswith(f"MB at most in {next((tmp_path / 'store').iterdir())}")
    for with_store, without in zip(first[:-1], plain[:-1], strict=True):
        assert with_store.keys() == without.keys()
        for name, value in without.items():
            assert with_store[name] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), name
    written = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file())
    more = forecast(stored).disk_bytes - forecast(with_signals()).disk_bytes  # type: ignore[operator]
    assert more / 4 < written < more, "responses are shorter than their limit, and the forecast has two arms"

    scored: list[int] = []
    teacher = Workspace(stored, folder).tuned("teacher")
    assert isinstance(teacher, PretrainedModel)
    log_probs = type(teacher).log_probs

    def counted(model: PretrainedModel, batch: Batch) -> Any:
        scored.append(len(batch) if model.digest == teacher.digest else 0)
        return log_probs(model, batch)

    monkeypatch.setattr(type(teacher), "log_probs", counted)
    assert records_of(stored, folder) == first
    assert sum(scored) == 4, "the two prompts that each of two ways to decode is checked with when the model is loaded"


def test_an_arm_whose_signals_are_too_much_for_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, reads them from files of its own, learns the same bit for bit, and leaves no file of them behind."""
    plain = records_of(with_signals(), folder)
    monkeypatch.setattr(stages, "SIGNALS_IN_MEMORY_BYTES", 5 * 10**6)
    said: list[str] = []
    assert records_of(with_signals(), folder, said=said) == plain
    assert "whole laws, as its vocabulary of 512 is at most 4,096; 7.9 MB at most more than the 0.0 GB" in said[0]
    assert said[0].endswith("so in files of the arm")
    run_arm(with_signals(), folder, "offline", lambda progress: None)
    left = {path.name for path in (folder / "arms" / "offline").iterdir()}
    shutil.rmtree(folder / "arms")
    assert "signals" not in left
    assert "student" in left


def test_arms_from_listed_tokens(folder: Path, tmp_path: Path) -> None:
    """Proxies are lower bounds from step 0 on and say what they miss; a student's own responses are not stored."""
    exact = records_of(with_signals(), folder)
    listed = with_signals(teacher_top_k=16, signal_store=str(tmp_path))
    found = records_of(listed, folder)
    for metric in ("proxy_nats", "train_proxy_nats"):
        assert 0 < found[0][metric] < exact[0][metric]
    assert found[0]["golden_nats"] == exact[0]["golden_nats"]
    masses = {record["captured_mass"] for record in found[:-1]}
    assert len(masses) == 1
    assert 0.5 < masses.pop() < 1
    entries = _num_entries(tmp_path)
    assert entries == 64 + 64, "held-out prompts, and the pairs that are trained and walked on"
    records_of(listed, folder, "online_student")
    assert _num_entries(tmp_path) == entries + 32, "the train proxy's fresh responses"


def _num_entries(store: Path) -> int:
    return sum(len(runs.read_json(path)["entries"]) for path in store.rglob("index.json"))
