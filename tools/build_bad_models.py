"""Builds tests/bad_inputs/models: a small whole model, and beside it what other folders have in place of its files.

A folder of a case holds only what differs from ``whole``; an empty FILE.absent says that FILE is not there. The same
call writes the same bytes:

    python tools/build_bad_models.py tests/bad_inputs
"""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
INDEX = "model.safetensors.index.json"
WORDS = ["<eos>", "<unk>", *"abcdefghijklmnopqrstu"]
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 33420\n"
)
PAGE = b"<!DOCTYPE html>\n<html><body><h1>404: Entry not found</h1></body></html>\n"


class Payload:
    """What runs, if it is ever unpickled: it makes a folder."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, ("the-payload-has-run",)


def write_whole(folder: Path) -> None:
    """A random GPT-2 of 7,000 weights and a tokenizer of 23 words."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(WORDS), n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
                        eos_token_id=0)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)


class Cases:
    """The folders of one call; ``index`` says what the error of each must hold."""

    def __init__(self, root: Path) -> None:
        self.root, self.whole = root, root / "whole"
        self.index: list[dict[str, Any]] = []
        self.weights = load_file(self.whole / WEIGHTS)
        self.config: dict[str, Any] = json.loads((self.whole / CONFIG).read_text())

    def add(self, name: str, says: str, files: dict[str, bytes | str | dict[str, Any] | None], **more: Any) -> None:
        """A case whose ``files`` are in place of those of the whole model; None: it is not there."""
        folder = self.root / name
        folder.mkdir()
        for file, content in files.items():
            if content is None:
                (folder / f"{file}.absent").touch()
                continue
            text = json.dumps(content, indent=1) + "\n" if isinstance(content, dict) else content
            (folder / file).write_bytes(text.encode() if isinstance(text, str) else text)
        self.index.append({"input": f"models/{name}", "says": says, **more})

    def tensors(self, change: Callable[[dict[str, np.ndarray]], Any]) -> bytes:
        """The weights after ``change``."""
        weights = {name: value.copy() for name, value in self.weights.items()}
        change(weights)
        return save(weights, metadata={"format": "pt"})

    def described(self, **changes: Any) -> dict[str, Any]:
        """The config after ``changes``; None takes a field out."""
        return {name: value for name, value in (self.config | changes).items() if value is not None}


