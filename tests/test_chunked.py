"""Losses a few response tokens at a time: equal to the dense loss in value and gradient, without its arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode

from assay import chunked
from assay.buckets import concatenated, on_same_buckets, resolved, top_k
from assay.chunked import chunks, summed_over_chunks
from assay.config import JudgeConfig, SourceConfig, TrainingConfig
from assay.data.sources import Mixture, ResponseSource, one_hot
from assay.divergences import DIVERGENCES, divergence
from assay.errors import AssayError
from assay.frozen_set import FrozenSet
from assay.judges import ModelJudge
from assay.models import batching, cached
from assay.models.averaging import Learner
from assay.models.cached import CachedLogProbs
from assay.models.ensemble import Ensemble
from assay.models.language_model import LanguageModel
from assay.models.pretrained import PretrainedModel
from assay.training import distillation_loss, train_step
from assay.types import Batch, Dense, Joined, Prompt, Response, Sample, States, TeacherSignal
from tiny_models import VOCAB_SIZE, bart, cut, gemma2, gpt2, llama, t5

N, H, V = 11, 6, 29
DIVERGENCE_CASES: list[tuple[str, dict[str, float]]] = [
    *((name, {}) for name in DIVERGENCES),
    ("skew_forward_kl", {"alpha": 0.7}),
    ("skew_reverse_kl", {"alpha": 0.0}),
    ("generalised_jsd", {"beta": 0.05}),
    ("generalised_jsd", {"beta": 0.9}),
]


# --- one head, every divergence


@dataclass
class Case:
    """A student's hidden states and head, a teacher's, and which token was drawn."""

    inputs_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor
    teacher_NH: Tensor
    teacher_VH: Tensor
    token_ids_N: Tensor
    kind: str

    def hidden(self) -> Tensor:
        """Tied: the states hang on the rows of the head as well."""
        if self.kind != "tied":
            return self.inputs_NH
        return torch.tanh(self.inputs_NH + self.weight_VH[self.token_ids_N])

    def head(self, hidden_NH: Tensor) -> Tensor:
        logits = hidden_NH @ self.weight_VH.T
        if self.kind == "scaled":
            logits = logits * 0.3
        if self.kind == "biased":
            logits = logits + self.bias_V
        if self.kind == "soft cap":
            logits = 2 * torch.tanh(logits / 2)
        if self.kind == "cut":
            logits = logits[:, : V - 5]
        return logits.log_softmax(-1)

    def teacher_head(self, hidden_NH: Tensor) -> Tensor:
        return (hidden_NH @ self.teacher_VH[: V - 5 if self.kind == "cut" else V].T).log_softmax(-1)

    def losses(self, name: str, parameters: Mapping[str, float]) -> chunked.TokenLosses:
        loss = divergence(name, **parameters)
        if DIVERGENCES[name].needs == "tokens":
            return lambda log_q_nV, tokens: loss(log_q_nV, self.token_ids_N[tokens])
        return lambda log_q_nV, tokens: loss(self.teacher_head(self.teacher_NH[tokens]), log_q_nV)


def case_of(kind: str, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(3)
    shapes = ((N, H), (V, H), (V,), (N, H), (V, H))
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    for tensor in drawn[:3]:
        tensor.requires_grad_()
    token_ids_N = torch.randint(0, V - 5, (N,), generator=generator)
    return Case(*drawn, token_ids_N, kind)  # type: ignore[call-arg]


def value_and_gradients(
    case: Case, name: str, parameters: Mapping[str, float], at_once: int, sum_of: Any = summed_over_chunks
) -> tuple[float, list[Tensor]]:
    weights = [case.weight_VH, case.bias_V]
    total = sum_of(case.hidden(), case.head, weights, case.losses(name, parameters), at_once)
    (total / 7).backward()
    found = [t.grad if t.grad is not None else torch.zeros_like(t) for t in (case.inputs_NH, *weights)]
    return total.item(), found


@pytest.mark.parametrize("kind", ["plain", "tied", "scaled", "biased", "soft cap", "cut"])
@pytest.mark.parametrize(("name", "parameters"), DIVERGENCE_CASES, ids=str)
def test_chunks_are_the_dense_loss_in_value_and_gradient(name: str, parameters: dict[str, float], kind: str) -> None:
    """To float32 rounding, whatever the size of a chunk; in float64 to float64's."""
    truth, true_gradients = value_and_gradients(case_of(kind, torch.float64), name, parameters, N)
    for dtype, rounding in ((torch.float32, 2e-5), (torch.float64, 1e-12)):
        for at_once in (1, 4, N - 1, N, N + 3):
            value, gradients = value_and_gradients(case_of(kind, dtype), name, parameters, at_once)
            assert value == pytest.approx(truth, rel=rounding)
            for found, expected in zip(gradients, true_gradients, strict=True):
                assert found.dtype == dtype
                assert (found.double() - expected).norm() <= rounding * expected.norm()


