"""What a teacher says about responses, on disk: computed once for all students, epochs and runs that ask again.

    FOLDER/KEY/key.json                     what the key is the digest of
    FOLDER/KEY/shard-…/signals.safetensors  the tensors of some sequences
    FOLDER/KEY/shard-…/index.json           its SHA-256, which sequences they are, where their responses came from

The key names the teacher (weights, settings, tokenizer, how text became prompts, vocabulary) and what is kept of its
law; an entry is addressed by the token ids of prompt and response. Shards appear whole or not at all, under names of
their own, so processes share a store without a lock: at worst two compute the same entry, and the first found is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from assay import ranks, runs
from assay.config import digest_of
from assay.errors import AssayError
from assay.models.batching import SCORING_BATCH_SIZE
from assay.models.cached import KEPT, CachedLogProbs, Kept, by_length
from assay.models.ensemble import Ensemble
from assay.models.language_model import LanguageModel, ListingModel
from assay.models.pretrained import PretrainedModel
from assay.types import Batch

SCHEMA = "assay.signals/1"
_TENSORS, _INDEX = "signals.safetensors", "index.json"


class SignalStore(CachedLogProbs):
    """``CachedLogProbs`` that are kept on disk too: what is in the store is not computed again.

    Tensors are kept as the model gives them, so stored equals live bit for bit; a sequence that is found was scored in
    the batch of whoever scored it first, which may differ from another batch by float rounding. ``settings`` are what
    the key holds beside the model and what is kept of it; ``provenance``, how responses were sampled, is noted in every
    shard. ``in_memory`` False has everybody read from the files again instead of holding what they have read. A shard
    that is damaged is said so on stderr, set aside, and its sequences are computed again. Raises AssayError when the
    folder cannot be used or holds another key under this one's name.
    """

    def __init__(
        self,
        model: LanguageModel | ListingModel,
        folder: Path,
        *,
        top_k: int | None = None,
        settings: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        in_memory: bool = True,
    ) -> None:
        super().__init__(model, top_k)
        key = {
            "schema": SCHEMA,
            "model": model.digest,
            "model_settings": model_settings_digest(model),
            "vocab_size": model.vocab_size,
            "kept": f"top_{self.num_listed}" if self.kind == "top_k" else self.kind,
            **(settings or {}),
        }
        self.folder = folder / digest_of(key)
        self._provenance = dict(provenance or {})
        self.in_memory = in_memory
        self._places: dict[str, Path] = {}  # the shard that holds an address
        self._digests: dict[Path, str | None] = {}  # of the shards seen so far
        self._verified: set[Path] = set()
        runs.prepare_folder(self.folder)
        self._lock = runs.put_in_order_if_alone(self.folder)  # before anything is written
        ranks.by_first("the key of the signal store", lambda: _write_or_compare(self.folder / "key.json", key))

    def take(self, batch: Batch) -> list[Kept | None]:
        """What the store holds of each sequence; None where that is nothing."""
        addresses = _addresses(batch)
        if not self._places.keys() >= set(addresses):
            self._look_for_shards()
        by_shard: dict[Path, list[int]] = {}
        for row, address in enumerate(addresses):
            if address in self._places:
                by_shard.setdefault(self._places[address], []).append(row)
        kept: list[Kept | None] = [None] * len(batch)
        for shard, rows in by_shard.items():
            found = self._read(shard, [addresses[row] for row in rows])
            for row, value in zip(rows, found, strict=True):
                kept[row] = value
        return kept

    @torch.no_grad()
    def compute(self, batch: Batch, batch_size: int = SCORING_BATCH_SIZE) -> list[Kept]:
        """What to keep of each sequence: what the store holds of it, or computed now and written."""
        kept = self.take(batch)
        missing = [row for row, value in enumerate(kept) if value is None]
        fresh = Batch([batch.prompt_ids[row] for row in missing], [batch.response_ids[row] for row in missing])
        for rows, part in by_length(fresh, batch_size):
            values = super().compute(part, batch_size)
            self._write(part, values)
            for row, value in zip(rows, values, strict=True):
                kept[missing[row]] = value
        return [value for value in kept if value is not None]

    def _look_for_shards(self) -> None:
        """Takes up the shards that have appeared since."""
        for shard in sorted(self.folder.glob("shard-*")):
            if shard in self._digests:
                continue
            try:
                index = runs.read_json(shard / _INDEX)
                self._digests[shard], addresses = str(index["sha256"]), list(map(str, index["entries"]))
            except (AssayError, KeyError, TypeError):
                self._set_aside(shard, f"its {_INDEX} cannot be read")
                continue
            for address in addresses:
                self._places.setdefault(address, shard)

    def _read(self, shard: Path, addresses: Sequence[str]) -> Sequence[Kept | None]:
        """The entries of a shard, which is set aside when it is damaged: then there are none."""
        try:
            with runs.readable_errors(shard, "read"):
                return self._tensors(shard, addresses)
        except (_DamagedShard, SafetensorError) as error:
            self._set_aside(shard, str(error).splitlines()[0])
            return [None] * len(addresses)

    def _tensors(self, shard: Path, addresses: Sequence[str]) -> list[Kept]:
        device = getattr(self.model, "device", "cpu")  # models in closed form have none
        try:
            if shard not in self._verified and runs.file_digest(shard / _TENSORS) != self._digests[shard]:
                raise _DamagedShard("its digest is another")
            self._verified.add(shard)
            with safe_open(shard / _TENSORS, framework="pt") as tensors:
                return [
                    {name: tensors.get_tensor(f"{address}.{name}").to(device, copy=True) for name in KEPT[self.kind]}
                    for address in addresses
                ]
        except FileNotFoundError as error:
            raise _DamagedShard(f"its {_TENSORS} is missing") from error

    def _write(self, part: Batch, values: Sequence[Kept]) -> None:
        entries = dict(zip(_addresses(part), values, strict=True))
        tensors = {
            f"{address}.{name}": tensor.cpu().contiguous()
            for address, value in entries.items()
            for name, tensor in value.items()
        }
        content = save(tensors)
        index = {
            "schema": SCHEMA,
            "sha256": hashlib.sha256(content).hexdigest(),
            "num_tokens": part.num_tokens,
            "provenance": self._provenance,
            "entries": list(entries),
        }
        shard = self.folder / f"shard-{uuid.uuid4().hex}"

        def write(path: Path) -> None:
            path.mkdir()
            (path / _TENSORS).write_bytes(content)
            (path / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")

        runs.write_atomically(shard, write, by_each=True)
        self._digests[shard] = index["sha256"]
        self._verified.add(shard)
        self._places.update(dict.fromkeys(entries, shard))

    def _set_aside(self, shard: Path, cause: str) -> None:
        self._places = {address: place for address, place in self._places.items() if place != shard}
        try:
            os.replace(shard, shard.with_name(f"damaged-{shard.name}"))
        except FileNotFoundError:
            return  # another process was first
        except OSError as error:
            raise AssayError(
                f"cannot set {str(shard)!r} aside, which is damaged: {error.strerror}; "
                "delete it, or choose another distillation.signal_store"
            ) from error
        runs.say(f"{str(shard)!r} is damaged ({cause}): set aside, its signals are computed again")


def model_settings_digest(model: LanguageModel | ListingModel) -> str:
    """A short hash of what a transformers model's law hangs on beside its weights: its config, without its name.

    An ensemble's is that of its members; other models say all in their own digest.
    """
    members = model.members if isinstance(model, Ensemble) else [model]
    texts = [m.module.config.to_json_string(use_diff=False) for m in members if isinstance(m, PretrainedModel)]
    names = ("_name_or_path", "transformers_version")
    return digest_of([{k: v for k, v in json.loads(text).items() if k not in names} for text in texts])


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash of how text becomes token ids, and chats text."""
    rules: Any = sorted(tokenizer.get_vocab().items())
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        rules = tokenizer.backend_tokenizer.to_str()
    return digest_of([rules, tokenizer.chat_template])


class _DamagedShard(Exception):
    """A shard is not what was written."""


def _addresses(batch: Batch) -> list[str]:
    pairs = zip(batch.prompt_ids, batch.response_ids, strict=True)
    return [hashlib.sha256(json.dumps(pair).encode()).hexdigest()[:32] for pair in pairs]


def _write_or_compare(path: Path, key: Mapping[str, Any]) -> None:
    if not path.exists():
        runs.write_json(path, key)
    elif runs.read_json(path) != json.loads(json.dumps(key)):
        raise AssayError(
            f"{str(path)!r} describes other signals than those that belong into its folder: delete that folder, or "
            "choose another distillation.signal_store"
        )
