"""One conformance suite over every LanguageModel adapter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForCausalLM

from assay.buckets import resolved
from assay.errors import AssayError
from assay.models import cached
from assay.models.bases import BASES, base_path, bases_folder
from assay.models.causal import CausalModel
from assay.models.exact import HiddenMarkovModel, MarkovChain
from assay.models.language_model import LanguageModel
from assay.models.loading import load_model
from assay.models.seq2seq import Seq2SeqModel
from assay.types import Batch, Dense, States
from tiny_models import EOS, VOCAB_SIZE, bart, cut, gemma2, gpt2, llama, qwen3, t5

ADAPTERS = {
    "gpt2-tied": lambda: gpt2(3, tied=True),
    "gpt2-untied": lambda: gpt2(3, tied=False),
    "llama-tied": lambda: llama(3, tied=True),
    "llama-untied": lambda: llama(3, tied=False),
    "qwen3-tied": lambda: qwen3(3, tied=True),
    "qwen3-untied": lambda: qwen3(3, tied=False),
    "gemma2-tied": lambda: gemma2(3, tied=True),
    "gemma2-untied": lambda: gemma2(3, tied=False),
    "gemma2-padded": lambda: cut(gemma2(3, vocab_size=31)),
    "t5": lambda: t5(3),
    "mt5": lambda: t5(3, gated=True),
    "bart": lambda: bart(3),
    "bart-padded": lambda: cut(bart(3, vocab_size=31)),
    "markov-chain": lambda: MarkovChain.random(VOCAB_SIZE, seed=3),
    "hidden-markov": lambda: HiddenMarkovModel.random(4, VOCAB_SIZE, seed=3),
}
PROMPTS = [(5,), (7, 3, 9, 2), (4, 4), (11, 2, 8, 6, 1, 3)]
RESPONSES = [(3, 8, EOS), (6,), (EOS,), (2, 9, 4, 7, EOS)]


@pytest.fixture(params=ADAPTERS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return ADAPTERS[request.param]()


def test_is_a_language_model(model: LanguageModel) -> None:
    assert isinstance(model, LanguageModel)


def test_log_probs_are_normalised_one_row_per_response_token(model: LanguageModel) -> None:
    log_p_NV = model.log_probs(Batch(PROMPTS, RESPONSES))
    assert log_p_NV.shape == (sum(map(len, RESPONSES)), model.vocab_size)
    assert torch.allclose(log_p_NV.exp().sum(-1), torch.ones(len(log_p_NV), dtype=log_p_NV.dtype), atol=1e-5)


def test_padding_batch_size_and_order_change_nothing(model: LanguageModel) -> None:
    together = model.log_probs(Batch(PROMPTS, RESPONSES)).split([len(r) for r in RESPONSES])
    backwards = model.log_probs(Batch(PROMPTS[::-1], RESPONSES[::-1])).split([len(r) for r in RESPONSES[::-1]])
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        alone = model.log_probs(Batch([prompt], [response]))
        assert torch.allclose(together[i], alone, atol=2e-5)
        assert torch.allclose(backwards[len(PROMPTS) - 1 - i], alone, atol=2e-5)


def test_head_of_hidden_is_log_probs(model: LanguageModel) -> None:
    batch = Batch(PROMPTS, RESPONSES)
    hidden_NH = model.hidden(batch)
    assert torch.allclose(model.head(hidden_NH), model.log_probs(batch), atol=1e-5)
    assert torch.allclose(model.head(hidden_NH[2:4]), model.log_probs(batch)[2:4], atol=1e-5)


@pytest.mark.parametrize("dense_limit", [0, 4096])
def test_what_is_cached_of_a_model_is_what_it_says(
    model: LanguageModel, dense_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of keeping it: log-probabilities, and hidden states that the head expands later."""
    monkeypatch.setattr(cached, "DENSE_VOCABULARY_LIMIT", dense_limit)
    stored = cached.CachedLogProbs(model)
    assert stored.kind == ("log_probs" if dense_limit else "hidden")
    batch = Batch(PROMPTS, RESPONSES)
    kept = stored.compute(batch)
    for rows in (slice(0, 4), slice(2, 4)):
        signal = stored.signal(kept[rows])
        assert isinstance(signal, Dense if dense_limit else States)
        law = resolved(signal)
        assert isinstance(law, Dense)
        assert torch.allclose(law.log_p_NV, model.log_probs(batch[rows]), atol=2e-5)


def test_a_prefix_is_scored_alike_whatever_follows(model: LanguageModel) -> None:
    short = model.log_probs(Batch([(7, 3)], [(6, 2)]))
    long = model.log_probs(Batch([(7, 3)], [(6, 2, 9, EOS)]))
    assert torch.allclose(short, long[:2], atol=2e-5)


