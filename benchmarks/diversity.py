"""Which measure of a distillation set predicts golden? Over finished offline runs, without training anything again.

    python benchmarks/diversity.py measure --runs FOLDER    # rebuilds each run's responses, appends to measures.csv
    python benchmarks/diversity.py table                    # measures.csv -> table.md and figure.svg

Runs: an arm "offline", forward KL, constant rate 3e-4, 300 steps, temperature 1, and everything but the number of
prompts and completions as in the world's recipe. One row for each world, seed and cell. The outcome is golden at the
end less golden at the start of stage 2, which all cells of a world and seed share.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr

from assay import get_recipe, runs
from assay.config import Experiment, flat
from assay.config_file import from_dict
from assay.errors import AssayError
from assay.recipes.studies import ALL_WORLDS
from assay.report.style import in_style, to_svg
from assay.report.tables import to_csv, to_markdown

HERE = Path(__file__).parent / "diversity"
IDENTITY = ("world", "seed", "num_prompts", "num_pairs")
AFTER_THE_RUN = ("train_proxy", "proxy")
"""Known only once the student has been trained; shown beside the measures, not ranked with them."""
MIN_CELLS = 3
NUM_RESAMPLES = 2000


def is_standard(experiment: Experiment) -> bool:
    """Whether a run differs from its world's recipe in seed, arms and numbers of prompts and completions only."""
    if experiment.recipe not in ALL_WORLDS or all(arm.name != "offline" for arm in experiment.arms):
        return False
    dials = dataclasses.replace(
        experiment.distillation,
        num_prompts=get_recipe(experiment.recipe).distillation.num_prompts,
        completions_per_prompt=1,
    )
    world = get_recipe(experiment.recipe)
    return dataclasses.replace(experiment, seed=world.seed, arms=world.arms, distillation=dials) == world


def measure_runs(folder: Path) -> None:
    """Appends a row for every standard run of the folder that is not in measures.csv yet, world and seed by seed."""
    path = HERE / "measures.csv"
    rows = read_rows(path) if path.exists() else []
    known = {tuple(row[name] for name in IDENTITY) for row in rows}
    todo: dict[tuple[str, int], dict[tuple[int, int], Path]] = defaultdict(dict)
    for manifest in sorted(folder.glob("*/manifest.json")):
        if not (manifest.parent / "summary.json").exists():
            continue
        try:
            experiment = from_dict(runs.read_json(manifest)["config"])
        except AssayError as error:
            print(f"left out {manifest.parent.name}, whose config is of another version: {error}", flush=True)
            continue
        dials = experiment.distillation
        cell = dials.num_prompts, dials.num_prompts * dials.completions_per_prompt
        if is_standard(experiment) and (experiment.recipe, experiment.seed, *cell) not in known:
            todo[experiment.recipe, experiment.seed].setdefault(cell, manifest.parent)
    for (world, seed), cells in sorted(todo.items(), key=lambda item: (item[0][1], item[0][0])):
        print(world, seed, len(cells), "cells", flush=True)
        for row in measure_cells(cells):
            rows.append(row)
            write_rows(path, rows)


