"""Checkpoints that are not what they should be: each refused with one sentence, none trained on."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from assay.checkpoints import save_model
from assay.data.tasks import get_task, load_prompts
from assay.errors import AssayError
from assay.models.bases import base_path
from assay.models.causal import CausalModel
from assay.models.loading import (
    check_device,
    check_fits,
    check_same_tokenizer,
    check_same_vocabulary,
    load_framing,
    load_model,
    load_tokenizer,
    random_model,
)
from assay.models.pretrained import eos_token_ids
from assay.types import Batch, Framing
from tiny_models import bart, gemma2, gpt2, llama, qwen3, t5


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A copy of the student's base, to be damaged."""
    return Path(shutil.copytree(base_path("define-student"), tmp_path / "student"))


def rewrite(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def test_the_copy_loads_as_long_as_it_is_whole(student: Path) -> None:
    assert load_model(str(student)).digest == load_model("define-student").digest


def test_a_missing_or_superfluous_weight_is_refused(student: Path) -> None:
    rewrite(student, lambda weights: weights.pop("transformer.h.0.attn.c_attn.weight"))
    with pytest.raises(AssayError, match=r"missing keys.*c_attn"):
        load_model(str(student))


def test_a_weight_of_another_shape_is_refused(student: Path) -> None:
    rewrite(student, lambda weights: weights.update({"transformer.wpe.weight": torch.zeros(3, 3)}))
    with pytest.raises(AssayError, match="student"):
        load_model(str(student))


def test_weights_that_are_not_numbers_are_refused(student: Path) -> None:
    rewrite(student, lambda weights: weights["transformer.wte.weight"].fill_(float("nan")))
    with pytest.raises(AssayError, match="not finite"):
        load_model(str(student))


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_file_is_refused(student: Path, content: bytes | None) -> None:
    path = student / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    with pytest.raises(AssayError, match="cannot load the model"):
        load_model(str(student))


def test_pickled_weights_are_refused(student: Path) -> None:
    torch.save(load_file(student / "model.safetensors"), student / "pytorch_model.bin")
    (student / "model.safetensors").unlink()
    with pytest.raises(AssayError, match=r"safetensors only.*models\.allow_pickle to true"):
        load_model(str(student))
    assert load_model(str(student), allow_pickle=True).digest == load_model("define-student").digest


def test_safetensors_are_read_also_where_pickles_are_allowed(student: Path) -> None:
    (student / "pytorch_model.bin").write_bytes(b"garbage")
    assert load_model(str(student), allow_pickle=True).digest == load_model("define-student").digest


def stating(folder: Path, config: object, generation: object = None) -> str:
    """The checkpoint with these end-of-sequence tokens in config.json and, if given, in generation_config.json."""
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"eos_token_id": config}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "generation"),
    [
        ([301, 0, 309], None),  # as Llama 3
        (301, [301, 0]),  # as Qwen, whose tokenizer closes a turn
        ([301, 0], [0, 301]),
        (0, [301, 309]),
        (None, [0, 301]),
        ([0], None),
        (0, None),
    ],
)
def test_of_several_end_tokens_the_tokenizers_ends_a_response(
    student: Path, tmp_path: Path, config: object, generation: object
) -> None:
    name, tokenizer = stating(student, config, generation), load_tokenizer("define-oracle")
    for model in (
        load_model(name),  # its tokenizer is beside it
        load_model(name, eos_token_id=tokenizer.eos_token_id),
        random_model(name, 1),
    ):
        assert model.eos_token_id == tokenizer.eos_token_id == 0
        check_fits(tokenizer, model)
    model = load_model(name)
    responses = model.sample([(15, 12)] * 50, range(50), 24)
    assert {response[-1] for response in responses if len(response) < 24} == {0}
    assert all(0 not in response[:-1] for response in responses)
    save_model(model, tmp_path / "kept")  # it says what it said before
    again = load_model(str(tmp_path / "kept"), eos_token_id=0)
    assert eos_token_ids(again.module) == eos_token_ids(model.module)


@pytest.mark.parametrize(("config", "generation"), [([301, 309], None), (301, None), (301, [301, 309]), (None, None)])
def test_an_end_token_that_the_model_does_not_know_is_refused(
    student: Path, config: object, generation: object
) -> None:
    name = stating(student, config, generation)
    with pytest.raises(AssayError, match=r"tokenizer ends sequences with token 0, but .*student' with \["):
        load_model(name, eos_token_id=0)
    with pytest.raises(AssayError, match="tokenizer ends sequences with token 0"):
        check_fits(load_tokenizer("define-oracle"), load_model(stating(student, 301)))


