"""Where the effect appears: three tasks, two families of models, three seeds each, as one committed table.

    python benchmarks/worlds.py [--runs FOLDER]           # about an hour on two cores; resumable
    python benchmarks/worlds.py --finished                # the table of what is finished, nothing run
    python benchmarks/worlds.py --grid [--runs FOLDER]    # prompts x completions in two worlds; a quarter of an hour

The dials of each world were chosen on seed 100 (docs/log.md). Runs the recipes of recipes/worlds.py as they ship;
the rows of `quickstart` are those of benchmarks/lab. Writes benchmarks/worlds/<recipe>-seed<n>.json (the runs'
summaries) and results.md, with --grid grid.csv and grid.svg.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from assay import get_recipe, run_experiment
from assay.config import Experiment
from assay.recipes.worlds import WORLDS
from assay.sweep import cells, run_folder, run_sweep

OUT = Path(__file__).parent / "worlds"
RECIPES = ["quickstart", *(world.__name__ for world in WORLDS)]
SEEDS = range(11, 14)
GRID_RECIPES = ["quickstart", "translate_seq2seq"]
GRID_SEED = 11
GRID_PROMPTS = (64, 256, 1024)
GRID_COMPLETIONS = (1, 4)


def summary_of(recipe: str, seed: int, runs: Path) -> dict[str, Any]:
    """The run's summary; run now if it is not there. The quickstart's rows are the lab's own (benchmarks/lab.py)."""
    if recipe == "quickstart":
        return json.loads((OUT.parent / "lab" / f"quickstart-seed{seed}.json").read_text())
    folder = run_world(recipe, seed, runs)
    shutil.copy(folder / "summary.json", OUT / f"{folder.name}.json")
    summary = json.loads((folder / "summary.json").read_text())
    print(folder.name, [(arm["source"], arm["verdict"]) for arm in summary["arms"]], flush=True)
    return summary


def run_world(recipe: str, seed: int, runs: Path) -> Path:
    """The folder of the finished run."""
    folder = runs / f"{recipe}-seed{seed}"
    run_experiment(dataclasses.replace(get_recipe(recipe), seed=seed), folder)
    return folder


def world_row(recipe: str, seed: int, summary: dict[str, Any]) -> str:
    """One row of the table in Markdown."""
    arms = {arm["source"]: arm for arm in summary["arms"]}
    offline = arms["offline"]
    golden, proxy = offline["golden"], offline["proxy"]
    held = "yes" if proxy["final"] <= 1.05 * proxy["best"] else f"no, {proxy['final'] / proxy['best'] - 1:.0%} above"
    pairs = {pair["online_arm"]: pair for pair in summary["comparisons"] if pair["arm"] == "offline"}
    above = [
        f"{pairs[online]['golden_final_minus_online_nats']:.2f} [{low:.2f}, {high:.2f}]"
        for online in ("online_teacher", "online_student")
        for low, high in [pairs[online]["ci95_golden_final_minus_online"]]
    ]
    cells = [
        recipe,
        get_recipe(recipe).distillation.num_prompts,
        seed,
        f"{summary['references']['d_oracle_teacher']:.2f}",
        offline["verdict"].replace("_", " "),
        interval(offline["severity_hacking_nats"], offline["ci95_hacking"]),
        interval(offline["severity_overfitting_nats"], offline["ci95_overfitting"]),
        f"{golden['initial']:.2f} → {golden['best']:.2f} ({golden['best_step']}) → {golden['final']:.2f}",
        f"{proxy['initial']:.2f} → {proxy['best']:.2f} → {proxy['final']:.2f}",
        held,
        *(arms[online]["verdict"].replace("_", " ") for online in ("online_teacher", "online_student")),
        *above,
    ]
    return "| " + " | ".join(map(str, cells)) + " |\n"


def interval(value: float | None, bounds: list[float | None]) -> str:
    """A value with its 95 % interval, or a dash where there is none."""
    return "–" if value is None else f"{value:.2f} [{bounds[0]:.2f}, {bounds[1]:.2f}]"


def is_finished(recipe: str, seed: int, runs: Path) -> bool:
    """Whether there is a row to write without running anything."""
    manifest = runs / f"{recipe}-seed{seed}" / "manifest.json"
    return recipe == "quickstart" or (manifest.exists() and json.loads(manifest.read_text())["status"] == "finished")


