"""Divergences on listed tokens and a tail: lower bounds, equal to the whole where all tokens are listed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from assay.buckets import concatenated, lists_all, on_same_buckets, top_k
from assay.divergences import divergence, forward_kl, reverse_kl
from assay.errors import AssayError
from assay.types import Dense, Sample, TopK
from test_divergences import every_case, random_log_probs, references

V = 11


def gradient(name: str, parameters: dict[str, float], signal: Dense | TopK, logits: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    divergence(name, **parameters)(*on_same_buckets(signal, logits.log_softmax(-1))).sum().backward()
    assert logits.grad is not None
    return logits.grad


@every_case
def test_listing_fewer_tokens_never_raises_a_divergence(name: str, parameters: dict[str, float]) -> None:
    """The data-processing inequality, for every divergence: bucketed ≤ dense, monotone in k, equal at k = V."""
    log_p, log_q = random_log_probs(1, 200, V, scale=3.0), random_log_probs(2, 200, V, scale=3.0)
    loss = divergence(name, **parameters)
    dense = loss(log_p, log_q)
    values = [loss(*on_same_buckets(top_k(log_p, k), log_q)) for k in range(1, V + 1)]
    slack = 1e-9 if "beta" in parameters else 1e-13  # JSD divides by small β
    for fewer, more in zip(values, [*values[1:], dense], strict=True):
        assert (fewer <= more + slack * (1 + dense)).all()
    assert values[0].mean() < 0.9 * dense.mean()
    torch.testing.assert_close(values[-1], dense, rtol=1e-9 if "beta" in parameters else 1e-12, atol=1e-14)


@every_case
def test_all_tokens_listed_give_the_gradient_of_the_whole_law(name: str, parameters: dict[str, float]) -> None:
    log_p, logits = random_log_probs(3, 20, V), random_log_probs(4, 20, V)
    expected = gradient(name, parameters, Dense(log_p), logits)
    found = gradient(name, parameters, top_k(log_p, V + 5), logits)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    fewer = gradient(name, parameters, top_k(log_p, 3), logits)
    assert (fewer - expected).abs().max() > 0.01 * expected.abs().max()


@every_case
def test_buckets_against_plain_sums(name: str, parameters: dict[str, float]) -> None:
    """The tail of both laws summed in Python, then the float64 reference of the divergence."""
    log_p, log_q = random_log_probs(5, 30, V), random_log_probs(6, 30, V)
    signal = top_k(log_p, 4)
    rows: list[list[list[float]]] = [[], []]
    for i, listed in enumerate(signal.token_ids_NK.tolist()):
        for law, log in zip(rows, (log_p, log_q), strict=True):
            p_V = log[i].exp().tolist()
            law.append([*(p_V[v] for v in listed), math.fsum(p_V[v] for v in range(V) if v not in listed)])
    expected = references(name, parameters, *(torch.tensor(law, dtype=torch.float64).log() for law in rows))
    found = divergence(name, **parameters)(*on_same_buckets(signal, log_q))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    assert signal.log_p_NK.diff(dim=1).max() <= 0


@pytest.mark.parametrize("k", [1, 4, V - 1, V])
def test_gradients_are_those_of_finite_differences(k: int) -> None:
    signal = top_k(random_log_probs(7, 3, V), k)

    def loss(logits: Tensor) -> Tensor:
        return forward_kl(*on_same_buckets(signal, logits.log_softmax(-1)))

    assert torch.autograd.gradcheck(loss, random_log_probs(8, 3, V).requires_grad_())


def test_a_small_tail_keeps_its_digits_in_float32() -> None:
    """A mass of 1e-20: one minus the listed mass would be 0, or rounding."""
    logits = torch.zeros(1, 6)
    logits[0, 2:] = -46.0
    log_p = logits.log_softmax(-1)
    expected = math.log(4) - 46.0 - math.log(2)
    assert top_k(log_p, 2).log_tail_N.item() == pytest.approx(expected, rel=1e-6)
    listed = TopK(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]).log(), torch.tensor([-torch.inf]))
    assert on_same_buckets(listed, log_p)[1][0, -1].item() == pytest.approx(expected, rel=1e-6)


def test_a_whole_list_has_no_tail_bucket() -> None:
    log_p, log_q = random_log_probs(1, 4, V), random_log_probs(2, 4, V)
    whole, part = top_k(log_p, V), top_k(log_p, V - 1)
    assert (lists_all(whole, V), lists_all(part, V), lists_all(whole, V + 1)) == (True, False, False)
    assert [on_same_buckets(signal, log_q)[1].shape[1] for signal in (whole, part)] == [V, V]
    assert torch.equal(whole.log_tail_N, torch.full((4,), -torch.inf, dtype=torch.float64))
    # a server may have lost digits: what it says about a rest that does not exist is not asked
    rounded = TopK(whole.token_ids_NK, whole.log_p_NK, torch.full((4,), -16.0, dtype=torch.float64))
    assert torch.equal(reverse_kl(*on_same_buckets(rounded, log_q)), reverse_kl(*on_same_buckets(whole, log_q)))


@every_case
@pytest.mark.parametrize("k", [2, V])
def test_filling_counts_nothing(name: str, parameters: dict[str, float], k: int) -> None:
    """Value and gradient of a list that is filled up to stand beside a longer one."""
    log_p, logits = random_log_probs(9, 5, V), random_log_probs(10, 5, V)
    signal, longer = top_k(log_p, k), top_k(random_log_probs(11, 2, V), V)
    first, nothing = longer.token_ids_NK[:, :1].expand(-1, V), torch.full((2, V), -torch.inf, dtype=torch.float64)
    longer = TopK(
        torch.cat([longer.token_ids_NK, first], 1), torch.cat([longer.log_p_NK, nothing], 1), longer.log_tail_N
    )
    together = concatenated([signal, longer])
    assert isinstance(together, TopK)
    assert together.token_ids_NK.shape == (7, 2 * V)
    filled = TopK(together.token_ids_NK[:5], together.log_p_NK[:5], together.log_tail_N[:5])
    loss = divergence(name, **parameters)
    log_q = logits.log_softmax(-1)
    torch.testing.assert_close(
        loss(*on_same_buckets(filled, log_q)), loss(*on_same_buckets(signal, log_q)), rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(
        gradient(name, parameters, filled, logits), gradient(name, parameters, signal, logits), rtol=1e-9, atol=1e-12
    )


@every_case
def test_rows_that_list_all_may_stand_beside_rows_that_do_not(name: str, parameters: dict[str, float]) -> None:
    log_p, logits = random_log_probs(12, 4, V), random_log_probs(13, 4, V)
    together = concatenated([top_k(log_p[:2], V), top_k(log_p[2:], 3)])
    assert isinstance(together, TopK)
    found = gradient(name, parameters, together, logits)
    expected = [
        gradient(name, parameters, top_k(log_p[rows], k), logits[rows]) for rows, k in ((slice(2), V), (slice(2, 4), 3))
    ]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-9, atol=1e-12)


def test_a_student_without_mass_beyond_the_list_has_a_finite_gradient() -> None:
    """Both laws exclude all that is not listed: 0 · log 0 in the tail, and a log-sum-exp over nothing."""
    log_p, log_q = (torch.cat([random_log_probs(s, 4, 3), torch.full((4, 5), -torch.inf)], 1) for s in (14, 15))
    log_q = log_q.requires_grad_()
    forward_kl(*on_same_buckets(top_k(log_p, 3), log_q)).sum().backward()
    assert log_q.grad is not None
    torch.testing.assert_close(log_q.grad, -log_p.exp(), rtol=1e-12, atol=0)


def test_signals_of_one_kind_are_joined_and_others_refused() -> None:
    log_p = random_log_probs(1, 3, V)
    joined = concatenated([Dense(log_p[:1]), Dense(log_p[1:])])
    assert isinstance(joined, Dense)
    assert torch.equal(joined.log_p_NV, log_p)
    assert isinstance(concatenated([Sample(), Sample()]), Sample)
    with pytest.raises(AssayError, match="kinds Dense and TopK: give all sources"):
        concatenated([Dense(log_p), top_k(log_p, 2)])
    with pytest.raises(AssayError, match="kinds Dense and Sample"):
        concatenated([Dense(log_p), Sample()])


def test_another_vocabulary_or_number_of_positions_is_refused() -> None:
    signal = top_k(random_log_probs(1, 3, V).roll(3, 1), V)
    with pytest.raises(AssayError, match=f"lists token {V - 1}, but the student predicts {V - 1} tokens"):
        on_same_buckets(signal, random_log_probs(2, 3, V - 1))
    with pytest.raises(ValueError, match="3 positions, the student has 4"):
        on_same_buckets(signal, random_log_probs(2, 4, V))
