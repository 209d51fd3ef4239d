"""Decoding steps that are written out are what the modules compute, on the modules' own weights, or are not taken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

import tiny_models
from assay.models import decode_gpt2, decode_step
from assay.models.causal import CausalModel, _CausalDecoding
from assay.models.decode_rows import StepDecoding
from assay.models.decode_t5 import T5StepDecoding
from assay.models.lora import add_adapters
from assay.models.pretrained import PretrainedModel
from assay.types import Batch

PROMPTS = [(5,), (7, 3, 9, 2), (4, 4), (11, 2, 8, 6, 1, 3)]
NORMS = (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm, T5LayerNorm, MT5LayerNorm)
DRAWN = (StepDecoding, T5StepDecoding)

_SIZES: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def made(module_class: Any, config: Any) -> CausalModel:
    """A random model with norms, biases and weights that all matter."""
    torch.manual_seed(3)
    module = module_class(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4 + (1.0 if parameter.dim() == 1 else 0.0))
    return CausalModel(module.eval(), module_class.__name__)


def gpt2(**options: Any) -> CausalModel:
    sizes = {"vocab_size": 23, "n_positions": 32, "n_embd": 16, "n_layer": 3, "n_head": 4}
    return made(GPT2LMHeadModel, GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **options))


def llama(**options: Any) -> CausalModel:
    return made(LlamaForCausalLM, LlamaConfig(**_SIZES, **options))


def qwen2() -> CausalModel:
    return made(Qwen2ForCausalLM, Qwen2Config(**_SIZES, num_key_value_heads=2))


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS: dict[str, Callable[[], PretrainedModel]] = {
    "gpt2": gpt2,
    "gpt2, scores scaled by layer": lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
    "gpt2, scores not scaled": lambda: gpt2(scale_attn_weights=False),
    "gpt2, another activation": lambda: gpt2(activation_function="gelu", n_inner=24),
    "gpt2, eager attention": lambda: gpt2(attn_implementation="eager"),
    "llama": llama,
    "llama, keys for two queries, biases": lambda: llama(num_key_value_heads=2, attention_bias=True),
    "llama, rotation of llama3": lambda: llama(rope_parameters=LLAMA3_ROPE),
    "qwen2": qwen2,
    "qwen3": lambda: tiny_models.qwen3(4),
    "t5": lambda: tiny_models.t5(4),
    "mt5": lambda: tiny_models.t5(4, gated=True),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PretrainedModel:
    return MODELS[request.param]()


def through_the_module(model: PretrainedModel) -> PretrainedModel:
    """The same weights behind an adapter that never steps directly."""
    other = copy.copy(model)
    other.steps_directly = False
    return other


def norm_in_own_precision(self: Any, hidden_states: Tensor) -> Tensor:
    """Transformers squares in float32, whatever the model's precision."""
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def test_every_state_is_the_module_s_in_float64(model: PretrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-10, after prompts of unlike length, over eight steps, two of four rows leaving on the way."""
    for norm in NORMS:
        monkeypatch.setattr(norm, "forward", norm_in_own_precision)
    model.module.double()
    assert model.steps_directly
    with torch.no_grad():
        ours, ours_first = model.begin(PROMPTS, 8)
        theirs, theirs_first = through_the_module(model).begin(PROMPTS, 8)
        assert isinstance(ours, DRAWN)
        assert not isinstance(theirs, DRAWN)
        assert torch.equal(ours_first, theirs_first)
        input_ids = ours_first
        for t in range(8):
            if t == 4:
                rows = torch.tensor([0, 3])
                ours.keep(rows), theirs.keep(rows)
                input_ids = input_ids[rows]
            state_AH = ours.feed(input_ids)
            assert state_AH.dtype == torch.float64
            assert torch.allclose(state_AH, theirs.feed(input_ids), rtol=1e-10, atol=1e-10), t
            input_ids = torch.tensor([[2 + t + i] for i in range(len(state_AH))])


def test_greedy_tokens_are_those_of_generate(model: PretrainedModel) -> None:
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        written = model.module.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0, min_length=0)
        start = len(prompt) if isinstance(model, CausalModel) else 1
        assert list(model.sample([prompt], [0], 12, sampling_temperature=0.0)[0]) == written[0, start:].tolist()


def test_weights_that_training_or_loading_has_changed_are_seen(model: PretrainedModel) -> None:
    """By the next decoding, and by one that had begun: nothing is copied."""
    module = through_the_module(model)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    law = next_states(model)
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=0.05)
    responses = [(2, 3, 4)] * len(PROMPTS)
    model.log_probs(Batch(PROMPTS, responses))[:, 2].sum().backward()
    begun, first = model.begin(PROMPTS, 4)
    optimizer.step()
    trained = next_states(model)
    assert not torch.allclose(trained, law, atol=1e-2)
    assert torch.allclose(trained, next_states(module), atol=1e-4)
    if isinstance(model, CausalModel):  # what T5 computes of the prompts is computed when it begins
        with torch.no_grad():
            assert torch.equal(begun.feed(first), model.begin(PROMPTS, 4)[0].feed(first))
    model.module.load_state_dict(before)
    assert torch.equal(next_states(model), law)


@torch.no_grad()
def next_states(model: PretrainedModel) -> Tensor:
    decoding, first = model.begin(PROMPTS, 4)
    decoding.feed(first)
    return decoding.feed(torch.tensor([[2], [3], [4], [5]])).clone()


class OtherGPT2(GPT2LMHeadModel):
    """A class of its own may compute anything."""


def a_hook(model: PretrainedModel) -> None:
    model.module.get_submodule("transformer.h.1.mlp").register_forward_hook(lambda part, args, output: output * 2)


def a_hook_before(model: PretrainedModel) -> None:
    model.module.get_submodule("transformer.h.2.mlp").register_forward_pre_hook(lambda part, args: (args[0] * 2,))


def another_forward(model: PretrainedModel) -> None:
    part: Any = model.module.get_submodule("transformer.h.0.mlp.c_fc")
    forward = part.forward
    part.forward = lambda x: 2 * forward(x)


def an_adapter(model: PretrainedModel) -> None:
    pytest.importorskip("peft")
    add_adapters(model, 2)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    model.module.eval()


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def a_parametrization(model: PretrainedModel) -> None:
    part = model.module.get_submodule("transformer.h.0.attn.c_proj")
    parametrize.register_parametrization(part, "weight", Doubled())


def another_norm(model: PretrainedModel) -> None:
    block: Any = model.module.get_submodule("transformer.h.0")
    block.ln_1 = nn.Identity()


CHANGES = (a_hook, a_hook_before, another_forward, an_adapter, a_parametrization, another_norm)


@pytest.mark.parametrize("change", CHANGES)
def test_a_module_that_is_no_longer_plain_is_run_itself(change: Callable[[PretrainedModel], None]) -> None:
    """Also where the change was made after the model was taken up; and its law is the changed one."""
    model = gpt2()
    assert isinstance(model.begin(PROMPTS, 4)[0], StepDecoding)
    plain = next_states(model)
    change(model)
    assert isinstance(model.begin(PROMPTS, 4)[0], _CausalDecoding)
    assert not torch.allclose(next_states(model), plain, atol=1e-3)
    assert torch.equal(next_states(model), next_states(through_the_module(model)))


def test_dropout_mixed_precision_and_halves_are_left_to_the_module() -> None:
    model = gpt2()
    model.module.train()
    assert isinstance(model.begin(PROMPTS, 4)[0], _CausalDecoding)
    model.module.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(model.begin(PROMPTS, 4)[0], _CausalDecoding)
    assert isinstance(model.begin(PROMPTS, 4)[0], StepDecoding)
    model.module.bfloat16()
    assert isinstance(model.begin(PROMPTS, 4)[0], _CausalDecoding)


def test_other_classes_and_options_are_not_written_out() -> None:
    assert not made(OtherGPT2, gpt2().module.config).steps_directly
    assert not gpt2(activation_function="quick_gelu").steps_directly
    dynamic = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    assert not llama(rope_parameters=dynamic).steps_directly
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    assert not made(Qwen2ForCausalLM, Qwen2Config(**_SIZES, num_key_value_heads=2, **window)).steps_directly
    assert not tiny_models.gemma2(4).steps_directly
    assert not tiny_models.bart(4).steps_directly


def test_a_step_that_computes_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at load compares it with scoring, whatever the classes say."""
    monkeypatch.setitem(decode_step.ACTIVATIONS, decode_step.NewGELUActivation, F.relu)
    assert not gpt2().steps_directly
    monkeypatch.undo()
    assert gpt2().steps_directly
    monkeypatch.setattr(decode_gpt2, "is_plain", lambda module, known: False)
    assert not gpt2().steps_directly


def test_gelu_by_tanh_is_torch_s() -> None:
    x = torch.linspace(-30, 30, 4001, dtype=torch.float64)
    assert torch.allclose(decode_step.gelu_tanh(x), F.gelu(x, approximate="tanh"), rtol=1e-12, atol=1e-14)
    assert torch.allclose(decode_step.gelu_tanh(x.float()), F.gelu(x, approximate="tanh").float(), atol=1e-6)
    assert decode_step.gelu_tanh(torch.tensor([-1e4, 1e4])).tolist() == [0.0, 1e4]
