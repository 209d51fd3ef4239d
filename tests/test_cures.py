"""The cures of the training loop: off they change nothing, on they are what their formula says, and they resume."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD

from assay.checkpoints import FitState, save_model
from assay.config import TrainingConfig
from assay.errors import AssayError
from assay.models.averaging import Learner, mean_of_students
from assay.models.dropout import set_dropout
from assay.models.loading import load_model
from assay.models.pretrained import PretrainedModel
from assay.training import distillation_loss, fit, train_step
from assay.types import Batch, Dense
from test_training import CONFIG, Killed, mixture
from tiny_models import bart, gpt2, llama, t5

BATCH = Batch([(5, 2), (7, 3, 9)], [(3, 4, 0), (6, 8)])


def trained(**changes: Any) -> tuple[PretrainedModel, FitState]:
    torch.manual_seed(0)
    student = gpt2(2)
    return student, fit(student, mixture(), dataclasses.replace(CONFIG, **changes))


def steps_of(writer: str = "teacher", **changes: Any) -> tuple[list[dict[str, torch.Tensor]], list[str]]:
    """The weights that are evaluated before every step and after the last, and their digests."""
    seen, digests = [], []
    student = gpt2(2)

    def look(state: FitState) -> None:
        seen.append({name: p.detach().clone() for name, p in student.module.named_parameters()})
        digests.append(student.digest)

    torch.manual_seed(0)
    fit(student, mixture(writer, 1, "steps"), dataclasses.replace(CONFIG, **changes), before_step=look)
    return seen, digests


# --- off


@pytest.mark.parametrize(
    "off",
    [
        {"anchor_weight": 0.0},
        {"averaging_decay": None},
        {"dropout": 0.0},
        {"lora_rank": None},
        {"averaging_decay": 0.0},
    ],
)
def test_a_cure_that_is_off_leaves_the_same_weights(off: dict[str, Any]) -> None:
    """An average with decay 0 is the weights themselves, by way of the copy that is trained."""
    (plain, state), (same, state_again) = trained(), trained(**off)
    assert same.digest == plain.digest
    assert state_again.losses == state.losses


@pytest.mark.parametrize("on", [{"anchor_weight": 0.5}, {"averaging_decay": 0.5}, {"dropout": 0.2}, {"lora_rank": 2}])
def test_a_cure_that_is_on_does_not(on: dict[str, Any]) -> None:
    assert trained(**on)[0].digest != trained()[0].digest


# --- anchor


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_the_anchor_adds_lambda_kl_from_the_start_and_its_gradient(num_micro_batches: int) -> None:
    """Against float64, token by token, with the softmax temperature on the teacher's term alone."""
    student, start = gpt2(2), gpt2(7)
    signal = Dense(gpt2(1).log_probs(BATCH).detach())
    batch = Batch(BATCH.prompt_ids, BATCH.response_ids, signal)
    config = TrainingConfig(
        anchor_weight=0.7, softmax_temperature=2.0, num_micro_batches=num_micro_batches, max_grad_norm=1e9
    )
    optimizer: Any = SGD(student.module.parameters(), lr=0.0)
    value = train_step(student, optimizer, batch, 0, config, start)
    ours = torch.cat([p.grad.flatten() for p in student.module.parameters() if p.grad is not None])

    student64, start64 = gpt2(2), gpt2(7)
    student64.module.double(), start64.module.double()
    logits = [model._logits(model.hidden(batch)) for model in (student64, start64)]
    log_q, log_s = (value.log_softmax(-1) for value in logits)
    tempered_p, tempered_q = ((log / 2).log_softmax(-1) for log in (signal.log_p_NV.double(), log_q))
    loss = (tempered_p.exp() * (tempered_p - tempered_q)).sum() + 0.7 * (log_q.exp() * (log_q - log_s.detach())).sum()
    (loss / batch.num_tokens).backward()
    expected = torch.cat([p.grad.flatten() for p in student64.module.parameters() if p.grad is not None])
    assert value == pytest.approx(loss.item() / batch.num_tokens, rel=1e-5)
    assert (ours.double() - expected).norm() < 1e-4 * expected.norm()
    assert all(p.grad is None for p in start.module.parameters())