def write_table(runs: Path, finished_only: bool) -> None:
    """Runs what is missing and writes results.md, row by row, so that it is there before all is done."""
    head = (
        "| world | prompts | seed | d(oracle, teacher) | offline | hacking severity [95 %] | overfitting severity "
        "| offline golden start → best (step) → end | offline proxy | proxy ends within 5 % of its minimum "
        "| online teacher | online student | offline ends above online teacher | above online student |\n"
        + "|---" * 14
        + "|\n"
    )
    rows = ""
    for seed in SEEDS:
        for recipe in RECIPES:
            if finished_only and not is_finished(recipe, seed, runs):
                print(f"{recipe}-seed{seed} is not finished: left out", flush=True)
                continue
            rows += world_row(recipe, seed, summary_of(recipe, seed, runs))
            ordered = "".join(sorted(rows.splitlines(keepends=True), key=lambda row: RECIPES.index(row.split()[1])))
            (OUT / "results.md").write_text(
                "# Where the effect appears\n\nMade by `python benchmarks/worlds.py`. Nats per sequence on 384 "
                "held-out prompts; intervals are over prompts. The seeds of a world share its bases and its corpus.\n\n"
                + head
                + ordered
            )


def grid_experiments() -> list[Experiment]:
    """Both worlds' recipes with an offline arm alone, at all diversity dials."""
    axes = {"distillation.num_prompts": GRID_PROMPTS, "distillation.completions_per_prompt": GRID_COMPLETIONS}
    worlds = [get_recipe(recipe) for recipe in GRID_RECIPES]
    return [
        cell for world in worlds for cell in cells(dataclasses.replace(world, arms=world.arms[:1]), axes, [GRID_SEED])
    ]


def grid_row(experiment: Experiment, arm: dict[str, Any]) -> dict[str, Any]:
    """One row of grid.csv from the offline arm's entry in summary.json."""
    keys = ("severity_nats", "severity_hacking_nats", "severity_overfitting_nats")
    bounds = ("ci95", "ci95_hacking", "ci95_overfitting")
    return {
        "world": experiment.recipe,
        "num_prompts": experiment.distillation.num_prompts,
        "completions_per_prompt": experiment.distillation.completions_per_prompt,
        "verdict": arm["verdict"],
        **{key: arm[key] for key in keys},
        **{
            f"{key}_{end}": arm[ci][i]
            for key, ci in zip(keys, bounds, strict=True)
            for i, end in ((0, "low"), (1, "high"))
        },
        "golden_final": arm["golden"]["final"],
        "proxy_final": arm["proxy"]["final"],
    }


def write_grid(runs: Path) -> None:
    """Runs the cells, each world's from one stage 1, and writes grid.csv and grid.svg."""
    experiments = grid_experiments()
    failures = run_sweep(experiments, runs, print)
    if failures:
        raise SystemExit(f"{len(failures)} cells failed: {failures}")
    summaries = [json.loads((run_folder(e, runs) / "summary.json").read_text()) for e in experiments]
    rows = [grid_row(e, summary["arms"][0]) for e, summary in zip(experiments, summaries, strict=True)]
    with (OUT / "grid.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw_grid(rows)


def draw_grid(rows: list[dict[str, Any]]) -> None:
    """Severity over the number of prompts, one line for each number of completions, one panel a world."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, recipe in zip(figure.subplots(1, 2), GRID_RECIPES, strict=True):
        for completions, colour in zip(GRID_COMPLETIONS, ("#d55e00", "#0072b2"), strict=True):
            cells = [r for r in rows if r["world"] == recipe and r["completions_per_prompt"] == completions]
            value = [r["severity_nats"] for r in cells]
            # a cross-fitted estimate may lie beyond an end of its percentile interval
            below = [max(0.0, r["severity_nats"] - r["severity_nats_low"]) for r in cells]
            above = [max(0.0, r["severity_nats_high"] - r["severity_nats"]) for r in cells]
            axes.errorbar(
                [r["num_prompts"] for r in cells], value, [below, above], marker="o", capsize=3, color=colour,
                label=f"{completions} completion{'s' * (completions > 1)} per prompt",
            )  # fmt: skip
        axes.set(xscale="log", xlabel="distillation prompts", ylabel="severity, nats per sequence", title=recipe)
        axes.set_xticks(GRID_PROMPTS, map(str, GRID_PROMPTS))
        axes.minorticks_off()
        axes.legend(frameon=False)
    figure.savefig(OUT / "grid.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/worlds"), help="where the runs go (not committed)")
    parser.add_argument("--grid", action="store_true", help="prompts x completions in two worlds, instead of the table")
    parser.add_argument("--finished", action="store_true", help="the table of what is finished: run nothing")
    arguments = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    if arguments.grid:
        write_grid(arguments.runs)
    else:
        write_table(arguments.runs, arguments.finished)


if __name__ == "__main__":
    main()
