"""Losses over a large vocabulary from hidden states and a head, a few response tokens at a time, forward and backward.

Of a batch of N response tokens a dense loss makes several [N, V] arrays and keeps them for the backward pass. Here a
chunk's log-probabilities are made from its hidden states, its loss and at once its gradients are taken, and the arrays
are gone before the next chunk begins: one chunk and the gradient of the head are all that is ever there. Nothing is
computed twice, so it costs what the dense loss costs. The trick is old: a sum's gradient is known but for one factor
before anybody asks for it, as in Liger's fused losses [Hsu et al. 2024], which it does here for any loss of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Head = Callable[[Tensor], Tensor]
"""Log-probabilities (nats) [n, V] from hidden states [n, H], of any rows alone."""

TokenLosses = Callable[[Tensor, slice], Tensor]
"""One loss for each response token, [n], from the log-probabilities [n, V] of those that the slice takes of all N."""


def chunks(num_tokens: int, tokens_at_once: int) -> list[slice]:
    """``num_tokens`` response tokens in order, at most ``tokens_at_once`` in a slice."""
    return [slice(first, min(first + tokens_at_once, num_tokens)) for first in range(0, num_tokens, tokens_at_once)]


def summed_over_chunks(
    hidden_NH: Float[Tensor, "N H"],
    head: Head,
    weights: Sequence[Tensor],
    losses: TokenLosses,
    tokens_at_once: int,
) -> Float[Tensor, ""]:
    """Σ over N of losses(head(hidden_NH)), in value and gradient, with [tokens_at_once, V] arrays at most.

    ``weights`` are the parameters of ``head`` that may be trained. Gradients reach them and ``hidden_NH``, and nothing
    else that ``losses`` closes over. They are added in float32, or what the weights have if that is more. A batch of
    one chunk is left to autograd, bit for bit the dense loss. Of several chunks the result can go backward once:
    ``retain_graph`` does not serve a second time, and there are no second derivatives.
    """
    if len(hidden_NH) <= tokens_at_once:
        return losses(head(hidden_NH), slice(0, len(hidden_NH))).sum()
    if not torch.is_grad_enabled():
        hidden_NH, weights = hidden_NH.detach(), ()
    return _SummedOverChunks.apply(head, losses, tokens_at_once, hidden_NH, *weights)


class _SummedOverChunks(torch.autograd.Function):
    """Takes the gradients going forward; backward multiplies them with the one factor that was not known."""

    @staticmethod
    def forward(
        ctx: Any, head: Head, losses: TokenLosses, tokens_at_once: int, hidden_NH: Tensor, *weights: Tensor
    ) -> Tensor:
        _, _, _, trains_hidden, *are_trained = ctx.needs_input_grad
        trained = [weight for weight, is_trained in zip(weights, are_trained, strict=True) if is_trained]
        hidden_grad_NH = torch.empty_like(hidden_NH) if trains_hidden else None
        grads = [torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in trained]
        loss_N = None
        for tokens in chunks(len(hidden_NH), tokens_at_once):
            part_nH = hidden_NH[tokens].detach().requires_grad_(trains_hidden)
            asked = [part_nH, *trained] if trains_hidden else trained
            with torch.set_grad_enabled(len(asked) > 0):
                loss_n = losses(head(part_nH), tokens)
                total = loss_n.sum()
            if loss_N is None:  # one array: small ones that stay, between large ones that go, scatter the heap
                loss_N = loss_n.new_empty(len(hidden_NH))
            loss_N[tokens] = loss_n.detach()
            found = list(torch.autograd.grad(total, asked, materialize_grads=True)) if asked else []
            if hidden_grad_NH is not None:
                hidden_grad_NH[tokens] = found.pop(0)
            for grad, part in zip(grads, found, strict=True):
                grad += part
        ctx.are_trained, ctx.dtypes = are_trained, [weight.dtype for weight in trained]
        ctx.save_for_backward(hidden_grad_NH, *grads)
        assert loss_N is not None
        return loss_N.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_NH, *grads = ctx.saved_tensors
        if hidden_grad_NH is not None:
            hidden_grad_NH.mul_(factor)
        # in place: another gradient of the head would be as large as all that a chunk takes
        scaled = iter([grad.mul_(factor).to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)])
        of_weights = [next(scaled) if is_trained else None for is_trained in ctx.are_trained]
        return None, None, None, hidden_grad_NH, *of_weights