def drops_the_last_chunk(hidden_NH, head, weights, losses, at_once):  # type: ignore[no-untyped-def]
    return summed_over_chunks(hidden_NH[: chunks(len(hidden_NH), at_once)[-1].start], head, weights, losses, at_once)


def every_chunk_is_the_first(hidden_NH, head, weights, losses, at_once):  # type: ignore[no-untyped-def]
    def first(log_q_nV: Tensor, tokens: slice) -> Tensor:
        return losses(log_q_nV, slice(0, tokens.stop - tokens.start))

    return summed_over_chunks(hidden_NH, head, weights, first, at_once)


def forgets_the_head(hidden_NH, head, weights, losses, at_once):  # type: ignore[no-untyped-def]
    return summed_over_chunks(hidden_NH, head, [w.detach() for w in weights], losses, at_once)


def forgets_the_factor(hidden_NH, head, weights, losses, at_once):  # type: ignore[no-untyped-def]
    return 7 * summed_over_chunks(hidden_NH, head, weights, losses, at_once)


def means_of_chunks(hidden_NH, head, weights, losses, at_once):  # type: ignore[no-untyped-def]
    def mean(log_q_nV: Tensor, tokens: slice) -> Tensor:
        return losses(log_q_nV, tokens) / (tokens.stop - tokens.start)

    return at_once * summed_over_chunks(hidden_NH, head, weights, mean, at_once)


@pytest.mark.parametrize(
    "broken",
    [drops_the_last_chunk, every_chunk_is_the_first, forgets_the_head, forgets_the_factor, means_of_chunks],
)
def test_a_broken_sum_is_told_from_the_dense_loss(broken: Any) -> None:
    truth, true_gradients = value_and_gradients(case_of("plain", torch.float64), "forward_kl", {}, N)
    value, gradients = value_and_gradients(case_of("plain", torch.float64), "forward_kl", {}, 4, broken)
    worst = max((f - e).norm() / (e.norm() + 1e-9) for f, e in zip(gradients, true_gradients, strict=True))
    assert abs(value / truth - 1) > 1e-3 or worst > 1e-3


def test_swapped_laws_are_told_from_the_dense_loss() -> None:
    found = [value_and_gradients(case_of("plain", torch.float64), name, {}, 4) for name in ("forward_kl", "reverse_kl")]
    assert abs(found[0][0] / found[1][0] - 1) > 1e-2


def test_one_chunk_is_the_dense_loss_bit_for_bit() -> None:
    case, again = case_of("soft cap", torch.float32), case_of("soft cap", torch.float32)
    dense = case.losses("generalised_jsd", {})(case.head(case.hidden()), slice(0, N)).sum()
    dense.backward()
    value = summed_over_chunks(again.hidden(), again.head, [again.weight_VH], again.losses("generalised_jsd", {}), N)
    value.backward()
    assert torch.equal(value, dense)
    assert torch.equal(again.weight_VH.grad, case.weight_VH.grad)  # type: ignore[arg-type]
    assert torch.equal(again.inputs_NH.grad, case.inputs_NH.grad)  # type: ignore[arg-type]


def test_only_what_is_trained_has_a_gradient() -> None:
    whole, _ = value_and_gradients(case_of("plain", torch.float32), "forward_kl", {}, 4)
    for frozen in ("inputs_NH", "weight_VH"):
        case = case_of("plain", torch.float32)
        getattr(case, frozen).requires_grad_(False)
        total = summed_over_chunks(case.hidden(), case.head, [case.weight_VH], case.losses("forward_kl", {}), 4)
        total.backward()
        assert total.item() == whole
        trained = case.weight_VH if frozen == "inputs_NH" else case.inputs_NH
        assert getattr(case, frozen).grad is None
        assert trained.grad is not None
    case = case_of("plain", torch.float32)
    with torch.no_grad():
        total = summed_over_chunks(case.hidden(), case.head, [case.weight_VH], case.losses("forward_kl", {}), 4)
    assert (total.item(), total.requires_grad) == (whole, False)