def test_responses_end_with_eos_or_at_the_limit(model: LanguageModel) -> None:
    responses = model.sample([(5, 2)] * 200, range(200), max_response_tokens=6)
    assert all(1 <= len(r) <= 6 for r in responses)
    assert all(EOS not in r[:-1] for r in responses)
    assert all(r[-1] == EOS for r in responses if len(r) < 6)


def test_a_row_depends_on_its_prompt_and_seed_alone(model: LanguageModel) -> None:
    prompts, seeds = PROMPTS * 8, list(range(32))
    together = model.sample(prompts, seeds, 8)
    assert together == model.sample(prompts, seeds, 8)
    assert together[::-1] == model.sample(prompts[::-1], seeds[::-1], 8)
    for i in (0, 5, 19):
        assert model.sample([prompts[i]], [seeds[i]], 8) == [together[i]]
    assert together != model.sample(prompts, [seed + 1000 for seed in seeds], 8)


def test_sampled_frequencies_match_the_scores(model: LanguageModel) -> None:
    """First and second tokens against exp(log_probs), by a chi-square bound; prompts of two lengths in a batch."""
    num = 4000
    samples = model.sample([(5, 2, 7), (4,)] * num, range(2 * num), max_response_tokens=2)[::2]
    first = np.bincount([r[0] for r in samples], minlength=VOCAB_SIZE)
    p_first = model.log_probs(Batch([(5, 2, 7)], [(1,)])).detach().exp()[0].double().numpy()
    assert_same_distribution(first, p_first)
    most_common = int(np.argmax(np.where(np.arange(VOCAB_SIZE) == EOS, 0, first)))
    second = np.bincount([r[1] for r in samples if r[0] == most_common], minlength=VOCAB_SIZE)
    p_second = model.log_probs(Batch([(5, 2, 7)], [(most_common, 1)])).detach().exp()[1].double().numpy()
    assert_same_distribution(second, p_second)


def test_temperature_zero_is_greedy_and_temperature_sharpens(model: LanguageModel) -> None:
    greedy = model.sample([PROMPTS[1]], [0], 5, sampling_temperature=0.0)[0]
    log_p_NV = model.log_probs(Batch([PROMPTS[1]], [greedy]))
    assert tuple(log_p_NV.argmax(-1).tolist()) == greedy
    cold = model.sample([PROMPTS[1]] * 2000, range(2000), 1, sampling_temperature=0.5)
    p = log_p_NV[0].detach().double().exp().numpy() ** 2
    assert_same_distribution(np.bincount([r[0] for r in cold], minlength=VOCAB_SIZE), p / p.sum())


@pytest.mark.parametrize("name", sorted(BASES))
def test_the_card_of_a_base_is_about_the_weights_that_ship(name: str) -> None:
    card = json.loads((base_path(name) / "card.json").read_text())
    model = load_model(name)
    assert card["digest"] == model.digest
    assert card["num_parameters"] == sum(p.numel() for p in model.module.parameters())
    assert {key: card[key] for key in ("epochs", "learning_rate", "seed")} == {
        key: getattr(BASES[name], key) for key in ("epochs", "learning_rate", "seed")
    }


def test_what_ships_is_small() -> None:
    def megabytes(folder: Path) -> float:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6

    assert megabytes(bases_folder()) < 25
    assert megabytes(bases_folder().parents[1] / "data" / "corpora") < 6
    assert {path.name for path in bases_folder().iterdir()} == set(BASES)


def test_equal_digests_mean_equal_weights() -> None:
    assert gpt2(3).digest == gpt2(3).digest != gpt2(4).digest


GENERATING = {
    "gpt2": lambda: gpt2(5),
    "qwen3": lambda: qwen3(5),
    "gemma2": lambda: gemma2(5),
    "t5": lambda: t5(5),
    "mt5": lambda: t5(5, gated=True),
    "bart": lambda: bart(5),
}


@pytest.mark.parametrize("family", GENERATING)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_matches_generate_in_distribution(temperature: float, family: str) -> None:
    """transformers' own decoding as the reference: token counts of many samples from each (two-sample chi-square)."""
    model, num, length = GENERATING[family](), 3000, 3
    ours = model.sample([PROMPTS[1]] * num, range(num), length, temperature)
    torch.manual_seed(0)
    theirs = model.module.generate(
        torch.tensor([PROMPTS[1]] * num),
        attention_mask=torch.ones(num, len(PROMPTS[1]), dtype=torch.long),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=length,
        pad_token_id=EOS,
    )
    theirs = theirs[:, 1 if model.module.config.is_encoder_decoder else len(PROMPTS[1]) :]
    for t in range(theirs.shape[1]):
        a = np.bincount([r[t] if t < len(r) else EOS for r in ours], minlength=VOCAB_SIZE)
        b = np.bincount(theirs[:, t].numpy(), minlength=VOCAB_SIZE)
        used = a + b >= 20
        statistic = float(((a - b)[used] ** 2 / (a + b)[used]).sum())
        assert statistic < chi_square_bound(int(used.sum()))


