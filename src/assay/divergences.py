"""Exact token-level divergences D(p, q): p teacher, q student, natural logarithm, nats.

Every function is pure and unreduced: log-probabilities over the last axis in (float32 or float64), one
number for each position out, whatever the leading axes are; masking is leaving positions out. Gradients come
from autograd and reach the logits through ``log_q_V = log_softmax(logits)``.

Zero probabilities (``-inf``) are legal on both sides. A token with no mass in the distribution that weighs
it counts nothing (0 · log 0 = 0) in the value and in the gradient. Where a formula divides by a zero that
the other side supports, the value is ``+inf`` and has no gradient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.errors import AssayError, unknown_name

_TINY = torch.finfo(torch.float32).tiny
"""Keeps the logarithm of a mixture finite where both probabilities are zero; too small to count elsewhere."""


def forward_kl(log_p_V: Float[Tensor, "*batch V"], log_q_V: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """KL(p‖q) = Σ p (log p − log q), the student covers all that the teacher does.

    Nats, ``+inf`` where q = 0 < p. Raises AssayError for two vocabulary sizes [Kullback and Leibler 1951;
    Hinton et al. 2015].
    """
    _require_same_shape(log_p_V, log_q_V)
    return _sum_weighted(log_p_V.exp(), log_p_V - log_q_V)


def reverse_kl(log_p_V: Float[Tensor, "*batch V"], log_q_V: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """KL(q‖p) = Σ q (log q − log p), the student keeps to what the teacher does.

    Nats, ``+inf`` where p = 0 < q. Raises AssayError for two vocabulary sizes [Gu et al. 2024].
    """
    return forward_kl(log_q_V, log_p_V)


def jeffreys(log_p_V: Float[Tensor, "*batch V"], log_q_V: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """J(p, q) = KL(p‖q) + KL(q‖p) = Σ (p − q)(log p − log q).

    Nats, ``+inf`` where exactly one of p and q is 0. Raises AssayError for two vocabulary sizes
    [Jeffreys 1946].
    """
    _require_same_shape(log_p_V, log_q_V)
    return _sum_weighted(log_p_V.exp() - log_q_V.exp(), log_p_V - log_q_V)


def total_variation(log_p_V: Float[Tensor, "*batch V"], log_q_V: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """TV(p, q) = ½ Σ |p − q|, between 0 and 1.

    Raises AssayError for two vocabulary sizes [Wen et al. 2023].
    """
    _require_same_shape(log_p_V, log_q_V)
    return 0.5 * (log_p_V.exp() - log_q_V.exp()).abs().sum(-1)


def skew_forward_kl(
    log_p_V: Float[Tensor, "*batch V"], log_q_V: Float[Tensor, "*batch V"], alpha: float = 0.1
) -> Float[Tensor, "*batch"]:
    """KL(p‖α p + (1 − α) q), at most −log α; α = 0 is the forward KL.

    Nats. Raises AssayError for two vocabulary sizes and outside 0 ≤ α < 1 (at 1 it is 0 for every q)
    [Lee 2001; Ko et al. 2024, with their α = 0.1].
    """
    _check_alpha(alpha)
    if alpha == 0:
        return forward_kl(log_p_V, log_q_V)
    _require_same_shape(log_p_V, log_q_V)
    m_V = torch.lerp(log_q_V.exp(), log_p_V.exp(), alpha)
    return forward_kl(log_p_V, (m_V + _TINY).log())


def skew_reverse_kl(
    log_p_V: Float[Tensor, "*batch V"], log_q_V: Float[Tensor, "*batch V"], alpha: float = 0.1
) -> Float[Tensor, "*batch"]:
    """KL(q‖(1 − α) p + α q), at most −log α; α = 0 is the reverse KL.

    Nats. Raises AssayError for two vocabulary sizes and outside 0 ≤ α < 1 (at 1 it is 0 for every q)
    [Lee 2001; Ko et al. 2024, with their α = 0.1].
    """
    return skew_forward_kl(log_q_V, log_p_V, alpha)


def generalised_jsd(
    log_p_V: Float[Tensor, "*batch V"], log_q_V: Float[Tensor, "*batch V"], beta: float = 0.5
) -> Float[Tensor, "*batch"]:
    """[β KL(p‖m) + (1 − β) KL(q‖m)] / (β (1 − β)) with m = β p + (1 − β) q.

    β = 0 is the forward KL(p‖q) and β = 1 the reverse KL(q‖p), and the family is continuous in β between
    them: the numerator alone, the usual definition, vanishes at both ends. β = ½ is four times the
    Jensen-Shannon divergence. Nats, at most H(β) / (β (1 − β)) with H the binary entropy. Accurate in
    float32 for the smallest β too. Raises AssayError for two vocabulary sizes and outside 0 ≤ β ≤ 1
    [Lin 1991; Agarwal et al. 2024, up to the normalisation].
    """
    _check_beta(beta)
    if beta == 0:
        return forward_kl(log_p_V, log_q_V)
    if beta > 0.5:  # D(p, q; β) = D(q, p; 1 − β): the small weight is the one whose digits need care
        return generalised_jsd(log_q_V, log_p_V, 1 - beta)
    _require_same_shape(log_p_V, log_q_V)
    log_p_V, log_q_V = log_p_V.clamp(min=math.log(_TINY)), log_q_V.clamp(min=math.log(_TINY))
    p_V, q_V, log_ratio_V = log_p_V.exp(), log_q_V.exp(), log_p_V - log_q_V
    # log m − log q, never by way of log m: its rounding would swallow m − q, which is divided by beta below.
    log_m_over_q_V = torch.log1p(beta * torch.expm1(log_ratio_V))
    m_over_beta_V = p_V + (1 - beta) / beta * q_V
    return (p_V * log_ratio_V - m_over_beta_V * log_m_over_q_V).sum(-1) / (1 - beta)


def hard_labels(log_q_V: Float[Tensor, "*batch V"], token_ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """−log q(token), cross-entropy on the teacher's tokens: the forward KL from a one-hot p.

    Nats, ``+inf`` where q(token) = 0. Raises ValueError unless there is one token for each position
    [Kim and Rush 2016].
    """
    if log_q_V.shape[:-1] != token_ids.shape:
        raise ValueError(f"log_q_V has positions {tuple(log_q_V.shape[:-1])}, token_ids {tuple(token_ids.shape)}")
    return -log_q_V.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Divergence:
    """One row of ``DIVERGENCES``.

    ``function`` takes ``(log_p_V, log_q_V)`` when it ``needs`` the teacher's distribution and
    ``(log_q_V, token_ids)`` when it needs the teacher's tokens only. ``parameters`` maps the names of its
    keyword arguments to checks that raise AssayError. ``maximum`` (None: unbounded) and ``symmetric`` hold
    at the parameters' defaults.
    """

    name: str
    function: Callable[..., Tensor]
    formula: str
    source: str
    needs: Literal["distribution", "tokens"] = "distribution"
    maximum: float | None = None
    symmetric: bool = False
    parameters: Mapping[str, Callable[[float], None]] = field(default_factory=dict)


def divergence(name: str, **parameters: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The function called ``name`` in ``DIVERGENCES`` with its parameters bound and checked.

    Raises AssayError for an unknown name, a parameter that the divergence does not have, or one outside its
    range.
    """
    if name not in DIVERGENCES:
        raise unknown_name("divergence", name, DIVERGENCES)
    row = DIVERGENCES[name]
    for key, value in parameters.items():
        if key not in row.parameters:
            known = ", ".join(row.parameters) or "none"
            raise AssayError(f"divergence {name!r} has no parameter {key!r}; it has: {known}")
        row.parameters[key](value)
    return functools.partial(row.function, **parameters)