def add_weights(cases: Cases) -> None:
    """Folders whose weights cannot be used."""
    whole = (cases.whole / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header: dict[str, Any] = json.loads(whole[8 : 8 + size])

    def with_header(changed: dict[str, Any]) -> bytes:
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + size :]

    first = next(name for name in header if name != "__metadata__")
    far = {**header, first: {**header[first], "data_offsets": [0, 10**12]}}
    odd = {**header, first: {**header[first], "dtype": "F99"}}
    add = cases.add
    add("weights-missing", "no file named model.safetensors", {WEIGHTS: None})
    add("weights-empty", "model", {WEIGHTS: b""})
    add("weights-cut-in-the-header", "model", {WEIGHTS: whole[:100]})
    add("weights-cut-off", "model", {WEIGHTS: whole[:-1000]})
    add("weights-with-bytes-behind", "model", {WEIGHTS: whole + b"\0" * 16})
    add("weights-with-a-header-beyond-the-file", "model", {WEIGHTS: struct.pack("<Q", 2**60) + whole[8:200]})
    add("weights-with-a-header-that-is-no-json", "model", {WEIGHTS: struct.pack("<Q", 8) + b"{offsets" + b"\0" * 64})
    add("weights-with-offsets-beyond-the-file", "model", {WEIGHTS: with_header(far)})
    add("weights-of-an-unknown-type", "model", {WEIGHTS: with_header(odd)})
    add("weights-that-are-a-git-lfs-pointer", "git lfs pull", {WEIGHTS: POINTER})
    add("weights-that-are-a-web-page", "web page", {WEIGHTS: PAGE})
    add(
        "weights-without-one-tensor", "missing keys", {WEIGHTS: cases.tensors(lambda w: w.pop("transformer.ln_f.bias"))}
    )
    extra = cases.tensors(lambda w: w.update({"transformer.h.2.ln_1.bias": np.zeros(16, np.float32)}))
    add("weights-of-one-layer-more", "unexpected keys", {WEIGHTS: extra})
    wide = cases.tensors(lambda w: w.update({"transformer.ln_f.bias": np.zeros(17, np.float32)}))
    add("weights-of-another-width", "model", {WEIGHTS: wide})
    rows = cases.tensors(lambda w: w.update({"transformer.wte.weight": np.zeros((24, 16), np.float32)}))
    add("weights-of-another-vocabulary", "model", {WEIGHTS: rows})
    nan = cases.tensors(lambda w: w["transformer.wte.weight"].fill(np.nan))
    add("weights-that-are-not-numbers", "not finite", {WEIGHTS: nan})
    add("weights-of-another-model", "keys", {WEIGHTS: save({"encoder.weight": np.zeros((2, 2), np.float32)})})
    add("weights-pickled-with-a-payload", "safetensors only",
        {WEIGHTS: None, "pytorch_model.bin": pickle.dumps(Payload(), protocol=2)})  # fmt: skip
    add("weights-for-llama-cpp", "model", {WEIGHTS: None, "model-q4_0.gguf": b"GGUF\3\0\0\0" + b"\0" * 32})
    add("weights-of-flax", "model", {WEIGHTS: None, "flax_model.msgpack": b"\x80"})
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "meta/base", "r": 8, "task_type": "CAUSAL_LM"}
    lora = {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": np.zeros((8, 16), np.float32)}
    add("adapter-without-its-base", "adapter",
        {WEIGHTS: None, CONFIG: None, "adapter_config.json": adapter,
         "adapter_model.safetensors": save(lora)})  # fmt: skip


def add_shards(cases: Cases) -> None:
    """Folders whose weights are said to be in several files."""

    def index(file: str) -> dict[str, Any]:
        return {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(cases.weights, file)}

    add = cases.add
    add("index-of-a-missing-shard", "model", {WEIGHTS: None, INDEX: index("model-00001-of-00002.safetensors")})
    add("index-that-climbs-out", "outside of its folder", {WEIGHTS: None, INDEX: index("../whole/model.safetensors")})
    add("index-of-an-absolute-path", "outside of its folder", {WEIGHTS: None, INDEX: index("/etc/passwd")})
    add("index-of-a-pickled-shard", "no safetensors file", {WEIGHTS: None, INDEX: index("pytorch_model.bin"),
        "pytorch_model.bin": pickle.dumps(Payload(), protocol=2)})  # fmt: skip
    add("index-cut-off", "model", {WEIGHTS: None, INDEX: '{"weight_map": {"a": "b'})
    add("index-without-a-map", "model", {WEIGHTS: None, INDEX: {"metadata": {}}})
    add("index-of-numbers", "model", {WEIGHTS: None, INDEX: {"metadata": {}, "weight_map": {"a": 1}}})


def add_configs(cases: Cases) -> None:
    """Folders whose config.json, or generation_config.json, cannot be used."""
    add, described = cases.add, cases.described
    add("config-missing", "model", {CONFIG: None})
    add("config-empty", "not a valid JSON file", {CONFIG: b""})
    add("config-cut-off", "not a valid JSON file", {CONFIG: '{"model_type": "gpt2", "n_embd": 1'})
    add("config-that-is-a-list", "must be a mapping, not list", {CONFIG: "[]\n"})
    add("config-that-is-a-web-page", "web page", {CONFIG: PAGE})
    add("config-that-is-a-git-lfs-pointer", "git lfs pull", {CONFIG: POINTER})
    add("config-in-utf-16", "not a valid JSON file", {CONFIG: json.dumps(cases.config).encode("utf-16")})
    add("config-without-a-type", "model", {CONFIG: described(model_type=None, architectures=None)})
    add("config-of-an-unknown-type", "model", {CONFIG: described(model_type="gpt99")})
    add("config-of-an-image-model", "model", {CONFIG: {"model_type": "vit", "hidden_size": 16, "image_size": 32}})
    add("config-of-an-encoder", "model", {CONFIG: {"model_type": "bert", "hidden_size": 16, "vocab_size": 23}})
    add("config-of-a-speech-model", "model", {CONFIG: {"model_type": "wav2vec2", "hidden_size": 16}})
    add("config-of-foreign-code", "trust_remote_code",
        {CONFIG: described(model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}),
         "own.py": "import os\n\nos.mkdir('the-payload-has-run')\n"})  # fmt: skip
    add("config-of-heads-that-do-not-divide", "model", {CONFIG: described(n_head=3)})
    add("config-of-no-heads", "model", {CONFIG: described(n_head=0)})
    add("config-of-layers-below-zero", "model", {CONFIG: described(n_layer=-1)})
    add("config-with-the-vocabulary-as-text", "'vocab_size'", {CONFIG: described(vocab_size="23")})
    add("config-with-a-width-of-nothing", "model", {CONFIG: described(n_embd=0)})
    add("config-with-a-list-for-a-number", "'n_embd'", {CONFIG: described(n_embd=[16])})
    add("config-that-ends-with-an-id-it-has-not", "end",
        {CONFIG: described(eos_token_id=99), "generation_config.json": {"eos_token_id": 99}})  # fmt: skip
    add("config-that-ends-otherwise-than-the-tokenizer", "end",
        {CONFIG: described(eos_token_id=5), "generation_config.json": {"eos_token_id": 5}})  # fmt: skip
    add("config-of-an-unknown-activation", "model", {CONFIG: described(activation_function="wiggle")})
    add("generation-config-cut-off", "generation_config.json", {"generation_config.json": '{"eos_token_id": '})


