"""Packed rows: the same states, losses and gradients as one sequence a row, and no sequence sees another."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import masking_utils

from assay.config import TrainingConfig
from assay.errors import AssayError
from assay.models.averaging import Learner
from assay.models.causal import CausalModel, first_fit
from assay.models.pretrained import PretrainedModel
from assay.types import Batch
from test_training_contract import (
    PAIRS,
    PROMPTS,
    RESPONSES,
    check_accumulation,
    check_student_is_teacher,
    check_value_and_gradient,
    our_loss,
)
from tiny_models import bart, gemma2, gpt2, llama, qwen3, t5

CAUSAL: dict[str, Callable[[], CausalModel]] = {
    "gpt2": lambda: gpt2(3),
    "llama": lambda: llama(3),
    "qwen3": lambda: qwen3(3),
    "gemma2": lambda: gemma2(3),
}
BATCH = Batch(PROMPTS, RESPONSES)


def packing(model: PretrainedModel) -> PretrainedModel:
    packed = copy.deepcopy(model)
    packed.pack_rows()
    packed.module.train()
    return packed


def packed_loss(teacher: PretrainedModel, student: PretrainedModel, num_micro_batches: int) -> tuple[float, Tensor]:
    return our_loss(teacher, packing(student), num_micro_batches)


def test_a_sequence_goes_to_the_first_row_that_has_room() -> None:
    assert first_fit([3, 8, 4, 5, 1, 1], 8) == [(0, 0), (1, 0), (0, 3), (2, 0), (0, 7), (2, 5)]


@pytest.mark.parametrize("family", CAUSAL)
def test_packed_states_are_those_of_rows_of_their_own(family: str) -> None:
    model, rows = packing(CAUSAL[family]()), []
    model.module.base_model.register_forward_pre_hook(
        lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    packed = model.hidden(BATCH)
    with model.evaluating():
        alone = model.hidden(BATCH)
    assert rows == [3, len(PROMPTS)]  # packed while it trains, and then alone
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CAUSAL)
def test_no_sequence_sees_another(family: str) -> None:
    """Other tokens in the others: to the last bit the same states."""
    model = packing(CAUSAL[family]())
    other = Batch([(12,), PROMPTS[1], (8, 15), *PROMPTS[3:]], [(9, 1, 5), RESPONSES[1], (6,), *RESPONSES[3:]])
    states, states_among_others = (model.hidden(batch).split(batch.lengths) for batch in (BATCH, other))
    for row in (1, 3, 4):
        assert torch.equal(states[row], states_among_others[row])
    assert not torch.equal(states[0], states_among_others[0])


@pytest.mark.parametrize("pair", [name for name, (_, student) in PAIRS.items() if isinstance(student, CausalModel)])
@pytest.mark.parametrize("check", [check_value_and_gradient, check_accumulation, check_student_is_teacher])
def test_the_loss_of_packed_rows_keeps_the_contract(check: Callable[..., None], pair: str) -> None:
    check(packed_loss, pair)


@pytest.mark.parametrize("family", CAUSAL)
def test_rows_without_a_block_diagonal_mask_are_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = packing(CAUSAL[family]())
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    with model.evaluating():
        alone = model.hidden(BATCH)
    assert (model.hidden(BATCH) - alone).norm() > 1e-2 * alone.norm()
    with pytest.raises(AssayError, match=r"does not keep sequences in one row apart.*packing to false"):
        CAUSAL[family]().pack_rows()


@pytest.mark.parametrize("make", [t5, bart])
def test_an_encoder_decoder_is_not_packed(make: Callable[[], PretrainedModel]) -> None:
    with pytest.raises(AssayError, match="rows of their own, which are not packed"):
        Learner(make(), TrainingConfig(packing=True))
