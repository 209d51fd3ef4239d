"""Averages of weights: of several students, and of one student along its run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from assay import ranks
from assay.config import TrainingConfig
from assay.errors import AssayError
from assay.models.checkpointing import checkpoint_activations
from assay.models.dropout import set_dropout
from assay.models.loading import load_model
from assay.models.lora import add_adapters, merged_weights
from assay.models.pretrained import PretrainedModel
from assay.models.sharding import divided_like, shard_layers, whole


class Learner:
    """The model that the optimiser moves, ``model``, and how ``student``, which is evaluated and saved, follows it.

    The two are one unless weights are averaged, low-rank updates trained, or layers divided between ranks: then
    ``model`` is a copy, and ``follow`` makes the student d · student + (1 − d) · model, with ``averaging_decay`` d, or
    0 without one, updates merged, and layers whole.
    The average begins at the first weights, without a correction: it is the start at step 0, and with a large d it
    stays near it for some 1 / (1 − d) steps.
    """

    def __init__(self, student: PretrainedModel, config: TrainingConfig) -> None:
        self.student = student
        self._decay = config.averaging_decay or 0.0
        self._is_adapted = config.lora_rank is not None
        self._is_sharded = config.parallel == "shard" and ranks.num_ranks() > 1
        is_apart = self._is_adapted or self._is_sharded or config.averaging_decay is not None
        self.model: PretrainedModel = copy.deepcopy(student) if is_apart else student
        if config.dropout > 0:
            set_dropout(self.model, config.dropout)
        if config.lora_rank is not None:
            add_adapters(self.model, config.lora_rank)
        if config.gradient_checkpointing:
            checkpoint_activations(self.model)
        if config.packing:
            self.model.pack_rows()
        if self._is_sharded:
            shard_layers(self.model)

    @property
    def writer(self) -> PretrainedModel:
        """Who writes responses with the weights that are trained: ranks do not all write equally many."""
        return self.student if self._is_sharded else self.model

    @torch.no_grad()
    def follow(self) -> None:
        """The student takes up what the last step has changed."""
        if self.model is self.student:
            return
        ours = dict(self.student.module.named_parameters())
        theirs = merged_weights(self.model) if self._is_adapted else dict(self.model.module.named_parameters())
        for name, value in theirs.items():
            ours[name].mul_(self._decay).add_(whole(value), alpha=1 - self._decay)

    @torch.no_grad()
    def restart(self) -> None:
        """The trained model begins again at the student, and so does the average. Not for low-rank updates."""
        if self.model is self.student or self._is_adapted:
            return
        ours = dict(self.model.module.named_parameters())
        for name, value in self.student.module.named_parameters():
            ours[name].copy_(divided_like(ours[name], value))

    def state(self) -> dict[str, Tensor]:
        """The trained weights, where the student does not hold them itself."""
        if self.model is self.student or self._is_sharded:
            return {}
        return {name: p.detach() for name, p in self.model.module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state made by ``state``; AssayError when it is of another model or other options."""
        ours = dict(self.model.module.named_parameters())
        if state.keys() != self.state().keys() or any(ours[name].shape != value.shape for name, value in state.items()):
            raise AssayError(
                "the checkpoint holds other trained weights than this config trains: choose another folder"
            )
        for name, value in state.items():
            ours[name].copy_(value)
        if self._is_sharded:
            self.restart()


def mean_of_students(folders: Sequence[str | Path]) -> PretrainedModel:
    """θ = (1/n) Σ θ_i over n model folders: one model from several students that began at one start.

    Added in float64. Students of unlike starts have no reason to lie in one valley, which shapes cannot tell: the
    caller answers for the common start. Raises AssayError for no folder, a folder that cannot be read, and students
    whose weights differ in name or shape [Wortsman et al. 2022].
    """
    if not folders:
        raise AssayError("the mean of no students: give at least one model folder")
    mean = load_model(str(folders[0]))
    total = {name: p.detach().double() for name, p in mean.module.named_parameters()}
    for folder in folders[1:]:
        other = dict(load_model(str(folder)).module.named_parameters())
        _check_alike(str(folders[0]), total, str(folder), other)
        for name, value in other.items():
            total[name] += value.detach().double()
    with torch.no_grad():
        for name, parameter in mean.module.named_parameters():
            parameter.copy_(total[name] / len(folders))
    mean.name = f"mean of {len(folders)} students"
    return mean


def _check_alike(first: str, ours: Mapping[str, Tensor], second: str, theirs: Mapping[str, Tensor]) -> None:
    for name in sorted(ours.keys() | theirs.keys()):
        shapes = [tuple(weights[name].shape) if name in weights else None for weights in (ours, theirs)]
        if shapes[0] != shapes[1]:
            said = ["no such weight" if shape is None else f"shape {shape}" for shape in shapes]
            raise AssayError(
                f"students {first!r} and {second!r} have no mean: {name!r} has {said[0]} in the first and {said[1]} in "
                "the second; give students of one architecture, from one start"
            )
