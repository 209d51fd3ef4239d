"""A served teacher behind a real vLLM server (tests/servers/vllm.sh) on a tiny Llama; `make test-server` runs this.

ASSAY_VLLM_ENVIRONMENT is the folder of the server's own Python environment, by default in the user's cache; it is made
when it is not there. The server listens on loopback and ends with the tests.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForCausalLM

from assay.checkpoints import save_model
from assay.config import ServerConfig
from assay.errors import AssayError
from assay.models.causal import CausalModel
from assay.models.sampling import response_seed
from assay.models.served import ServedModel
from assay.types import Batch
from servers.stub import word_tokenizer
from tiny_models import EOS, VOCAB_SIZE

pytestmark = pytest.mark.server

MAX_LOGPROBS = 23
START_SECONDS = 1800  # the first start installs
BOUND = 1e-4


@pytest.fixture(scope="module")
def model() -> CausalModel:
    """A Llama whose heads are as wide as vLLM wants them, with probabilities far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    module = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(6.0 if parameter.dim() > 1 else 1.0)
    return CausalModel(module, "tiny")


@pytest.fixture(scope="module")
def url(model: CausalModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("vllm")
    save_model(model, folder / "model", word_tokenizer())
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "assay" / "vllm"
    environment = os.environ.get("ASSAY_VLLM_ENVIRONMENT", str(cache))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--served-model-name", "tiny", "--max-logprobs", str(MAX_LOGPROBS)]
    script = Path(__file__).parent / "servers" / "vllm.sh"
    log = folder / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [str(script), environment, str(folder / "model"), str(port), *options],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # vLLM's engine is a process of its own: the group ends together
        )
    try:
        _wait_until_ready(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _wait_until_ready(server: subprocess.Popen[bytes], health: str, log: Path) -> None:
    for _ in range(START_SECONDS):
        if server.poll() is not None:
            pytest.fail(f"vLLM ended with code {server.returncode}:\n{log.read_text()[-2000:]}")
        try:
            if httpx2.get(health, trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(1)
    pytest.fail(f"vLLM was not ready in {START_SECONDS} s:\n{log.read_text()[-2000:]}")


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def batch(model: CausalModel, num_sequences: int = 24) -> Batch:
    """Prompts of unlike length with responses of the model itself."""
    drawn = np.random.default_rng(1)
    prompts = [tuple(map(int, drawn.integers(2, VOCAB_SIZE, size=1 + i % 7))) for i in range(num_sequences)]
    return Batch(prompts, model.sample(prompts, range(num_sequences), 20))


def test_scores_are_those_of_transformers(model: CausalModel, url: str) -> None:
    scored = batch(model)
    expected_NV = model.log_probs(scored).detach()
    for k in (VOCAB_SIZE, 4):
        signal = ServedModel(url, word_tokenizer(), ServerConfig(top_k=k)).top_k(scored)
        real_NK = signal.log_p_NK > -torch.inf
        differences = (signal.log_p_NK - expected_NV.gather(1, signal.token_ids_NK))[real_NK].abs()
        listed = torch.zeros_like(expected_NV, dtype=torch.bool).scatter(1, signal.token_ids_NK, True)
        rest_N = expected_NV.double().exp().masked_fill(listed, 0).sum(dim=-1)
        tails = (signal.log_tail_N.double().exp() - rest_N).abs()
        print(f"K = {k}: log-probabilities differ by {differences.max():.1e} at most, tails by {tails.max():.1e}")
        assert listed.gather(1, expected_NV.topk(k).indices).all()
        assert differences.max() < BOUND
        assert tails.max() < BOUND


def test_samples_repeat_with_their_seed_whatever_their_batch(model: CausalModel, url: str) -> None:
    teacher = ServedModel(url, word_tokenizer(), ServerConfig())
    prompts = list(batch(model).prompt_ids)
    seeds = [response_seed("test", i) for i in range(len(prompts))]
    together = teacher.sample(prompts, seeds, 12)
    assert teacher.sample(prompts[::-1], seeds[::-1], 12)[::-1] == together
    assert [teacher.sample([p], [s], 12)[0] for p, s in zip(prompts[:4], seeds[:4], strict=True)] == together[:4]
    assert teacher.sample(prompts, [seed + 1 for seed in seeds], 12) != together
    assert {len(response) == 12 or response[-1] == EOS for response in together} == {True}
    greedy = teacher.sample(prompts, seeds, 12, 0.0)
    assert greedy == model.sample(prompts, seeds, 12, 0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_are_distributed_as_the_scores_say(model: CausalModel, url: str, temperature: float) -> None:
    """Chi-square over the pairs of first tokens: the second token's law hangs on the first."""
    number, prompt = 3000, (5, 3)
    teacher = ServedModel(url, word_tokenizer(), ServerConfig(top_k=VOCAB_SIZE, concurrency=32))
    seeds = [response_seed("chi-square", str(temperature), i) for i in range(number)]
    found = Counter(teacher.sample([prompt] * number, seeds, 2, temperature))
    signal = teacher.top_k(Batch([prompt] * VOCAB_SIZE, [(first, EOS) for first in range(VOCAB_SIZE)]))
    log_p_NV = torch.full((2 * VOCAB_SIZE, VOCAB_SIZE), -torch.inf).scatter(1, signal.token_ids_NK, signal.log_p_NK)
    p_NV = (log_p_NV.double() / temperature).softmax(dim=-1)
    expected = {(EOS,): number * float(p_NV[0, EOS])}
    for first in set(range(VOCAB_SIZE)) - {EOS}:
        for second in range(VOCAB_SIZE):
            expected[first, second] = number * float(p_NV[0, first] * p_NV[2 * first + 1, second])
    frequent = [pair for pair, count in expected.items() if count >= 5]
    counts = np.array([(found[pair], expected[pair]) for pair in frequent])
    counts = np.vstack([counts, number - counts.sum(axis=0)])
    test = chisquare(counts[:, 0], counts[:, 1])
    print(f"temperature {temperature}: {len(counts)} cells, chi-square {test.statistic:.1f}, p {test.pvalue:.3f}")
    assert found.keys() <= expected.keys()
    assert test.pvalue > 1e-3


def test_another_tokenizer_is_refused(url: str) -> None:
    with pytest.raises(AssayError, match="is not the student's"):
        ServedModel(url, word_tokenizer("abcdefghijklmnopqrsut"), ServerConfig())


def test_what_vllm_refuses_is_said(model: CausalModel, url: str) -> None:
    with pytest.raises(AssayError, match="has no model 'other'"):
        ServedModel(url, word_tokenizer(), ServerConfig(model="other"))
    teacher = ServedModel(url, word_tokenizer(), ServerConfig())
    assert teacher.max_context_tokens == 64
    with pytest.raises(AssayError, match="needs 65 tokens"):
        teacher.top_k(Batch([(2,) * 60], [(3,) * 4]))
    teacher.top_k(Batch([(2,) * 60], [(3,) * 3]))
    teacher.num_top = MAX_LOGPROBS + 1
    with pytest.raises(AssayError, match=r"greater than max allowed: 23 .*--max-logprobs 24"):
        teacher.top_k(batch(model, 1))
