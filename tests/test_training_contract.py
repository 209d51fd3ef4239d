"""The batch-level half of the loss contract: shift, EOS, padding, accumulation; each broken on purpose below.

Both families keep it: a decoder-only model that reads prompt and response in one row, and encoder-decoder models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from assay.config import TrainingConfig
from assay.divergences import forward_kl
from assay.models.pretrained import PretrainedModel, right_padded
from assay.training import distillation_loss
from assay.types import Batch, Dense
from tiny_models import EOS, VOCAB_SIZE, bart, cut, gemma2, gpt2, llama, qwen3, t5

PROMPTS = [(5,), (7, 3, 9, 2), (4, 4), (11, 2, 8, 6, 1, 3), (6, 2)]
RESPONSES = [(3, 8, EOS), (6,), (EOS,), (2, 9, 4, 7, EOS), (9, 9)]
PAIRS: dict[str, tuple[PretrainedModel, PretrainedModel]] = {
    "gpt2": (gpt2(1), gpt2(2)),
    "gpt2-untied": (gpt2(1, tied=False), gpt2(2, tied=False)),
    "llama-tied": (llama(1, tied=True), llama(2, tied=True)),
    "llama-untied": (llama(1), llama(2)),
    "qwen3-tied": (qwen3(1), qwen3(2)),
    "qwen3-untied": (qwen3(1, tied=False), qwen3(2, tied=False)),
    "gemma2-tied": (gemma2(1), gemma2(2)),
    "gemma2-untied": (gemma2(1, tied=False), gemma2(2, tied=False)),
    "padded": (cut(gemma2(1, vocab_size=31)), cut(gpt2(2, vocab_size=26))),
    "t5": (t5(1), t5(2)),
    "mt5": (t5(1, gated=True), t5(2, gated=True)),
    "bart": (bart(1), bart(2)),
}
"""Teacher and student of each architecture."""
Loss = Callable[[PretrainedModel, PretrainedModel, int], tuple[float, Tensor]]


def batch_of(teacher: PretrainedModel) -> Batch:
    plain = Batch(PROMPTS, RESPONSES)
    with torch.no_grad():
        return Batch(PROMPTS, RESPONSES, Dense(teacher.log_probs(plain)))


def gradient_of(student: PretrainedModel) -> Tensor:
    return torch.cat([p.grad.flatten() for p in student.module.parameters() if p.grad is not None])


def our_loss(teacher: PretrainedModel, student: PretrainedModel, num_micro_batches: int) -> tuple[float, Tensor]:
    """Nats per response token and its gradient, accumulated as ``train_step`` does."""
    batch, total = batch_of(teacher), 0.0
    size = -(-len(batch) // num_micro_batches)
    student.module.zero_grad()
    for start in range(0, len(batch), size):
        loss = distillation_loss(student, batch[start : start + size], TrainingConfig()) / batch.num_tokens
        loss.backward()
        total += loss.item()
    return total, gradient_of(student)


def reference_loss(teacher: PretrainedModel, student: PretrainedModel) -> tuple[float, Tensor]:
    """One sequence at a time, one position at a time, in float64, from transformers' own logits."""
    teacher64, student64 = double_copy(teacher), double_copy(student)
    terms = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        for t, _ in enumerate(response):
            with torch.no_grad():
                log_p = last_logits(teacher64, prompt, response[:t]).log_softmax(-1)
            log_q = last_logits(student64, prompt, response[:t]).log_softmax(-1)
            terms.append((log_p.exp() * (log_p - log_q)).sum())
    loss = torch.stack(terms).mean()
    loss.backward()
    return loss.item(), gradient_of(student64)


def last_logits(model: PretrainedModel, prompt: tuple[int, ...], said: tuple[int, ...]) -> Tensor:
    """Logits of the token after ``said``, from transformers' own forward pass."""
    if model.module.config.is_encoder_decoder:
        start = model.module.config.decoder_start_token_id
        inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[start, *said]])}
    else:
        inputs = {"input_ids": torch.tensor([[*prompt, *said]])}
    return model.module(**inputs).logits[0, -1, :VOCAB_SIZE]


def double_copy(model: PretrainedModel) -> PretrainedModel:
    double = copy.deepcopy(model)
    double.module.double()
    return double


def check_value_and_gradient(loss: Loss, pair: str) -> None:
    teacher, student = PAIRS[pair]
    value, gradient = loss(teacher, student, 1)
    expected_value, expected_gradient = reference_loss(teacher, student)
    assert value == pytest.approx(expected_value, rel=1e-5)
    assert (gradient.double() - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


def check_accumulation(loss: Loss, pair: str) -> None:
    """Sequences of unequal length in 1, 2 or 5 micro-batches: the same loss and gradient."""
    teacher, student = PAIRS[pair]
    value, gradient = loss(teacher, student, 1)
    for num_micro_batches in (2, 5):
        again, gradient_again = loss(teacher, student, num_micro_batches)
        assert again == pytest.approx(value, rel=1e-5)
        assert (gradient - gradient_again).norm() < 1e-4 * gradient.norm()


def check_student_is_teacher(loss: Loss, pair: str) -> None:
    teacher, _ = PAIRS[pair]
    value, gradient = loss(teacher, teacher, 1)
    assert abs(value) < 1e-6
    assert gradient.norm() < 1e-3


CHECKS = [check_value_and_gradient, check_accumulation, check_student_is_teacher]


def padded_forward(model: PretrainedModel) -> tuple[Tensor, Tensor, Tensor]:
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

    def loss(teacher: PretrainedModel, student: PretrainedModel, num_micro_batches: int) -> tuple[float, Tensor]:
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


def mean_of_means(teacher: PretrainedModel, student: PretrainedModel, num_micro_batches: int) -> tuple[float, Tensor]:
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
    teacher: PretrainedModel, student: PretrainedModel, num_micro_batches: int
) -> tuple[float, Tensor]:
    """Cross-entropy to the teacher's distribution: the right gradient, but loss(p, p) is p's entropy."""
    value, gradient = our_loss(teacher, student, num_micro_batches)
    signal = batch_of(teacher).signal
    assert isinstance(signal, Dense)
    return value - float((signal.log_p_NV.exp() * signal.log_p_NV).sum(-1).mean()), gradient


