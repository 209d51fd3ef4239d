"""The layers of a model that is trained, divided between ranks: torch's FSDP2 around each of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from assay import ranks
from assay.errors import AssayError
from assay.models.pretrained import PretrainedModel


def shard_layers(model: PretrainedModel) -> None:
    """From now on each rank holds its part of every layer's weights, gradients and optimiser state.

    A layer's weights are brought together when it computes, forward and backward, and its gradients are summed over
    ranks on the way back. Embeddings, norms outside the layers and the head stay whole on every rank: their gradients
    are the caller's to sum. All ranks must run the model equally often. Layers are what transformers says not to split.
    Raises AssayError where it says nothing.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    names = getattr(model.module, "_no_split_modules", None) or ()
    layers = [part for part in model.module.modules() if type(part).__name__ in names]
    if not layers:
        raise AssayError(
            f"model {model.name!r} ({type(model.module).__name__}) does not say which its layers are: set "
            "distillation.training.parallel to 'replicate'"
        )
    mesh = init_device_mesh(model.device.type, (ranks.num_ranks(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        assert isinstance(layer, FSDPModule)
        layer.set_gradient_divide_factor(1.0)  # the loss is divided by the tokens of all ranks already
        layer.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def is_sharded(model: PretrainedModel) -> bool:
    """Whether no rank holds all weights of the model."""
    return any(is_divided(p) for p in model.module.parameters())


def is_divided(tensor: Tensor) -> bool:
    """Whether this rank holds a part of the tensor; without several ranks torch's tensors for that are not loaded."""
    if ranks.num_ranks() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all ranks, which must all ask; a tensor that is not divided is given back."""
    return tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def divided_like(parameter: Tensor, value: Tensor) -> Tensor:
    """``value``, which every rank has whole, divided between ranks as ``parameter`` is."""
    if not is_divided(parameter) or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """``torch.nn.utils.clip_grad_norm_`` where some gradients are divided between ranks; returns the norm of all."""
    grads = [p.grad for p in parameters if p.grad is not None]
    ours: list[Tensor] = [g.to_local() for g in grads if is_divided(g)]  # type: ignore[attr-defined]
    everyones = [g for g in grads if not is_divided(g)]
    squares = [float(sum(g.double().square().sum() for g in some)) for some in (ours, everyones)]
    (divided,) = ranks.totals("the norm of the gradient", squares[:1])
    norm = (divided + squares[1]) ** 0.5
    with torch.no_grad():
        for g in (*ours, *everyones):
            g.mul_(min(1.0, max_norm / (norm + 1e-6)))
    return norm
