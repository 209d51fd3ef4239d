"""The planner's law, fitted on finished runs, and its choices on tasks that it was not fitted on.

    python benchmarks/planner.py build [--runs FOLDER]   # benchmarks/planner/runs.csv from finished runs
    python benchmarks/planner.py fit                     # writes src/assay/planner.json
    python benchmarks/planner.py table                   # benchmarks/planner/table.md, problems.csv, predictions.csv

Fixed before any table was looked at:

- A *problem* is a world, a seed, a pool of N, 2 N, 4 N or 8 N prompts (N: the recipe's), and a budget of 5, 20 or
  1,000 times what N prompts with one completion each cost in teacher tokens. Its *grid* is every finished run of that
  world and seed that fits pool and budget. It counts if the grid has at least three options whose golden differs by
  more than 0.1 nats, and if no other problem has the same grid.
- The planner sees three small runs (N/2 × 1, N × 1, N × 2; where nobody ran N × 2, N × 4 stands in) and the
  shape fitted on the two other *tasks*. Its choice is the lowest predicted golden of the grid.
- *Regret*: golden of the choice less the lowest golden of the grid. The choice is *within 10 %* when the regret is at
  most a tenth of golden of N × 1 less that lowest golden.
- Beside it, in the same grid: "all prompts once" (the largest set with one completion); "fully online" (the online
  teacher; where it does not fit, of rewriting and fresh shares the one that takes most teacher tokens, and where none
  fits, N × 1); and a random pick (the mean over the grid). A run cut where its tokens end was never made.
- Intervals are to cover 90 % of the runs, small ones left out.
- *Most stored* (added after the first table too, as the rule of thumb to beat): the grid's largest stored set, of equal
  ones that with most prompts.
- Small runs come on top of the budget. *Charged* (added after the first table, which showed what they cost) takes them
  out of it: the choice is among what still fits, and the small runs themselves, which exist anyway.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize

from assay import runs
from assay.config import Experiment
from assay.config_file import from_dict
from assay.planner import Cost, Option, rank
from assay.recipes import get_recipe
from assay.recipes.studies import ALL_WORLDS
from assay.report.tables import to_csv, to_markdown
from assay.scaling_law import PARAMETERS, UPPER, Exposure, Shape, decays, effective_number, fit, span

OUT = Path(__file__).parent / "planner"
SHIPPED = Path(__file__).parents[1] / "src" / "assay" / "planner.json"
METRICS = ("golden", "proxy", "reference_nll")
POOLS, BUDGETS = (1, 2, 4, 8), (5, 20, 1000)
SMALL = (((0.5, 1), (1, 1), (1, 2)), ((0.5, 1), (1, 1), (1, 4)))
"""(prompts / N, completions) of the small runs; the second where the first are not all there."""
COVERAGE = 0.9
LEAST_SPREAD = 0.1
"""Nats by which the options of a problem must differ; and the least standard deviation of the log of a parameter."""
START = np.log([0.9, 0.5, 3.0, 0.7, 0.7, 0.9])


@dataclass(frozen=True)
class PlannedRun:
    """One finished run of an option; ``values`` are the metrics at the end, in nats per sequence."""

    world: str
    seed: int
    option: Option
    values: dict[str, float]
    stderr: float
    generated_tokens: int
    teacher_tokens: int
    seconds: float

    @property
    def exposure(self) -> Exposure:
        """What its training saw."""
        return self.option.exposure(get_recipe(self.world))

    @property
    def share(self) -> float:
        """Prompts in units of the recipe's."""
        return self.option.num_prompts / get_recipe(self.world).distillation.num_prompts


@dataclass(frozen=True)
class Group:
    """All runs of one world and seed: one level and size of the law, one set of held-out prompts."""

    world: str
    seed: int
    task: str
    runs: tuple[PlannedRun, ...]
    small: tuple[PlannedRun, ...]

    @property
    def others(self) -> list[PlannedRun]:
        """The runs that a law fitted to the small ones has to predict."""
        return [run for run in self.runs if run not in self.small]


# --- building