def test_a_second_backward_is_an_error_and_not_a_wrong_gradient() -> None:
    case = case_of("plain", torch.float32)
    total = summed_over_chunks(case.hidden(), case.head, [case.weight_VH], case.losses("forward_kl", {}), 4)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_weights_of_low_precision_are_added_up_in_float32() -> None:
    """1 + 1/256 is 1 in bfloat16: one after the other, 256 small parts would vanish."""
    weight = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    hidden_NH = torch.full((257, 1), 1 / 256, dtype=torch.bfloat16)
    hidden_NH[0] = 1
    total = summed_over_chunks(hidden_NH, lambda h: h @ weight, [weight], lambda logits, _: logits[:, 0], 1)
    total.backward()
    assert weight.grad == torch.tensor([[2.0]], dtype=torch.bfloat16)


# --- real models


PROMPTS = [(5,), (7, 3, 9, 2), (4, 4), (11, 2, 8, 6, 1, 3)]
RESPONSES = [(3, 8, 0), (6,), (12, 13, 2, 7, 5, 0), (2, 9, 4, 7, 0)]
BATCH = Batch(PROMPTS, RESPONSES)
FAMILIES: dict[str, Callable[[int], PretrainedModel]] = {
    "gpt2": lambda seed: gpt2(seed),
    "gpt2-untied": lambda seed: gpt2(seed, tied=False),
    "llama": lambda seed: llama(seed),
    "gemma2": lambda seed: gemma2(seed),
    "padded": lambda seed: cut(gemma2(seed, vocab_size=31)),
    "t5": lambda seed: t5(seed),
    "mt5": lambda seed: t5(seed, gated=True),
    "bart": lambda seed: bart(seed),
}


def says(kind: str, teacher: LanguageModel, batch: Batch = BATCH) -> TeacherSignal:
    """What a teacher says, whole, as states, listed, or of half of the tokens and text of the others."""
    with torch.no_grad():
        if kind == "states":
            return States(teacher.hidden(batch), teacher.head)
        if kind == "joined":
            return concatenated([States(teacher.hidden(batch[:2]), teacher.head), one_hot(batch[2:], teacher)])
        log_p_NV = teacher.log_probs(batch)
        return {"dense": Dense(log_p_NV), "top_k": top_k(log_p_NV, 5), "text": Sample()}[kind]


def with_signal(kind: str, teacher: LanguageModel, batch: Batch = BATCH) -> Batch:
    return Batch(batch.prompt_ids, batch.response_ids, says(kind, teacher, batch))


def loss_and_gradient(
    student: PretrainedModel, batch: Batch, config: TrainingConfig, start: PretrainedModel | None = None
) -> tuple[float, Tensor]:
    student.module.zero_grad()
    loss = distillation_loss(student, batch, config, start) / batch.num_tokens
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in student.module.parameters() if p.grad is not None])


