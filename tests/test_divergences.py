"""Every divergence against plain float64 arithmetic, its identities, its zeros and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.divergences import (
    DIVERGENCES,
    divergence,
    forward_kl,
    generalised_jsd,
    hard_labels,
    jeffreys,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    total_variation,
)
from assay.errors import AssayError

# ---- the reference: probabilities as Python floats, one loop, nothing clever ----


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
        return math.inf
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mixture(p: Sequence[float], q: Sequence[float], weight: float) -> list[float]:
    return [weight * a + (1 - weight) * b for a, b in zip(p, q, strict=True)]


def jsd(p: Sequence[float], q: Sequence[float], beta: float) -> float:
    if beta in (0, 1):
        return kl(p, q) if beta == 0 else kl(q, p)
    m = mixture(p, q, beta)
    return (beta * kl(p, m) + (1 - beta) * kl(q, m)) / (beta * (1 - beta))


REFERENCES: dict[str, Callable[..., float]] = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jeffreys": lambda p, q: kl(p, q) + kl(q, p),
    "total_variation": lambda p, q: 0.5 * math.fsum(abs(a - b) for a, b in zip(p, q, strict=True)),
    "skew_forward_kl": lambda p, q, alpha=0.1: kl(p, mixture(p, q, alpha)),
    "skew_reverse_kl": lambda p, q, alpha=0.1: kl(q, mixture(p, q, 1 - alpha)),
    "generalised_jsd": lambda p, q, beta=0.5: jsd(p, q, beta),
}
PARAMETERS: dict[str, list[dict[str, float]]] = {
    "skew_forward_kl": [{"alpha": a} for a in (0.0, 1e-6, 0.5, 0.99)],
    "skew_reverse_kl": [{"alpha": a} for a in (0.0, 1e-6, 0.5, 0.99)],
    "generalised_jsd": [{"beta": b} for b in (0.0, 1e-6, 1e-4, 0.3, 0.9, 1 - 1e-4, 1.0)],
}
NAMES = [name for name, row in DIVERGENCES.items() if row.needs == "distribution"]
CASES = [
    pytest.param(name, parameters, id="-".join([name, *(f"{k}={v}" for k, v in parameters.items())]))
    for name in NAMES
    for parameters in [{}, *PARAMETERS.get(name, [])]
]
every_case = pytest.mark.parametrize(("name", "parameters"), CASES)


def references(name: str, parameters: dict[str, float], log_p: Tensor, log_q: Tensor) -> Tensor:
    p_NV, q_NV = log_p.double().exp().tolist(), log_q.double().exp().tolist()
    values = [REFERENCES[name](p, q, **parameters) for p, q in zip(p_NV, q_NV, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def random_log_probs(seed: int, *shape: int, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=dtype)).log_softmax(-1)


logits = st.integers(2, 7).flatmap(
    lambda size: st.tuples(*[st.lists(st.floats(-9, 9), min_size=size, max_size=size)] * 2)
)


def test_every_row_has_a_reference_and_a_consistent_name() -> None:
    assert set(REFERENCES) == set(NAMES)
    assert all(row.name == name for name, row in DIVERGENCES.items())
    assert {name for name, row in DIVERGENCES.items() if row.parameters} == set(PARAMETERS)


# ---- values ----


@every_case
@settings(max_examples=25, deadline=None)
@given(pair=logits)
def test_value_equals_the_reference(
    name: str, parameters: dict[str, float], pair: tuple[list[float], list[float]]
) -> None:
    log_p, log_q = (torch.tensor([row], dtype=torch.float64).log_softmax(-1) for row in pair)
    # The reference itself divides by beta (1 - beta): its own rounding grows as 1e-16 / 1e-6.
    torch.testing.assert_close(
        divergence(name, **parameters)(log_p, log_q),
        references(name, parameters, log_p, log_q),
        rtol=1e-9,
        atol=2e-9,
    )


@every_case
@pytest.mark.parametrize("scale", [1e-3, 1.0, 8.0])
def test_float32_is_accurate_at_vocabulary_size_512(name: str, parameters: dict[str, float], scale: float) -> None:
    log_p = random_log_probs(0, 16, 512, scale=scale, dtype=torch.float32)
    log_q = random_log_probs(1, 16, 512, scale=scale, dtype=torch.float32)
    value = divergence(name, **parameters)(log_p, log_q)
    assert value.dtype == torch.float32
    # Normalised in float64 first: float32 log-probabilities add up to 1 only within their own rounding.
    exact = references(name, parameters, log_p.double().log_softmax(-1), log_q.double().log_softmax(-1))
    torch.testing.assert_close(value.double(), exact, rtol=3e-6, atol=3e-6)


@every_case
@settings(max_examples=25, deadline=None)
@given(pair=logits)
def test_never_negative_and_at_most_the_maximum(
    name: str, parameters: dict[str, float], pair: tuple[list[float], list[float]]
) -> None:
    log_p, log_q = (torch.tensor(row, dtype=torch.float64).log_softmax(-1) for row in pair)
    value = float(divergence(name, **parameters)(log_p, log_q))
    assert value >= -1e-12
    maximum = DIVERGENCES[name].maximum
    if maximum is not None and not parameters:
        assert value <= maximum + 1e-12


@every_case
def test_zero_only_where_the_distributions_agree(name: str, parameters: dict[str, float]) -> None:
    function = divergence(name, **parameters)
    log_p = random_log_probs(2, 8, 50)
    torch.testing.assert_close(function(log_p, log_p), torch.zeros(8).double(), rtol=0, atol=1e-13)
    log_p32 = log_p.float()
    torch.testing.assert_close(function(log_p32, log_p32), torch.zeros(8), rtol=0, atol=2e-6)
    assert (function(log_p, random_log_probs(3, 8, 50)) > 1e-4).all()


@pytest.mark.parametrize("name", NAMES)
def test_symmetric_exactly_when_claimed(name: str) -> None:
    function = divergence(name)
    log_p, log_q = random_log_probs(4, 6, 9), random_log_probs(5, 6, 9)
    gap = (function(log_p, log_q) - function(log_q, log_p)).abs()
    if DIVERGENCES[name].symmetric:
        assert gap.max() < 1e-13
    else:
        assert gap.max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_disjoint_supports_attain_the_maximum(name: str) -> None:
    log_p = torch.tensor([0.25, 0.75, 0.0, 0.0], dtype=torch.float64).log()
    log_q = torch.tensor([0.0, 0.0, 0.5, 0.5], dtype=torch.float64).log()
    maximum = DIVERGENCES[name].maximum
    assert float(divergence(name)(log_p, log_q)) == pytest.approx(math.inf if maximum is None else maximum)


@pytest.mark.parametrize("alpha", [1e-6, 0.1, 0.7])
@pytest.mark.parametrize("function", [skew_forward_kl, skew_reverse_kl])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_skew_kl_is_bounded_by_minus_log_alpha(
    function: Callable[..., Tensor], alpha: float, dtype: torch.dtype
) -> None:
    log_p = torch.tensor([1.0, 0.0], dtype=dtype).log()
    log_q = torch.tensor([0.0, 1.0], dtype=dtype).log()
    assert float(function(log_p, log_q, alpha)) == pytest.approx(-math.log(alpha), rel=1e-6)


@pytest.mark.parametrize("beta", [1e-6, 1e-3, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_generalised_jsd_is_bounded_by_the_binary_entropy(beta: float, dtype: torch.dtype) -> None:
    log_p = torch.tensor([1.0, 0.0], dtype=dtype).log()
    log_q = torch.tensor([0.0, 1.0], dtype=dtype).log()
    entropy = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    assert float(generalised_jsd(log_p, log_q, beta)) == pytest.approx(entropy / (beta * (1 - beta)), rel=1e-5)


# ---- how they hang together ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_generalised_jsd_is_continuous_with_the_kls_at_its_ends(dtype: torch.dtype) -> None:
    log_p = random_log_probs(6, 32, 100, scale=1.0).to(dtype)
    log_q = random_log_probs(7, 32, 100, scale=1.0).to(dtype)
    for end, limit in ((0.0, forward_kl(log_p, log_q)), (1.0, reverse_kl(log_p, log_q))):
        assert torch.equal(generalised_jsd(log_p, log_q, end), limit)
        # D(beta) = KL + O(beta): the gap shrinks with beta down to the rounding of the format.
        for beta in (1e-2, 1e-4, 1e-6, 1e-12):
            inside = generalised_jsd(log_p, log_q, abs(end - beta))
            assert float((inside - limit).abs().max()) < 10 * beta + 40 * torch.finfo(dtype).eps
    assert (forward_kl(log_p, log_q) - reverse_kl(log_p, log_q)).abs().max() > 0.1


def test_generalised_jsd_mirrors_itself() -> None:
    log_p, log_q = random_log_probs(8, 10, 20), random_log_probs(9, 10, 20)
    for beta in (0.0, 1e-5, 0.25, 0.5):
        torch.testing.assert_close(
            generalised_jsd(log_p, log_q, beta), generalised_jsd(log_q, log_p, 1 - beta), rtol=1e-10, atol=0
        )


@settings(max_examples=50, deadline=None)
@given(pair=logits)
def test_known_relations_between_divergences(pair: tuple[list[float], list[float]]) -> None:
    log_p, log_q = (torch.tensor(row, dtype=torch.float64).log_softmax(-1) for row in pair)
    forward, reverse = float(forward_kl(log_p, log_q)), float(reverse_kl(log_p, log_q))
    variation = float(total_variation(log_p, log_q))
    assert float(jeffreys(log_p, log_q)) == pytest.approx(forward + reverse, abs=1e-12)
    assert 2 * variation**2 <= min(forward, reverse) + 1e-12  # Pinsker
    for alpha in (0.1, 0.5):  # convexity in the second argument
        assert float(skew_forward_kl(log_p, log_q, alpha)) <= (1 - alpha) * forward + 1e-12
        assert float(skew_reverse_kl(log_p, log_q, alpha)) <= (1 - alpha) * reverse + 1e-12
    halves = float(skew_forward_kl(log_p, log_q, 0.5) + skew_reverse_kl(log_p, log_q, 0.5))
    assert float(generalised_jsd(log_p, log_q, 0.5)) == pytest.approx(2 * halves, abs=1e-12)


def test_hard_labels_are_the_forward_kl_from_a_one_hot() -> None:
    log_q = random_log_probs(10, 3, 4, 11)
    token_ids = torch.randint(11, (3, 4), generator=torch.Generator().manual_seed(0))
    one_hot = torch.nn.functional.one_hot(token_ids, 11).double().log()
    torch.testing.assert_close(hard_labels(log_q, token_ids), forward_kl(one_hot, log_q), rtol=0, atol=1e-14)
    picked = [[log_q[i, j, token_ids[i, j]] for j in range(4)] for i in range(3)]
    torch.testing.assert_close(hard_labels(log_q, token_ids), -torch.tensor(picked), rtol=0, atol=0)


# ---- shapes: the last axis is the vocabulary, everything else is positions ----


@every_case
def test_positions_are_independent_of_each_other(name: str, parameters: dict[str, float]) -> None:
    function = divergence(name, **parameters)
    log_p, log_q = random_log_probs(11, 2, 3, 7), random_log_probs(12, 2, 3, 7)
    log_p[1, 2], log_q[0, 1] = torch.eye(7).double()[0].log(), torch.eye(7).double()[3].log()
    value = function(log_p, log_q)
    assert value.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(value[i, j], function(log_p[i, j], log_q[i, j]), rtol=1e-13, atol=1e-13)
    kept = torch.tensor([[True, False, True], [False, True, False]])
    torch.testing.assert_close(function(log_p[kept], log_q[kept]), value[kept], rtol=1e-13, atol=1e-13)


@every_case
def test_the_order_of_the_vocabulary_is_irrelevant(name: str, parameters: dict[str, float]) -> None:
    function = divergence(name, **parameters)
    log_p, log_q = random_log_probs(13, 5, 30), random_log_probs(14, 5, 30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        function(log_p[:, order], log_q[:, order]), function(log_p, log_q), rtol=1e-12, atol=1e-13
    )


@pytest.fixture
def as_users_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run-time shape checks of the test suite answer first for wrong shapes; users do not have them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@every_case
@pytest.mark.usefixtures("as_users_see_it")
def test_two_vocabulary_sizes_are_refused_with_both_sizes(name: str, parameters: dict[str, float]) -> None:
    with pytest.raises(AssayError, match=r"11 and 13|13 and 11"):
        divergence(name, **parameters)(random_log_probs(0, 4, 11), random_log_probs(0, 4, 13))
    with pytest.raises(ValueError, match="shape"):
        divergence(name, **parameters)(random_log_probs(0, 4, 11), random_log_probs(0, 1, 11))


@pytest.mark.usefixtures("as_users_see_it")
def test_hard_labels_need_one_token_for_each_position() -> None:
    with pytest.raises(ValueError, match="positions"):
        hard_labels(random_log_probs(0, 4, 11), torch.zeros(3, dtype=torch.long))


# ---- gradients ----


def gradient(name: str, parameters: dict[str, float], log_p: Tensor, student_logits: Tensor) -> Tensor:
    student_logits = student_logits.detach().clone().requires_grad_()
    divergence(name, **parameters)(log_p, student_logits.log_softmax(-1)).sum().backward()
    assert student_logits.grad is not None
    return student_logits.grad


@every_case
def test_gradient_equals_finite_differences_of_the_reference(name: str, parameters: dict[str, float]) -> None:
    log_p, student_logits = random_log_probs(15, 3, 5), random_log_probs(16, 3, 5)
    step, expected = 1e-5, torch.zeros(3, 5, dtype=torch.float64)
    for i in range(3):
        for v in range(5):
            moved = [student_logits.clone(), student_logits.clone()]
            moved[0][i, v] += step
            moved[1][i, v] -= step
            up, down = (references(name, parameters, log_p, z.log_softmax(-1))[i] for z in moved)
            expected[i, v] = (up - down) / (2 * step)
    # The reference at beta = 1e-6 has digits to 1e-10, so its differences to 1e-5.
    tolerance = 1e-4 if any(0 < min(v, 1 - v) < 1e-3 for v in parameters.values()) else 1e-7
    torch.testing.assert_close(
        gradient(name, parameters, log_p, student_logits), expected, rtol=tolerance, atol=tolerance
    )


@every_case
def test_gradient_passes_gradcheck(name: str, parameters: dict[str, float]) -> None:
    log_p = random_log_probs(17, 2, 4)
    student_logits = random_log_probs(18, 2, 4).requires_grad_()
    function = divergence(name, **parameters)
    assert torch.autograd.gradcheck(lambda z: function(log_p, z.log_softmax(-1)), student_logits, atol=1e-6)


@every_case
def test_float32_gradient_is_that_of_float64(name: str, parameters: dict[str, float]) -> None:
    log_p = random_log_probs(19, 16, 512, dtype=torch.float32)
    student_logits = random_log_probs(20, 16, 512, dtype=torch.float32)
    exact = gradient(name, parameters, log_p.double(), student_logits.double())
    torch.testing.assert_close(gradient(name, parameters, log_p, student_logits).double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_the_forward_kl_is_student_minus_teacher(dtype: torch.dtype) -> None:
    log_p, log_q = random_log_probs(21, 4, 30).to(dtype), random_log_probs(22, 4, 30).to(dtype)
    torch.testing.assert_close(
        gradient("forward_kl", {}, log_p, log_q), log_q.exp() - log_p.exp(), rtol=1e-5, atol=1e-6
    )


@every_case
def test_gradient_vanishes_where_student_is_teacher(name: str, parameters: dict[str, float]) -> None:
    log_p = random_log_probs(23, 4, 30)
    torch.testing.assert_close(
        gradient(name, parameters, log_p, log_p), torch.zeros(4, 30).double(), rtol=0, atol=1e-12
    )


# ---- zeros ----


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_that_both_exclude_change_neither_value_nor_gradient(
    name: str, parameters: dict[str, float], dtype: torch.dtype
) -> None:
    teacher, student = (random_log_probs(seed, 4, 9).to(dtype) for seed in (24, 25))
    kept = torch.tensor([0, 1, 3, 4, 6, 7, 8])
    excluded = torch.full_like(teacher, -math.inf)
    wide_teacher = excluded.index_copy(1, kept, teacher[:, kept]).log_softmax(-1)
    wide_student = excluded.index_copy(1, kept, student[:, kept])
    value = divergence(name, **parameters)(wide_teacher, wide_student.log_softmax(-1))
    narrow = teacher[:, kept].log_softmax(-1), student[:, kept]
    torch.testing.assert_close(
        value, divergence(name, **parameters)(narrow[0], narrow[1].log_softmax(-1)), rtol=1e-5, atol=1e-6
    )
    wide_gradient = gradient(name, parameters, wide_teacher, wide_student)
    assert torch.equal(wide_gradient[:, [2, 5]], torch.zeros(4, 2, dtype=dtype))
    torch.testing.assert_close(wide_gradient[:, kept], gradient(name, parameters, *narrow), rtol=1e-4, atol=1e-6)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("excluded_by", ["teacher", "student", "both in part"])
def test_zeros_give_the_limit_and_a_finite_gradient_where_the_value_is_finite(
    name: str, parameters: dict[str, float], dtype: torch.dtype, excluded_by: str
) -> None:
    teacher, student = (random_log_probs(seed, 4, 6).to(dtype) for seed in (26, 27))
    if excluded_by != "student":
        teacher[:, [0, 1]] = -math.inf
    if excluded_by != "teacher":
        student[:, [1, 2]] = -math.inf
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    value = divergence(name, **parameters)(log_p, log_q)
    exact = references(name, parameters, log_p, log_q)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-6)
    if value.isfinite().all():
        assert gradient(name, parameters, log_p, student).isfinite().all()


def test_forward_kl_is_infinite_where_the_student_excludes_what_the_teacher_says() -> None:
    log_p = torch.tensor([0.5, 0.5, 0.0]).log()
    log_q = torch.tensor([1.0, 0.0, 0.0]).log()
    assert float(forward_kl(log_p, log_q)) == math.inf
    assert float(reverse_kl(log_p, log_q)) == pytest.approx(math.log(2))
    assert float(hard_labels(log_q, torch.tensor(1))) == math.inf


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(name: str, parameters: dict[str, float], dtype: torch.dtype) -> None:
    log_p = torch.tensor([[0.0, -150.0, 90.0], [300.0, 0.0, -300.0]], dtype=dtype).log_softmax(-1)
    student_logits = torch.tensor([[90.0, 0.0, -90.0], [-300.0, 300.0, 0.0]], dtype=dtype)
    assert divergence(name, **parameters)(log_p, student_logits.log_softmax(-1)).isfinite().all()
    assert gradient(name, parameters, log_p, student_logits).isfinite().all()


@every_case
def test_not_a_number_is_never_hidden(name: str, parameters: dict[str, float]) -> None:
    log_p, log_q = random_log_probs(28, 2, 5), random_log_probs(29, 2, 5)
    log_q[1] = math.nan
    value = divergence(name, **parameters)(log_p, log_q)
    assert value[0].isfinite()
    assert value[1].isnan()


# ---- choosing one by name ----


@every_case
def test_divergence_binds_its_parameters(name: str, parameters: dict[str, float]) -> None:
    log_p, log_q = random_log_probs(30, 2, 5), random_log_probs(31, 2, 5)
    assert torch.equal(
        divergence(name, **parameters)(log_p, log_q), DIVERGENCES[name].function(log_p, log_q, **parameters)
    )


def test_unknown_names_and_parameters_are_refused() -> None:
    with pytest.raises(AssayError, match="did you mean 'forward_kl'"):
        divergence("foward_kl")
    with pytest.raises(AssayError, match=r"'forward_kl' has no parameter 'beta'; it has: none"):
        divergence("forward_kl", beta=0.5)
    with pytest.raises(AssayError, match=r"it has: alpha"):
        divergence("skew_forward_kl", beta=0.5)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *((name, {"alpha": a}) for name in ("skew_forward_kl", "skew_reverse_kl") for a in (-0.1, 1.0, 2.0)),
        *(("generalised_jsd", {"beta": b}) for b in (-1e-9, 1.0001, math.nan, 1e-40)),
    ],
)
def test_parameters_outside_their_range_are_refused(name: str, parameters: dict[str, float]) -> None:
    key = next(iter(parameters))
    with pytest.raises(AssayError, match=f"{key} must be"):
        divergence(name, **parameters)
    with pytest.raises(AssayError, match=f"{key} must be"):
        DIVERGENCES[name].function(random_log_probs(0, 3), random_log_probs(1, 3), **parameters)
