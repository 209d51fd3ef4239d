"""Every divergence, forward and backward, and kl_div of torch. The rules are in README.md.

python benchmarks/speed/losses.py [--write [FILE]] [--quick]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import measure
import torch
from measure import Row
from numpy import median
from torch import Tensor
from torch.nn.functional import kl_div

from assay.divergences import DIVERGENCES

SHAPE, CALLS = (1200, 512), 5


def rows(repetitions: int, quick: bool) -> Iterator[Row]:
    """One row for each divergence, on the same log-probabilities."""
    torch.manual_seed(0)
    log_p_NV = torch.randn(SHAPE).log_softmax(dim=-1)
    log_q_NV = torch.randn(SHAPE).log_softmax(dim=-1).requires_grad_()
    token_ids_N = log_p_NV.exp().multinomial(1).squeeze(-1)

    def gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> measure.Prepare:
        def run(repetition: int) -> None:
            for _ in range(CALLS):
                torch.autograd.grad(loss(*inputs).sum(), log_q_NV)

        return measure.plainly(run)

    theirs = gradients(functools.partial(kl_div, reduction="sum", log_target=True), log_q_NV, log_p_NV)
    for name, divergence in DIVERGENCES.items():
        inputs = (log_q_NV, token_ids_N) if divergence.needs == "tokens" else (log_p_NV, log_q_NV)
        (seconds, _), (their_seconds, _) = measure.alternate(
            repetitions, gradients(divergence.function, *inputs), theirs
        )
        figures = {"ms": float(1e3 * median(seconds) / CALLS), "kl_div_ms": float(1e3 * median(their_seconds) / CALLS)}
        yield Row(name, figures, {"time_over_kl_div": seconds / their_seconds})


if __name__ == "__main__":
    measure.main(__file__, __doc__, rows, repetitions=11)