def in_chunks_of(tokens: int, vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 4 tokens, a quarter of the width of the tiny models."""
    monkeypatch.setattr(batching, "LOG_PROBS_AT_ONCE", tokens * vocab_size)


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "forward": ("states", {}),
    "hot": ("states", {"softmax_temperature": 2.0}),
    "labels": ("dense", {"hard_label_weight": 0.3, "divergence": "reverse_kl"}),
    "anchor": ("states", {"anchor_weight": 0.5}),
    "listed": ("top_k", {"divergence": "generalised_jsd"}),
    "joined": ("joined", {"divergence": "skew_forward_kl"}),
    "text": ("text", {"divergence": "hard_labels"}),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_change_no_loss_of_a_model(family: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of all parameters, to float32 rounding, against one chunk of the law made beforehand."""
    kind, options = OPTIONS[option]
    config, make = TrainingConfig(**options), FAMILIES[family]
    start = make(5) if config.anchor_weight else None
    signal = says(kind, make(1))
    law = signal if isinstance(signal, Sample) else resolved(signal)
    value, gradient = loss_and_gradient(make(2), Batch(PROMPTS, RESPONSES, law), config, start)
    for tokens in (4, 7):
        in_chunks_of(tokens, VOCAB_SIZE, monkeypatch)
        found, its_gradient = loss_and_gradient(make(2), Batch(PROMPTS, RESPONSES, signal), config, start)
        assert found == pytest.approx(value, rel=1e-5)
        assert its_gradient.shape == gradient.shape
        assert (its_gradient - gradient).norm() < 2e-5 * gradient.norm()


@pytest.mark.parametrize(
    "options",
    [{"lora_rank": 2}, {"averaging_decay": 0.5}, {"gradient_checkpointing": True}, {"packing": True}, {"dropout": 0.2}],
    ids=str,
)
def test_chunks_change_no_step_of_a_learner(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Several micro-batches of it, whatever is wrapped around the student."""
    batch, losses, weights = with_signal("states", gpt2(1)), [], []
    for tokens in (1000, 4):
        in_chunks_of(tokens, VOCAB_SIZE, monkeypatch)
        torch.manual_seed(0)
        config = TrainingConfig(num_micro_batches=2, learning_rate=1e-2, warmup_steps=0, max_grad_norm=1e9, **options)
        learner = Learner(gpt2(2), config)
        learner.model.module.train()
        trained = [p for p in learner.model.module.parameters() if p.requires_grad]
        before = torch.cat([p.detach().flatten() for p in trained])
        losses.append(train_step(learner.model, SGD(trained), batch, 0, config))  # type: ignore[arg-type]
        weights.append(torch.cat([p.detach().flatten() for p in trained]) - before)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert (weights[1] - weights[0]).norm() < 1e-4 * weights[0].norm()


def test_an_adapter_on_the_head_and_a_frozen_head(monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    batch = with_signal("states", llama(1))

    def adapted() -> PretrainedModel:
        module = llama(2).module
        torch.manual_seed(1)
        settings = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
        peft.inject_adapter_in_model(settings, module, "default")
        return type(llama(2))(module, "adapted")

    def frozen() -> PretrainedModel:
        model = llama(2)
        model.module.get_output_embeddings().requires_grad_(False)  # type: ignore[union-attr]
        return model

    for make in (adapted, frozen):
        value, gradient = loss_and_gradient(make(), batch, TrainingConfig())
        with monkeypatch.context() as patch:
            in_chunks_of(4, VOCAB_SIZE, patch)
            found, its_gradient = loss_and_gradient(make(), batch, TrainingConfig())
        assert found == pytest.approx(value, rel=1e-5)
        assert its_gradient.shape == gradient.shape
        assert (its_gradient - gradient).norm() < 2e-5 * gradient.norm()


def test_in_bfloat16_the_teachers_law_stays_in_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast is the student's: value and gradient as from laws made beforehand, to bfloat16's rounding."""
    teacher, seen = gpt2(1), []
    plain = teacher.head
    monkeypatch.setattr(teacher, "head", lambda hidden_NH: seen.append(plain(hidden_NH)) or seen[-1])
    of_states, of_laws = with_signal("states", teacher), with_signal("dense", gpt2(1))
    found = []
    for batch, tokens in ((of_laws, 1000), (of_states, 1000), (of_states, 4)):
        with monkeypatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
            in_chunks_of(tokens, VOCAB_SIZE, patch)
            found.append(loss_and_gradient(gpt2(2), batch, TrainingConfig()))
    assert torch.allclose(seen[0], of_laws.signal.log_p_NV, atol=1e-5)  # type: ignore[union-attr]
    (value, gradient), *others = found
    for other, its_gradient in others:
        assert other == pytest.approx(value, rel=2e-3)
        assert (its_gradient - gradient).norm() < 2e-2 * gradient.norm()


def test_several_teachers_are_one_law_of_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "DENSE_VOCABULARY_LIMIT", 0)
    teacher = Ensemble([gpt2(1), gpt2(3)], "two")
    cache = CachedLogProbs(teacher)
    batch = Batch(PROMPTS, RESPONSES, cache.signal(cache.compute(BATCH)))
    assert isinstance(batch.signal, States)
    value, gradient = loss_and_gradient(gpt2(2), with_signal("dense", teacher), TrainingConfig())
    in_chunks_of(4, VOCAB_SIZE, monkeypatch)
    found, its_gradient = loss_and_gradient(gpt2(2), batch, TrainingConfig())
    assert found == pytest.approx(value, rel=1e-5)
    assert (its_gradient - gradient).norm() < 2e-5 * gradient.norm()


# --- signals


def test_parts_of_a_joined_signal_are_those_of_its_law() -> None:
    signal = concatenated([says("states", gpt2(1)), says("dense", gpt2(2)), says("states", gpt2(3), BATCH[:2])])
    assert isinstance(signal, Joined)
    law = resolved(signal)
    assert isinstance(law, Dense)
    assert len(signal) == len(law) == 2 * BATCH.num_tokens + 4
    for tokens in (slice(0, 3), slice(13, 17), slice(15, 30), slice(14, 32), slice(33, 34)):
        part = resolved(signal.at(tokens))
        assert isinstance(part, Dense)
        torch.testing.assert_close(part.log_p_NV, law.log_p_NV[tokens], rtol=0, atol=2e-5)
    again = concatenated([signal, says("dense", gpt2(2))])
    assert isinstance(again, Joined)
    assert len(again.parts) == 4


def test_states_of_one_head_are_joined_into_one() -> None:
    teacher = gpt2(1)
    whole = concatenated([says("states", teacher, BATCH[:2]), says("states", teacher, BATCH[2:])])
    assert isinstance(whole, States)
    torch.testing.assert_close(whole.hidden_NH, teacher.hidden(BATCH), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssayError, match="kinds States and TopK: give all sources"):
        concatenated([whole, says("top_k", teacher)])


def test_a_batch_and_its_signal_have_one_length() -> None:
    for kind in ("dense", "states", "joined", "top_k"):
        with pytest.raises(ValueError, match="4 response tokens, but a signal at 15"):
            Batch(PROMPTS[:2], RESPONSES[:2], says(kind, gpt2(1)))


def test_rows_that_list_all_tokens_lose_alike_in_any_chunk() -> None:
    """What a server has lost of digits counts as a rest that does not exist, also beside rows that have one."""
    log_p, log_q = (gpt2(seed).log_probs(BATCH[:1]).detach() for seed in (1, 2))
    whole = top_k(log_p[:1], VOCAB_SIZE)
    rounded = type(whole)(whole.token_ids_NK, whole.log_p_NK, torch.full((1,), -16.0))
    together = concatenated([rounded, top_k(log_p[1:], 3)])
    loss = divergence("forward_kl")
    assert not isinstance(together, Sample)
    found = loss(*on_same_buckets(resolved(together), log_q))
    assert found[0].item() == pytest.approx(loss(log_p, log_q)[0].item(), rel=1e-5)


def test_text_and_teacher_stand_in_one_batch_of_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "DENSE_VOCABULARY_LIMIT", 0)
    prompts = [Prompt(f"p{i}", "", (1 + i, 2), "x", (3 + i, 0)) for i in range(8)]
    configs = [SourceConfig(weight=50.0), SourceConfig("dataset", weight=50.0, learn="text")]
    mixture = Mixture(
        [
            ResponseSource(config, prompts, {"teacher": gpt2(1)}, max_response_tokens=5, index=i)
            for i, config in enumerate(configs)
        ],
        8,
    )
    batch = mixture.batch(0, gpt2(2))
    assert isinstance(batch.signal, Joined)
    parts = [Batch(b.prompt_ids, b.response_ids) for b in (batch[:4], batch[4:])]
    expected = [
        loss_and_gradient(gpt2(2), with_signal("dense", gpt2(1), parts[0]), TrainingConfig())[0] * parts[0].num_tokens,
        loss_and_gradient(gpt2(2), parts[1], TrainingConfig(divergence="hard_labels"))[0] * parts[1].num_tokens,
    ]
    in_chunks_of(4, VOCAB_SIZE, monkeypatch)
    found, _ = loss_and_gradient(gpt2(2), batch, TrainingConfig())
    assert found * batch.num_tokens == pytest.approx(sum(expected), rel=1e-5)


