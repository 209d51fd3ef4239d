"""The speed benchmarks work: every row is there, every ratio is a number, and what is replayed is what was run.

Nothing is asked of their speed.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from assay.divergences import DIVERGENCES
from assay.models.causal import CausalModel
from assay.types import Batch
from tiny_models import gpt2, llama

FOLDER = Path(__file__).parents[1] / "benchmarks" / "speed"
ROWS = {
    "offline": ["define", "V 1k"],
    "on_policy": ["define", "V 1k"],
    "sampling": ["GPT-2 2×128", "T5 2×128", "Llama 4×256"],
    "loss_memory": [f"{n} tokens, TRL {kind}" for n in (32, 64) for kind in ("dense", "chunked")],
    "machine": [
        *("training, define", "training, V 1k"),
        *("decoding, student, batch 4", "decoding, teacher, batch 4", "probe, 8 prompts"),
    ],
    "probe_share": ["all arms", "offline"],
    "growth": ["batch", "length", "vocabulary", "teacher's weights"],
    "losses": list(DIVERGENCES),
}
RATIOS = {
    "offline": {"speed_over_gkd"},
    "on_policy": {"speed_over_gkd", "speed_over_distillation"},
    "sampling": {"speed_over_generate"},
    "loss_memory": {"memory_over_peer", "speed_over_peer"},
    "machine": {"replay_over_whole"},
    "probe_share": {"probe_share"},
    "growth": {"exponent"},
    "losses": {"time_over_kl_div"},
}


def script(name: str) -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


_ALL_IN_TURN = """
import runpy, sys
folder, written, *names = sys.argv[1:]
sys.path.insert(0, folder)
for name in names:
    sys.argv = [name, "--quick", "--write", f"{written}/{name}.json"]
    print("script", name)
    runpy.run_path(f"{folder}/{name}.py", run_name="__main__")
"""
"""One process for all: what a script takes is the import of its libraries. The one that forks comes first."""


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with the record of every script, and what they have printed."""
    folder = tmp_path_factory.mktemp("records")
    names = sorted(ROWS, key=lambda name: name != "loss_memory")
    command = [sys.executable, "-c", _ALL_IN_TURN, str(FOLDER), str(folder), *names]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.parametrize("name", ROWS)
def test_a_quick_run_has_every_row_with_finite_ratios(name: str, quick_run: tuple[Path, str]) -> None:
    folder, printed = quick_run
    record_path = folder / f"{name}.json"
    record = json.loads(record_path.read_text(encoding="utf-8"))
    assert record["quick"] is True
    assert record["repetitions"] == 1
    assert record["cpu_share"] > 0
    rows = {row["name"]: row for row in record["rows"] if "Liger" not in row["name"]}  # it need not be installed
    assert list(rows) == ROWS[name]
    lines = [line.strip() for line in printed.split(f"script {name}\n")[1].split("script ")[0].splitlines()]
    for row in rows.values():
        assert any(line.startswith(row["name"]) for line in lines)
        assert set(row["ratios"]) == RATIOS[name]
        assert set(row["aims"]) <= RATIOS[name]
        values = [*row["figures"].values(), *(v for ratio in row["ratios"].values() for v in ratio)]
        assert all(math.isfinite(value) for value in values)
        assert name == "growth" or all(value > 0 for value in values)


def test_a_script_leaves_nothing_but_its_record(quick_run: tuple[Path, str]) -> None:
    assert {path.name for path in quick_run[0].iterdir()} == {f"{name}.json" for name in ROWS}