def with_student(change: Callable[[PretrainedModel], None]) -> Loss:
    """Our loss of a student that a change has made another model than transformers runs."""

    def loss(teacher: PretrainedModel, student: PretrainedModel, num_micro_batches: int) -> tuple[float, Tensor]:
        changed = copy.deepcopy(student)
        change(changed)
        return our_loss(teacher, changed, num_micro_batches)

    return loss


def no_softcap_of_logits(model: PretrainedModel) -> None:
    model._softcap = None


def no_softcap_of_attention(model: PretrainedModel) -> None:
    """What an attention that knows no soft cap computes."""
    for layer in model.module.base_model.layers:  # type: ignore[union-attr]
        layer.self_attn.attn_logit_softcapping = None


def no_window(model: PretrainedModel) -> None:
    """Every layer sees all tokens."""
    model.module.config.sliding_window = 100


def padded_rows_left_in(
    teacher: PretrainedModel, student: PretrainedModel, num_micro_batches: int
) -> tuple[float, Tensor]:
    """Both laws over all rows that both models have, the tokenizer's or not."""
    rows = min(model.module.config.vocab_size for model in (teacher, student))
    wholes = [copy.deepcopy(model) for model in (teacher, student)]
    for whole in wholes:
        whole.vocab_size = rows
    return our_loss(*wholes, num_micro_batches)


def encoder_decoder(
    first: int | None = None, attend_padding: bool = False, score: Callable[[Tensor], Tensor] = torch.ones_like
) -> Loss:
    """A padded encoder-decoder loss; ``score(target_ids)`` chooses among the response's own positions.

    ``first`` is fed before the response instead of the start token; ``attend_padding`` lets the encoder see padding.
    """

    def log_probs(model: PretrainedModel) -> Tensor:
        prompts, seen = right_padded(PROMPTS)
        start = model.module.config.decoder_start_token_id if first is None else first
        inputs, fed = right_padded([(start, *response[:-1]) for response in RESPONSES])
        targets, _ = right_padded(RESPONSES)
        mask = torch.ones_like(seen) if attend_padding else seen
        output = model.module(input_ids=prompts, attention_mask=mask, decoder_input_ids=inputs)
        return output.logits.log_softmax(-1)[fed.bool() & score(targets).bool()]

    def loss(teacher: PretrainedModel, student: PretrainedModel, num_micro_batches: int) -> tuple[float, Tensor]:
        student.module.zero_grad()
        with torch.no_grad():
            log_p_NV = log_probs(teacher)
        value = forward_kl(log_p_NV, log_probs(student)).mean()
        value.backward()
        return value.item(), gradient_of(student)

    return loss


Check = Callable[[Loss, str], None]
BROKEN: list[tuple[Loss, Check, str]] = [
    (shift_by_one, check_value_and_gradient, "gpt2"),
    (eos_not_scored, check_value_and_gradient, "gpt2"),
    (padding_counted, check_value_and_gradient, "gpt2"),
    (prompt_counted, check_value_and_gradient, "gpt2"),
    (mean_of_means, check_accumulation, "gpt2"),
    (mean_of_means, check_accumulation, "t5"),
    (teachers_entropy_left_in, check_student_is_teacher, "gpt2"),
    (with_student(no_softcap_of_logits), check_value_and_gradient, "gemma2-tied"),
    (with_student(no_softcap_of_attention), check_value_and_gradient, "gemma2-tied"),
    (with_student(no_window), check_value_and_gradient, "gemma2-untied"),
    (padded_rows_left_in, check_value_and_gradient, "padded"),
    (encoder_decoder(first=EOS), check_value_and_gradient, "t5"),
    (encoder_decoder(attend_padding=True), check_value_and_gradient, "t5"),
    (encoder_decoder(attend_padding=True), check_value_and_gradient, "bart"),
    (encoder_decoder(score=lambda targets: targets != EOS), check_value_and_gradient, "bart"),
]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("check", CHECKS)
def test_our_loss_keeps_the_contract(check: Check, pair: str) -> None:
    check(our_loss, pair)


def test_the_padded_form_without_a_bug_passes_too() -> None:
    """So what the broken forms below fail on is their bug, not their form."""
    check_value_and_gradient(correct_by_padding, "gpt2")
    for pair in ("t5", "bart"):
        check_value_and_gradient(encoder_decoder(), pair)


@pytest.mark.parametrize(("loss", "check", "pair"), BROKEN)
def test_a_broken_loss_is_caught(loss: Loss, check: Check, pair: str) -> None:
    with pytest.raises(AssertionError):
        check(loss, pair)


def test_every_check_catches_something() -> None:
    assert {check for _, check, _ in BROKEN} == set(CHECKS)