def build(folder: Path) -> None:
    """Writes runs.csv: every finished run in ``folder`` that is a recipe but for its option, each arm once."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in sorted(folder.glob("*/manifest.json")):
        manifest = runs.read_json(path)
        if manifest["status"] != "finished" or manifest["recipe"] not in ALL_WORLDS:
            continue
        experiment = from_dict(manifest["config"])
        summary = {entry["source"]: entry for entry in runs.read_json(path.with_name("summary.json"))["arms"]}
        last = {record["arm"]: record for record in runs.read_records(path.with_name("metrics.jsonl"))}
        for arm in experiment.arms:
            option = option_of(experiment, arm.name)
            if option is not None and arm.name in summary:
                key = (ALL_WORLDS.index(experiment.recipe), experiment.seed, option.name)
                rows.setdefault(key, _row(experiment, option, summary[arm.name], last[arm.name]))
    runs.write_text(OUT / "runs.csv", to_csv([rows[key] for key in sorted(rows)]))
    print(f"{len(rows)} runs")


def option_of(experiment: Experiment, arm: str) -> Option | None:
    """The option that an arm of an experiment is, if the experiment is a recipe in all else."""
    world, mine = get_recipe(experiment.recipe), experiment.distillation
    if mine.num_prompts < 2:
        return None
    kinds: dict[str, Callable[[], Option]] = {
        "offline": lambda: Option(mine.num_prompts, mine.completions_per_prompt),
        "online_teacher": lambda: Option(mine.num_prompts, refresh_every=1),
        "online_student": lambda: Option(mine.num_prompts, writer="student"),
        **{f"refresh_{n}": lambda n=n: Option(mine.num_prompts, refresh_every=n) for n in (2, 5, 10)},
        **{f"fresh_{n}": lambda n=n: Option(mine.num_prompts, fresh_percent=n) for n in (5, 10, 25, 50)},
    }
    if arm not in kinds:
        return None
    option = kinds[arm]()
    own = next(entry for entry in experiment.arms if entry.name == arm)
    same = dataclasses.replace(option.of(world), seed=experiment.seed) == dataclasses.replace(experiment, arms=(own,))
    return option if same else None


def _row(experiment: Experiment, option: Option, entry: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "world": experiment.recipe,
        "seed": experiment.seed,
        **dataclasses.asdict(option),
        **{metric: round(entry[metric]["final"], 6) for metric in ("golden", "proxy")},
        "reference_nll": round(last["reference_nll_nats"], 6),
        "golden_stderr": round(entry["golden"]["final_stderr"], 6),
        "generated_tokens": entry["generated_tokens"],
        "teacher_tokens": entry["teacher_tokens"],
        "seconds": round(sum(last["seconds"][phase] for phase in ("sample", "teacher", "student")), 3),
    }


def load() -> list[Group]:
    """The groups of runs.csv that have small runs and at least three others."""
    found: dict[tuple[str, int], list[PlannedRun]] = {}
    with (OUT / "runs.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            every = int(row["refresh_every"]) if row["refresh_every"] else None
            option = Option(int(row["num_prompts"]), int(row["completions"]), every, int(row["fresh_percent"]),
                            "student" if row["writer"] == "student" else "teacher")  # fmt: skip
            values = {name: float(row[name]) for name in METRICS}
            counts = int(row["generated_tokens"]), int(row["teacher_tokens"])
            known = row["world"], int(row["seed"]), option, values, float(row["golden_stderr"])
            run = PlannedRun(*known, *counts, float(row["seconds"]))
            found.setdefault((run.world, run.seed), []).append(run)
    groups = []
    for (world, seed), members in found.items():
        small = _small(members)
        if small and len(members) >= len(small) + 3:
            groups.append(Group(world, seed, get_recipe(world).task.name, tuple(members), small))
    return groups


def _small(members: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    offline = {(run.share, run.option.completions): run for run in members if run.option.arm.name == "offline"}
    for wanted in SMALL:
        if all(key in offline for key in wanted):
            return tuple(offline[key] for key in wanted)
    return ()


# --- fitting


def learn(groups: Sequence[Group], metric: str) -> Shape:
    """The shape that these groups share; the widening of its intervals from leaving each of their tasks out in turn."""
    shape = learn_prior(groups, metric)
    ratios, weights = [], []
    for task in dict.fromkeys(group.task for group in groups):
        prior = learn_prior([group for group in groups if group.task != task], metric)
        for group in (group for group in groups if group.task == task):
            found = errors(group, prior, metric)
            ratios += [abs(error) / sd for error, sd in found]
            weights += [1 / len(found)] * len(found)
    order = np.argsort(ratios)
    shares = np.cumsum(np.array(weights)[order]) / sum(weights)
    widening = np.array(ratios)[order][np.searchsorted(shares, COVERAGE)]
    return dataclasses.replace(shape, widening=float(widening))


def errors(group: Group, shape: Shape, metric: str) -> list[tuple[float, float]]:
    """Error and standard deviation of each prediction from the small runs of a group."""
    law = fit([run.exposure for run in group.small], [run.values[metric] for run in group.small], shape)
    predicted = law.predict([run.exposure for run in group.others])
    sd = np.sqrt(np.diag(predicted.covariance))
    return [(run.values[metric] - value, s) for run, value, s in zip(group.others, predicted.values, sd, strict=True)]


def learn_prior(groups: Sequence[Group], metric: str) -> Shape:
    """Mean: one shape for all groups, each with its own level and size. Sd: how worlds by themselves differ from it.

    Residuals are in units of what a group's small runs span, and groups weigh the same. A world by itself is held to
    the mean by a prior of standard deviation 1 in the logs, for what its runs do not determine.
    """

    def pooled(logs: np.ndarray) -> np.ndarray:
        return np.concatenate([found / np.sqrt(len(found)) for found in _misfits(groups, logs, metric)])

    mean = _solve(pooled, START)
    noise = float(np.sqrt(np.sum(pooled(mean) ** 2) / len(groups)))
    own, noises = [], []
    for world in dict.fromkeys(group.world for group in groups):
        members = [group for group in groups if group.world == world]

        def held(logs: np.ndarray, members: Sequence[Group] = members) -> np.ndarray:
            return np.concatenate([*(found / noise for found in _misfits(members, logs, metric)), logs - mean])

        logs = _solve(held, mean)
        own.append(logs - mean)
        noises.append(np.mean([np.mean(found**2) for found in _misfits(members, logs, metric)]))
    sd = np.maximum(np.sqrt(np.mean(np.square(own), axis=0)), LEAST_SPREAD)
    names = [dict(zip(PARAMETERS, map(float, values), strict=True)) for values in (mean, sd)]
    return Shape(*names, noise=float(np.sqrt(np.mean(noises))), widening=1.0, coverage=COVERAGE)


def _solve(residuals: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> np.ndarray:
    begin = np.minimum(start, UPPER - 1e-3)
    return optimize.least_squares(residuals, begin, bounds=(-np.inf, UPPER), x_scale=0.1).x


def _misfits(groups: Sequence[Group], logs: np.ndarray, metric: str) -> list[np.ndarray]:
    return [_misfit(group, logs, metric) for group in groups]


def _misfit(group: Group, logs: np.ndarray, metric: str) -> np.ndarray:
    """Residuals of the group's runs around their own best level and size, over the small runs' span."""
    exposures = [run.exposure for run in group.runs]
    values = np.array([run.values[metric] for run in group.runs])
    x = decays(exposures, logs, effective_number(exposures[0], logs))
    design = np.column_stack([np.ones(len(x)), x])
    level, *_ = np.linalg.lstsq(design, values, rcond=None)
    small = [run.values[metric] for run in group.small]
    return (values - design @ level) / span(small)


# --- the table


@dataclass(frozen=True)
class Problem:
    """A world, a seed, a pool and a budget, and the finished runs that fit."""

    group: Group
    pool: int
    budget: int
    grid: tuple[PlannedRun, ...]

    @property
    def best(self) -> PlannedRun:
        """The run of the lowest golden."""
        return min(self.grid, key=lambda run: run.values["golden"])


def problems_of(group: Group) -> list[Problem]:
    """The problems of one group that count."""
    once = next(run for run in group.small if run.share == 1 and run.option.completions == 1)
    found = []
    for pool in POOLS:
        for budget in BUDGETS:
            grid = tuple(
                run for run in group.runs
                if run.share <= pool and run.teacher_tokens <= budget * once.teacher_tokens
            )  # fmt: skip
            ends = [run.values["golden"] for run in grid]
            if len(grid) >= 3 and max(ends) - min(ends) > LEAST_SPREAD:
                found.append(Problem(group, pool, budget, grid))
    grids = [problem.grid for problem in found]
    return [problem for i, problem in enumerate(found) if problem.grid not in grids[:i]]


def solve(problem: Problem, shape: Shape, metric: str) -> dict[str, Any]:
    """One row of problems.csv: the planner's choice from the small runs of the metric, and the others, by golden."""
    group, best = problem.group, problem.best.values["golden"]
    law = fit([run.exposure for run in group.small], [run.values[metric] for run in group.small], shape)
    spent = {run.option: Cost(run.generated_tokens, run.teacher_tokens, run.seconds) for run in problem.grid}
    ranked = rank(spent, get_recipe(group.world), law)
    ends = {run.option: run.values["golden"] for run in problem.grid}
    tied = [row.option for row in ranked if row.is_tied]
    small_tokens = sum(run.teacher_tokens for run in group.small)
    once = next(run for run in group.small if run.share == 1 and run.option.completions == 1)
    prompts = max((run for run in problem.grid if _is_once(run)), key=lambda run: run.share)
    online = _online(problem.grid, once)
    stored = (run for run in problem.grid if run.option.arm.name == "offline")
    most = max(stored, key=lambda run: (run.option.num_prompts * run.option.completions, run.option.num_prompts))
    left = problem.budget * once.teacher_tokens - small_tokens
    paid = {run.option for run in group.small}
    charged = next(r.option for r in ranked if r.option in paid or r.cost.teacher_tokens <= left)
    allowed = 0.1 * (once.values["golden"] - best)
    regret = ends[ranked[0].option] - best
    return {
        "world": group.world,
        "seed": group.seed,
        "pool": problem.pool,
        "budget": problem.budget,
        "options": len(problem.grid),
        "best": problem.best.option.name,
        "best_golden": best,
        "choice": ranked[0].option.name,
        "regret": regret,
        "allowed": allowed,
        "within_10_percent": regret <= allowed,
        "tied": len(tied),
        "best_is_tied": problem.best.option in tied,
        "most_stored": most.option.name,
        "most_stored_regret": most.values["golden"] - best,
        "all_prompts_once": prompts.option.name,
        "all_prompts_once_regret": prompts.values["golden"] - best,
        "online": online.option.name,
        "online_regret": online.values["golden"] - best,
        "random_regret": float(np.mean([run.values["golden"] for run in problem.grid])) - best,
        "small_runs_share_of_budget": small_tokens / (problem.budget * once.teacher_tokens),
        "charged": charged.name,
        "charged_regret": ends[charged] - best,
    }