def test_the_table_says_what_is_reached_and_keeps_what_is_not(tmp_path: Path) -> None:
    rows = [
        {"name": "fast", "figures": {}, "ratios": {"speed": [5.0, 4.0, 6.0]}, "aims": {"speed": "≥ 4"}, "note": ""},
        {"name": "slow", "figures": {}, "ratios": {"speed": [0.5]}, "aims": {"speed": "≥ 4"}, "note": "lost"},
        {"name": "small", "figures": {}, "ratios": {"memory": [0.05]}, "aims": {"memory": "≤ 0.1"}, "note": ""},
        {"name": "plain", "figures": {}, "ratios": {"speed": [1.0]}, "aims": {}, "note": ""},
        {"name": "absent", "figures": {}, "ratios": {}, "aims": {}, "note": "not installed"},
    ]
    machine = {"processor": "one", "isa": "two", "cores": 2}
    record = {"script": "offline.py", "machine": machine, "versions": {}, "seconds": 1, "cpu_share": 0.5, "rows": rows}
    (tmp_path / "offline.json").write_text(json.dumps(record), encoding="utf-8")
    command = [sys.executable, "-S", str(FOLDER / "table.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "no record of sampling" in done.stdout
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| offline.py | fast | speed | 3 | 5 | 4 to 6 | ≥ 4 | reached |" in text
    assert "| offline.py | slow | speed | 1 | 0.5 | 0.5 to 0.5 | ≥ 4 | **not reached**, lost |" in text
    assert "| offline.py | small | memory | 1 | 0.05 | 0.05 to 0.05 | ≤ 0.1 | reached |" in text
    assert "| offline.py | plain | speed | 1 | 1 | 1 to 1 |  |  |" in text
    assert "| offline.py | absent | | | | | | not installed |" in text
    assert "the machine was busy" in text


def test_the_makefile_runs_every_script() -> None:
    makefile = (FOLDER.parents[1] / "Makefile").read_text(encoding="utf-8")
    line = next(line for line in makefile.splitlines() if line.startswith("SPEED := "))
    assert line.removeprefix("SPEED := ").split() == list(ROWS) == list(script("table").SCRIPTS)
    assert {path.stem for path in FOLDER.glob("*.py")} == {*ROWS, "measure", "peers", "table"}


def flop_of(run: object, backend: SDPBackend) -> int:
    with sdpa_kernel(backend), FlopCounterMode(display=False) as counter:
        run(0)  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.parametrize("model", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_the_replay_has_the_products_of_the_run(model: CausalModel) -> None:
    machine = script("machine")
    prompts = [(1, 2, 3), (4, 5), (6,)]
    batch = Batch(prompts, [(7, 8, 0), (9, 0), (10, 11)])
    longest, num_layers, hidden_size = 5, 2, 16  # the last response token is not fed

    def forward(repetition: int) -> None:
        with torch.no_grad():
            model.log_probs(batch)

    def sample(repetition: int) -> None:
        model.sample(prompts, [0, 1, 2], 6)

    def step(repetition: int) -> None:
        model.log_probs(batch).sum().backward()

    for run in (forward, sample):
        assert round(machine.replay_of(run)[1] * 1e9) == flop_of(run, SDPBackend.MATH)
    # the fused kernel keeps no scores: its backward computes them once more for every layer
    recomputed = 2 * len(batch) * longest**2 * hidden_size * num_layers
    assert round(machine.replay_of(step)[1] * 1e9) == flop_of(step, SDPBackend.MATH) + recomputed


def test_the_replay_keeps_operation_shape_and_layout() -> None:
    first, second, bias = torch.randn(4, 3), torch.randn(5, 3), torch.randn(5)
    with script("machine").ProductRecorder() as recorder:
        torch.addmm(bias, first, second.t())
        first.t() @ first
    aten = torch.ops.aten
    assert recorder.calls == [
        (aten.addmm, (((5,), (1,)), ((4, 3), (3, 1)), ((3, 5), (1, 3)))),
        (aten.mm, (((3, 4), (1, 3)), ((4, 3), (3, 1)))),
    ]


def test_a_product_that_would_not_be_replayed_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="convolution"), script("machine").ProductRecorder():
        torch.nn.functional.conv1d(torch.randn(1, 2, 8), torch.randn(3, 2, 3))


def test_sides_alternate_and_swap_their_order_and_preparing_is_not_counted() -> None:
    measure = script("measure")
    calls: list[tuple[str, int]] = []

    def side(name: str) -> object:
        def prepare(repetition: int) -> object:
            sum(range(2_000_000))
            return lambda: calls.append((name, repetition)) or name + str(repetition)

        return prepare

    (seconds, results), (_, others) = measure.alternate(3, side("a"), side("b"))
    assert calls[2:] == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert results == ["a0", "a1", "a2"]
    assert others == ["b0", "b1", "b2"]
    started = measure.cpu_seconds()
    sum(range(2_000_000))
    assert (seconds < (measure.cpu_seconds() - started) / 2).all()


def test_the_text_of_a_random_prompt_gives_its_tokens_back() -> None:
    measure = script("measure")
    tokenizer = measure.word_tokenizer(64)
    for prompt in measure.random_prompts(8, 64):
        assert tuple(tokenizer(prompt.text)["input_ids"]) == prompt.token_ids


def test_tokens_after_the_end_of_sequence_are_not_counted() -> None:
    written_BT = torch.tensor([[5, 0, 1, 1], [5, 6, 7, 8], [0, 0, 0, 0]])
    assert script("sampling").real_tokens(written_BT, 0) == 2 + 4 + 1


def test_an_exponent_is_that_of_seconds_per_token() -> None:
    values = (1, 2, 4, 8)
    seconds = [np.array([2.0 * v**0.5, 3.0 * v**-1.0]) for v in values]
    assert script("growth").row("dial", values, seconds, "us").ratios["exponent"] == pytest.approx([0.5, -1.0])


def test_every_side_of_the_memory_script_has_one_loss_and_one_gradient() -> None:
    measure, memory = script("measure"), script("loss_memory")
    teacher, student = (measure.random_model("llama", 1, width, 96) for width in (64, 32))
    problem = memory.problem_of(student, teacher, 16)
    # a small vocabulary is kept whole: the peers want states
    kept = [{"hidden": value} for value in teacher.hidden(problem.batch).detach().split(problem.batch.lengths)]
    peers = memory.Problem(problem.batch, student, teacher, problem.cache, kept)
    found = []
    for side, given in ((memory.ours, problem), *((s, peers) for s in (memory.trl_dense, memory.trl_chunked))):
        student.module.zero_grad()
        loss = side(given)
        loss.backward()
        weight = student.module.get_output_embeddings().weight
        found.append(torch.cat([loss.detach().reshape(1), weight.grad.flatten()]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-7)
