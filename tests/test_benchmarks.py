"""The speed benchmark works: every row is there, every ratio is a number, and what it replays is what was run."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from assay.divergences import DIVERGENCES
from assay.models.causal import CausalModel
from assay.types import Batch
from tiny_models import gpt2, llama

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed.py"
ROWS = {
    "training": ["offline, batch 64"],
    "sampling": [f"{role}, batch {size}" for role in ("teacher", "student") for size in (64, 256)],
    "probing": ["32 held-out prompts"],
    "losses": list(DIVERGENCES),
}
RATIOS = {
    "training": {"replay_over_whole"},
    "sampling": {"tokens_over_generate", "replay_over_whole"},
    "probing": {"replay_over_whole"},
    "losses": {"time_over_kl_div"},
}


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    specification = importlib.util.spec_from_file_location("speed", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["speed"] = module
    specification.loader.exec_module(module)
    return module


def test_a_quick_run_has_every_row_with_finite_positive_ratios(tmp_path: Path) -> None:
    record_path = tmp_path / "speed.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--write", str(record_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(record_path.read_text())
    assert record["quick"] is True
    assert 0 < record["cpu_share"] < 1.5
    printed = [line.strip() for line in done.stdout.splitlines()]
    for section, names in ROWS.items():
        assert [row["name"] for row in record[section]] == names
        for row in record[section]:
            assert any(line.startswith(row["name"]) for line in printed)
            assert set(row["ratios"]) == RATIOS[section]
            values = [*row["figures"].values(), *(v for ratio in row["ratios"].values() for v in ratio)]
            assert all(math.isfinite(value) and value > 0 for value in values)
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


def flop_of(run: object, backend: SDPBackend) -> int:
    with sdpa_kernel(backend), FlopCounterMode(display=False) as counter:
        run(0)  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.parametrize("model", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_the_replay_has_the_products_of_the_run(speed: ModuleType, model: CausalModel) -> None:
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
        assert round(speed.replay_of(run)[1] * 1e9) == flop_of(run, SDPBackend.MATH)
    # the fused kernel keeps no scores: its backward computes them once more for every layer
    recomputed = 2 * len(batch) * longest**2 * hidden_size * num_layers
    assert round(speed.replay_of(step)[1] * 1e9) == flop_of(step, SDPBackend.MATH) + recomputed


def test_the_replay_keeps_operation_shape_and_layout(speed: ModuleType) -> None:
    first, second, bias = torch.randn(4, 3), torch.randn(5, 3), torch.randn(5)
    with speed.ProductRecorder() as recorder:
        torch.addmm(bias, first, second.t())
        first.t() @ first
    aten = torch.ops.aten
    assert recorder.calls == [
        (aten.addmm, (((5,), (1,)), ((4, 3), (3, 1)), ((3, 5), (1, 3)))),
        (aten.mm, (((3, 4), (1, 3)), ((4, 3), (3, 1)))),
    ]


def test_a_product_that_would_not_be_replayed_is_refused(speed: ModuleType) -> None:
    with pytest.raises(NotImplementedError, match="convolution"), speed.ProductRecorder():
        torch.nn.functional.conv1d(torch.randn(1, 2, 8), torch.randn(3, 2, 3))


def test_runs_alternate_and_swap_their_order(speed: ModuleType) -> None:
    calls: list[tuple[str, int]] = []

    def run(name: str) -> object:
        return lambda repetition: calls.append((name, repetition)) or name + str(repetition)

    (seconds, results), (_, others) = speed.alternate(3, run("a"), run("b"))
    assert calls[2:] == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert results == ["a0", "a1", "a2"]
    assert others == ["b0", "b1", "b2"]
    assert (seconds > 0).all()