def test_the_tokenizer_decides_not_the_order_of_the_tokens(student: Path) -> None:
    tokenizer = load_tokenizer("define-oracle")
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(301)
    tokenizer.save_pretrained(student)
    assert load_model(stating(student, [0, 301])).eos_token_id == 301
    assert load_model(stating(student, 0, [0, 301])).eos_token_id == 301
    assert random_model(str(student), 1).eos_token_id == 301


def test_several_end_tokens_without_a_tokenizer_are_refused(student: Path) -> None:
    for path in student.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(AssayError, match="tokenizer"):
        load_model(stating(student, [301, 0]))
    assert load_model(str(student), eos_token_id=301).eos_token_id == 301
    with pytest.raises(AssayError, match=r"no single end-of-sequence token \(\[0, 301\]\)"):
        CausalModel(load_model(str(student), eos_token_id=301).module, "bare")
    with pytest.raises(AssayError, match=r"no single end-of-sequence token \(\[\]\)"):
        load_model(stating(student, None))


def test_models_that_end_responses_with_unlike_tokens_are_refused(student: Path) -> None:
    with pytest.raises(AssayError, match=r"ends sequences with token 0 and .* with 301"):
        check_same_vocabulary(load_model("define-oracle"), load_model(stating(student, 301)))


class Bomb:
    """A pickle of this makes a folder when it is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_an_allowed_pickle_holds_tensors_and_runs_nothing(student: Path, tmp_path: Path) -> None:
    (student / "model.safetensors").unlink()
    path = student / "pytorch_model.bin"
    path.write_bytes(b"")
    with pytest.raises(AssayError, match="cannot load the model"):
        load_model(str(student), allow_pickle=True)
    torch.save({"transformer.wte.weight": Bomb(tmp_path / "boom")}, path)
    for content in (path.read_bytes(), pickle.dumps(Bomb(tmp_path / "boom"), protocol=2), b"garbage"):
        path.write_bytes(content)
        with pytest.raises(AssayError, match="damaged or hold more than tensors, which is never loaded"):
            load_model(str(student), allow_pickle=True)
    assert not (tmp_path / "boom").exists()


def test_a_missing_or_truncated_shard_is_refused(student: Path) -> None:
    weights = load_file(student / "model.safetensors")
    (student / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, student / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (student / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_model(str(student)).digest == load_model("define-student").digest
    second = student / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(AssayError, match="cannot load the model"):
        load_model(str(student))
    second.unlink()
    with pytest.raises(AssayError, match="cannot load the model"):
        load_model(str(student))


CODE = """
import pathlib
from transformers import GPT2Config, GPT2LMHeadModel
pathlib.Path({seen!r}).touch()
class OwnConfig(GPT2Config):
    model_type = "own"
class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""