def add_tokenizers(cases: Cases) -> None:
    """Folders whose tokenizer cannot be used."""
    add = cases.add
    whole: dict[str, Any] = json.loads((cases.whole / TOKENIZER).read_text())
    settings: dict[str, Any] = json.loads((cases.whole / "tokenizer_config.json").read_text())

    def with_words(words: list[str]) -> dict[str, Any]:
        return {**whole, "model": {**whole["model"], "vocab": {word: i for i, word in enumerate(words)}}}

    add("tokenizer-missing", "no tokenizer", {TOKENIZER: None, "tokenizer_config.json": None})
    add("tokenizer-empty", "tokenizer", {TOKENIZER: b""})
    add("tokenizer-cut-off", "tokenizer", {TOKENIZER: json.dumps(whole)[:400]})
    add("tokenizer-that-is-a-git-lfs-pointer", "git lfs pull", {TOKENIZER: POINTER})
    add("tokenizer-without-a-model", "tokenizer", {TOKENIZER: {"version": "1.0"}})
    add("tokenizer-settings-that-are-a-list", "tokenizer", {"tokenizer_config.json": "[]\n"})
    add("tokenizer-without-an-end", "end-of-sequence token",
        {"tokenizer_config.json": {k: v for k, v in settings.items() if k != "eos_token"}})  # fmt: skip
    add("tokenizer-with-more-ids-than-the-model", "5 tokens other ids", {TOKENIZER: with_words([*WORDS, *"vwxyz"])})
    add("tokenizer-with-other-ids", "gives", {TOKENIZER: with_words([WORDS[0], WORDS[1], *reversed(WORDS[2:])])},
        role="teacher")  # fmt: skip
    add("chat-template-that-cannot-be-read", "template", {"chat_template.jinja": "{% for message in messages %}"},
        flags=["--chat-template"])  # fmt: skip
    add("chat-template-that-never-ends", "template",
        {"chat_template.jinja": "{% for i in range(10 ** 12) %}x{% endfor %}"}, flags=["--chat-template"])  # fmt: skip


def build(root: Path) -> None:
    """Writes ``root``/models and ``root``/models.jsonl."""
    folder = root / "models"
    shutil.rmtree(folder, ignore_errors=True)
    write_whole(folder / "whole")
    rows = [{"prompt": f"{a} {b} {c}"} for a in "abcdefgh" for b in "ijklmn" for c in "opqrs"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cases = Cases(folder)
    for add in (add_weights, add_shards, add_configs, add_tokenizers):
        add(cases)
    (root / "models.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in cases.index))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
