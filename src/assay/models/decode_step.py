"""What written-out decoding steps are made of, and when they may stand in for a module.

At small sizes most of a decoding step is transformers' own work around the matrix products: making masks, choosing an
attention, passing arguments through modules. ``decode_gpt2.py``, ``decode_llama.py`` and ``decode_t5.py`` write the
layers of a family out, on the parameters of the module itself, never on copies of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation, SiLUActivation

_DTYPES = (torch.float32, torch.float64)


def is_plain(module: nn.Module, known: Collection[type]) -> bool:
    """Whether a module computes what its classes say, so that written-out operations can stand in for it.

    Every part is exactly of a known class, in evaluation mode, without hooks or a replaced ``forward``; all weights are
    whole, of one floating-point type that is known here, and on one device; and no autocast changes them. Adapters,
    sharding, quantisation, parametrisation and tracing change one of these.
    """
    parameters = list(module.parameters())
    return (
        all(_is_plain_part(part, known) for part in module.modules())
        and all(type(p) is nn.Parameter for p in parameters)
        and len({(p.dtype, p.device) for p in parameters}) == 1
        and parameters[0].dtype in _DTYPES
        and not torch.is_autocast_enabled(parameters[0].device.type)
    )


def _is_plain_part(part: nn.Module, known: Collection[type]) -> bool:
    hooks = part._forward_hooks, part._forward_pre_hooks
    return type(part) in known and not part.training and not any(hooks) and "forward" not in part.__dict__


def attend(queries_XGD: Tensor, keys_XTD: Tensor, values_XTD: Tensor, mask_XGT: Tensor, scale: float) -> Tensor:
    """softmax(scale · q kᵀ + mask) v for G queries to each X, a head of keys and values of one row.

    Two batched products are faster here than torch's fused attention, whose blocks are made for many queries.
    """
    scores_XGT = torch.baddbmm(mask_XGT, queries_XGD, keys_XTD.transpose(1, 2), alpha=scale)
    return torch.bmm(scores_XGT.softmax(dim=-1), values_XTD)


def gelu_tanh(x: Tensor) -> Tensor:
    """½ x (1 + tanh z) with z = √(2/π) (x + 0.044715 x³), as x · sigmoid(2 z): the faster of the two on a CPU."""
    doubled = 2 * (2 / torch.pi) ** 0.5
    return x.square().mul_(0.044715 * doubled).add_(doubled).mul_(x).sigmoid_().mul_(x)


ACTIVATIONS: dict[type, Callable[[Tensor], Tensor]] = {
    NewGELUActivation: gelu_tanh,
    GELUTanh: gelu_tanh,
    GELUActivation: F.gelu,
    SiLUActivation: F.silu,
    nn.SiLU: F.silu,
    nn.ReLU: F.relu,
}
"""The functions that these modules compute, in one operation or a few."""


def weights(layer: Any) -> tuple[Tensor, Tensor | None]:
    """The storages of a layer's weight and bias: what training writes there is seen."""
    bias = getattr(layer, "bias", None)
    return layer.weight.detach(), None if bias is None else bias.detach()


def root_mean_square_norm(layer: Any) -> tuple[Any, ...]:
    """What ``rms_norm`` is called with for a norm of Llama's or T5's kind."""
    return layer.weight.shape, layer.weight.detach(), layer.variance_epsilon


def side_by_side(x_NH: Tensor, layers: Sequence[tuple[Tensor, Tensor | None]], head_size: int) -> Tensor:
    """W x + b of several linear layers as heads [tokens, heads of all, head size], written where they belong."""
    sizes = [weight.shape[0] for weight, _ in layers]
    out_NF = x_NH.new_empty((len(x_NH), sum(sizes)))
    for part_NF, (weight, bias) in zip(out_NF.split(sizes, dim=1), layers, strict=True):
        torch.mm(x_NH, weight.t(), out=part_NF)
        if bias is not None:
            part_NF.add_(bias)
    return out_NF.view(len(x_NH), -1, head_size)
