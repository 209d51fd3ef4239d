"""The store of teacher signals: stored equals live, nobody asks twice, damage and kills cost a shard at most."""

from __future__ import annotations

import json
import os
import signal as signals
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from assay.buckets import resolved
from assay.config import SourceConfig, TrainingConfig
from assay.data.signal_store import SignalStore, model_settings_digest, tokenizer_digest
from assay.data.sources import Mixture, ResponseSource
from assay.errors import AssayError
from assay.models import cached
from assay.models.batching import forecast_bytes
from assay.models.cached import CachedLogProbs, Kept
from assay.models.causal import CausalModel
from assay.models.ensemble import Ensemble
from assay.models.exact import MarkovChain
from assay.training import distillation_loss, fit
from assay.types import Batch, Prompt, TopK
from tiny_models import VOCAB_SIZE, bart, gpt2, llama, t5

BATCH = Batch([(5, 2), (7, 3, 9, 4), (6,), (8, 8)], [(3, 4, 0), (6, 8), (9, 1, 2, 0), (0,)])
PROMPTS = [Prompt(f"p{i}", "", (5 + i, 2, 3), "reference", (4, 6 + i, 0)) for i in range(8)]
KINDS = ["log_probs", "hidden", 5, VOCAB_SIZE]


@pytest.fixture(params=KINDS, ids=str)
def top_k(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Every way of keeping a law, as the argument that chooses it."""
    if request.param == "hidden":
        monkeypatch.setattr(cached, "DENSE_VOCABULARY_LIMIT", 0)
    return request.param if isinstance(request.param, int) else None


class Forwards:
    """Counts the forward passes of a model's body."""

    def __init__(self, model: CausalModel) -> None:
        self.count = 0
        model.module.base_model.register_forward_hook(self._seen)

    def _seen(self, *_: object) -> None:
        self.count += 1


def equal(first: list[Kept], second: list[Kept]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
        for a, b in zip(first, second, strict=True)
    )


def shards(store: SignalStore) -> list[Path]:
    return sorted(store.folder.glob("shard-*"))


def loss_and_gradient(cache: CachedLogProbs, divergence: str = "forward_kl"):  # type: ignore[no-untyped-def]
    batch = Batch(BATCH.prompt_ids, BATCH.response_ids, cache.signal(cache.compute(BATCH)))
    student = gpt2(2)
    loss = distillation_loss(student, batch, TrainingConfig(divergence=divergence))
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in student.module.parameters()])  # type: ignore[union-attr]


# --- stored is live


@pytest.mark.parametrize("make", [gpt2, llama, t5, bart])
def test_stored_is_live_bit_for_bit(make, top_k: int | None, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """What is written, and what another process would read, against a cache in memory."""
    live = CachedLogProbs(make(1), top_k)
    writer, reader = (SignalStore(make(1), tmp_path, top_k=top_k) for _ in range(2))
    assert writer.take(BATCH) == [None] * 4
    assert equal(writer.compute(BATCH), live.compute(BATCH))
    taken = reader.take(BATCH)
    assert equal([value for value in taken if value is not None], live.compute(BATCH))
    assert torch.equal(*(_values(cache.signal(cache.compute(BATCH))) for cache in (reader, live)))


def _values(signal) -> torch.Tensor:  # type: ignore[no-untyped-def]
    law = resolved(signal)
    return torch.cat([law.log_p_NK, law.log_tail_N[:, None]], 1) if isinstance(law, TopK) else law.log_p_NV


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "generalised_jsd"])
def test_live_stored_and_all_listed_give_one_loss_and_gradient(divergence: str, tmp_path: Path) -> None:
    """Stored exactly: bit for bit. All tokens listed: within 1e-6. Fewer: stored equals live bit for bit."""
    SignalStore(gpt2(1), tmp_path).compute(BATCH)
    value, gradient = loss_and_gradient(CachedLogProbs(gpt2(1)), divergence)
    stored, its_gradient = loss_and_gradient(SignalStore(gpt2(1), tmp_path), divergence)
    assert torch.equal(stored, value)
    assert torch.equal(its_gradient, gradient)
    for k in (VOCAB_SIZE, 4):
        SignalStore(gpt2(1), tmp_path, top_k=k).compute(BATCH)
        listed, of_listed = loss_and_gradient(CachedLogProbs(gpt2(1), k), divergence)
        stored, of_stored = loss_and_gradient(SignalStore(gpt2(1), tmp_path, top_k=k), divergence)
        assert torch.equal(stored, listed)
        assert torch.equal(of_stored, of_listed)
        if k == VOCAB_SIZE:
            assert stored.item() == pytest.approx(value.item(), rel=1e-6)
            assert (of_stored - gradient).norm() < 1e-6 * gradient.norm()
        else:
            assert stored < 0.99 * value


