"""Decoding: tokens drawn by the inverse CDF, keys and values written in place, rows retired, prompts bucketed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from assay.models import pretrained, sampling
from assay.models.caches import can_preallocate
from assay.models.causal import CausalModel
from assay.models.pretrained import PretrainedModel
from assay.types import Batch
from tiny_models import VOCAB_SIZE, bart, gemma2, gpt2, llama, qwen3, t5

FAMILIES = {
    "gpt2": gpt2,
    "llama": llama,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "t5": t5,
    "mt5": lambda seed: t5(seed, gated=True),
    "bart": bart,
}
WAYS = {"written out": (True, True), "in place": (False, True), "growing": (False, False)}
"""What decodes: ``steps_directly`` and ``preallocates``."""
WRITTEN_OUT = {"gpt2", "llama", "qwen3", "t5", "mt5"}
PROMPTS = [(5,), (7, 3, 9, 2), (4, 4), (11, 2, 8, 6, 1, 3)] * 5


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PretrainedModel:
    return FAMILIES[request.param](4)


def logits(vocab_size: int, rows: int, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(vocab_size)
    return (scale * torch.randn((rows, vocab_size), generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocab_size", [1, 2, 3, 50, 1000, 1024, 32_000, 50_257])
def test_a_drawn_token_is_where_the_uniform_falls_in_the_cdf(vocab_size: int, dtype: torch.dtype) -> None:
    """Against one cumulative sum in float64 over the whole vocabulary, for every row."""
    logits_BV = logits(vocab_size, 200, dtype=dtype)
    uniforms_B = torch.from_numpy(sampling.uniforms(range(200), 1)[:, 0])
    token_B1 = sampling.draw(logits_BV, uniforms_B).unsqueeze(-1)
    p_BV = logits_BV.double().softmax(dim=-1)
    upper_B = p_BV.cumsum(dim=-1).gather(-1, token_B1).squeeze(-1)
    lower_B = upper_B - p_BV.gather(-1, token_B1).squeeze(-1)
    rounding = 1e-6 if dtype == torch.float32 else 1e-12
    assert (lower_B <= uniforms_B + rounding).all()
    assert (uniforms_B <= upper_B + rounding).all()


def test_tokens_of_little_mass_are_drawn_by_the_uniforms_within_them() -> None:
    """Down to 1e-13 in float64, the uniform in the middle of each token's part of the CDF."""
    logits_V = logits(1000, 1, scale=6.0, dtype=torch.float64)[0]
    p_V = logits_V.softmax(dim=-1)
    drawn_V = sampling.draw(logits_V.expand(1000, -1), p_V.cumsum(dim=-1) - p_V / 2)
    seen_V = p_V > 1e-13
    assert (p_V[seen_V] < 1e-8).sum() > 50
    assert torch.equal(drawn_V[seen_V], torch.arange(1000)[seen_V])