def _sum_weighted(weight_V: Tensor, log_ratio_V: Tensor) -> Tensor:
    """Σ weight · log ratio with 0 · log 0 = 0, in the value and in the gradient."""
    total = (weight_V * log_ratio_V).sum(-1)
    if total.isnan().any():
        # Some 0 · log 0. A mask costs as much as the divergence itself, so only inputs with zeros pay for it;
        # it comes before the product, because the gradient of a product looks at both factors.
        total = (weight_V * torch.where(weight_V != 0, log_ratio_V, 0)).sum(-1)
    return total


def _require_same_shape(log_p_V: Tensor, log_q_V: Tensor) -> None:
    if log_p_V.shape[-1] != log_q_V.shape[-1]:
        raise AssayError(
            f"the two models have {log_p_V.shape[-1]} and {log_q_V.shape[-1]} vocabulary entries: "
            "a divergence needs one vocabulary; use models that share a tokenizer"
        )
    if log_p_V.shape != log_q_V.shape:
        raise ValueError(f"log_p_V has shape {tuple(log_p_V.shape)}, log_q_V {tuple(log_q_V.shape)}")


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha < 1:
        raise AssayError(f"alpha must be at least 0 and below 1, not {alpha}: at 1 the skewed KL is always 0")


def _check_beta(beta: float) -> None:
    # Smaller positive values leave the range of float32; the family is at its limit long before.
    if not (beta == 0 or 1e-30 <= beta <= 1):
        raise AssayError(f"beta must be 0 (forward KL), 1 (reverse KL) or between them, not {beta}")


DIVERGENCES: dict[str, Divergence] = {
    row.name: row
    for row in (
        Divergence(
            "forward_kl",
            forward_kl,
            formula="Σ p (log p − log q)",
            source="Kullback and Leibler 1951; Hinton et al. 2015",
        ),
        Divergence(
            "reverse_kl",
            reverse_kl,
            formula="Σ q (log q − log p)",
            source="Gu et al. 2024",
        ),
        Divergence(
            "jeffreys",
            jeffreys,
            formula="Σ (p − q)(log p − log q)",
            source="Jeffreys 1946",
            symmetric=True,
        ),
        Divergence(
            "total_variation",
            total_variation,
            formula="½ Σ |p − q|",
            source="Wen et al. 2023",
            maximum=1.0,
            symmetric=True,
        ),
        Divergence(
            "skew_forward_kl",
            skew_forward_kl,
            formula="KL(p‖α p + (1 − α) q), 0 ≤ α < 1",
            source="Lee 2001; Ko et al. 2024",
            maximum=-math.log(0.1),
            parameters={"alpha": _check_alpha},
        ),
        Divergence(
            "skew_reverse_kl",
            skew_reverse_kl,
            formula="KL(q‖(1 − α) p + α q), 0 ≤ α < 1",
            source="Lee 2001; Ko et al. 2024",
            maximum=-math.log(0.1),
            parameters={"alpha": _check_alpha},
        ),
        Divergence(
            "generalised_jsd",
            generalised_jsd,
            formula="[β KL(p‖m) + (1 − β) KL(q‖m)] / (β (1 − β)), m = β p + (1 − β) q, 0 ≤ β ≤ 1",
            source="Lin 1991; Agarwal et al. 2024",
            maximum=4 * math.log(2),
            symmetric=True,
            parameters={"beta": _check_beta},
        ),
        Divergence(
            "hard_labels",
            hard_labels,
            formula="−log q(token)",
            source="Kim and Rush 2016",
            needs="tokens",
        ),
    )
}
"""Name → token-level divergence, with its formula, source and parameters; ``divergence(name)`` makes its function."""