# --- memory


def test_a_chunk_is_as_large_as_what_is_there_anyway() -> None:
    """24 MB, or some eight arrays that take no more than the two gradients of the head."""
    assert batching.tokens_at_once(1024) == 6144
    assert batching.tokens_at_once(151_936) == batching.tokens_at_once(151_936, 64) == 41
    assert batching.tokens_at_once(151_936, 256) == 64
    assert batching.tokens_at_once(151_936, 4096) == 128
    assert batching.tokens_at_once(10**8) == 1


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation has made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


LARGE, WIDTH, AT_ONCE = 5000, 16, 4
MANY = Batch([(1 + i, 2, 3) for i in range(12)], [(4 + i, *range(5, 5 + i), 0) for i in range(12)])


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """The most bytes that are allowed: the weights of the head, which a chunk stays below."""
    in_chunks_of(AT_ONCE, LARGE, monkeypatch)
    assert MANY.num_tokens * LARGE > 5 * LARGE * WIDTH > 10 * AT_ONCE * LARGE
    return 4 * LARGE * WIDTH


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_no_array_of_all_tokens_and_the_vocabulary_is_made_in_a_step(name: str, small_chunks: int) -> None:
    teacher, student = gpt2(1, LARGE), gpt2(2, LARGE)
    cache = CachedLogProbs(teacher)
    start, config = copy.deepcopy(student), TrainingConfig(divergence=name, anchor_weight=0.1, hard_label_weight=0.0)
    optimizer = SGD(student.module.parameters())
    with Largest() as largest:
        batch = Batch(MANY.prompt_ids, MANY.response_ids, cache.signal(cache.compute(MANY)))
        train_step(student, optimizer, batch, 0, config, start)  # type: ignore[arg-type]
    assert largest.bytes <= small_chunks


