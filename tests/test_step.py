"""What a training step costs: parts of like lengths, the teacher's word asked for once, and where the time goes."""

from __future__ import annotations

import dataclasses
import itertools
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay import workers
from assay.config import ARMS, SourceConfig, TrainingConfig
from assay.data.signal_store import SignalStore
from assay.data.sources import Counters, Mixture, ResponseSource
from assay.footprint import _arm_memory, disk_bytes
from assay.frozen_set import FrozenSet
from assay.models import batching, cached
from assay.models.batching import PASS_POSITIONS, cut_by_length
from assay.models.cached import CachedLogProbs
from assay.models.causal import CausalModel
from assay.models.sizes import size_of
from assay.recipes import get_recipe
from assay.recorder import Recorder
from assay.report import schedule
from assay.training import FitState, train_step
from assay.types import Batch, Prompt, Response
from assay.workload import num_held_signals
from tiny_models import VOCAB_SIZE, gpt2, t5

PROMPTS = [Prompt(f"p{i}", "", tuple(1 + (i + j) % (VOCAB_SIZE - 1) for j in range(1 + i % 5))) for i in range(8)]


# --- parts of like lengths


def cost(lengths: list[int], parts: list[slice]) -> int:
    return sum(len(lengths[part]) * max(lengths[part]) + PASS_POSITIONS for part in parts)


@settings(deadline=None)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=9), st.integers(1, 9))
def test_no_other_cut_costs_less(lengths: list[int], most_rows: int) -> None:
    parts = cut_by_length(lengths, most_rows)
    assert [i for part in parts for i in range(len(lengths))[part]] == list(range(len(lengths)))
    assert all(len(lengths[part]) <= most_rows for part in parts)
    cuts = itertools.chain.from_iterable(itertools.combinations(range(1, len(lengths)), n) for n in range(len(lengths)))
    every = ([slice(a, b) for a, b in itertools.pairwise((0, *inner, len(lengths)))] for inner in cuts)
    allowed = [cut for cut in every if all(len(lengths[part]) <= most_rows for part in cut)]
    assert cost(lengths, parts) == min(cost(lengths, cut) for cut in allowed)


def test_rows_of_like_lengths_stay_together() -> None:
    assert cut_by_length([20] * 64, 64) == [slice(0, 64)]
    assert cut_by_length([20] * 32 + [200] * 32, 64) == [slice(0, 32), slice(32, 64)]


def counted(hidden: Callable[[Batch], torch.Tensor], calls: list[int]) -> Callable[[Batch], torch.Tensor]:
    def counting(batch: Batch) -> torch.Tensor:
        calls.append(len(batch))
        return hidden(batch)

    return counting