def measure_cells(cells: dict[tuple[int, int], Path]) -> Iterable[dict[str, str | float]]:
    """One row for each cell of one world and seed; responses that two cells share are written once."""
    from assay.data.distillation_set import measure_diversity
    from assay.models.sampling import response_seed
    from assay.workspace import Workspace

    first = next(iter(cells.values()))
    work = Workspace(from_dict(runs.read_json(first / "manifest.json")["config"]), first)
    teacher, held_out, answers = work.tuned("teacher"), work.held_out(), work.held_out_responses("teacher")
    prompts = work.prompts("distillation", max(num_prompts for num_prompts, _ in cells))
    seed, limit = work.experiment.seed, work.experiment.task.max_response_tokens
    written: dict[tuple[int, int], tuple[int, ...]] = {}
    for (num_prompts, num_pairs), run in sorted(cells.items()):
        pairs = [(prompt, k) for k in range(num_pairs // num_prompts) for prompt in range(num_prompts)]
        missing = [pair for pair in pairs if pair not in written]
        for start in range(0, len(missing), 512):
            part = missing[start : start + 512]
            seeds = [response_seed("train", seed, 0, prompts[prompt].id, k, 0) for prompt, k in part]
            texts = teacher.sample([prompts[prompt].token_ids for prompt, _ in part], seeds, limit, 1.0)
            written |= dict(zip(part, texts, strict=True))
        chosen = [prompts[prompt] for prompt, _ in pairs]
        check_against_run(run, chosen, [written[pair] for pair in pairs])
        found = measure_diversity(chosen, [written[pair] for pair in pairs], held_out, answers, teacher, work.tokenizer)
        values = flat(dataclasses.asdict(found))
        del values["num_vendi_rows"]
        identity = {"world": work.experiment.recipe, "seed": seed, "num_prompts": num_prompts, "num_pairs": num_pairs}
        yield {**identity, **outcome(run), **{name: v for name, v in values.items() if name not in IDENTITY}}


def check_against_run(run: Path, prompts: Sequence, responses: Sequence[tuple[int, ...]]) -> None:
    """The pairs that the run has kept on disk are the first of those that were written again."""
    from assay.data.store import read_responses

    kept = read_responses(run / "arms" / "offline" / "train_pairs.parquet")
    again = [(prompt.id, ids) for prompt, ids in zip(prompts, responses, strict=True)][: len(kept)]
    if again != [(response.prompt_id, response.token_ids) for response in kept]:
        raise SystemExit(f"{run}: its responses are not those that its seed gives; nothing was measured")


def outcome(run: Path) -> dict[str, float]:
    """Golden's change over the run, and the proxies at its end (nats per sequence)."""
    arm = next(arm for arm in runs.read_json(run / "summary.json")["arms"] if arm["source"] == "offline")
    return {
        "golden_change": arm["golden"]["final"] - arm["golden"]["initial"],
        "proxy": arm["proxy"]["final"],
        "train_proxy": arm["train_proxy"]["final"],
    }


def write_table() -> None:
    """table.md and figure.svg from measures.csv alone."""
    rows = read_rows(HERE / "measures.csv")
    names = [name for name in rows[0] if name not in ("world", "seed", "golden_change")]
    entries = [entry(rows, name) for name in names]
    entries.sort(key=lambda found: (found["measure"] in AFTER_THE_RUN, -abs(float(str(found["Spearman"]).split()[0]))))
    worlds = Counter(row["world"] for row in rows)
    text = [
        "# Which measure of the distillation set predicts golden",
        "",
        f"{len(rows)} offline runs; cells by world: {', '.join(f'{name} {count}' for name, count in worlds.items())}.",
        "",
        *to_markdown(entries),
        "",
        "Spearman: with golden's change, within a world and seed of at least three cells, averaged over the seeds of a",
        "world, then over worlds; negative: the more, the better. R²: of golden in a world left out, centred by seed,",
        "from the logarithm of the measure with the slope of the other worlds; 1 is perfect, below 0 worse than",
        "knowing the mean. Ordered: of all two cells of a world and seed with equal numbers of pairs (up to 2 %), the",
        "share in which the measure orders golden as its Spearman says; 0.5 is a coin, and a tie counts as half.",
        "Brackets: 95 % intervals of a bootstrap over worlds. The last rows are known only after the run.",
        "",
    ]
    runs.write_text(HERE / "table.md", "\n".join(text))
    with in_style():
        draw(rows, [str(found["measure"]) for found in entries if found["measure"] not in AFTER_THE_RUN][:4])


def entry(rows: Sequence[dict], name: str) -> dict[str, str]:
    """One line of the table."""
    by_world = {
        world: list(group) for world, group in itertools.groupby(sorted(rows, key=key), key=lambda r: r["world"])
    }
    rho = {world: within_seeds(group, lambda cells: spearman(cells, name)) for world, group in by_world.items()}
    direction = np.sign(np.nanmean(list(rho.values())))
    ordered = {world: concordance(group, name, direction) for world, group in by_world.items()}
    transfer = {world: left_out_r2(by_world, world, name) for world in by_world}
    return {
        "measure": name,
        "Spearman": interval(rho),
        "R² of a world left out": interval(transfer),
        "ordered at equal pairs": interval(ordered),
    }


def key(row: dict) -> tuple[str, int]:
    """World and seed."""
    return row["world"], row["seed"]


def within_seeds(rows: Sequence[dict], value: Callable[[list[dict]], float]) -> float:
    """The mean of a value over the seeds of a world that have enough cells; NaN without one."""
    groups = [list(group) for _, group in itertools.groupby(rows, key=key)]
    values = [value(cells) for cells in groups if len(cells) >= MIN_CELLS]
    return float(np.mean(values)) if values else float("nan")


def spearman(cells: Sequence[dict], name: str) -> float:
    """Rank correlation of a measure with golden's change; 0 where the measure does not vary."""
    measured = [cell[name] for cell in cells]
    if len(set(measured)) == 1:
        return 0.0
    return float(spearmanr(measured, [cell["golden_change"] for cell in cells]).statistic)


def concordance(rows: Sequence[dict], name: str, direction: float) -> float:
    """The share of two cells of one seed with equal numbers of pairs that the measure orders as golden does."""
    found = []
    for _, group in itertools.groupby(rows, key=key):
        for one, other in itertools.combinations(list(group), 2):
            if abs(np.log(one["num_pairs"] / other["num_pairs"])) <= 0.02:
                agreement = direction * (one[name] - other[name]) * (one["golden_change"] - other["golden_change"])
                found.append(0.5 + 0.5 * np.sign(agreement))
    return float(np.mean(found)) if found else float("nan")


def left_out_r2(by_world: dict[str, list[dict]], left_out: str, name: str) -> float:
    """1 − SSE/SST of golden's change in a world, centred by seed, from log(measure) with the other worlds' slope."""
    centred = {world: centre(rows, name) for world, rows in by_world.items()}
    x, y = (np.concatenate([centred[world][i] for world in by_world if world != left_out]) for i in (0, 1))
    slope = (x @ y) / (x @ x)
    own_x, own_y = centred[left_out]
    return float(1 - ((own_y - slope * own_x) ** 2).sum() / (own_y**2).sum())


def centre(rows: Sequence[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """log(measure) and golden's change, each less its mean over the cells of the seed."""
    parts = [list(group) for _, group in itertools.groupby(rows, key=key)]
    x = [np.log([cell[name] for cell in cells]) for cells in parts]
    y = [np.array([cell["golden_change"] for cell in cells]) for cells in parts]
    return np.concatenate([v - v.mean() for v in x]), np.concatenate([v - v.mean() for v in y])


def interval(by_world: dict[str, float]) -> str:
    """The mean over worlds with a bootstrap interval over them; worlds without a value are left out."""
    values = np.array([value for value in by_world.values() if np.isfinite(value)])
    if not len(values):
        return "–"
    draws = np.random.default_rng(0).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def draw(rows: Sequence[dict], names: Sequence[str]) -> None:
    """Golden's change over the best measures, one colour for each world."""
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.2), sharey=True, layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        for world in ALL_WORLDS:
            mine = [row for row in rows if row["world"] == world]
            axis.scatter([row[name] for row in mine], [row["golden_change"] for row in mine], s=12, label=world)
        axis.set(xscale="log", xlabel=name.replace("_", " "))
    axes[0].set_ylabel("golden, end − start (nats)")
    axes[-1].legend(fontsize=6)
    runs.write_text(HERE / "figure.svg", to_svg(figure))
    plt.close(figure)


def read_rows(path: Path) -> list[dict]:
    """The rows of measures.csv: the world as text, everything else as numbers."""
    with path.open(encoding="utf-8") as lines:
        return [
            {name: text if name == "world" else json.loads(text) for name, text in row.items()}
            for row in csv.DictReader(lines)
        ]


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """measures.csv, sorted by world, seed and cell."""
    runs.write_text(path, to_csv(sorted(rows, key=lambda row: tuple(row[name] for name in IDENTITY))))


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("measure").add_argument("--runs", type=Path, required=True)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "measure":
        measure_runs(arguments.runs)
    else:
        write_table()


if __name__ == "__main__":
    main()