def test_the_anchor_is_nothing_at_the_start_and_holds_the_student_back() -> None:
    batch = Batch(BATCH.prompt_ids, BATCH.response_ids, Dense(gpt2(1).log_probs(BATCH).detach()))
    config = TrainingConfig(anchor_weight=3.0)
    assert distillation_loss(gpt2(2), batch, config, gpt2(2)).item() == pytest.approx(
        distillation_loss(gpt2(2), batch, config).item(), abs=1e-4
    )

    def moved(weight: float) -> float:
        student = trained(anchor_weight=weight)[0]
        log_q, log_s = (model.log_probs(BATCH).detach() for model in (student, gpt2(2)))
        return float((log_q.exp() * (log_q - log_s)).sum())

    assert moved(10.0) < 0.5 * moved(1.0) < 0.5 * moved(0.0)


# --- averaging


def test_the_average_is_that_of_the_raw_weights() -> None:
    """Against a loop in numpy over the weights of the plain run, which go the same way."""
    raw, _ = steps_of()
    averaged, _ = steps_of(averaging_decay=0.8)
    expected = {name: value.double().numpy() for name, value in raw[0].items()}
    for step in range(1, len(raw)):
        for name, value in raw[step].items():
            expected[name] = 0.8 * expected[name] + 0.2 * value.double().numpy()
            assert np.allclose(averaged[step][name], expected[name], rtol=1e-4, atol=1e-5)


def test_the_raw_weights_write_an_online_students_responses() -> None:
    """So the losses are those of the plain run, to the last bit."""
    torch.manual_seed(0)
    losses = [
        fit(gpt2(2), mixture("student", 1, "steps"), dataclasses.replace(CONFIG, averaging_decay=decay)).losses
        for decay in (None, 0.9)
    ]
    assert losses[0] == losses[1]


def test_the_mean_of_students_is_the_mean_of_their_weights(tmp_path: Path) -> None:
    for i in (1, 2, 3):
        save_model(gpt2(i), tmp_path / str(i))
    mean = mean_of_students([tmp_path / str(i) for i in (1, 2, 3)])
    parts = [dict(gpt2(i).module.named_parameters()) for i in (1, 2, 3)]
    for name, value in mean.module.named_parameters():
        expected = sum(part[name].double() for part in parts) / 3
        assert torch.allclose(value.double(), expected, atol=1e-6)
    assert mean_of_students([tmp_path / "1"] * 3).digest == gpt2(1).digest
    save_model(gpt2(1, vocab_size=29), tmp_path / "wider")
    with pytest.raises(AssayError, match=r"have no mean: .* has shape \(23, 16\) in the first and shape \(29, 16\)"):
        mean_of_students([tmp_path / "1", tmp_path / "wider"])
    save_model(llama(), tmp_path / "llama")
    with pytest.raises(AssayError, match="no such weight"):
        mean_of_students([tmp_path / "1", tmp_path / "llama"])
    with pytest.raises(AssayError, match="mean of no students"):
        mean_of_students([])


# --- dropout


@pytest.mark.parametrize("model", [gpt2(1), llama(1), t5(1), t5(1, gated=True), bart(1)], ids=lambda m: m.name)
def test_dropout_acts_while_training_and_never_in_an_evaluation(model: PretrainedModel) -> None:
    model = copy.deepcopy(model)
    before = model.log_probs(BATCH)
    set_dropout(model, 0.3)
    model.module.train()
    assert not torch.allclose(model.log_probs(BATCH), model.log_probs(BATCH), atol=1e-3)
    with model.evaluating():
        assert torch.equal(model.log_probs(BATCH), before)