@pytest.mark.parametrize("family", [gpt2, t5])
def test_a_step_in_parts_is_the_step_in_one(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged rows are cut where a pass is cheap; loss and weights are those of one micro-batch up to rounding."""
    batch = Batch([p.token_ids for p in PROMPTS], [tuple(range(1, 2 + i)) for i in range(8)])
    batch = dataclasses.replace(
        batch, signal=CachedLogProbs(family(1)).signal(CachedLogProbs(family(1)).compute(batch))
    )
    steps = []
    for pass_positions in (1, 10**6):
        monkeypatch.setattr(batching, "PASS_POSITIONS", pass_positions)
        student, calls = family(2), []
        monkeypatch.setattr(student, "hidden", counted(student.hidden, calls))
        optimizer = torch.optim.SGD(student.module.parameters(), lr=0.1)
        loss = train_step(student, optimizer, batch, 0, TrainingConfig(learning_rate=0.1))  # type: ignore[arg-type]
        steps.append((loss, [p.detach().clone() for p in student.module.parameters()], calls))
    (cut_loss, cut_weights, cut_calls), (loss, weights, calls) = steps
    assert len(cut_calls) > 1
    assert calls == [8]
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    for ours, theirs in zip(cut_weights, weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_batch_is_in_the_order_of_its_lengths_and_holds_the_same_pairs() -> None:
    drawn = source(CausalCounter.like(gpt2(1))).draw(8, 0, gpt2(2))
    lengths = [len(p) + len(r) for p, r in zip(drawn.prompt_ids, drawn.response_ids, strict=True)]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 1
    assert sorted(drawn.prompt_ids) == sorted(p.token_ids for p in PROMPTS)


# --- the teacher's word, asked for once


class CausalCounter(CausalModel):
    """Counts the sequences whose states it was asked for."""

    num_scored = 0

    @classmethod
    def like(cls, model: CausalModel) -> CausalCounter:
        counter = cls(model.module, model.name)
        counter.num_scored = 0
        return counter

    def hidden(self, batch: Batch) -> torch.Tensor:
        self.num_scored += len(batch)
        return super().hidden(batch)


def source(teacher: CausalModel, cache: CachedLogProbs | None = None, **changes: Any) -> ResponseSource:
    config = SourceConfig(**{"writer": "teacher", **changes})
    return ResponseSource(config, PROMPTS, {"teacher": teacher}, max_response_tokens=6, cache=cache)


@pytest.fixture(params=["log_probs", "hidden", "top_k"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "hidden":
        monkeypatch.setattr(cached, "DENSE_VOCABULARY_LIMIT", 0)
    return request.param


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [value for value in vars(batch.signal).values() if isinstance(value, torch.Tensor)]


def test_passes_after_the_first_ask_the_teacher_nothing(kind: str) -> None:
    teacher = CausalCounter.like(gpt2(1))
    cache = CachedLogProbs(teacher, 4 if kind == "top_k" else None)
    assert cache.kind == kind
    mixture = Mixture([source(teacher, cache)], 4)
    passes = [[mixture.batch(2 * i + j, gpt2(2)) for j in (0, 1)] for i in range(3)]
    assert teacher.num_scored == len(PROMPTS)
    assert passes[0][0].num_tokens > 0


def test_what_is_too_large_for_memory_is_read_from_files_and_is_the_same(kind: str, tmp_path: Path) -> None:
    top_k = 4 if kind == "top_k" else None
    teacher = CausalCounter.like(gpt2(1))
    store = SignalStore(teacher, tmp_path, top_k=top_k, in_memory=False)
    spilled, held = source(teacher, store), source(gpt2(1), CachedLogProbs(gpt2(1), top_k))
    for step in range(6):
        ours, theirs = spilled.draw(4, step, gpt2(2)), held.draw(4, step, gpt2(2))
        assert ours.response_ids == theirs.response_ids
        for one, other in zip(tensors(ours), tensors(theirs), strict=True):
            assert torch.equal(one, other)
    assert teacher.num_scored == len(PROMPTS)
    assert all(stored.kept is None for stored in spilled._stored.values())
    assert all(stored.kept is not None for stored in held._stored.values())
    assert spilled.counters.teacher_tokens == held.counters.teacher_tokens


def test_a_frozen_set_reads_from_files_what_memory_has(kind: str, tmp_path: Path) -> None:
    top_k = 4 if kind == "top_k" else None
    responses = [Response(p.id, (*p.token_ids, 0), "teacher", truncated=False) for p in PROMPTS]
    teacher = CausalCounter.like(gpt2(1))
    store = SignalStore(teacher, tmp_path, top_k=top_k, in_memory=False)
    sets = [FrozenSet("proxy", PROMPTS, responses, w, batch_size=3) for w in (store, CachedLogProbs(gpt2(1), top_k))]
    (ours, company), (theirs, their_company) = (frozen.against(gpt2(2)) for frozen in sets)
    assert np.array_equal(ours.value_nats, theirs.value_nats)
    assert company == their_company
    assert sets[0].of_the_walker() == sets[1].of_the_walker()
    assert (sets[0].kept, teacher.num_scored) == ([], len(PROMPTS))


@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_the_word_on_a_response_that_is_never_met_again_is_not_held(unit: str) -> None:
    fresh = source(gpt2(1), refresh_every=1, refresh_unit=unit)
    fresh.draw(4, 0, gpt2(2))
    assert all(stored.kept is None and stored.scored_at for stored in fresh._stored.values())
    twice = source(gpt2(1), refresh_every=2, refresh_unit=unit)
    twice.draw(4, 0, gpt2(2))
    assert all(stored.kept is not None for stored in twice._stored.values())


def test_the_kind_is_said_with_its_reason() -> None:
    assert CachedLogProbs(gpt2(1)).kind_and_reason == "whole laws, as its vocabulary of 23 is at most 4,096"
    assert CachedLogProbs(gpt2(1, vocab_size=5000)).kind_and_reason == (
        "states from which its head makes the laws, as its vocabulary of 5,000 is above 4,096"
    )
    assert CachedLogProbs(gpt2(1), 4).kind_and_reason == "the 4 most probable tokens of its vocabulary of 23"
    assert CachedLogProbs(gpt2(1)).most_bytes(10) == 10 * 23 * 4
    assert CachedLogProbs(gpt2(1, vocab_size=5000)).most_bytes(10) == 10 * gpt2(1).hidden_size * 4


def test_what_is_kept_in_files_is_forecast_on_disk_and_not_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = get_recipe("quickstart")
    sizes: Any = {role: size_of(name) for role, name in experiment.models.names.items()}
    arm = experiment.arms[0]
    held = num_held_signals(experiment, arm)
    assert held == experiment.probe.num_prompts + experiment.probe.num_train_pairs + experiment.distillation.num_prompts
    assert num_held_signals(experiment, ARMS["online_teacher"]) == 384 + 128 + 64, "of one batch"
    one = dataclasses.replace(experiment, arms=(arm,))
    memory, disk = _arm_memory(one, arm, sizes), disk_bytes(one, sizes)
    monkeypatch.setattr("assay.footprint.SIGNALS_IN_MEMORY_BYTES", 0)
    num_bytes = held * experiment.task.max_response_tokens * 512 * 4
    assert memory - _arm_memory(one, arm, sizes) == num_bytes
    assert disk_bytes(one, sizes) - disk >= num_bytes


# --- where the time goes


def clocked(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> Recorder:
    monkeypatch.setattr("assay.recorder.time.perf_counter", lambda: clock[0])
    mixture: Any = SimpleNamespace(sources=[SimpleNamespace(counters=Counters())])
    nothing: Any = None
    return Recorder(
        get_recipe("quickstart"), ARMS["offline"], Path("nowhere"), nothing, mixture, nothing, nothing, started=clock[0]
    )


def test_phases_add_up_to_all_the_time_of_an_arm_also_of_one_that_was_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    recorder, state = clocked(monkeypatch, clock), FitState(seconds={"student": 0.0})
    counters = recorder.mixture.sources[0].counters
    clock[0], counters.sample_seconds = 108.0, 3.0
    recorder._count_as("setup", state)
    assert state.seconds["setup"] == 5.0
    clock[0], counters.data_seconds = 120.0, 1.0
    state.seconds["student"] += 9.0
    recorder._count_as("rest", state)
    assert state.seconds == {"student": 9.0, "setup": 5.0, "rest": 2.0}
    assert recorder._counted(state) == 20.0

    clock[0] = 500.0  # killed, and taken up by another process
    again = clocked(monkeypatch, clock)
    again.mixture.sources[0].counters.take(counters.as_list())
    again._counted_before = again._counted(state)
    clock[0] = 507.0
    again._count_as("setup", state)
    clock[0] = 508.0
    again._count_as("rest", state)
    assert state.seconds == {"student": 9.0, "setup": 12.0, "rest": 3.0}
    assert again._counted(state) == 28.0


def run_with(manifest: dict[str, Any]) -> Any:
    metrics = [{"arm": "offline", "seconds": {"student": 3.0, "probe": 1.0}}]
    return SimpleNamespace(manifest=manifest, metrics=metrics)


def test_the_time_of_a_run_in_a_sentence() -> None:
    seconds = {
        "sft": {"available": 8.0, "busy": 6.0, "cpu": 5.0},
        "arms": {"available": 12.0, "busy": 9.0, "cpu": 9.0},
    }
    manifest = {"stage_seconds": {"sft": 4.0, "arms": 6.0}, "num_workers": 2, "worker_seconds": seconds}
    assert schedule.busy_share(run_with(manifest)) == 0.75
    assert schedule.time_sentence(run_with(manifest)) == "2 workers, 75% busy; probe: 12% of the run's computing"
    manifest = {"stage_seconds": {"sft": 4.0, "arms": 6.0}}
    assert schedule.time_sentence(run_with(manifest)) == "probe: 12% of the run's computing"
    assert schedule.time_sentence(run_with({"stage_seconds": {}})) is None


def faults_and_threads() -> tuple[int, int]:
    """Pages that the system hands out for a block of 64 MB, and the threads of torch."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, torch.get_num_threads()


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="this system has no large pages"
)
def test_a_worker_takes_memory_in_large_pages_and_has_one_thread() -> None:
    with workers.local_executor(1) as executor:
        num_faults, num_threads = executor.submit(faults_and_threads).result()
    assert num_faults < 8_000  # of 4 kB it would be 16,384; a system short of large pages gives some small ones
    assert num_threads == 1
