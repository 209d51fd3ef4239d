"""The loss contract: checks that assay's losses pass and that known broken ones, written out below, fail.

Each broken loss is a bug seen in a distillation library. A check that lets one of them through is no check.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from assay.divergences import divergence, forward_kl, generalised_jsd, reverse_kl, skew_forward_kl

Loss = Callable[[Tensor, Tensor], Tensor]
Family = Callable[[Tensor, Tensor, float], Tensor]


def random_log_probs(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def plain_kl(p_V: list[float], q_V: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p_V, q_V, strict=True) if a > 0)


def plain_kls(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    rows = zip(log_p_NV.exp().tolist(), log_q_NV.exp().tolist(), strict=True)
    return torch.tensor([plain_kl(p_V, q_V) for p_V, q_V in rows], dtype=torch.float64)


# ---- what a token-level KL(p‖q) must do ----


def check_identity(loss: Loss) -> None:
    """A student that is the teacher has no loss and no gradient."""
    log_p = random_log_probs(0, 5, 8)
    student_logits = log_p.clone().requires_grad_()
    value = loss(log_p, student_logits.log_softmax(-1))
    value.sum().backward()
    assert value.abs().max() < 1e-12
    assert student_logits.grad is not None
    assert student_logits.grad.abs().max() < 1e-12


def check_direction(loss: Loss) -> None:
    """The first argument weighs: KL(p‖q) in nats, summed over the vocabulary."""
    log_p, log_q = random_log_probs(1, 5, 8), random_log_probs(2, 5, 8)
    torch.testing.assert_close(loss(log_p, log_q), plain_kls(log_p, log_q), rtol=1e-10, atol=1e-12)


def check_gradient(loss: Loss) -> None:
    """The gradient with respect to the student's logits is q − p."""
    log_p, log_q = random_log_probs(3, 5, 8), random_log_probs(4, 5, 8)
    student_logits = log_q.clone().requires_grad_()
    loss(log_p, student_logits.log_softmax(-1)).sum().backward()
    torch.testing.assert_close(student_logits.grad, log_q.exp() - log_p.exp(), rtol=1e-10, atol=1e-12)


def check_splitting(loss: Loss) -> None:
    """Splitting every token into two equal halves changes nothing: the vocabulary size is no unit."""
    log_p, log_q = random_log_probs(5, 5, 8), random_log_probs(6, 5, 8)
    halves = [torch.cat([x, x], dim=-1) - math.log(2) for x in (log_p, log_q)]
    torch.testing.assert_close(loss(*halves), loss(log_p, log_q), rtol=1e-10, atol=1e-12)


def check_non_negative(loss: Loss) -> None:
    """A divergence is positive unless the two agree."""
    for seed in range(20):
        assert loss(random_log_probs(seed, 50, 8), random_log_probs(100 + seed, 50, 8)).min() > 0


def check_zeros(loss: Loss) -> None:
    """Tokens that both models exclude leave value and gradient finite."""
    teacher, student = random_log_probs(7, 5, 8), random_log_probs(8, 5, 8)
    teacher[:, 3] = student[:, 3] = -math.inf
    student_logits = student.clone().requires_grad_()
    value = loss(teacher.log_softmax(-1), student_logits.log_softmax(-1))
    value.sum().backward()
    assert value.isfinite().all()
    assert student_logits.grad is not None
    assert student_logits.grad.isfinite().all()


def check_excluded(loss: Loss) -> None:
    """A student that excludes what the teacher says is infinitely far, not near."""
    log_p, log_q = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([1.0, 0.0]).double().log()
    assert float(loss(log_p, log_q)) == math.inf


LOSS_CHECKS = [
    check_identity,
    check_direction,
    check_gradient,
    check_splitting,
    check_non_negative,
    check_zeros,
    check_excluded,
]
OUR_LOSSES: dict[str, Loss] = {
    "forward_kl": forward_kl,
    "reverse_kl": lambda log_p, log_q: reverse_kl(log_q, log_p),
    "generalised_jsd": divergence("generalised_jsd", beta=0.0),
    "skew_forward_kl": lambda log_p, log_q: skew_forward_kl(log_p, log_q, alpha=0.0),
}


# ---- the same, broken ----


def cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Named a KL, but the teacher's entropy is missing: loss(p, p) = H(p)."""
    return -(log_p.exp() * log_q).sum(-1)


def hidden_cross_entropy_term(log_p: Tensor, log_q: Tensor) -> Tensor:
    """A little label loss mixed in without being asked for."""
    return forward_kl(log_p, log_q) - 0.01 * log_q.gather(-1, log_p.argmax(-1, keepdim=True)).squeeze(-1)