def test_a_model_without_a_place_for_dropout_is_refused() -> None:
    model = llama(1)
    for part in model.module.modules():
        vars(part).pop("attention_dropout", None)
    with pytest.raises(AssayError, match="has no place for dropout"):
        Learner(model, TrainingConfig(dropout=0.1))


# --- low-rank updates


@pytest.mark.parametrize("model", [gpt2(1), llama(1), t5(1), t5(1, gated=True), bart(1)], ids=lambda m: m.name)
def test_low_rank_updates_begin_at_the_model_and_stay_of_their_rank(model: PretrainedModel) -> None:
    """The merged student has the law of the adapted model; nothing but linear layers has moved, by rank 2 at most."""
    torch.manual_seed(0)
    student = copy.deepcopy(model)
    learner = Learner(student, TrainingConfig(lora_rank=2))
    assert torch.allclose(learner.model.log_probs(BATCH), model.log_probs(BATCH), atol=1e-4)
    for name, parameter in learner.model.module.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    learner.follow()
    assert torch.allclose(student.log_probs(BATCH), learner.model.log_probs(BATCH), atol=1e-4)
    assert not torch.allclose(student.log_probs(BATCH), model.log_probs(BATCH), atol=1e-2)
    num_moved = 0
    for name, weight in student.module.named_parameters():
        change = (weight - dict(model.module.named_parameters())[name]).detach()
        if change.abs().max() > 0:
            num_moved += 1
            assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2, name
    assert num_moved >= 8


def test_peft_is_asked_for_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AssayError, match=r"lora_rank needs the library peft: pip install 'assay\[peft\]'"):
        Learner(gpt2(2), TrainingConfig(lora_rank=2))


# --- resume, and what is saved

COMBINED = {"averaging_decay": 0.7, "lora_rank": 2, "dropout": 0.1, "anchor_weight": 0.3}


@pytest.mark.parametrize(
    "cure", [{"averaging_decay": 0.9}, {"lora_rank": 2}, {"dropout": 0.2}, {"anchor_weight": 0.5}, COMBINED]
)
@pytest.mark.parametrize("killed_at", [1, 5])
def test_interrupted_equals_uninterrupted(tmp_path: Path, cure: dict[str, Any], killed_at: int) -> None:
    config = dataclasses.replace(CONFIG, **cure)
    torch.manual_seed(0)
    whole = gpt2(2)
    torch.manual_seed(0)
    expected = fit(whole, mixture("student", 1, "steps"), config)

    def kill(state: FitState) -> None:
        if state.step == killed_at:
            raise Killed

    killed = gpt2(2)
    torch.manual_seed(0)
    with pytest.raises(Killed):
        fit(killed, mixture("student", 1, "steps"), config, before_step=kill, checkpoints=tmp_path)
    resumed = gpt2(2)
    torch.manual_seed(0 if killed_at == 1 else 5)  # with a checkpoint, nothing hangs on the generator's new state
    state = fit(resumed, mixture("student", 1, "steps"), config, checkpoints=tmp_path)
    assert state.losses == expected.losses
    assert resumed.digest == whole.digest


@pytest.mark.parametrize("cure", [{"averaging_decay": 0.9}, {"lora_rank": 2}, COMBINED])
def test_what_is_saved_is_what_is_evaluated_and_a_plain_model(tmp_path: Path, cure: dict[str, Any]) -> None:
    student = gpt2(2)
    fit(student, mixture(), dataclasses.replace(CONFIG, **cure), checkpoints=tmp_path)
    kept = max(tmp_path.iterdir())
    assert load_model(str(kept)).digest == student.digest
    assert torch.equal(load_model(str(kept)).log_probs(BATCH), student.log_probs(BATCH))


def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path) -> None:
    fit(gpt2(2), mixture(), CONFIG, checkpoints=tmp_path)
    with pytest.raises(AssayError, match="other trained weights"):
        fit(gpt2(2), mixture(), dataclasses.replace(CONFIG, lora_rank=2), checkpoints=tmp_path)
