"""How much of a step is its own matrix products: training, decoding, probe. The rules are in README.md.

python benchmarks/speed/machine.py [--write [FILE]] [--quick]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import measure
import torch
from measure import Row, World
from numpy import median
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from assay.config import SourceConfig
from assay.data.sources import Mixture, ResponseSource
from assay.evaluation import build_probe, write_responses
from assay.models.language_model import LanguageModel
from assay.models.pretrained import PretrainedModel
from assay.models.sampling import response_seed
from assay.training import fit
from assay.types import Response, Writer
from assay.workspace import Workspace

aten = torch.ops.aten
PRODUCTS = {aten.mm: torch.mm, aten.bmm: torch.bmm, aten.addmm: torch.addmm, aten.baddbmm: torch.baddbmm}
ROLES: tuple[Writer, ...] = ("oracle", "teacher", "student")


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
        else:  # in inference mode `linear` arrives whole, with its product inside
            with self:
                found = func.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
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


def rows(repetitions: int, quick: bool) -> Iterator[Row]:
    """Training, sampling and probe of the quickstart; training of a world that is less tiny."""
    work, define, larger = measure.quickstart_workspace(), measure.define_world(), measure.random_world("V 1k")
    batch_sizes = (64, 256)
    if quick:
        probe = dataclasses.replace(work.experiment.probe, num_prompts=8, num_train_pairs=8, num_monitored=8)
        work = Workspace(dataclasses.replace(work.experiment, probe=probe), Path())
        define, larger, batch_sizes = define.first(8, 4), larger.first(4, 2), (4,)
    for world in (define, larger):
        yield training(world, repetitions)
    prompts = [prompt.token_ids for prompt in work.prompts("held_out", 256)]
    for role, model in (("student", define.student), ("teacher", define.teacher)):
        for batch_size in batch_sizes:
            name = f"decoding, {role}, batch {batch_size}"
            yield decoding(name, model, prompts[:batch_size], define.max_response_tokens, repetitions)
    yield probing(work, repetitions)


def row(name: str, run: Callable[[int], object], repetitions: int, **counted: float) -> Row:
    """``run(0)`` against its products; ``counted`` are what it gets done, shown per second."""
    replay, gflop = replay_of(run)
    sides = measure.plainly(lambda repetition: run(0)), measure.plainly(replay)
    (seconds, _), (replay_seconds, _) = measure.alternate(repetitions, *sides)
    figures = {f"{what}_per_s": float(number / median(seconds)) for what, number in counted.items()}
    figures |= {
        "gflop_per_s": float(gflop / median(seconds)),
        "replay_gflop_per_s": float(gflop / median(replay_seconds)),
    }
    return Row(name, figures, {"replay_over_whole": replay_seconds / seconds})


def training(world: World, repetitions: int) -> Row:
    """Two passes over the stored pairs for each measurement, the teacher's signal already cached."""
    student, models = world.fresh_student(), {"teacher": world.teacher}
    limit = world.max_response_tokens
    source = ResponseSource(SourceConfig("teacher"), world.prompts, models, max_response_tokens=limit)
    source.preload(world.responses)
    config = world.training(2 * len(world.prompts) // world.batch_size)

    def train(repetition: int) -> None:
        source.rows_drawn = 0  # the same batches every time
        fit(student, Mixture([source], world.batch_size), config)

    train(0)  # caches the teacher's signal
    num_tokens = 2 * sum(len(response.token_ids) for response in world.responses)
    found = row(f"training, {world.name}", train, repetitions, steps=config.num_steps, response_tokens=num_tokens)
    return dataclasses.replace(found, aims={"replay_over_whole": "≥ 0.6"})


def decoding(
    name: str, model: PretrainedModel, prompts: Sequence[tuple[int, ...]], limit: int, repetitions: int
) -> Row:
    """One model at one batch size, the same responses every time."""
    seeds = [response_seed("speed", 0, i) for i in range(len(prompts))]
    texts = model.sample(prompts, seeds, limit)
    counted = {"decoding_steps": max(map(len, texts)), "response_tokens": sum(map(len, texts))}
    return row(name, lambda repetition: model.sample(prompts, seeds, limit), repetitions, **counted)


def probing(work: Workspace, repetitions: int) -> Row:
    """One evaluation of a student, everything frozen already made."""
    experiment, limit = work.experiment, work.experiment.task.max_response_tokens
    models: dict[Writer, LanguageModel] = {role: work.base(role) for role in ROLES}
    held_out, prompts = work.held_out(), work.prompts("distillation", experiment.probe.num_train_pairs)
    responses: dict[Writer, list[Response]] = {
        role: write_responses(models[role], role, held_out, limit, purpose="speed", seed=0) for role in ROLES
    }
    pairs = prompts, write_responses(models["teacher"], "teacher", prompts, limit, purpose="speed", seed=0)
    probe = build_probe(models, held_out, responses, pairs, experiment.probe, max_response_tokens=limit, seed=0)
    return row(
        f"probe, {len(held_out)} prompts",
        lambda repetition: probe.evaluate(models["student"], 0),
        repetitions,
        scored_sequences=sum(len(frozen.batch) for frozen in probe.sets),
        scored_tokens=sum(frozen.batch.num_tokens for frozen in probe.sets),
    )


if __name__ == "__main__":
    measure.main(__file__, __doc__, rows, repetitions=11)