def swapped_direction(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``F.kl_div(input, target)`` is KL(target‖input): the arguments in reading order are the wrong way."""
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)


def mean_over_the_vocabulary(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``reduction="mean"`` divides by the vocabulary size too."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).mean(-1)


def in_bits(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log2 where nats are promised."""
    return forward_kl(log_p, log_q) / math.log(2)


def teacher_top_k_without_the_tail(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The sum stopped at the teacher's likeliest tokens: no divergence any more, and sometimes negative."""
    log_p, top = log_p.topk(3, dim=-1)
    return (log_p.exp() * (log_p - log_q.gather(-1, top))).sum(-1)


def no_zeros(log_p: Tensor, log_q: Tensor) -> Tensor:
    """0 · (log 0 − log 0) is not a number."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def masked_after_the_logarithm(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The value is right, but the gradient of log q at q = 0 is 0 · ∞ in a term that was set to 0."""
    p, q = log_p.exp(), log_q.exp()
    return torch.where(p > 0, p * (p.log() - q.log()), 0).sum(-1)


def excluded_tokens_dropped(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Every token that the student excludes is skipped, also those that the teacher says."""
    return torch.where(log_q > -math.inf, log_p.exp() * (log_p - log_q), 0).sum(-1)


BROKEN_LOSSES = [
    (cross_entropy, check_identity),
    (cross_entropy, check_direction),
    (hidden_cross_entropy_term, check_identity),
    (hidden_cross_entropy_term, check_gradient),
    (swapped_direction, check_direction),
    (swapped_direction, check_gradient),
    (mean_over_the_vocabulary, check_splitting),
    (mean_over_the_vocabulary, check_direction),
    (in_bits, check_direction),
    (teacher_top_k_without_the_tail, check_non_negative),
    (teacher_top_k_without_the_tail, check_direction),
    (no_zeros, check_zeros),
    (masked_after_the_logarithm, check_zeros),
    (excluded_tokens_dropped, check_excluded),
]


@pytest.mark.parametrize("check", LOSS_CHECKS)
@pytest.mark.parametrize("name", OUR_LOSSES)
def test_our_losses_keep_the_contract(name: str, check: Callable[[Loss], None]) -> None:
    check(OUR_LOSSES[name])


@pytest.mark.parametrize(("loss", "check"), BROKEN_LOSSES)
def test_a_broken_loss_is_caught(loss: Loss, check: Callable[[Loss], None]) -> None:
    with pytest.raises(AssertionError):
        check(loss)


def test_every_check_catches_something() -> None:
    assert {check for _, check in BROKEN_LOSSES} == set(LOSS_CHECKS)


# ---- what a family between KL(p‖q) at beta = 0 and KL(q‖p) at beta = 1 must do ----


def float32_pair() -> tuple[Tensor, Tensor]:
    return random_log_probs(9, 20, 50, scale=1.0).float(), random_log_probs(10, 20, 50, scale=1.0).float()


def check_ends(family: Family) -> None:
    """The ends are the two KLs, forward at 0."""
    log_p, log_q = float32_pair()
    torch.testing.assert_close(family(log_p, log_q, 0.0).double(), plain_kls(log_p, log_q), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(family(log_p, log_q, 1.0).double(), plain_kls(log_q, log_p), rtol=1e-4, atol=1e-5)


def check_continuity(family: Family) -> None:
    """Just inside the ends the value is that at the ends, in float32 too."""
    log_p, log_q = float32_pair()
    for end in (0.0, 1.0):
        for distance in (1e-3, 1e-4, 1e-6):
            inside = family(log_p, log_q, abs(end - distance))
            torch.testing.assert_close(inside, family(log_p, log_q, end), rtol=10 * distance + 2e-5, atol=0)


def check_mixture(family: Family) -> None:
    """Between the ends m = beta · teacher + (1 − beta) · student, and the weights of the two KLs match it."""
    log_p, log_q = random_log_probs(11, 20, 50), random_log_probs(12, 20, 50)
    for beta in (0.1, 0.5, 0.7):
        m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
        expected = plain_kls(log_p, m) / (1 - beta) + plain_kls(log_q, m) / beta
        torch.testing.assert_close(family(log_p, log_q, beta), expected, rtol=1e-9, atol=1e-10)


FAMILY_CHECKS = [check_ends, check_continuity, check_mixture]


def usual_jsd(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """beta KL(p‖m) + (1 − beta) KL(q‖m) as it is usually written: 0 at both ends."""
    m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
    return beta * forward_kl(log_p, m) + (1 - beta) * forward_kl(log_q, m)


def usual_jsd_with_kl_ends(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """The ends special-cased: a jump from the KL to almost nothing."""
    if beta in (0.0, 1.0):
        return generalised_jsd(log_p, log_q, beta)
    return usual_jsd(log_p, log_q, beta)


def clamped_beta(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """beta moved inside (0, 1) in silence: the ends have no signal at all."""
    return usual_jsd(log_p, log_q, min(max(beta, 1e-6), 1 - 1e-6))


def ends_swapped(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """The reverse KL where the forward one belongs."""
    return generalised_jsd(log_q, log_p, beta)


def weights_swapped(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """The mixture takes (1 − beta) of the teacher while its KL keeps the weight beta."""
    m = ((1 - beta) * log_p.exp() + beta * log_q.exp()).log()
    return forward_kl(log_p, m) / (1 - beta) + forward_kl(log_q, m) / beta


def divided_by_beta_in_float32(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """The right formula by way of log m: its rounding is divided by beta."""
    if beta in (0.0, 1.0):
        return generalised_jsd(log_p, log_q, beta)
    return usual_jsd(log_p, log_q, beta) / (beta * (1 - beta))


BROKEN_FAMILIES = [
    (usual_jsd, check_ends),
    (usual_jsd, check_mixture),
    (usual_jsd_with_kl_ends, check_continuity),
    (clamped_beta, check_ends),
    (ends_swapped, check_ends),
    (ends_swapped, check_mixture),
    (weights_swapped, check_mixture),
    (divided_by_beta_in_float32, check_continuity),
]


@pytest.mark.parametrize("check", FAMILY_CHECKS)
def test_our_family_keeps_the_contract(check: Callable[[Family], None]) -> None:
    check(generalised_jsd)


@pytest.mark.parametrize(("family", "check"), BROKEN_FAMILIES)
def test_a_broken_family_is_caught(family: Family, check: Callable[[Family], None]) -> None:
    with pytest.raises(AssertionError):
        check(family)


def test_every_family_check_catches_something() -> None:
    assert {check for _, check in BROKEN_FAMILIES} == set(FAMILY_CHECKS)
