"""The loop: schedules, steps, refusals, and a resumed run that equals an uninterrupted one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

from assay.checkpoints import FitState
from assay.config import SourceConfig, TrainingConfig
from assay.data.sources import Mixture, ResponseSource
from assay.divergences import DIVERGENCES
from assay.errors import AssayError
from assay.models.causal import CausalModel
from assay.training import distillation_loss, fit, learning_rate_at, train_step
from assay.types import Batch, Dense, Prompt
from tiny_models import gpt2

PROMPTS = [Prompt(f"p{i}", "", (5 + i, 2, 3)) for i in range(6)]


def mixture(writer: str = "teacher", refresh_every: int | None = None, unit: str = "epochs") -> Mixture:
    source = ResponseSource(
        SourceConfig(writer, refresh_every, unit),  # type: ignore[arg-type]
        PROMPTS,
        {"teacher": gpt2(1), "oracle": gpt2(3)},
        max_response_tokens=5,
        seed=4,
    )
    return Mixture([source], batch_size=4)


CONFIG = TrainingConfig(num_steps=9, batch_size=4, learning_rate=1e-2, warmup_steps=3, checkpoint_every=2)


def test_learning_rate_warms_up_then_follows_its_schedule() -> None:
    rates = [learning_rate_at(s, TrainingConfig(num_steps=20, warmup_steps=4, learning_rate=1.0)) for s in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == [1.0] * 16
    for schedule, middle in (("cosine", 0.5), ("linear", 0.5)):
        config = TrainingConfig(num_steps=24, warmup_steps=4, learning_rate=1.0, schedule=schedule)  # type: ignore[arg-type]
        assert learning_rate_at(4, config) == pytest.approx(1.0)
        assert learning_rate_at(14, config) == pytest.approx(middle)
        assert 0 < learning_rate_at(23, config) < 0.06


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_every_divergence_trains_towards_the_teacher(name: str) -> None:
    config = TrainingConfig(num_steps=40, batch_size=4, learning_rate=3e-3, divergence=name)
    state = fit(gpt2(2, scale=3.0), mixture(), config)
    assert sum(state.losses[-5:]) < 0.8 * sum(state.losses[:5])


def test_a_softmax_temperature_flattens_both_sides() -> None:
    batch = mixture().batch(0, gpt2(2))
    config = TrainingConfig(softmax_temperature=2.0)
    assert isinstance(batch.signal, Dense)
    log_p = (batch.signal.log_p_NV.double() / 2).log_softmax(-1)
    log_q = (gpt2(2).log_probs(batch).double() / 2).log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum()
    assert distillation_loss(gpt2(2), batch, config).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_divergence_without_the_teachers_distribution_is_refused() -> None:
    with pytest.raises(AssayError, match=r"'forward_kl' needs the teacher's distribution at 2 tokens"):
        distillation_loss(gpt2(), Batch([(3,)], [(4, 0)]), TrainingConfig())


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_weights() -> None:
    student, teacher = gpt2(2), gpt2(1)
    with torch.no_grad():
        next(student.module.parameters()).fill_(float("nan"))
    before = {k: v.clone() for k, v in student.module.state_dict().items()}
    batch = mixture().batch(0, teacher)
    with pytest.raises(AssayError, match="loss is nan at step 7"):
        train_step(student, AdamW(student.module.parameters()), batch, 7, CONFIG)
    for key, value in student.module.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[key].nan_to_num())


@pytest.mark.parametrize("num_micro_batches", [2, 4])
def test_accumulation_changes_neither_loss_nor_step(num_micro_batches: int) -> None:
    """The real step on sequences of unequal length, split into micro-batches of unequal token counts."""
    batch = mixture().batch(0, gpt2(2))
    assert len(set(batch.lengths)) > 1
    weights = []
    for number in (1, num_micro_batches):
        student = gpt2(2)
        config = dataclasses.replace(CONFIG, num_micro_batches=number, max_grad_norm=1e9, learning_rate=1e-3)
        optimizer = torch.optim.SGD(student.module.parameters(), lr=1.0)
        loss = train_step(student, optimizer, batch, 5, config)  # type: ignore[arg-type]
        weights.append((loss, torch.cat([p.detach().flatten() for p in student.module.parameters()])))
    (loss, whole), (loss_again, split) = weights
    before = torch.cat([p.detach().flatten() for p in gpt2(2).module.parameters()])
    assert loss_again == pytest.approx(loss, rel=1e-5)
    assert (whole - split).norm() < 1e-4 * (whole - before).norm()


class Killed(Exception):
    """Stands for a kill at a moment of our choosing."""


@pytest.mark.parametrize(
    ("writer", "refresh_every", "unit"),
    [("teacher", None, "epochs"), ("teacher", 1, "epochs"), ("student", 1, "steps"), ("student", 2, "epochs")],
)
@pytest.mark.parametrize("killed_at", [1, 4, 7])
def test_interrupted_equals_uninterrupted(
    tmp_path: Path, writer: str, refresh_every: int | None, unit: str, killed_at: int
) -> None:
    whole, whole_mixture = gpt2(2), mixture(writer, refresh_every, unit)
    expected = fit(whole, whole_mixture, CONFIG)

    def kill(state: FitState) -> None:
        if state.step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        fit(gpt2(2), mixture(writer, refresh_every, unit), CONFIG, before_step=kill, checkpoints=tmp_path)
    resumed, resumed_mixture = gpt2(2), mixture(writer, refresh_every, unit)
    state = fit(resumed, resumed_mixture, CONFIG, checkpoints=tmp_path)
    assert state.losses == expected.losses
    assert resumed.digest == whole.digest
    ours, theirs = resumed_mixture.sources[0].counters, whole_mixture.sources[0].counters
    assert (ours.generated_tokens, ours.teacher_tokens) == (theirs.generated_tokens, theirs.teacher_tokens)


def test_two_checkpoints_are_kept_and_from_pretrained_reads_them(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    student = gpt2(2)
    fit(student, mixture(), CONFIG, checkpoints=tmp_path)
    older, kept = sorted(tmp_path.iterdir())
    assert (older.name, kept.name) == ("step-00000008", "step-00000009")
    read = CausalModel(AutoModelForCausalLM.from_pretrained(kept, dtype=torch.float32), "read")
    batch = Batch([(5, 2)], [(3, 4, 0)])
    assert torch.equal(read.log_probs(batch), student.log_probs(batch))
