"""Sequence-level estimates of KL(p‖q) from log-probabilities along responses that p wrote.

For autoregressive models KL(p‖q) = E_x E_{y~p} Σ_i KL(p_i‖q_i), with p_i the next-token law after y_<i. So
the responses must have been sampled from ``p``, the *first* argument, at temperature 1: oracle responses for
golden, teacher responses for proxy, and for KL(q‖p) the student's own with the student as first argument.
From any other writer the same sums estimate another quantity.

Every function returns one value for each sequence (nats, summed over its tokens) and never reduces further:
``statistics.mean_estimate`` turns the values into an estimate with its standard error. Tokens lie sequence
after sequence on the axis N, ``lengths`` as in ``types.Batch``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.divergences import forward_kl, hard_labels


def sum_per_sequence(values_N: Float[Tensor, " N"], lengths: Sequence[int]) -> Float[Tensor, " B"]:
    """Σ_i values_i over the tokens of each sequence; an empty sequence sums to 0.

    Raises ValueError unless ``lengths`` add up to N.
    """
    if sum(lengths) != len(values_N):
        raise ValueError(f"{len(values_N)} token values, but the lengths add up to {sum(lengths)}")
    sequence_N = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.long, device=values_N.device))
    return values_N.new_zeros(len(lengths)).index_add(0, sequence_N, values_N)


def rao_blackwell(
    log_p_NV: Float[Tensor, "N V"], log_q_NV: Float[Tensor, "N V"], lengths: Sequence[int]
) -> Float[Tensor, " B"]:
    """Σ_i KL(p_i‖q_i), the exact KL of the next-token laws at every position of a response from p.

    Unbiased for KL(p‖q), never negative beyond rounding, and of the same cost as ``monte_carlo``. At each
    position its variance is at most that of the log-ratio; over a whole response it is usually far smaller
    than ``monte_carlo``'s but not always, as one position's log-ratio can make up for another's. Nats per
    sequence, ``+inf`` where q = 0 < p. Raises AssayError for two vocabulary sizes [Amini et al. 2025].
    """
    return sum_per_sequence(forward_kl(log_p_NV, log_q_NV), lengths)


def monte_carlo(
    log_p_NV: Float[Tensor, "N V"],
    log_q_NV: Float[Tensor, "N V"],
    token_ids: Int[Tensor, " N"],
    lengths: Sequence[int],
) -> Float[Tensor, " B"]:
    """log p(y) − log q(y) of a response y from p.

    Unbiased for KL(p‖q), noisy, often negative. Needs no more than the scores of the tokens drawn: without
    the rest of p's distribution it is the only choice. Nats per sequence, ``+inf`` where q(y) = 0.
    """
    return sum_per_sequence(hard_labels(log_q_NV, token_ids) - hard_labels(log_p_NV, token_ids), lengths)


def negative_log_likelihood(
    log_q_NV: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], lengths: Sequence[int]
) -> Float[Tensor, " B"]:
    """−log q(y) of a response y from p: KL(p‖q) up to the constant H(p), without a model of p.

    Unbiased for KL(p‖q) + H(p). H(p) does not move while q trains, so differences between steps are those
    of KL(p‖q): golden up to a constant from samples of the truth alone. Nats per sequence.
    """
    return sum_per_sequence(hard_labels(log_q_NV, token_ids), lengths)


def oracle_walk(
    log_o_NV: Float[Tensor, "N V"],
    log_t_NV: Float[Tensor, "N V"],
    log_s_NV: Float[Tensor, "N V"],
    lengths: Sequence[int],
) -> Float[Tensor, " B"]:
    """Σ_i Σ_v o_i (log t_i − log s_i) along a response from the oracle o, with teacher t and student s.

    Unbiased for E_{y~o}[log t(y) − log s(y)], the second term of golden = d(o, t) + E_{y~o}[log t − log s];
    with ``rao_blackwell`` sums over the same responses that identity holds for every single sequence. The
    proxy is the expectation of the same integrand over teacher responses. Nats per sequence, of either sign;
    not a number where teacher and student both exclude a token of the oracle.
    """
    o_NV = log_o_NV.exp()
    log_ratio_NV = torch.where(o_NV > 0, log_t_NV - log_s_NV, 0)
    return sum_per_sequence((o_NV * log_ratio_NV).sum(-1), lengths)


@dataclass(frozen=True)
class Estimator:
    """One row of ``ESTIMATORS``.

    ``needs`` names the arguments of ``function`` in order, ``estimates`` what its mean over responses from
    p converges to, ``bias`` the difference to KL(p‖q), and ``rate`` the power of the number of responses at
    which the error falls.
    """

    name: str
    function: Callable[..., Tensor]
    needs: tuple[str, ...]
    estimates: Literal["KL(p‖q)", "KL(p‖q) + H(p)"]
    bias: str
    can_be_negative: bool
    rate: float = -0.5


ESTIMATORS: dict[str, Estimator] = {
    row.name: row
    for row in (
        Estimator(
            "rao_blackwell",
            rao_blackwell,
            needs=("log_p_NV", "log_q_NV", "lengths"),
            estimates="KL(p‖q)",
            bias="none",
            can_be_negative=False,
        ),
        Estimator(
            "monte_carlo",
            monte_carlo,
            needs=("log_p_NV", "log_q_NV", "token_ids", "lengths"),
            estimates="KL(p‖q)",
            bias="none",
            can_be_negative=True,
        ),
        Estimator(
            "negative_log_likelihood",
            negative_log_likelihood,
            needs=("log_q_NV", "token_ids", "lengths"),
            estimates="KL(p‖q) + H(p)",
            bias="H(p), the entropy of p's responses: unknown, but the same for every q",
            can_be_negative=False,
        ),
    )
}
"""Name → estimator of a distance over whole responses, with what it needs, what it estimates and its bias."""
