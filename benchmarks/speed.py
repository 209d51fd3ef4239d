"""Speed on this machine, as ratios: training, sampling, probing and losses. The rules are in benchmarks/README.md.

python benchmarks/speed.py [--write [FILE]] [--quick]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import median
from torch import Tensor
from torch.nn.functional import kl_div
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from assay import get_recipe
from assay.config import SourceConfig
from assay.data.sources import Mixture, ResponseSource
from assay.divergences import DIVERGENCES
from assay.evaluation import build_probe, write_responses
from assay.models.language_model import LanguageModel
from assay.models.sampling import response_seed
from assay.provenance import PACKAGES, processor
from assay.training import fit
from assay.types import Response, Writer
from assay.workspace import Workspace

aten = torch.ops.aten
PRODUCTS = {aten.mm: torch.mm, aten.bmm: torch.bmm, aten.addmm: torch.addmm}
REPETITIONS = 11
ROLES: tuple[Writer, ...] = ("oracle", "teacher", "student")
LOSS_SHAPE, LOSS_CALLS = (1200, 512), 5
RECORD = Path(__file__).with_name("speed.json")


@dataclass(frozen=True)
class Row:
    """One line of a table: medians of what was measured, and ratios with one value for each repetition."""

    name: str
    figures: dict[str, float]
    ratios: dict[str, np.ndarray]


class ProductRecorder(TorchDispatchMode):
    """Records operation, shapes and strides of every matrix product; attention counts as the products inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet in PRODUCTS:
            self.calls.append((packet, tuple((tuple(a.shape), a.stride()) for a in args)))
        elif packet is aten._scaled_dot_product_flash_attention_for_cpu:
            self._attention(*args[:3], backward=False)
        elif packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self._attention(*args[1:4], backward=True)
        elif packet in flop_registry:
            raise NotImplementedError(f"{packet} multiplies matrices and would not be replayed: record it here")
        return func(*args, **(kwargs or {}))

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *, backward: bool) -> None:
        b, t, h, s, v = query.shape[0] * query.shape[1], *query.shape[2:], *value.shape[2:]
        products = [(t, h, s), (t, s, v)]  # q kᵀ, weights v
        if backward:  # q kᵀ anew, d out vᵀ, weightsᵀ d out, d scores k, d scoresᵀ q
            products = [(t, h, s), (t, v, s), (s, t, v), (t, s, h), (s, t, h)]
        for n, inner, m in products:
            layouts = ((b, n, inner), (n * inner, inner, 1)), ((b, inner, m), (inner * m, m, 1))
            self.calls.append((aten.bmm, layouts))


def replay_of(run: Callable[[int], object]) -> tuple[Callable[[int], None], float]:
    """The matrix products of ``run(0)`` and nothing else, ready to run; and their GFLOP."""
    with ProductRecorder() as recorder:
        run(0)
    tensors: dict[Any, tuple[list[Tensor], Tensor]] = {}
    for packet, layouts in set(recorder.calls):
        operands = [torch.empty_strided(*layout).normal_() for layout in layouts]
        tensors[packet, layouts] = operands, PRODUCTS[packet](*operands)
    prepared = [(PRODUCTS[call[0]], *tensors[call]) for call in recorder.calls]

    @torch.no_grad()
    def replay(repetition: int) -> None:
        for product, operands, out in prepared:
            product(*operands, out=out)

    with FlopCounterMode(display=False) as counter:
        replay(0)
    return replay, counter.get_total_flops() / 1e9


def alternate(repetitions: int, *runs: Callable[[int], Any]) -> list[tuple[np.ndarray, list[Any]]]:
    """CPU seconds and results of every run in every repetition: side by side, the order turned around each time."""
    for run in runs:
        run(0)
    measured = [(np.zeros(repetitions), [None] * repetitions) for _ in runs]
    for repetition in range(repetitions):
        for i in range(len(runs))[:: 1 if repetition % 2 == 0 else -1]:
            started = time.process_time()
            measured[i][1][repetition] = runs[i](repetition)
            measured[i][0][repetition] = time.process_time() - started
    return measured