def test_an_exact_world_keeps_its_float64(tmp_path: Path) -> None:
    world = MarkovChain.random(9, seed=1)
    batch = Batch([(3,), (4, 5)], [(2, 0), (7, 1, 0)])
    SignalStore(world, tmp_path).compute(batch)
    store = SignalStore(world, tmp_path)
    (first, _) = store.take(batch)
    assert first is not None
    assert first["log_p"].dtype == torch.float64
    assert torch.equal(first["log_p"], world.log_probs(batch)[:2])


def test_what_is_scored_in_another_batch_differs_by_rounding_only(tmp_path: Path) -> None:
    store = SignalStore(gpt2(1), tmp_path)
    store.compute(BATCH[2:3])
    mixed = store.compute(BATCH)
    for found, live in zip(mixed, CachedLogProbs(gpt2(1)).compute(BATCH), strict=True):
        torch.testing.assert_close(found["log_p"], live["log_p"], rtol=0, atol=2e-5)
    assert len(shards(store)) == 2


# --- nobody asks twice


def mixture(cache: CachedLogProbs | None, writer: str = "dataset") -> Mixture:
    source = ResponseSource(
        SourceConfig(writer),  # type: ignore[arg-type]
        PROMPTS,
        {"teacher": gpt2(1)},
        max_response_tokens=5,
        seed=4,
        cache=cache,
    )
    return Mixture([source], 4)


CONFIG = TrainingConfig(num_steps=7, batch_size=4, learning_rate=1e-2, warmup_steps=2)


@pytest.mark.parametrize("writer", ["dataset", "teacher"])
def test_a_run_from_a_store_is_the_run_without(writer: str, top_k: int | None, tmp_path: Path) -> None:
    """Weights and losses bit for bit, while the store is filled and once it is full."""
    plain = gpt2(2)
    expected = fit(plain, mixture(CachedLogProbs(gpt2(1), top_k), writer), CONFIG)
    for _ in range(2):
        student = gpt2(2)
        state = fit(student, mixture(SignalStore(gpt2(1), tmp_path, top_k=top_k), writer), CONFIG)
        assert state.losses == expected.losses
        assert student.digest == plain.digest
    assert plain.digest != gpt2(2).digest


def test_another_student_asks_the_teacher_nothing(top_k: int | None, tmp_path: Path) -> None:
    teacher = gpt2(1)
    forwards = Forwards(teacher)
    fit(gpt2(2), mixture(SignalStore(teacher, tmp_path, top_k=top_k)), CONFIG)
    assert forwards.count == 2, "two batches make a pass; later passes remember"
    other = mixture(SignalStore(teacher, tmp_path, top_k=top_k))
    fit(llama(7), other, CONFIG)
    assert forwards.count == 2
    tokens = sum(len(prompt.reference_ids) for prompt in PROMPTS)
    assert other.sources[0].counters.teacher_tokens == tokens, "the word is counted, whoever computed it"


def test_a_shorter_list_or_another_teacher_has_a_place_of_its_own(tmp_path: Path) -> None:
    """Everything that a signal hangs on is in the key; nothing of another key is ever read."""
    other_settings = gpt2(1)
    other_settings.module.config.layer_norm_epsilon = 1e-3
    stores = [
        SignalStore(gpt2(1), tmp_path),
        SignalStore(gpt2(1), tmp_path, top_k=5),
        SignalStore(gpt2(1), tmp_path, top_k=6),
        SignalStore(gpt2(2), tmp_path),
        SignalStore(other_settings, tmp_path),
        SignalStore(Ensemble([gpt2(1)], "one"), tmp_path),
        SignalStore(gpt2(1), tmp_path, settings={"template": "{prompt} ="}),
    ]
    for store in stores:
        assert store.take(BATCH) == [None] * 4
        store.compute(BATCH)
    assert len({store.folder for store in stores}) == len(list(tmp_path.iterdir())) == len(stores)
    key = json.loads((stores[1].folder / "key.json").read_text())
    assert (key["model"], key["kept"], key["vocab_size"]) == (gpt2(1).digest, "top_5", VOCAB_SIZE)
    assert SignalStore(gpt2(1), tmp_path, top_k=5).folder == stores[1].folder