def _is_once(run: PlannedRun) -> bool:
    return run.option.arm.name == "offline" and run.option.completions == 1


def _online(grid: Sequence[PlannedRun], once: PlannedRun) -> PlannedRun:
    fresh = [run for run in grid if run.option.writer == "teacher" and run.option.arm.name != "offline"]
    return max(fresh, key=lambda run: run.teacher_tokens, default=once)


def without(groups: Sequence[Group], metric: str) -> dict[str, Shape]:
    """For each task the shape that was fitted on the others."""
    tasks = dict.fromkeys(group.task for group in groups)
    return {task: learn([group for group in groups if group.task != task], metric) for task in tasks}


def predictions(groups: Sequence[Group], shapes: Mapping[str, Shape], metric: str) -> list[dict[str, Any]]:
    """One row for each run that was predicted from small runs: error and half the interval, level and difference.

    The difference is from the mean prediction's lowest one, the option that would be chosen from all.
    """
    rows = []
    for group in groups:
        law = fit([r.exposure for r in group.small], [r.values[metric] for r in group.small], shapes[group.task])
        predicted = law.predict([run.exposure for run in group.others])
        first = int(np.argmin(predicted.values))
        actual = np.array([run.values[metric] for run in group.others])
        off = actual - predicted.values
        for i, run in enumerate(group.others):
            rows.append(
                {
                    "metric": metric, "world": run.world, "seed": run.seed, "option": run.option.name,
                    "actual": actual[i], "predicted": float(predicted.values[i]),
                    "margin": float(predicted.margins()[i]),
                    "error_of_difference": float(off[i] - off[first]) if i != first else None,
                    "difference_margin": float(predicted.difference_margins(first)[i]) if i != first else None,
                }
            )  # fmt: skip
    return rows


