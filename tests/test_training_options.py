"""Options of a training step: hard labels mixed in, activations computed anew, packed rows, bfloat16."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from assay.checkpoints import FitState
from assay.config import Experiment, TrainingConfig
from assay.errors import AssayError
from assay.frozen_set import FrozenSet
from assay.models.averaging import Learner
from assay.models.pretrained import PretrainedModel
from assay.training import distillation_loss, fit, train_step
from assay.types import Batch, Dense, Prompt, Response
from assay.validation import validate
from test_training import CONFIG, Killed, mixture
from tiny_models import gemma2, gpt2, llama, qwen3, t5

BATCH = Batch([(5, 2), (7, 3, 9), (4,), (6, 1)], [(3, 4, 0), (6, 8), (9, 2, 2, 0), (5,)])
TOKENS = [t for response in BATCH.response_ids for t in response]
FAMILIES: dict[str, Callable[[], PretrainedModel]] = {
    "gpt2": lambda: gpt2(2),
    "llama": lambda: llama(2),
    "qwen3": lambda: qwen3(2),
    "gemma2": lambda: gemma2(2),
    "t5": lambda: t5(2),
}


def signed(teacher: PretrainedModel) -> Batch:
    with torch.no_grad():
        return Batch(BATCH.prompt_ids, BATCH.response_ids, Dense(teacher.log_probs(BATCH)))


def step_of(student: PretrainedModel, batch: Batch, **options: Any) -> tuple[float, Tensor]:
    """The loss of a real step of the learner's model, and the gradient that it leaves."""
    config = TrainingConfig(max_grad_norm=1e9, **options)
    torch.manual_seed(5)  # low-rank updates begin at random
    model = Learner(student, config).model
    model.module.train()
    optimizer: Any = SGD(model.module.parameters(), lr=0.0)
    loss = train_step(model, optimizer, batch, 0, config)
    return loss, torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])


# --- hard labels


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_hard_labels_are_mixed_in_by_their_weight(weight: float, divergence: str) -> None:
    """Value and gradient against float64, token by token; the softmax temperature is the divergence's alone."""
    student, batch = gpt2(2), signed(gpt2(1))
    options = {"divergence": divergence, "softmax_temperature": 2.0, "hard_label_weight": weight}
    value, gradient = step_of(student, batch, num_micro_batches=2, **options)
    student64 = gpt2(2)
    student64.module.double()
    assert isinstance(batch.signal, Dense)
    log_q = student64._logits(student64.hidden(batch)).log_softmax(-1)
    p_log, q_log = ((log / 2).log_softmax(-1) for log in (batch.signal.log_p_NV.double(), log_q))
    first, second = (p_log, q_log) if divergence == "forward_kl" else (q_log, p_log)
    soft = (first.exp() * (first - second)).sum()
    hard = -sum(row[token] for row, token in zip(log_q, TOKENS, strict=True))
    expected = ((1 - weight) * soft + weight * hard) / batch.num_tokens
    expected.backward()
    expected_gradient = torch.cat([p.grad.flatten() for p in student64.module.parameters() if p.grad is not None])
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient.double() - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


def test_hard_labels_of_weight_0_change_no_bit_and_of_weight_1_are_all_there_is() -> None:
    plain, off = gpt2(2), gpt2(2)
    losses = [
        fit(student, mixture(), dataclasses.replace(CONFIG, **options)).losses
        for student, options in ((plain, {}), (off, {"hard_label_weight": 0.0}))
    ]
    assert losses[0] == losses[1]
    assert plain.digest == off.digest
    batch = signed(gpt2(1))
    labels = distillation_loss(gpt2(2), batch, TrainingConfig(divergence="hard_labels"))
    assert torch.equal(distillation_loss(gpt2(2), batch, TrainingConfig(hard_label_weight=1.0)), labels)
    with pytest.raises(AssayError, match=r"'forward_kl' needs the teacher's distribution"):
        distillation_loss(gpt2(2), BATCH, TrainingConfig(hard_label_weight=0.5))


def test_hard_labels_are_not_mixed_into_hard_labels() -> None:
    distillation = Experiment().distillation
    training = dataclasses.replace(distillation.training, hard_label_weight=0.5, divergence="hard_labels")
    with pytest.raises(AssayError, match="'hard_labels' has no other part: set it to 0"):
        validate(dataclasses.replace(Experiment(), distillation=dataclasses.replace(distillation, training=training)))