@pytest.mark.parametrize("vocab_size", [50, 32_000])
def test_frequencies_of_drawn_tokens_are_those_of_the_softmax(vocab_size: int) -> None:
    """Pearson's chi-square over 50 groups of consecutive tokens, at about five sigma; fixed seeds."""
    logits_1V, num = logits(vocab_size, 1, scale=1.5), 4000
    uniforms_N = torch.from_numpy(sampling.uniforms(range(num), 1)[:, 0])
    parts = [sampling.draw(logits_1V.expand(len(part), -1), part) for part in uniforms_N.split(500)]
    group_N = (torch.cat(parts) * 50) // vocab_size
    p_V = logits_1V[0].double().softmax(dim=-1)
    expected_G = num * p_V.reshape(50, -1).sum(dim=-1)
    observed_G = torch.bincount(group_N, minlength=50)
    kept_G = expected_G >= 5
    statistic = float(((observed_G - expected_G)[kept_G] ** 2 / expected_G[kept_G]).sum())
    freedom = int(kept_G.sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 5


@pytest.mark.parametrize("vocab_size", [7, 64, 1000])
def test_a_token_of_probability_zero_is_never_drawn(vocab_size: int) -> None:
    logits_V = torch.full((vocab_size,), -torch.inf)
    logits_V[[2, vocab_size // 2]] = torch.tensor([0.3, 0.1])
    for uniform, token in ((0.0, 2), (0.5, 2), (0.6, vocab_size // 2), (1.0, vocab_size // 2)):
        assert sampling.draw(logits_V.unsqueeze(0), torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


def test_a_row_is_drawn_alike_in_any_batch() -> None:
    logits_BV = logits(1000, 64)
    uniforms_B = torch.from_numpy(sampling.uniforms(range(64), 1)[:, 0])
    together_B = sampling.draw(logits_BV, uniforms_B)
    for rows in (slice(0, 1), slice(5, 22), slice(63, 64)):
        assert torch.equal(sampling.draw(logits_BV[rows], uniforms_B[rows]), together_B[rows])


def test_tokens_are_those_of_the_module_with_a_growing_cache(model: PretrainedModel) -> None:
    """Beyond the window of Gemma2's first layer too, which is four tokens."""
    assert model.preallocates
    assert model.steps_directly == any(model.name.startswith(family) for family in WRITTEN_OUT)
    written = []
    for way in WAYS:
        decode_by(model, way)
        written.append(model.sample(PROMPTS, range(len(PROMPTS)), 16))
    assert written[0] == written[1] == written[2]
    assert max(map(len, written[0])) > 8


@pytest.mark.parametrize("way", WAYS)
def test_every_step_decodes_what_is_scored(model: PretrainedModel, way: str) -> None:
    """The law of each of nine tokens after prompts of unlike length."""
    decode_by(model, way)
    prompts, responses = PROMPTS[:4], [tuple((3 * i + t) % (VOCAB_SIZE - 2) + 2 for t in range(9)) for i in range(4)]
    with torch.no_grad():
        scored_BTV = model.log_probs(Batch(prompts, responses)).unflatten(0, (4, 9))
        decoding, input_ids = model.begin(prompts, 9)
        for t in range(9):
            decoded_BV = model.head(decoding.feed(input_ids))
            assert torch.allclose(decoded_BV, scored_BTV[:, t], atol=1e-4), t
            input_ids = torch.tensor([[response[t]] for response in responses])


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_leave_change_nothing_for_the_others(model: PretrainedModel, way: str) -> None:
    decode_by(model, way)
    prompts, rows = PROMPTS[:4], torch.tensor([1, 3])
    with torch.no_grad():
        whole, first = model.begin(prompts, 6)
        fewer, _ = model.begin(prompts, 6)
        whole.feed(first), fewer.feed(first)
        fewer.keep(rows)
        for t in range(3):
            input_ids = torch.tensor([[2 + t], [3 + t], [4 + t], [5 + t]])
            assert torch.allclose(fewer.feed(input_ids[rows]), whole.feed(input_ids)[rows], atol=1e-5)


def decode_by(model: PretrainedModel, way: str) -> None:
    """Families that are not written out decode through the module instead."""
    model.steps_directly, model.preallocates = WAYS[way][0] and model.steps_directly, WAYS[way][1]


@pytest.mark.parametrize("bucket", [1, 3, 7])
def test_buckets_by_length_change_no_response_and_no_order(
    model: PretrainedModel, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = range(100, 100 + len(PROMPTS))
    together = model.sample(PROMPTS, seeds, 10)
    monkeypatch.setattr(pretrained, "SAMPLING_BATCH_SIZE", bucket)
    assert model.sample(PROMPTS, seeds, 10) == together


def test_prompts_of_like_length_are_decoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "SAMPLING_BATCH_SIZE", 10)
    model, begun = gpt2(4), []
    begin = model.begin
    monkeypatch.setattr(
        model, "begin", lambda prompts, limit: begun.append(sorted(map(len, prompts))) or begin(prompts, limit)
    )
    model.sample(PROMPTS, range(20), 4)
    assert begun == [[1] * 5 + [2] * 5, [4] * 5 + [6] * 5]


def test_a_model_that_takes_no_ready_masks_decodes_with_a_growing_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens, and no refusal: the check at load chooses."""
    expected = gpt2(4).sample(PROMPTS, range(20), 10)
    module = gpt2(4).module
    forward = module.base_model.forward

    def two_axes_only(*arguments: Any, attention_mask: Tensor | None = None, **named: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("a mask has two axes")
        return forward(*arguments, attention_mask=attention_mask, **named)

    monkeypatch.setattr(module.base_model, "forward", two_axes_only)
    model = CausalModel(module, "two-axes")
    assert not model.preallocates
    assert model.sample(PROMPTS, range(20), 10) == expected


def test_only_known_kinds_of_layers_and_attention_are_written_in_place() -> None:
    module = gemma2(4).module
    assert can_preallocate(module)
    module.config.layer_types = ["full_attention", "chunked_attention"]
    assert not can_preallocate(module)
    other = gpt2(4).module
    other.config._attn_implementation_internal = "flash_attention_2"
    assert not can_preallocate(other)


def test_uniforms_of_a_row_are_its_seed_s() -> None:
    assert np.array_equal(sampling.uniforms([3, 8], 5)[1], sampling.uniforms([8], 5)[0])


def test_uniforms_are_those_of_a_generator_keyed_by_the_seed() -> None:
    seeds = [0, 1, 2**63 + 5, 2**64 - 1, 2**64, 2**127 + 9]
    expected = [np.random.Generator(np.random.Philox(key=seed)).random(9) for seed in seeds]
    assert np.array_equal(sampling.uniforms(seeds, 9), np.stack(expected))