def test_a_step_of_one_chunk_makes_such_an_array() -> None:
    """So that the tests beside this one can fail."""
    batch, student = with_signal("states", gpt2(1, LARGE), MANY), gpt2(2, LARGE)
    with Largest() as largest:
        distillation_loss(student, batch, TrainingConfig()).backward()
    assert largest.bytes >= 4 * MANY.num_tokens * LARGE


@pytest.mark.parametrize("walker", ["states", "listed", "text"])
def test_the_probe_makes_none(walker: str, small_chunks: int) -> None:
    prompts = [Prompt(f"p{i}", "", ids) for i, ids in enumerate(MANY.prompt_ids)]
    responses = [
        Response(p.id, ids, "teacher", truncated=False) for p, ids in zip(prompts, MANY.response_ids, strict=True)
    ]
    teacher, student = gpt2(1, LARGE), gpt2(2, LARGE)
    with Largest() as largest:
        cache = {"states": CachedLogProbs(teacher), "listed": CachedLogProbs(teacher, 6), "text": None}[walker]
        frozen = FrozenSet("proxy", prompts, responses, cache)
        values, company = frozen.against(student)
        frozen.of_the_walker()
        judge = ModelJudge(JudgeConfig("second", "model", "gpt2"), teacher)
        judge.values(prompts, responses)
    assert largest.bytes <= small_chunks
    with pytest.MonkeyPatch.context() as patch:
        in_chunks_of(1000, LARGE, patch)
        whole, its_company = frozen.against(student)
        assert frozen.of_the_walker().keys() <= {"teacher_entropy_nats_per_token", "captured_mass"}
    assert values.value_nats == pytest.approx(whole.value_nats, rel=1e-4)
    assert company == {name: None if v is None else pytest.approx(v, rel=1e-5) for name, v in its_company.items()}


def test_a_linear_head_of_torch_can_be_called_alone() -> None:
    """As a benchmark or another trainer would."""
    torch.manual_seed(0)
    student, teacher = nn.Linear(H, V), nn.Linear(H, V)
    hidden_NH, teacher_NH = torch.randn(N, H, requires_grad=True), torch.randn(N, H)

    def losses(log_q_nV: Tensor, tokens: slice) -> Tensor:
        with torch.no_grad():
            log_p_nV = teacher(teacher_NH[tokens]).log_softmax(-1)
        return divergence("forward_kl")(log_p_nV, log_q_nV)

    def head(part_nH: Tensor) -> Tensor:
        return student(part_nH).log_softmax(-1)

    total = summed_over_chunks(hidden_NH, head, list(student.parameters()), losses, 2)
    gradients = torch.autograd.grad(total, [hidden_NH, student.weight, student.bias])
    dense = losses(head(hidden_NH), slice(0, N)).sum()
    for found, expected in zip(
        gradients, torch.autograd.grad(dense, [hidden_NH, student.weight, student.bias]), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