@pytest.mark.parametrize("family", GENERATING)
def test_greedy_decoding_equals_generate(family: str) -> None:
    model = GENERATING[family]()
    prompts = [(7, 3, 9, 2), (4, 4, 6, 8), (11, 2, 8, 6)]
    ours = model.sample(prompts, [0, 1, 2], 8, sampling_temperature=0.0)
    theirs = model.module.generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(3, 4, dtype=torch.long),
        do_sample=False,
        max_new_tokens=8,
        pad_token_id=EOS,
    )
    rows = theirs[:, 1 if model.module.config.is_encoder_decoder else 4 :].tolist()
    assert ours == [tuple(row[: row.index(EOS) + 1] if EOS in row else row) for row in rows]


def test_the_encoder_runs_once_for_all_tokens_of_a_response() -> None:
    model, calls = t5(5), []
    model.module.get_encoder().register_forward_hook(lambda *arguments: calls.append(1))
    assert max(map(len, model.sample(PROMPTS * 5, range(20), 8))) > 3
    assert len(calls) == 1


def test_a_sequence_beyond_the_context_is_refused() -> None:
    model = gpt2()
    with pytest.raises(AssayError, match=r"40 tokens.*context of 32"):
        model.log_probs(Batch([tuple(range(1, 21)) * 1], [tuple(range(1, 21))]))
    with pytest.raises(AssayError, match="context of 32"):
        model.sample([(1,) * 30], [0], 8)


def test_an_encoder_decoder_bounds_prompt_and_response_each_on_its_own() -> None:
    model = bart()
    model.log_probs(Batch([(1,) * 30], [(3,) * 30]))
    with pytest.raises(AssayError, match=r"a prompt has 33 tokens.*context of 32.*max_prompt_tokens"):
        model.log_probs(Batch([(1,) * 33], [(3,)]))
    with pytest.raises(AssayError, match=r"a response has 33 tokens.*max_response_tokens"):
        model.sample([(1,)], [0], 33)
    t5().check_lengths(100_000, 100_000)


def test_an_encoder_decoder_without_a_start_token_is_refused() -> None:
    module = t5().module
    module.config.decoder_start_token_id = None
    with pytest.raises(AssayError, match="no decoder_start_token_id"):
        Seq2SeqModel(module, "strange")


def test_an_empty_prompt_or_response_is_refused() -> None:
    with pytest.raises(AssayError, match="empty"):
        gpt2().log_probs(Batch([()], [(1,)]))
    with pytest.raises(AssayError, match="empty"):
        gpt2().log_probs(Batch([(1,)], [()]))


def test_a_model_that_post_processes_its_logits_unknown_to_us_is_refused() -> None:
    module = gpt2().module
    forward = module.forward

    def shifted(*arguments: object, **named: object) -> object:
        output = forward(*arguments, **named)
        output.logits = output.logits * 1.5
        return output

    module.forward = shifted
    with pytest.raises(AssayError, match="more to its logits"):
        CausalModel(module, "strange")


def test_a_decoder_that_ignores_left_padding_is_refused() -> None:
    """Its prompts of unlike length would be sampled from another law than they are scored with."""
    torch.manual_seed(0)
    config = BartConfig(vocab_size=VOCAB_SIZE, d_model=16, decoder_layers=1, decoder_attention_heads=2, eos_token_id=0)
    module = BartForCausalLM(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(8.0)
    with pytest.raises(AssayError, match="does not decode padded prompts"):
        CausalModel(module, "bart-decoder")


def assert_same_distribution(counts: np.ndarray, p: np.ndarray) -> None:
    """Pearson's chi-square at about five sigma, cells of small expectation joined."""
    expected = p * counts.sum()
    small = expected < 5
    observed = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    used = expected > 0
    statistic = float(((observed - expected)[used] ** 2 / expected[used]).sum())
    assert statistic < chi_square_bound(int(used.sum()))


def chi_square_bound(cells: int) -> float:
    freedom = max(cells - 1, 1)
    return freedom + 5 * (2 * freedom) ** 0.5 + 5