def write_table(groups: Sequence[Group]) -> None:
    """problems.csv, predictions.csv and table.md: every problem, every prediction, all losing rows."""
    solved, predicted = {}, {}
    for metric in METRICS:
        shapes = without(groups, metric)
        rows = [solve(problem, shapes[group.task], metric) for group in groups for problem in problems_of(group)]
        solved[metric] = rows
        predicted[metric] = predictions(groups, shapes, metric)
    all_rows = [{"fitted_to": metric} | row for metric in METRICS for row in solved[metric]]
    runs.write_text(OUT / "problems.csv", to_csv([_rounded(row) for row in all_rows]))
    runs.write_text(OUT / "predictions.csv", to_csv([_rounded(row) for m in METRICS for row in predicted[m]]))
    runs.write_text(OUT / "table.md", in_words(solved, predicted))


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts and mean regrets (nats) over problems."""

    def mean(key: str) -> str:
        return f"{np.mean([row[key] for row in rows]):.3f}"

    within = sum(row["within_10_percent"] for row in rows)
    return {
        "problems": len(rows),
        "within 10 %": f"{within} ({within / len(rows):.0%})",
        "first choice is best": sum(row["regret"] == 0 for row in rows),
        "best among the tied": sum(row["best_is_tied"] for row in rows),
        "regret": mean("regret"),
        "largest": f"{max(row['regret'] for row in rows):.3f}",
        "charged": mean("charged_regret"),
        "most stored": mean("most_stored_regret"),
        "all prompts once": mean("all_prompts_once_regret"),
        "online, or nearest": mean("online_regret"),
        "random": mean("random_regret"),
    }


def coverage(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often intervals hold the run, and how large errors and intervals are."""
    errors_N = np.array([row["actual"] - row["predicted"] for row in rows])
    margins_N = np.array([row["margin"] for row in rows])
    pairs = [(row["error_of_difference"], row["difference_margin"]) for row in rows if row["difference_margin"]]
    return {
        "runs": len(rows),
        "covered": f"{np.mean(np.abs(errors_N) <= margins_N):.0%}",
        "differences covered": f"{np.mean([abs(error) <= margin for error, margin in pairs]):.0%}",
        "root mean square error": f"{np.sqrt(np.mean(errors_N**2)):.3f}",
        "mean error": f"{np.mean(errors_N):+.3f}",
        "half interval": f"{np.mean(margins_N):.3f}",
    }


