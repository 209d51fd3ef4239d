"""A trimmed vocabulary: texts are cut as before, and the law is the full one given that a kept token comes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models
from transformers import PreTrainedTokenizerFast

import tiny_models
from assay import AssayError
from assay.checkpoints import save_model
from assay.data.tasks import corpus_rows, encode, get_task
from assay.models.causal import CausalModel
from assay.models.loading import check_fits, load_model, load_tokenizer
from assay.models.trimming import kept_token_ids, trimmed_model, trimmed_tokenizer
from assay.types import Batch

GLOSSES = [f" {row['gloss']}" for row in corpus_rows(get_task("define"))[:3000]]
SPECIAL = ["<unk>", "<end>", "<pad>"]


def _full(vocab_size: int) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(GLOSSES, vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<pad>", chat_template="{x}"
    )


TOKENIZER = _full(1200)


def _trim(texts: list[str]) -> tuple[list[int], PreTrainedTokenizerFast]:
    kept = kept_token_ids(TOKENIZER, {token_id for text in texts for token_id in encode(TOKENIZER, text)})
    return kept, trimmed_tokenizer(TOKENIZER, kept)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from(GLOSSES), min_size=1, max_size=30, unique=True))
def test_every_text_of_the_corpus_is_tokenised_as_before(texts: list[str]) -> None:
    kept, small = _trim(texts)
    assert len(kept) < len(TOKENIZER)
    assert len(small) == len(kept)
    for text in texts:
        assert [kept[token_id] for token_id in encode(small, text)] == encode(TOKENIZER, text)
        assert small.decode(encode(small, text)) == text


def test_kept_are_the_needed_the_special_and_what_they_are_merged_from_and_no_more() -> None:
    texts = GLOSSES[:40]
    needed = {token_id for text in texts for token_id in encode(TOKENIZER, text)}
    kept, _ = _trim(texts)
    of_token = TOKENIZER.convert_ids_to_tokens
    special = set(TOKENIZER.convert_tokens_to_ids(SPECIAL))
    assert special <= set(kept)
    assert kept == sorted(set(kept))
    for token_id in set(kept) - needed - special:
        assert any(of_token(token_id) in of_token(larger) for larger in needed)
    assert len(kept) > len(needed | special)  # the closure is needed at all


def test_each_of_several_merges_into_one_token_is_kept() -> None:
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<end>", "a", "b", "c", "d", "ab", "bc", "abc", "cd"])}
    merges = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c"), ("c", "d")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<end>")
    kept = kept_token_ids(tokenizer, [vocabulary["abc"]])
    assert tokenizer.convert_ids_to_tokens(kept) == ["<unk>", "<end>", "a", "b", "c", "ab", "bc", "abc"]


def test_what_is_cut_off_becomes_the_unknown_token() -> None:
    _, small = _trim([" a dog"])
    assert small.unk_token_id in encode(small, " a zebra")
    assert small.unk_token_id not in encode(small, " a dog")
    assert (small.eos_token, small.pad_token, small.chat_template) == ("<end>", "<pad>", "{x}")
    without = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="<end>")
    with pytest.raises(AssayError, match="no unknown token"):
        trimmed_tokenizer(without, [0, 1, 2])


def test_only_bpe_is_trimmed() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    with pytest.raises(AssayError, match="only a BPE tokenizer"):
        kept_token_ids(PreTrainedTokenizerFast(tokenizer_object=words), [1])


KEPT = [0, 2, 3, 5, 11, 17, 22]
PROMPTS, RESPONSES = [(1, 2), (3, 4, 5)], [(4, 6, 0), (2, 1)]  # in the ids of the trimmed models


def _old(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [tuple(KEPT[i] for i in row) for row in rows]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tied", [True, False])
def test_the_law_is_the_full_one_renormalised_over_kept_tokens(tied: bool, temperature: float) -> None:
    full = tiny_models.llama(tied=tied)
    before = full.digest
    small = CausalModel(trimmed_model(full.module, KEPT, temperature), "small")
    assert small.vocab_size == len(KEPT)
    assert full.digest == before
    assert len(small.module.state_dict()) == len(full.module.state_dict())
    with torch.no_grad():
        log_q_NV = small.log_probs(Batch(PROMPTS, RESPONSES))
        log_p_NV = full.log_probs(Batch(_old(PROMPTS), _old(RESPONSES))).double()[:, KEPT]
    torch.testing.assert_close(log_q_NV.double(), (log_p_NV / temperature).log_softmax(dim=-1), rtol=0, atol=1e-5)


def test_gpt2_is_trimmed_at_temperature_1_alone() -> None:
    full = tiny_models.gpt2()
    small = CausalModel(trimmed_model(full.module, KEPT), "small")
    with torch.no_grad():
        log_q_NV = small.log_probs(Batch(PROMPTS, RESPONSES))
        log_p_NV = full.log_probs(Batch(_old(PROMPTS), _old(RESPONSES)))[:, KEPT]
    torch.testing.assert_close(log_q_NV, log_p_NV.log_softmax(dim=-1), rtol=0, atol=1e-5)
    with pytest.raises(AssayError, match="temperature"):
        trimmed_model(full.module, KEPT, 0.7)


def test_a_trimmed_checkpoint_is_read_back_with_its_tokenizer(tmp_path: Path) -> None:
    texts = GLOSSES[:5]
    kept, tokenizer = _trim(texts)
    full = tiny_models.gpt2(vocab_size=len(TOKENIZER))
    for config in (full.module.config, full.module.generation_config):
        config.eos_token_id = [TOKENIZER.eos_token_id, len(TOKENIZER) - 1]  # the second is not kept
    full.module.config.pad_token_id = TOKENIZER.pad_token_id
    assert len(TOKENIZER) - 1 not in kept
    small = CausalModel(trimmed_model(full.module, kept), "small")
    save_model(small, tmp_path / "small", tokenizer)
    loaded, read_back = load_model(str(tmp_path / "small")), load_tokenizer(str(tmp_path / "small"))
    check_fits(read_back, loaded)
    assert loaded.digest == small.digest
    assert loaded.eos_token_id == read_back.eos_token_id == kept.index(TOKENIZER.eos_token_id)
    assert loaded.module.config.pad_token_id == kept.index(TOKENIZER.pad_token_id)
    assert [encode(read_back, text) for text in texts] == [encode(tokenizer, text) for text in texts]