def test_code_of_a_checkpoint_runs_only_when_it_is_trusted(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    seen = tmp_path / "seen"
    (student / "own.py").write_text(CODE.format(seen=str(seen)))
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": auto_map}))
    for load in (load_model, lambda name: random_model(name, 1)):
        with pytest.raises(AssayError, match=r"Python code in its own.*models\.trust_remote_code to true"):
            load(str(student))
    assert not seen.exists()
    model = load_model(str(student), trust_remote_code=True)
    assert seen.exists()
    assert type(model.module).__name__ == "OwnModel"
    assert model.digest == load_model("define-student").digest
    assert random_model(str(student), 1, trust_remote_code=True).digest != model.digest
    save_model(model, tmp_path / "kept")
    assert load_model(str(tmp_path / "kept"), trust_remote_code=True).digest == model.digest


@pytest.mark.parametrize(("file", "content"), [("config.json", "{}"), ("config.json", "[1"), ("tokenizer.json", "{}")])
def test_a_damaged_description_is_refused(student: Path, file: str, content: str) -> None:
    (student / file).write_text(content)
    load = load_tokenizer if file == "tokenizer.json" else load_model
    with pytest.raises(AssayError, match="cannot load the"):
        load(str(student))


def test_other_token_ids_are_refused(student: Path) -> None:
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = [token for token, index in vocabulary.items() if index in (100, 101)]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(AssayError, match="gives 2 tokens other ids"):
        check_same_tokenizer(load_tokenizer("define-oracle"), str(student))
    check_same_tokenizer(load_tokenizer("define-oracle"), "define-teacher")


def test_models_and_tokenizers_of_other_sizes_are_refused() -> None:
    with pytest.raises(AssayError, match=r"512 tokens.*23"):
        check_same_vocabulary(load_model("define-oracle"), gpt2())
    with pytest.raises(AssayError, match="ids up to 511"):
        check_fits(load_tokenizer("define-oracle"), gpt2())


def test_a_model_without_a_tokenizer_is_no_oracle(tmp_path: Path) -> None:
    save_model(gpt2(), tmp_path)
    with pytest.raises(AssayError, match="tokenizer"):
        load_tokenizer(str(tmp_path))


def test_an_unknown_device_is_refused() -> None:
    check_device("cpu")
    with pytest.raises(AssayError, match="device 'abacus' cannot be used"):
        check_device("abacus")


def test_a_tokenizer_with_other_ids_is_noticed_without_its_config(student: Path) -> None:
    (student / "tokenizer_config.json").unlink()
    text = json.loads((student / "tokenizer.json").read_text())
    vocab = text["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (student / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(AssayError, match="2 tokens other ids"):
        check_same_tokenizer(load_tokenizer("define-oracle"), str(student))


@pytest.mark.parametrize("change", [{"n_head": 0}, {"n_head": 7}, {"activation_function": "no such"}])
def test_a_config_that_no_model_can_be_made_of_is_refused(student: Path, change: dict[str, object]) -> None:
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(AssayError, match="cannot load the model"):
        load_model(str(student))
    with pytest.raises(AssayError, match="cannot load the model"):
        random_model(str(student), seed=0)


@pytest.mark.parametrize("make", [t5, lambda seed: t5(seed, gated=True), bart, gpt2, llama, qwen3, gemma2])
def test_a_saved_model_of_either_family_is_the_same_model_when_it_is_loaded(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = make(3)
    save_model(model, tmp_path / "kept")
    read = load_model(str(tmp_path / "kept"))
    batch = Batch([(5,), (7, 3, 9, 2)], [(3, 8, 0), (6,)])
    assert type(read) is type(model)
    assert torch.equal(read.log_probs(batch), model.log_probs(batch))
    assert read.digest == model.digest


def framed(tmp_path: Path, family: str, single: str | None) -> tuple[str, PreTrainedTokenizerFast]:
    """A checkpoint whose tokenizer puts special tokens around text, as those of T5, BART and Llama do."""
    tokenizer = load_tokenizer("define-oracle")
    tokenizer.add_special_tokens({"cls_token": "<s>"})
    if single is not None:
        ids = [("<s>", tokenizer.convert_tokens_to_ids("<s>")), ("<|endoftext|>", 0)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    save_model(t5(0) if family == "seq2seq" else gpt2(0), tmp_path / family)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return str(tmp_path / family), tokenizer


@pytest.mark.parametrize(
    ("family", "single", "expected"),
    [
        ("causal", None, Framing()),
        ("causal", "<s> $A", Framing(before=(512,))),  # as Llama
        ("causal", "<s> $A <|endoftext|>", Framing(before=(512,))),  # a prompt must not end the sequence
        ("seq2seq", None, Framing()),
        ("seq2seq", "$A <|endoftext|>", Framing(after=(0,))),  # as T5
        ("seq2seq", "<s> $A <|endoftext|>", Framing((512,), (0,), (512,))),  # as BART
    ],
)
def test_prompts_and_references_carry_the_special_tokens_that_their_family_expects(
    tmp_path: Path, family: str, single: str | None, expected: Framing
) -> None:
    name, tokenizer = framed(tmp_path, family, single)
    framing = load_framing(name, tokenizer)
    assert framing == expected
    plain = load_prompts(get_task("define"), "oracle", tokenizer, 12, 24, num_prompts=20)
    room = len(expected.before) + len(expected.after)
    prompts = load_prompts(get_task("define"), "oracle", tokenizer, 12 + room, 24, num_prompts=20, framing=framing)
    for prompt, bare in zip(prompts, plain, strict=True):
        assert prompt.token_ids == (*expected.before, *bare.token_ids, *expected.after)
        assert prompt.reference_ids == ((*expected.before_reference, *bare.reference_ids)[:24])


def test_what_looks_like_a_special_token_in_a_text_is_text(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"say <|endoftext|> {i}", "reference": f"the word <|pad|> {i} <|endoftext|> more"} for i in range(60)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = load_tokenizer("define-oracle")
    for prompt in load_prompts(get_task(str(path)), "oracle", tokenizer, 60, 60):
        assert not {0, 1} & {*prompt.token_ids, *prompt.reference_ids[:-1]}
        assert prompt.reference_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(prompt.token_ids) == prompt.text