def test_a_folder_that_holds_another_key_is_refused(tmp_path: Path) -> None:
    store, other = (SignalStore(gpt2(1), tmp_path, settings={"template": t}) for t in ("a", "b"))
    (store.folder / "key.json").write_bytes((other.folder / "key.json").read_bytes())
    with pytest.raises(AssayError, match="describes other signals than those that belong into its folder"):
        SignalStore(gpt2(1), tmp_path, settings={"template": "a"})


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AssayError, match="cannot make the run folder"):
        SignalStore(gpt2(1), tmp_path / "file")


def test_names_of_a_checkpoint_do_not_matter_and_settings_do() -> None:
    first, second, third = gpt2(1), gpt2(1), gpt2(1)
    second.module.config._name_or_path = "elsewhere"
    third.module.config.scale_attn_by_inverse_layer_idx = True
    assert model_settings_digest(first) == model_settings_digest(second) != model_settings_digest(third)


def test_a_tokenizers_digest_is_that_of_its_rules() -> None:
    from assay.models.loading import load_tokenizer

    first, second = (load_tokenizer("define-oracle") for _ in range(2))
    assert tokenizer_digest(first) == tokenizer_digest(second)
    second.chat_template = "{{ messages }}"
    assert tokenizer_digest(first) != tokenizer_digest(second)
    assert tokenizer_digest(first) != tokenizer_digest(load_tokenizer("translate-oracle"))


def test_equal_pairs_of_one_batch_are_stored_once(tmp_path: Path) -> None:
    batch = Batch([(5, 2), (5, 2), (5, 2)], [(3, 0), (3, 0), (4, 0)])
    store = SignalStore(gpt2(1), tmp_path)
    kept = store.compute(batch)
    assert torch.equal(kept[0]["log_p"], kept[1]["log_p"])
    (shard,) = shards(store)
    assert len(json.loads((shard / "index.json").read_text())["entries"]) == 2


# --- damage


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit": lambda shard: _flip(shard / "signals.safetensors"),
    "truncated": lambda shard: os.truncate(shard / "signals.safetensors", 40),
    "empty": lambda shard: os.truncate(shard / "signals.safetensors", 0),
    "text": lambda shard: (shard / "signals.safetensors").write_text("not a tensor in sight"),
    "missing": lambda shard: (shard / "signals.safetensors").unlink(),
    "index": lambda shard: (shard / "index.json").write_text("{"),
    "no index": lambda shard: (shard / "index.json").unlink(),
    "another index": lambda shard: (shard / "index.json").write_text('{"sha256": "0"}'),
    "entries": lambda shard: (shard / "index.json").write_text(
        json.dumps(json.loads((shard / "index.json").read_text()) | {"sha256": "0"})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_said_so_and_computed_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SignalStore(gpt2(1), tmp_path)
    expected = store.compute(BATCH[:2])
    (damaged,) = shards(store)
    untouched = store.compute(BATCH[2:])
    DAMAGES[damage](damaged)
    teacher = gpt2(1)
    forwards = Forwards(teacher)
    again = SignalStore(teacher, tmp_path)
    assert equal(again.compute(BATCH[2:]), untouched)
    assert forwards.count == 0
    assert equal(again.compute(BATCH[:2]), expected)
    assert forwards.count == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"assay: {str(damaged)!r} is damaged (its ")
    assert line.endswith("set aside, its signals are computed again")
    assert not damaged.exists()
    assert damaged.with_name(f"damaged-{damaged.name}").exists()
    healed = SignalStore(teacher, tmp_path)
    assert equal(healed.compute(BATCH[:2]), expected)
    assert forwards.count == 1
    assert capsys.readouterr().err == ""


def test_a_shard_that_another_process_set_aside_is_just_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SignalStore(gpt2(1), tmp_path)
    expected = store.compute(BATCH)
    (shard,) = shards(store)
    shard.rename(shard.with_name("damaged-by-someone"))
    assert equal(store.compute(BATCH), expected)
    assert capsys.readouterr().err == ""
    assert len(shards(store)) == 1