# --- activations computed anew, and packed rows


@pytest.mark.parametrize("with_", [{}, {"num_micro_batches": 2}, {"lora_rank": 2}, {"averaging_decay": 0.5}], ids=str)
@pytest.mark.parametrize(
    ("family", "option"),
    [(family, "gradient_checkpointing") for family in FAMILIES]
    + [(family, "packing") for family in FAMILIES if family != "t5"],
)
def test_neither_changes_a_loss_or_a_gradient(family: str, option: str, with_: dict[str, Any]) -> None:
    batch = signed(gpt2(1))
    value, gradient = step_of(FAMILIES[family](), batch, **with_)
    again, gradient_again = step_of(FAMILIES[family](), batch, **with_, **{option: True})
    assert again == pytest.approx(value, rel=1e-5)
    assert (gradient - gradient_again).norm() < 1e-4 * gradient.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_computed_anew_while_training_alone(family: str) -> None:
    student, calls = FAMILIES[family](), []
    Learner(student, TrainingConfig(gradient_checkpointing=True))
    norm = next(part for name, part in student.module.named_modules() if name.endswith(("ln_1", "norm")))
    norm.register_forward_hook(lambda *_: calls.append(1))
    batch = signed(gpt2(1))
    student.module.train()
    distillation_loss(student, batch, TrainingConfig()).backward()
    assert len(calls) == 2
    with student.evaluating():
        distillation_loss(student, batch, TrainingConfig()).backward()
    assert len(calls) == 3


def test_an_architecture_that_cannot_compute_activations_anew_is_refused() -> None:
    student = gpt2(2)
    student.module.supports_gradient_checkpointing = False
    with pytest.raises(AssayError, match="gradient_checkpointing to false"):
        Learner(student, TrainingConfig(gradient_checkpointing=True))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_run_with_activations_computed_anew_is_the_same_run(dropout: float) -> None:
    """Dropout too: what is dropped is dropped again."""
    losses = []
    for anew in (False, True):
        torch.manual_seed(3)
        config = dataclasses.replace(CONFIG, gradient_checkpointing=anew, dropout=dropout)
        losses.append(fit(gpt2(2), mixture("student", 1, "steps"), config).losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_an_interrupted_run_with_both_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, gradient_checkpointing=True, packing=True)
    whole = gpt2(2)
    expected = fit(whole, mixture(), config)

    def kill(state: FitState) -> None:
        if state.step == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(gpt2(2), mixture(), config, before_step=kill, checkpoints=tmp_path)
    resumed = gpt2(2)
    assert fit(resumed, mixture(), config, checkpoints=tmp_path).losses == expected.losses
    assert resumed.digest == whole.digest


# --- bfloat16


def frozen() -> FrozenSet:
    prompts = [Prompt(f"p{i}", "", ids) for i, ids in enumerate(BATCH.prompt_ids)]
    responses = [Response(f"p{i}", ids, "teacher", False) for i, ids in enumerate(BATCH.response_ids)]
    return FrozenSet("proxy", prompts, responses, llama(1))


def test_bfloat16_trains_in_half_precision_and_is_evaluated_in_float32(tmp_path: Path) -> None:
    """What the probe says of given weights does not depend on the precision of the steps that led there."""
    probe, seen = frozen(), {}
    for precision in ("float32", "bfloat16"):
        student, values = llama(2), []

        def look(state: FitState, student: PretrainedModel = student, values: list[float] = values) -> None:
            assert not torch.is_autocast_enabled("cpu")
            assert student.log_probs(BATCH).dtype == torch.float32
            values.append(float(probe.against(student)[0].value_nats.sum()))

        config = dataclasses.replace(CONFIG, precision=precision, learning_rate=3e-3)
        state = fit(student, mixture(), config, before_step=look, checkpoints=tmp_path / precision)
        assert {p.dtype for p in student.module.parameters()} == {torch.float32}
        seen[precision] = values, state.losses
        read = llama(7)
        read.module.load_state_dict(student.module.state_dict())
        assert float(probe.against(read)[0].value_nats.sum()) == values[-1]
    (values, losses), (values_half, losses_half) = seen["float32"], seen["bfloat16"]
    assert values_half[0] == values[0]  # the same weights, to the last bit
    assert losses_half[0] != losses[0]
    assert losses_half == pytest.approx(losses, rel=0.05)
    assert sum(losses_half[-3:]) < 0.9 * sum(losses_half[:3])
