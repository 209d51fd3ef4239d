"""``assay plan``: from a world, a budget and a pool to small runs, a fitted law, and what to spend the budget on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay import runs
from assay.config import Experiment
from assay.config_file import load
from assay.errors import AssayError
from assay.models.sizes import size_of
from assay.planner import (
    Cost,
    Option,
    Ranked,
    Rates,
    ScaleOut,
    cost,
    options,
    rank,
    rates,
    scale_out,
    small_options,
)
from assay.recipes import get_recipe, is_config_file, sweeps
from assay.scaling_law import fit, shipped
from assay.sweep import run_folder, run_sweep
from assay.validation import validate
from assay.workers import num_workers
from assay.workload import responses_counted


@dataclass(frozen=True)
class Request:
    """What is asked: a world, teacher tokens to spend on one run, and how many prompts there are.

    ``tokens`` and ``price_per_hour`` are for the plan past one machine, if there is to be one.
    """

    name: str
    world: Experiment
    teacher_tokens: int
    pool: int
    metric: str = "golden"
    tokens: float | None = None
    price_per_hour: float | None = None


@dataclass(frozen=True)
class SmallRun:
    """One run that the law is fitted to: what it spent in teacher tokens and where the metric ended."""

    option: Option
    teacher_tokens: int
    value: float


@dataclass(frozen=True)
class Plan:
    """Options that fit the budget, first choice first, and what they rest on; ``beyond`` are those that do not fit."""

    request: Request
    small_runs: tuple[SmallRun, ...]
    rates: Rates
    coverage: float
    ranked: tuple[Ranked, ...]
    beyond: dict[Option, Cost]
    scale_out: ScaleOut | None

    @property
    def tied(self) -> tuple[Ranked, ...]:
        """The other options whose difference from the first choice has an interval that contains 0."""
        return tuple(row for row in self.ranked[1:] if row.is_tied)

    @property
    def small_tokens(self) -> int:
        """Teacher tokens of all small runs; they come on top of the budget."""
        return sum(run.teacher_tokens for run in self.small_runs)

    @property
    def sentence(self) -> str:
        """The recommendation, and whether the data can tell."""
        first, budget = self.ranked[0], self.request.teacher_tokens
        metric = self.request.metric.replace("_", " ")
        text = (
            f"Take {first.option.name}: {metric} is predicted to end at {first.value:.2f} "
            f"[{first.value - first.margin:.2f}, {first.value + first.margin:.2f}] nats, "
            f"for {first.cost.teacher_tokens:,} of {budget:,} teacher tokens; "
        )
        if len(self.ranked) == 1:
            return text + "nothing else fits the budget."
        if not self.tied:
            following = self.ranked[1]
            return text + f"the next best, {following.option.name}, is predicted {following.difference:.2f} nats above."
        cheapest = min((first, *self.tied), key=lambda row: row.cost.teacher_tokens)
        text += f"the data cannot tell it from {len(self.tied)} of the {len(self.ranked) - 1} others"
        if cheapest is first:
            return text + ", none of which is cheaper."
        return text + f", of which {cheapest.option.name} is the cheapest ({cheapest.cost.teacher_tokens:,})."

    def to_dict(self) -> dict[str, Any]:
        """Plain values, schema ``assay.plan/1``."""
        ranked = [
            {
                **_of_option(row.option, row.cost),
                "fits": True,
                "predicted": row.value,
                "ci": [row.value - row.margin, row.value + row.margin],
                "above_first": row.difference,
                "ci_above_first": [row.difference - row.difference_margin, row.difference + row.difference_margin],
                "tied_with_first": row.is_tied,
            }
            for row in self.ranked
        ]
        return {
            "schema": "assay.plan/1",
            "unit": "nats_per_sequence",
            "world": self.request.name,
            "seed": self.request.world.seed,
            "metric": self.request.metric,
            "teacher_tokens": self.request.teacher_tokens,
            "pool": self.request.pool,
            "coverage": self.coverage,
            "small_runs": [{"option": r.option.name, "teacher_tokens": r.teacher_tokens, "value": r.value}
                           for r in self.small_runs],
            "small_runs_teacher_tokens": self.small_tokens,
            "seconds_per_token": dataclasses.asdict(self.rates),
            "options": [*ranked, *({**_of_option(option, spent), "fits": False} for option, spent in
                                   self.beyond.items())],
            "recommended": self.ranked[0].option.name,
            "cannot_tell_from": [row.option.name for row in self.tied],
            "sentence": self.sentence,
            "scale_out": None if self.scale_out is None else dataclasses.asdict(self.scale_out),
        }  # fmt: skip


def read_request(
    target: str,
    teacher_tokens: int,
    pool: int,
    metric: str,
    seed: int | None = None,
    tokens: float | None = None,
    price_per_hour: float | None = None,
) -> Request:
    """A checked request. Raises AssayError for what is too small or contradicts itself, before anything is computed."""
    world = load(Path(target)) if is_config_file(target) else get_recipe(target)
    world = world if seed is None else dataclasses.replace(world, seed=seed)
    shipped(metric)
    if pool < 1:
        raise AssayError(f"a pool of {pool} prompts is empty: give the number of prompts that you have, --pool 1000")
    if teacher_tokens < 1:
        raise AssayError(f"a budget of {teacher_tokens} teacher tokens buys nothing: give a positive --teacher-tokens")
    if price_per_hour is not None and tokens is None:
        raise AssayError("--price-per-hour needs --tokens: a price belongs to the plan past one machine")
    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        raise AssayError(f"a price of {price_per_hour:g} per hour cannot be: it must be at least 0 and finite")
    if tokens is not None and not 1 <= tokens < 1e18:
        raise AssayError(f"--tokens {tokens:g} cannot be planned: give at least 1 and less than 10^18")
    least = min(world.distillation.training.batch_size, max(world.distillation.num_prompts, 2))
    if pool < least:
        raise AssayError(
            f"a pool of {pool} prompts is smaller than one batch, or the recipe's prompts ({least}): find more "
            "prompts, or lower distillation.training.batch_size in a config file"
        )
    if world.distillation.num_prompts < 2:
        raise AssayError("the small runs take half of distillation.num_prompts: it must be at least 2")
    for option in small_options(world, pool):
        validate(option.of(world))
    smallest = small_options(world, pool)[0]
    bound = responses_counted(smallest.of(world), smallest.arm)[1] * world.task.max_response_tokens
    if teacher_tokens < bound:
        raise AssayError(
            f"a budget of {teacher_tokens} teacher tokens may not pay for one completion of each of "
            f"{smallest.num_prompts} prompts, written and scored: give at least {bound}"
        )
    return Request(target, world, teacher_tokens, pool, metric, tokens, price_per_hour)


def check_pool(request: Request, folder: Path) -> None:
    """Raises AssayError when the task has fewer prompts than the pool."""
    from assay.workspace import Workspace

    Workspace(request.world, folder).prompts("distillation", request.pool)


def cost_lines(request: Request, folder: Path) -> list[str]:
    """What the small runs cost at most, and against the budget, as lines; runs that are finished cost nothing more."""
    world, small = request.world, small_options(request.world, request.pool)
    experiments = {(world.recipe, world.seed, option.name): option.of(world) for option in small}
    counted = sum(responses_counted(option.of(world), option.arm)[1] for option in small)
    bound = counted * world.task.max_response_tokens
    return [
        *sweeps.cost(sweeps.Plan("small runs", experiments, None, "tiny"), folder, None),
        f"the small runs take at most {bound:,} teacher tokens, {bound / request.teacher_tokens:.0%} of the budget, "
        "on top of it",
    ]


def plan(request: Request, folder: Path, workers: int | None, listener: Callable[[str], None]) -> Plan:
    """Runs what is missing of the small runs in ``folder`` and ranks the options. Call it under ``__main__``.

    Raises AssayError when a small run fails, or when small runs do not get better with more responses.
    """
    world, small = request.world, small_options(request.world, request.pool)
    failures = run_sweep([option.of(world) for option in small], folder, listener, workers)
    if failures:
        name, reason = next(iter(failures.items()))
        raise AssayError(f"a small run failed ({name}): {reason}; the same command tries it again")
    records = {option: runs.read_records(run_folder(option.of(world), folder) / "metrics.jsonl") for option in small}
    found = tuple(_small_run(option, run_folder(option.of(world), folder), request.metric) for option in small)
    measured, shape = rates(world, records), shipped(request.metric)
    law = fit([option.exposure(world) for option in small], [run.value for run in found], shape)
    costs = {option: cost(option, world, measured) for option in options(world, request.pool)}
    affordable = {o: spent for o, spent in costs.items() if spent.teacher_tokens <= request.teacher_tokens}
    beyond = {option: spent for option, spent in costs.items() if option not in affordable}
    ranked = tuple(rank(affordable, world, law))
    return Plan(request, found, measured, shape.coverage, ranked, beyond, _scale_out(request, measured, workers))


def _scale_out(request: Request, measured: Rates, workers: int | None) -> ScaleOut | None:
    if request.tokens is None:
        return None
    size = size_of(request.world.models.names["teacher"])
    vocabulary = None if size is None else size.vocab_size
    return scale_out(request.tokens, request.world, measured, vocabulary, num_workers(workers), request.price_per_hour)


def _small_run(option: Option, folder: Path, metric: str) -> SmallRun:
    entry = runs.read_json(folder / "summary.json")["arms"][0]
    last = runs.read_records(folder / "metrics.jsonl")[-1]
    value = last.get(f"{metric}_nats")
    if value is None:
        raise AssayError(f"the small runs have no {metric}: its prompts have no references; plan for another --metric")
    return SmallRun(option, entry["teacher_tokens"], value)


def _of_option(option: Option, spent: Cost) -> dict[str, Any]:
    return {"name": option.name} | dataclasses.asdict(option) | dataclasses.asdict(spent)
