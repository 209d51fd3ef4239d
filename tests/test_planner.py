"""What options cost and which one is chosen, against what finished runs spent (benchmarks/planner/runs.csv)."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.config import Experiment
from assay.errors import AssayError
from assay.planner import (
    SHARD_BYTES,
    Cost,
    Option,
    Rates,
    cost,
    options,
    rank,
    rates,
    scale_out,
    small_options,
)
from assay.recipes import get_recipe
from assay.recipes.studies import online_fraction, refresh
from assay.scaling_law import fit, shipped
from assay.workload import responses_counted

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import planner as benchmark

WORLD = get_recipe("quickstart")
RATES = Rates(tokens_per_response=19.0, written=1e-4, scored=2e-5, recalled=1e-6, trained=5e-5)
VALUES = [15.65, 13.95, 12.84]


@pytest.mark.parametrize(
    "arguments",
    [
        {"completions": 2, "refresh_every": 2},
        {"refresh_every": 2, "fresh_percent": 10},
        {"writer": "student", "completions": 4},
        {"fresh_percent": 100},
        {"completions": 0},
        {"refresh_every": 0},
    ],
)
def test_an_option_is_one_thing(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Option"):
        Option(256, **arguments)


def test_options_are_the_arms_of_the_studies() -> None:
    for study in (online_fraction, refresh):
        (experiment,) = study(WORLD).values()
        mine = {option.arm for option in options(WORLD, 256)}
        assert set(experiment.arms) <= mine


def test_no_option_leaves_the_pool_or_stores_what_is_never_drawn() -> None:
    for pool in (64, 256, 300, 4096):
        found = options(WORLD, pool)
        assert len(set(found)) == len(found)
        assert max(option.num_prompts for option in found) == pool
        assert all(option.num_prompts * option.completions <= 300 * 64 for option in found)
        assert set(small_options(WORLD, pool)) <= set(found)


def test_what_training_sees() -> None:
    rows = 300 * 64
    assert Option(256, refresh_every=10).exposure(WORLD).rewrites == rows / 2560
    assert Option(256, refresh_every=1).exposure(WORLD).rewrites == rows / 256
    assert Option(8192, refresh_every=10).exposure(WORLD).rewrites == 1
    assert Option(2 * rows).exposure(WORLD).completions == 0.5
    student = Option(256, writer="student").exposure(WORLD)
    assert student.by_student
    assert student.rewrites == rows / 256


def test_costs_are_what_runs_spent_but_for_the_length_of_responses() -> None:
    """Lengths are measured on three small runs; those of other prompts, and of a student, differ a little."""
    ratios = []
    for group in benchmark.load():
        world = get_recipe(group.world)
        written = sum(run.generated_tokens for run in group.small)
        responses = sum(responses_counted(run.option.of(world), run.option.arm)[0] for run in group.small)
        measured = Rates(written / responses, 1, 1, 1, 1)
        for run in group.runs:
            found = cost(run.option, world, measured)
            ratios.append([found.generated_tokens / run.generated_tokens, found.teacher_tokens / run.teacher_tokens])
    assert len(ratios) > 150
    assert np.abs(np.log(ratios)).max() < 0.1
    assert np.abs(np.log(ratios)).mean() < 0.03


def test_seconds_add_up() -> None:
    rows = 300 * 64
    stored = cost(Option(256), WORLD, RATES).seconds
    assert stored == pytest.approx(19 * (256 * 1.2e-4 + rows * 5.1e-5))
    online = cost(Option(256, refresh_every=1), WORLD, RATES).seconds
    assert online == pytest.approx(19 * rows * (1.2e-4 + 5.1e-5))
    assert cost(Option(256, writer="student"), WORLD, RATES) == Cost(
        19 * rows, 19 * rows, pytest.approx(online)  # type: ignore[arg-type]
    )  # fmt: skip


def records_of(world: Experiment, option: Option, truth: Rates) -> list[dict[str, Any]]:
    """The log of an offline run at these rates: all is written at the start, scored in the first pass."""
    pairs, batch = option.num_prompts * option.completions, world.distillation.training.batch_size
    found = []
    for step in (0, 1, 2, 5, 20, 100, 300):
        written = pairs * truth.tokens_per_response
        scored = min(pairs, step * batch) * truth.tokens_per_response
        rows = step * batch * truth.tokens_per_response
        seconds = {"sample": written * truth.written, "teacher": scored * truth.scored + rows * truth.recalled,
                   "student": rows * truth.trained}  # fmt: skip
        found.append(
            {"step": step, "generated_tokens": written, "teacher_tokens": written + scored, "seconds": seconds}
        )
    return found


def test_rates_are_recovered_from_records() -> None:
    runs = {option: records_of(WORLD, option, RATES) for option in small_options(WORLD, 256)}
    found = rates(WORLD, runs)
    assert vars(found) == pytest.approx(vars(RATES), rel=1e-6)
    for records in runs.values():
        for record in records:
            record["seconds"] = dict.fromkeys(record["seconds"], 0.0)
    with pytest.raises(AssayError, match="no times"):
        rates(WORLD, runs)


def test_more_budget_never_predicts_a_worse_end() -> None:
    law = fit([option.exposure(WORLD) for option in small_options(WORLD, 2048)], VALUES, shipped("golden"))
    costs = {option: cost(option, WORLD, RATES) for option in options(WORLD, 2048)}
    ends, chosen = [], []
    for budget in np.geomspace(5000, 1e6, 60):
        ranked = rank({o: c for o, c in costs.items() if c.teacher_tokens <= budget}, WORLD, law)
        assert [row.value for row in ranked] == sorted(row.value for row in ranked)
        assert ranked[0].difference == 0
        assert ranked[0].is_tied
        ends.append(ranked[0].value)
        chosen.append(ranked[0].option)
    assert ends == sorted(ends, reverse=True)
    assert len(set(chosen)) > 5


def test_each_option_has_its_own_prediction_and_cost() -> None:
    law = fit([option.exposure(WORLD) for option in small_options(WORLD, 1024)], VALUES, shipped("golden"))
    costs = {option: cost(option, WORLD, RATES) for option in options(WORLD, 1024)}
    ranked = rank(costs, WORLD, law)
    assert {row.option for row in ranked} == set(costs)
    for row in ranked:
        assert row.cost == costs[row.option]
        assert row.value == pytest.approx(law.predict([row.option.exposure(WORLD)]).values[0])
        assert row.difference == pytest.approx(row.value - ranked[0].value)


def test_where_completions_are_worth_as_much_as_prompts_most_prompts_come_first() -> None:
    law = fit([option.exposure(WORLD) for option in small_options(WORLD, 1024)], [15.0, 14.5, 12.0], shipped("golden"))
    spent = {option: Cost(1, 1, 1.0) for option in (Option(256, 4), Option(1024), Option(512, 2))}
    ranked = rank(spent, WORLD, law)
    assert ranked[0].value == pytest.approx(ranked[2].value, abs=1e-6)
    assert [row.option.num_prompts for row in ranked] == [1024, 512, 256]


def test_past_one_machine() -> None:
    one, ten = (scale_out(tokens, WORLD, RATES, 512, 2, 3.0) for tokens in (1e9, 1e10))
    assert one.machine_hours == pytest.approx(1e9 * 1.2e-4 / 3600 / 2)
    assert one.price == pytest.approx(3 * one.machine_hours)
    assert one.bytes_of_signal == 4 * 512 * 10**9
    assert one.responses == pytest.approx(1e9 / 19, rel=1e-6)
    assert ten.machine_hours == pytest.approx(10 * one.machine_hours)
    for size, shards in (
        (one.bytes_of_responses, one.shards_of_responses),
        (one.bytes_of_signal, one.shards_of_signal),
    ):
        assert (shards - 1) * SHARD_BYTES < size <= shards * SHARD_BYTES  # type: ignore[operator]
    assert scale_out(1e9, WORLD, RATES, None, 2, None).price is None
    assert scale_out(1e9, WORLD, RATES, None, 2, None).shards_of_signal is None


# --- the benchmark as committed


def test_the_shipped_shape_is_the_fit_of_the_committed_runs() -> None:
    groups = benchmark.load()
    for metric in benchmark.METRICS:
        found, kept = benchmark.learn(groups, metric), shipped(metric)
        assert found.mean == pytest.approx(kept.mean, abs=1e-3)
        assert found.sd == pytest.approx(kept.sd, rel=1e-2)
        assert (found.noise, found.widening) == pytest.approx((kept.noise, kept.widening), rel=1e-2)


def rows() -> list[dict[str, str]]:
    with (Path(benchmark.__file__).parent / "planner" / "problems.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["fitted_to"] == "golden"]


def test_the_committed_problems_are_those_of_the_committed_runs() -> None:
    kept = rows()
    found = [
        (p.group.world, p.group.seed, p.pool, p.budget) for g in benchmark.load() for p in benchmark.problems_of(g)
    ]
    assert [(r["world"], int(r["seed"]), int(r["pool"]), int(r["budget"])) for r in kept] == found
    assert len(found) >= 12
    assert {world for world, *_ in found} == set(benchmark.ALL_WORLDS)


def test_the_planner_beats_what_needs_no_plan() -> None:
    """On worlds other than the one on which the law's form was chosen; regret in nats, over all their problems."""
    mine = [row for row in rows() if row["world"] != "quickstart"]
    others = ("all_prompts_once_regret", "online_regret", "random_regret", "most_stored_regret")
    mean = {key: np.mean([float(row[key]) for row in mine]) for key in ("regret", *others)}
    assert mean["regret"] < min(mean["all_prompts_once_regret"], mean["online_regret"], mean["random_regret"]) / 2
    assert mean["regret"] < mean["most_stored_regret"]
    assert np.mean([row["within_10_percent"] == "True" for row in mine]) >= 0.8