def in_words(
    solved: Mapping[str, Sequence[Mapping[str, Any]]], predicted: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """table.md."""
    rows = solved["golden"]
    worlds = [world for world in ALL_WORLDS if any(row["world"] == world for row in rows)]
    blocks = [("all", rows), ("all but quickstart", [row for row in rows if row["world"] != "quickstart"])]
    blocks += [(world, [row for row in rows if row["world"] == world]) for world in worlds]
    blocks += [(f"budget {budget} ×", [row for row in rows if row["budget"] == budget]) for budget in BUDGETS]
    blocks += [(f"pool {pool} N", [row for row in rows if row["pool"] == pool]) for pool in POOLS]
    blocks += [(f"seed {s}", [r for r in rows if r["seed"] == s]) for s in sorted({row["seed"] for row in rows})]
    lines = [
        "# Plans on tasks that the law's shape was not fitted on",
        "",
        "Made by `python benchmarks/planner.py table`; its docstring has the definitions, problems.csv every problem "
        "and predictions.csv every prediction. Regrets are nats of golden, means over problems. Problems of one world "
        "and seed share runs, so they are far from independent. The form of the law was chosen on `quickstart`, so the "
        "second row is the one to quote.",
        "",
        *to_markdown([{"problems of": name} | summary(block) for name, block in blocks if block]),
        "",
        "## Predictions from the small runs",
        "",
        f"Intervals are to cover {COVERAGE:.0%}. The differences are from the option that is predicted to end lowest.",
        "",
        *to_markdown(
            [
                {"metric": metric, "world": name} | coverage(block)
                for metric in METRICS
                for name, block in [
                    ("all", predicted[metric]),
                    *((world, [row for row in predicted[metric] if row["world"] == world]) for world in worlds),
                ]
                if metric == "golden" or name == "all"
            ]
        ),
        "",
        "## Planned without golden",
        "",
        "The same problems, but the law fitted to another metric; regrets are still of golden.",
        "",
        *to_markdown([{"fitted to": metric} | summary(solved[metric]) for metric in METRICS]),
        "",
        "## Where the choice is not within 10 %",
        "",
        *to_markdown(
            [
                {key: f"{row[key]:.3f}" if isinstance(row[key], float) else row[key]
                 for key in ("world", "seed", "pool", "budget", "choice", "best", "regret", "allowed", "best_is_tied")}
                for row in rows
                if not row["within_10_percent"]
            ]
        ),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("build", "fit", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/sweeps"), help="where the finished runs are")
    arguments = parser.parse_args()
    if arguments.what == "build":
        build(arguments.runs)
    elif arguments.what == "fit":
        shapes = {metric: dataclasses.asdict(learn(load(), metric)) for metric in METRICS}
        runs.write_text(SHIPPED, json.dumps({"schema": "assay.planner/1", "shapes": shapes}, indent=1) + "\n")
    else:
        write_table(load())


if __name__ == "__main__":
    main()
