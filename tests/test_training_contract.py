"""The batch-level half of the loss contract: shift, EOS, padding, accumulation; each broken on purpose below."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from assay.config import TrainingConfig
from assay.divergences import forward_kl
from assay.models.causal import CausalModel
from assay.training import distillation_loss
from assay.types import Batch, Dense
from tiny_models import EOS, gpt2

PROMPTS = [(5,), (7, 3, 9, 2), (4, 4), (11, 2, 8, 6, 1, 3), (6, 2)]
RESPONSES = [(3, 8, EOS), (6,), (EOS,), (2, 9, 4, 7, EOS), (9, 9)]
Loss = Callable[[CausalModel, CausalModel, int], tuple[float, Tensor]]


def batch_of(teacher: CausalModel) -> Batch:
    plain = Batch(PROMPTS, RESPONSES)
    with torch.no_grad():
        return Batch(PROMPTS, RESPONSES, Dense(teacher.log_probs(plain)))


def gradient_of(student: CausalModel) -> Tensor:
    return torch.cat([p.grad.flatten() for p in student.module.parameters() if p.grad is not None])


def our_loss(teacher: CausalModel, student: CausalModel, num_micro_batches: int) -> tuple[float, Tensor]:
    """Nats per response token and its gradient, accumulated as ``train_step`` does."""
    batch, total = batch_of(teacher), 0.0
    size = -(-len(batch) // num_micro_batches)
    student.module.zero_grad()
    for start in range(0, len(batch), size):
        loss = distillation_loss(student, batch[start : start + size], TrainingConfig()) / batch.num_tokens
        loss.backward()
        total += loss.item()
    return total, gradient_of(student)


def reference_loss(teacher: CausalModel, student: CausalModel) -> tuple[float, Tensor]:
    """One sequence at a time, one position at a time, in float64, from transformers' own logits."""
    teacher64, student64 = double_copy(teacher), double_copy(student)
    terms = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        for t, _ in enumerate(response):
            context = torch.tensor([[*prompt, *response[:t]]])
            with torch.no_grad():
                log_p = teacher64.module(input_ids=context).logits[0, -1].log_softmax(-1)
            log_q = student64.module(input_ids=context).logits[0, -1].log_softmax(-1)
            terms.append((log_p.exp() * (log_p - log_q)).sum())
    loss = torch.stack(terms).mean()
    loss.backward()
    return loss.item(), gradient_of(student64)


def double_copy(model: CausalModel) -> CausalModel:
    copy = gpt2(0)
    copy.module.load_state_dict(model.module.state_dict())
    copy.module.double()
    return copy


def check_value_and_gradient(loss: Loss) -> None:
    value, gradient = loss(gpt2(1), gpt2(2), 1)
    expected_value, expected_gradient = reference_loss(gpt2(1), gpt2(2))
    assert value == pytest.approx(expected_value, rel=1e-5)
    assert (gradient.double() - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


def check_accumulation(loss: Loss) -> None:
    """Sequences of unequal length in 1, 2 or 5 micro-batches: the same loss and gradient."""
    value, gradient = loss(gpt2(1), gpt2(2), 1)
    for num_micro_batches in (2, 5):
        again, gradient_again = loss(gpt2(1), gpt2(2), num_micro_batches)
        assert again == pytest.approx(value, rel=1e-5)
        assert (gradient - gradient_again).norm() < 1e-4 * gradient.norm()


def check_student_is_teacher(loss: Loss) -> None:
    value, gradient = loss(gpt2(1), gpt2(1), 1)
    assert abs(value) < 1e-6
    assert gradient.norm() < 1e-3


CHECKS = [check_value_and_gradient, check_accumulation, check_student_is_teacher]


def padded_forward(model: CausalModel) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [B, T, V] of right-padded rows with their token ids and response mask, the usual starting point."""
    rows = [(*p, *r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    longest = max(map(len, rows))
    input_ids = torch.tensor([[*row, *[EOS] * (longest - len(row))] for row in rows])
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        mask[i, len(prompt) : len(prompt) + len(response)] = True
    log_q = model.module(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits.log_softmax(-1)
    return log_q, input_ids, mask


def broken(select: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A padded loss whose positions are chosen by ``select(input_ids, response_mask)``."""

    def loss(teacher: CausalModel, student: CausalModel, num_micro_batches: int) -> tuple[float, Tensor]:
        student.module.zero_grad()
        with torch.no_grad():
            log_p, _, _ = padded_forward(teacher)
        log_q, input_ids, mask = padded_forward(student)
        value = forward_kl(log_p, log_q)[select(input_ids, mask)].mean()
        value.backward()
        return value.item(), gradient_of(student)

    return loss


def shifted_left(mask: Tensor) -> Tensor:
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)


correct_by_padding = broken(lambda input_ids, mask: shifted_left(mask))
shift_by_one = broken(lambda input_ids, mask: mask)
eos_not_scored = broken(lambda input_ids, mask: shifted_left(mask & (input_ids != EOS)))
padding_counted = broken(lambda input_ids, mask: shifted_left(mask | (input_ids == EOS)))
prompt_counted = broken(lambda input_ids, mask: torch.ones_like(mask))


def mean_of_means(teacher: CausalModel, student: CausalModel, num_micro_batches: int) -> tuple[float, Tensor]:
    """Every micro-batch divided by its own tokens, then averaged: long responses count less."""
    batch, total = batch_of(teacher), 0.0
    size = -(-len(batch) // num_micro_batches)
    student.module.zero_grad()
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        loss = distillation_loss(student, part, TrainingConfig()) / part.num_tokens / num_micro_batches
        loss.backward()
        total += loss.item()
    return total, gradient_of(student)


def teachers_entropy_left_in(
    teacher: CausalModel, student: CausalModel, num_micro_batches: int
) -> tuple[float, Tensor]:
    """Cross-entropy to the teacher's distribution: the right gradient, but loss(p, p) is p's entropy."""
    value, gradient = our_loss(teacher, student, num_micro_batches)
    signal = batch_of(teacher).signal
    assert isinstance(signal, Dense)
    return value - float((signal.log_p_NV.exp() * signal.log_p_NV).sum(-1).mean()), gradient


BROKEN = [
    (shift_by_one, check_value_and_gradient),
    (eos_not_scored, check_value_and_gradient),
    (padding_counted, check_value_and_gradient),
    (prompt_counted, check_value_and_gradient),
    (mean_of_means, check_accumulation),
    (teachers_entropy_left_in, check_student_is_teacher),
]


@pytest.mark.parametrize("check", CHECKS)
def test_our_loss_keeps_the_contract(check: Callable[[Loss], None]) -> None:
    check(our_loss)


def test_the_padded_form_without_a_bug_passes_too() -> None:
    """So what the broken forms below fail on is their bug, not their form."""
    check_value_and_gradient(correct_by_padding)


@pytest.mark.parametrize(("loss", "check"), BROKEN)
def test_a_broken_loss_is_caught(loss: Loss, check: Callable[[Loss], None]) -> None:
    with pytest.raises(AssertionError):
        check(loss)


def test_every_check_catches_something() -> None:
    assert {check for _, check in BROKEN} == set(CHECKS)