# --- kills and neighbours: real processes

_CHILD = """
import os, signal, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
import torch
torch.set_num_threads(1)
from pathlib import Path
from assay import runs
from assay.data.signal_store import SignalStore
from assay.types import Batch
from tiny_models import gpt2

store = SignalStore(gpt2(1), Path(sys.argv[2]))
kill_at, rows, calls = int(sys.argv[3]), [int(row) for row in sys.argv[4].split(",")], 0
flush = runs._flush

def killed(path):
    global calls
    calls += path.name == "signals.safetensors"
    if 0 < calls == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(path)

runs._flush = killed
if kill_at == 0:
    print("ready", flush=True)
    sys.stdin.readline()
for row in rows:
    store.compute(Batch([(5, 2, row % 23)], [(3, 4 + row // 23, 0)]))
"""


def child(folder: Path, kill_at: int, rows: list[int]) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(cached.__file__).parents[2])])
    arguments = [sys.executable, "-c", _CHILD, paths, str(folder), str(kill_at), ",".join(map(str, rows))]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def of_rows(rows: list[int]) -> Batch:
    return Batch([(5, 2, row % 23) for row in rows], [(3, 4 + row // 23, 0) for row in rows])


def test_a_kill_in_the_middle_of_writing_costs_one_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL while the third shard is on its way to the disk: two are there, and the next run goes on."""
    process = child(tmp_path, 3, [0, 1, 2, 3])
    assert process.wait(600) == -signals.SIGKILL
    teacher = gpt2(1)
    forwards = Forwards(teacher)
    store = SignalStore(teacher, tmp_path)
    assert [value is not None for value in store.take(of_rows([0, 1, 2, 3]))] == [True, True, False, False]
    kept = store.compute(of_rows([0, 1, 2, 3]))
    assert forwards.count == 1
    assert capsys.readouterr().err == ""
    for found, live in zip(kept, CachedLogProbs(gpt2(1)).compute(of_rows([0, 1, 2, 3])), strict=True):
        torch.testing.assert_close(found["log_p"], live["log_p"], rtol=0, atol=2e-5)
    assert all(value is not None for value in SignalStore(gpt2(1), tmp_path).take(of_rows([0, 1, 2, 3])))


def test_two_processes_fill_one_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At once, with rows in common: every entry is whole, and right."""
    halves = [list(range(16)), list(range(8, 24))]
    processes = [child(tmp_path, 0, rows) for rows in halves]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.wait(600) == 0
    everything = of_rows(list(range(24)))
    for found, live in zip(
        SignalStore(gpt2(1), tmp_path).take(everything), CachedLogProbs(gpt2(1)).compute(everything), strict=True
    ):
        assert found is not None
        torch.testing.assert_close(found["log_p"], live["log_p"], rtol=0, atol=2e-5)
    assert capsys.readouterr().err == ""


# --- sizes


def test_the_size_is_forecast_from_sizes(top_k: int | None, tmp_path: Path) -> None:
    store = SignalStore(gpt2(1), tmp_path, top_k=top_k, provenance={"sampling_temperature": 0.7})
    store.compute(BATCH[:2])
    store.compute(BATCH)
    vocab_size = VOCAB_SIZE if store.kind != "hidden" else 5000  # of hidden states it is no matter how many
    written = sum(path.stat().st_size for shard in shards(store) for path in shard.iterdir())
    exact = forecast_bytes(BATCH.num_tokens, 16, vocab_size, top_k)
    if store.kind != "hidden":
        assert store.most_bytes(BATCH.num_tokens) == exact
    assert exact < written < exact + 1000 * len(shards(store)) + 500 * len(BATCH)
    assert json.loads((shards(store)[0] / "index.json").read_text())["provenance"] == {"sampling_temperature": 0.7}


def test_forecast_bytes_of_each_kind() -> None:
    assert forecast_bytes(10, 896, 151_936) == 10 * 896 * 4
    assert forecast_bytes(10, 896, 1024) == 10 * 1024 * 4
    assert forecast_bytes(10, 896, 151_936, 64) == 10 * (64 * 8 + 4)
    assert forecast_bytes(10, 896, 1024, 5000) == 10 * (1024 * 8 + 4)