def against_products(run: Callable[[int], object], repetitions: int) -> tuple[float, float, Row]:
    """Median seconds of ``run(0)`` and of its matrix products alone, and a row with what follows from them."""
    replay, gflop = replay_of(run)
    (seconds, _), (replay_seconds, _) = alternate(repetitions, lambda repetition: run(0), replay)
    whole, products = median(seconds), median(replay_seconds)
    figures = {"gflop_per_s": gflop / whole, "replay_gflop_per_s": gflop / products}
    return whole, products, Row("", figures, {"replay_over_whole": replay_seconds / seconds})


def training(work: Workspace, repetitions: int) -> Iterator[Row]:
    """Offline distillation, two passes over the stored pairs for each measurement."""
    dials, limit = work.experiment.distillation, work.experiment.task.max_response_tokens
    student, teacher = work.base("student"), work.base("teacher")
    prompts = work.prompts("distillation", dials.num_prompts)
    source = ResponseSource(SourceConfig("teacher"), prompts, {"teacher": teacher}, max_response_tokens=limit)
    config = dataclasses.replace(dials.training, num_steps=2 * source.num_pairs // dials.training.batch_size)

    def train(repetition: int) -> None:
        source.rows_drawn = 0  # the same batches every time
        fit(student, Mixture([source], config.batch_size), config)

    train(0)  # writes the responses and caches the teacher's signal
    seconds, _, row = against_products(train, repetitions)
    response_tokens = 2 * sum(len(response.token_ids) for response in source.stored_pairs(source.num_pairs)[1])
    prompt_tokens = 2 * sum(len(prompt.token_ids) for prompt in prompts)
    figures = {
        "steps_per_s": config.num_steps / seconds,
        "response_tokens_per_s": response_tokens / seconds,
        "all_tokens_per_s": (response_tokens + prompt_tokens) / seconds,
    }
    yield Row(f"offline, batch {config.batch_size}", figures | row.figures, row.ratios)


def sampling(work: Workspace, repetitions: int) -> Iterator[Row]:
    """Our decoding against that of transformers, and against its own matrix products."""
    prompts = [prompt.token_ids for prompt in work.prompts("held_out", 256)]
    for role, batch_size in itertools.product(ROLES[1:], (64, 256)):
        yield sampling_row(work, role, prompts[:batch_size], repetitions)


def sampling_row(work: Workspace, role: Writer, prompts: Sequence[tuple[int, ...]], repetitions: int) -> Row:
    """One model at one batch size; every repetition draws new responses on both sides."""
    model, limit = work.base(role), work.experiment.task.max_response_tokens
    padded = work.tokenizer.pad({"input_ids": list(map(list, prompts))}, padding_side="left", return_tensors="pt")
    module: Any = model.module
    generate = functools.partial(module.generate, do_sample=True, top_k=0, top_p=1.0, temperature=1.0)

    def ours(repetition: int) -> list[tuple[int, ...]]:
        return model.sample(prompts, [response_seed("speed", repetition, i) for i in range(len(prompts))], limit)

    def theirs(repetition: int) -> Tensor:
        torch.manual_seed(repetition)
        return generate(**padded, max_new_tokens=limit)[:, padded["input_ids"].shape[1] :]

    (seconds, texts), (their_seconds, their_texts) = alternate(repetitions, ours, theirs)
    steps = np.array([max(map(len, rows)) for rows in texts])
    their_steps = np.array([ids.shape[1] for ids in their_texts])
    # a token is real when no end of sequence stands before it
    real = [(ids == model.eos_token_id).cumsum(dim=-1)[:, :-1] == 0 for ids in their_texts]
    rates = np.array([sum(map(len, rows)) for rows in texts]) / seconds
    their_rates = np.array([len(prompts) + int(mask.sum()) for mask in real]) / their_seconds
    _, replay_seconds, row = against_products(ours, repetitions)
    figures = {
        "tokens_per_s": median(rates),
        "generate_tokens_per_s": median(their_rates),
        "ms_per_step": 1e3 * median(seconds / steps),
        "generate_ms_per_step": 1e3 * median(their_seconds / their_steps),
        "replay_ms_per_step": 1e3 * replay_seconds / max(map(len, ours(0))),
    }
    ratios = {"tokens_over_generate": rates / their_rates}
    return Row(f"{role}, batch {len(prompts)}", figures | row.figures, ratios | row.ratios)


def probing(work: Workspace, repetitions: int) -> Iterator[Row]:
    """One evaluation of a student, everything frozen already made."""
    experiment, limit = work.experiment, work.experiment.task.max_response_tokens
    models: dict[Writer, LanguageModel] = {role: work.base(role) for role in ROLES}
    held_out, prompts = work.held_out(), work.prompts("distillation", experiment.probe.num_train_pairs)
    responses: dict[Writer, list[Response]] = {
        role: write_responses(models[role], role, held_out, limit, purpose="speed", seed=0) for role in ROLES
    }
    pairs = prompts, write_responses(models["teacher"], "teacher", prompts, limit, purpose="speed", seed=0)
    probe = build_probe(models, held_out, responses, pairs, experiment.probe, max_response_tokens=limit, seed=0)
    seconds, _, row = against_products(lambda repetition: probe.evaluate(models["student"], 0), repetitions)
    figures = {
        "sequences_per_s": sum(len(frozen.batch) for frozen in probe.sets) / seconds,
        "response_tokens_per_s": sum(frozen.batch.num_tokens for frozen in probe.sets) / seconds,
    }
    yield Row(f"{len(held_out)} held-out prompts", figures | row.figures, row.ratios)


def losses(work: Workspace, repetitions: int) -> Iterator[Row]:
    """Forward and backward of every divergence."""
    torch.manual_seed(0)
    log_p_NV = torch.randn(LOSS_SHAPE).log_softmax(dim=-1)
    log_q_NV = torch.randn(LOSS_SHAPE).log_softmax(dim=-1).requires_grad_()
    token_ids_N = log_p_NV.exp().multinomial(1).squeeze(-1)

    def gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> Callable[[int], None]:
        def run(repetition: int) -> None:
            for _ in range(LOSS_CALLS):
                torch.autograd.grad(loss(*inputs).sum(), log_q_NV)

        return run

    theirs = gradients(functools.partial(kl_div, reduction="sum", log_target=True), log_q_NV, log_p_NV)
    for name, divergence in DIVERGENCES.items():
        inputs = (log_q_NV, token_ids_N) if divergence.needs == "tokens" else (log_p_NV, log_q_NV)
        ours = gradients(divergence.function, *inputs)
        (seconds, _), (their_seconds, _) = alternate(repetitions, ours, theirs)
        figures = {"ms": 1e3 * median(seconds) / LOSS_CALLS, "kl_div_ms": 1e3 * median(their_seconds) / LOSS_CALLS}
        yield Row(name, figures, {"time_over_kl_div": seconds / their_seconds})


def table(section: str, rows: Sequence[Row]) -> str:
    """Names, medians, and every ratio as median [smallest, largest]."""
    lines = [[key.replace("_per_", "/") for key in (section, *rows[0].figures, *rows[0].ratios)]]
    for row in rows:
        ratios = [f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]" for values in row.ratios.values()]
        lines.append(
            [
                row.name,
                *(f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in row.figures.values()),
                *ratios,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", nargs="?", type=Path, const=RECORD, metavar="FILE", help=f"default {RECORD.name}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repetition: the numbers mean nothing")
    arguments = parser.parse_args()
    started, started_cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    experiment, repetitions = get_recipe("quickstart"), REPETITIONS
    if arguments.quick:
        replace, repetitions = dataclasses.replace, 1
        experiment = replace(
            experiment,
            task=replace(experiment.task, max_response_tokens=4),
            distillation=replace(experiment.distillation, num_prompts=64),
            probe=replace(experiment.probe, num_prompts=32, num_train_pairs=16, num_monitored=16),
        )
    work = Workspace(experiment, Path())  # for its prompts and bases: nothing is written there
    record: dict[str, Any] = {
        "schema": "assay.speed/1",
        "machine": {"processor": processor(), "isa": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "repetitions": repetitions,
        "quick": arguments.quick,
    }
    for section in (training, sampling, probing, losses):
        rows = list(section(work, repetitions))
        print(table(section.__name__, rows), end="\n\n", flush=True)
        record[section.__name__] = [dataclasses.asdict(row) for row in rows]
    record["cpu_share"] = (time.process_time() - started_cpu) / (time.perf_counter() - started)
    print(f"this process had {record['cpu_share']:.0%} of a core")
    if arguments.write:
        arguments.write.write_text(json.dumps(record, indent=1, default=np.ndarray.tolist) + "\n")


if __name__ == "__main__":
    main()
