"""The cures compared: golden at equal steps and at equal generated tokens, in worlds that no dial was chosen on.

    python benchmarks/cures.py build [--runs FOLDER]   # runs what is missing (hours; resumable), collects the curves
    python benchmarks/cures.py table                   # benchmarks/cures/{table,policy}.md and .csv, figure.svg

Every strategy is one arm of 300 steps from the student of its world and seed. Worlds and seeds: ``HELD_OUT`` and
``SEEDS``; the dials were chosen on ``quickstart`` (docs/log.md). "At equal tokens" reads every strategy at its
last evaluation at which no more had been generated: the student that one would have for that money, golden unseen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from assay import provenance, runs
from assay.config import Experiment
from assay.config_file import from_dict
from assay.experiment import finished_arms
from assay.recipes import get_recipe
from assay.recipes.policies import POLICY_ARMS
from assay.recipes.strategies import FIXED, PROMPTS_NEEDED, strategies
from assay.recipes.studies import ALL_WORLDS
from assay.report.style import ARM_COLOURS, MUTED, in_style, plain_ticks, to_svg
from assay.report.tables import to_csv, to_markdown
from assay.report.words import brackets, nats
from assay.results import per_prompt
from assay.statistics import Estimate, Interval, mean_estimate, paired_difference, t_interval
from assay.sweep import arm_key, run_sweep

OUT = Path(__file__).parent / "cures"
DESIGN_WORLD = "quickstart"
HELD_OUT = tuple(world for world in ALL_WORLDS if world != DESIGN_WORLD)
SEEDS = (11, 12)
ON_BOTH_SEEDS = ("offline", *FIXED, *(arm.name for arm in POLICY_ARMS), "anchor", "ema", "replay_20", "references_20",
                 "completions_x8_anchored", "policy_auto_anchored")  # fmt: skip
"""The others have the first seed alone, and only the worlds held out."""
POLICY = "policy_auto"
COLUMNS = ("golden_nats", "proxy_nats", "train_proxy_nats", "reference_nll_nats", "generated_tokens", "teacher_tokens")
CONTROLS: dict[str, Callable[[Experiment], Experiment]] = {
    "a random student": lambda w: replace(w, models=replace(w.models, student_initialisation="random")),
    "a student without SFT": lambda w: replace(w, stage_one=replace(w.stage_one, student_epochs=0.0)),
}
"""Where the student's start is far from the truth an anchor to it should hold it back; in the design world."""
BUDGETS = (1, 8, 16)
"""Generated tokens, in those of the offline arm."""
SLACK = 1.05
"""Responses of one arm are a little longer than those of another, at the same number."""
CLOSE_SHARE, CLOSE_NATS = 0.05, 0.05
"""A policy is close to the best fixed strategy within this share of its improvement over offline, or so many nats."""

LABEL_DECADES, LABEL_NATS = 0.3, 0.085
"""Labels of the figure that are nearer than this to each other make room."""

Key = tuple[str, int, str]


@dataclass(frozen=True)
class Curve:
    """One strategy in one world and seed: golden in nats at each evaluation, and per held-out prompt at some.

    ``left`` is the position of the student that the arm leaves.
    """

    generated_tokens: np.ndarray
    golden_S: np.ndarray
    per_prompt: dict[int, np.ndarray]
    left: int

    @property
    def end_P(self) -> np.ndarray:
        """Golden of the student that is left."""
        return self.per_prompt[self.left]

    def within(self, tokens: float) -> int | None:
        """The last evaluation that ``tokens`` pay for (the student that is left, where they pay for all); see SLACK."""
        paid = np.flatnonzero(self.generated_tokens <= SLACK * tokens)
        if len(paid) == len(self.golden_S):
            return self.left
        return int(paid[-1]) if len(paid) and paid[-1] > 0 else None


# --- building


def build(folder: Path) -> None:
    """Runs what is missing in ``folder`` and writes curves.parquet, golden.parquet and their digests."""
    wanted = {
        (world, seed, name): arm
        for world in (*HELD_OUT, DESIGN_WORLD)
        for seed in SEEDS
        for name, arm in strategies(replace(get_recipe(world), seed=seed)).items()
        if name in ON_BOTH_SEEDS or (seed == SEEDS[0] and world in HELD_OUT)
    }
    wanted |= {
        (control, SEEDS[0], name): strategies(change(replace(get_recipe(DESIGN_WORLD), seed=SEEDS[0])))[name]
        for control, change in CONTROLS.items()
        for name in ("offline", "anchor")
    }
    places = dict(_finished(folder))
    missing = [
        experiment for experiment, name in wanted.values() if arm_key(experiment, _arm(experiment, name)) not in places
    ]
    missing.sort(key=lambda experiment: experiment.models.num_teachers)  # these make a stage 1 of their own: last
    print(f"{len(wanted)} arms, {len(missing)} of them missing")
    failures = run_sweep(missing, folder, lambda line: print(line, flush=True))
    if failures:
        raise SystemExit(f"{len(failures)} runs failed: {next(iter(failures.values()))}")
    places = dict(_finished(folder))
    curves, golden = [], []
    for (world, seed, strategy), (experiment, name) in wanted.items():
        place, left = places[arm_key(experiment, _arm(experiment, name))]
        key = {"world": world, "seed": seed, "strategy": strategy}
        records = runs.read_records(place / "metrics.jsonl")
        columns = ("step", *COLUMNS)
        end = records[-1]["step"] if left is None else left
        curves += [
            key | {column: record[column] for column in columns} | {"left": record["step"] == end} for record in records
        ]
        budget = _policy_tokens(places, wanted, world, seed) if strategy in FIXED else 0.0
        paid = max((r["step"] for r in records if r["generated_tokens"] <= SLACK * budget), default=end)
        for step in sorted({end, paid}):
            probe = runs.read_table(place / "probe" / f"{step:08d}.parquet")
            values = per_prompt(probe, name, "golden")[1][0].round(3)
            golden += [key | {"step": step, "nats": float(value)} for value in values]
    OUT.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(curves), OUT / "curves.parquet", compression="zstd")
    schema = pa.schema([("world", pa.string()), ("seed", pa.int16()), ("strategy", pa.string()), ("step", pa.int16()),
                        ("nats", pa.float32())])  # fmt: skip
    pq.write_table(pa.Table.from_pylist(golden, schema), OUT / "golden.parquet", compression="zstd")
    digests = {
        name: hashlib.sha256((OUT / name).read_bytes()).hexdigest() for name in ("curves.parquet", "golden.parquet")
    }
    (OUT / "digests.json").write_text(json.dumps(digests, indent=1) + "\n")


def _policy_tokens(places: Mapping[str, Any], wanted: Mapping[Key, Any], world: str, seed: int) -> float:
    experiment, name = wanted[world, seed, POLICY]
    place, _ = places[arm_key(experiment, _arm(experiment, name))]
    return runs.read_records(place / "metrics.jsonl")[-1]["generated_tokens"]


def _arm(experiment: Any, name: str) -> Any:
    return next(arm for arm in experiment.arms if arm.name == name)


def _finished(folder: Path) -> Iterator[tuple[str, tuple[Path, int | None]]]:
    """Arm key → folder of the arm, and the step of the student that it left."""
    for path in sorted(folder.glob("*/manifest.json")):
        manifest = runs.read_json(path)
        if provenance.is_manifest(manifest):
            experiment = from_dict(manifest["config"])
            for name in finished_arms(experiment, path.parent):
                place = path.parent / "arms" / name
                left = runs.read_json(place / "finished.json").get("kept_step")
                yield arm_key(experiment, _arm(experiment, name)), (place, left)


def load() -> dict[Key, Curve]:
    """The curves of the committed files, whose digests must match."""
    for name, digest in json.loads((OUT / "digests.json").read_text()).items():
        if hashlib.sha256((OUT / name).read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{name} is not the file that was built: build it again")
    values: dict[Key, dict[int, list[float]]] = {}
    columns = pq.read_table(OUT / "golden.parquet").to_pydict()
    for world, seed, strategy, step, value in zip(*columns.values(), strict=True):
        values.setdefault((world, seed, strategy), {}).setdefault(step, []).append(value)
    by_key: dict[Key, list[dict[str, Any]]] = {}
    for row in pq.read_table(OUT / "curves.parquet").to_pylist():
        by_key.setdefault((row["world"], row["seed"], row["strategy"]), []).append(row)
    return {
        key: Curve(
            np.array([row["generated_tokens"] for row in rows], float),
            np.array([row["golden_nats"] for row in rows]),
            {i: np.array(values[key][row["step"]]) for i, row in enumerate(rows) if row["step"] in values[key]},
            next(i for i, row in enumerate(rows) if row["left"]),
        )
        for key, rows in by_key.items()
    }


# --- the table


def rows_of(curves: Mapping[Key, Curve]) -> list[dict[str, Any]]:
    """One row per strategy: golden less that of offline, over the worlds held out; the best first."""
    rows = []
    for name in dict.fromkeys(strategy for _, _, strategy in curves):
        found = _differences(curves, name, HELD_OUT)
        by_world = [np.mean([d.value for (w, _), d in found.items() if w == world]) for world in HELD_OUT]
        margins = [(d.value, 1.96 * (d.stderr or 0.0)) for d in found.values()]
        row: dict[str, Any] = {
            "strategy": name,
            "tokens": float(np.mean([_multiple(curves, key, curves[(*key, name)]) for key in found])),
            "end": t_interval(mean_estimate(by_world)),
            "better": sum(value + margin < 0 for value, margin in margins),
            "worse": sum(value - margin > 0 for value, margin in margins),
            "runs": len(margins),
        }
        row |= {f"at {budget}x": _at_budget(curves, name, found, budget) for budget in BUDGETS}
        rows.append(row)
    return sorted(rows, key=lambda row: row["end"].value)


def _differences(curves: Mapping[Key, Curve], name: str, worlds: Sequence[str]) -> dict[tuple[str, int], Estimate]:
    """World and seed → golden at the end less offline's, paired over prompts."""
    return {
        (world, seed): paired_difference(curve.end_P, curves[world, seed, "offline"].end_P)
        for (world, seed, strategy), curve in curves.items()
        if strategy == name and world in worlds
    }


def _multiple(curves: Mapping[Key, Curve], key: tuple[str, int], curve: Curve) -> float:
    return curve.generated_tokens[-1] / curves[(*key, "offline")].generated_tokens[-1]


def _at_budget(curves: Mapping[Key, Curve], name: str, keys: Iterable[tuple[str, int]], budget: float) -> float | None:
    """Mean over runs of golden less offline's at its end, each read where ``budget`` times its tokens are spent."""
    found = []
    for key in keys:
        offline, curve = curves[(*key, "offline")], curves[(*key, name)]
        position = curve.within(budget * offline.generated_tokens[-1])
        if position is None:
            return None
        found.append(float(curve.golden_S[position] - offline.golden_S[-1]))
    return float(np.mean(found))


# --- the policy against fixed strategies


def policy_rows(curves: Mapping[Key, Curve]) -> list[dict[str, Any]]:
    """One row per world and seed: the policy against every fixed strategy on the same prompts, at its own tokens."""
    rows = []
    for (world, seed, strategy), mine in curves.items():
        if strategy != POLICY:
            continue
        tokens = mine.generated_tokens[-1]
        offline = curves[world, seed, "offline"]
        rivals = {}
        for name in FIXED:
            curve = curves[world, seed, name]
            position = curve.within(tokens)
            if name not in PROMPTS_NEEDED and position is not None:
                rivals[name] = curve.per_prompt[position]
        best = min(rivals, key=lambda name: rivals[name].mean())
        improvement = float(offline.end_P.mean() - rivals[best].mean())
        gap = paired_difference(mine.end_P, rivals[best])
        gain = paired_difference(mine.end_P, offline.end_P)
        rows.append(
            {
                "world": world,
                "seed": seed,
                "tokens": tokens / offline.generated_tokens[-1],
                "offline": float(offline.end_P.mean()),
                "policy": float(mine.end_P.mean()),
                "gain": _interval(gain),
                "never_worse": gain.value - 1.96 * (gain.stderr or 0.0) <= 0,
                "best": best,
                "best_golden": float(rivals[best].mean()),
                "gap": _interval(gap),
                "close": gap.value <= max(CLOSE_SHARE * improvement, CLOSE_NATS),
            }
        )
    return sorted(rows, key=lambda row: (ALL_WORLDS.index(row["world"]), row["seed"]))


def _interval(estimate: Any) -> Interval:
    margin = 1.96 * estimate.stderr
    return Interval(estimate.value, estimate.value - margin, estimate.value + margin)


# --- files


def write_tables(curves: Mapping[Key, Curve]) -> None:
    """table.md, policy.md, their CSVs and the figure."""
    rows = rows_of(curves)
    shown = [
        {
            "strategy": row["strategy"],
            "tokens, × offline": f"{row['tokens']:.1f}",
            "golden at the end, less offline's": _bounds(row["end"]),
            "surely better in": f"{row['better']} of {row['runs']}",
            **{f"at {budget}x tokens": nats(row[f"at {budget}x"], signed=True) for budget in BUDGETS},
            f"in {DESIGN_WORLD}": _in_design(curves, row["strategy"]),
        }
        for row in rows
    ]
    flat = [{k: (v.value if isinstance(v, Interval) else v) for k, v in row.items()}
            | {"end_low": row["end"].low, "end_high": row["end"].high} for row in rows]  # fmt: skip
    head = [
        "# Cures: golden at the end of 300 steps, less that of the offline arm of the same world and seed",
        "",
        f"Nats per sequence, mean over {len(HELD_OUT)} worlds that no dial was chosen on ({', '.join(HELD_OUT)}), "
        f"seeds {' and '.join(map(str, SEEDS))}; 95 % t interval over the worlds; lower is better. *Surely better*: "
        "runs whose paired interval over prompts lies below 0. *At n× tokens*: each strategy at its last evaluation "
        "that cost no more than n times what offline generated; – where not even one evaluation was paid for.",
        "",
    ]
    controls = [
        {
            f"`{DESIGN_WORLD}` with": control,
            "golden at the start": nats(curves[control, SEEDS[0], "offline"].golden_S[0]),
            **{
                f"{name}, at the end": nats(curves[control, SEEDS[0], name].end_P.mean())
                for name in ("offline", "anchor")
            },
            "anchor − offline": _bounds(_interval(_differences(curves, "anchor", (control,))[control, SEEDS[0]])),
        }
        for control in CONTROLS
    ]
    foot = ["", "## Where an anchor should not help", "", f"Seed {SEEDS[0]}; interval over prompts.", ""]
    runs.write_text(OUT / "table.md", "\n".join([*head, *to_markdown(shown), *foot, *to_markdown(controls), ""]))
    runs.write_text(OUT / "table.csv", to_csv(flat))
    found = policy_rows(curves)
    shown = [
        {
            "world": row["world"],
            "seed": row["seed"],
            "tokens, × offline": f"{row['tokens']:.1f}",
            "offline": nats(row["offline"]),
            "policy": nats(row["policy"]),
            "policy − offline": _bounds(row["gain"]),
            "best fixed within its tokens": f"{row['best']} {nats(row['best_golden'])}",
            "policy − best fixed": _bounds(row["gap"]),
            "close": "yes" if row["close"] else "no",
        }
        for row in found
    ]
    unseen = [row for row in found if row["world"] != DESIGN_WORLD]
    head = [
        '# The policy "auto" against fixed strategies on the same prompts, at the policy\'s own generated tokens',
        "",
        f"In the {len(unseen)} runs of the worlds that it was not designed on: not worse than offline beyond noise in "
        f"{sum(row['never_worse'] for row in unseen)}; within {CLOSE_SHARE:.0%} of the best fixed strategy's "
        f"improvement or {CLOSE_NATS} nats of it in {sum(row['close'] for row in unseen)}. A fixed strategy that costs "
        "more is read at its last evaluation within the policy's tokens; the best is picked with hindsight, by golden. "
        f"`{DESIGN_WORLD}` is the world of the design.",
        "",
    ]
    runs.write_text(OUT / "policy.md", "\n".join([*head, *to_markdown(shown), ""]))
    figure(rows)


def _in_design(curves: Mapping[Key, Curve], strategy: str) -> str:
    """One world has no interval over worlds."""
    found = _differences(curves, strategy, (DESIGN_WORLD,))
    return nats(float(np.mean([d.value for d in found.values()])), signed=True) if found else "–"


def _bounds(interval: Interval) -> str:
    return f"{nats(interval.value, signed=True)} {brackets([interval.low, interval.high])}"


def figure(rows: Sequence[Mapping[str, Any]]) -> None:
    """Golden less offline's over generated tokens, a point for each strategy; labels side by side do not overlap."""
    kinds = {"fixed": "o", "policy": "D", "cure": "s"}
    labels: list[tuple[float, float]] = []
    with in_style():
        drawing = Figure(figsize=(9.5, 7))
        axes = drawing.subplots()
        for row in sorted(rows, key=lambda row: row["end"].value):
            name, x, y = row["strategy"], row["tokens"], row["end"].value
            kind = "policy" if name.startswith(("policy", "stop")) else "cure"
            kind = "fixed" if name in ("offline", *FIXED) else kind
            axes.plot(x, y, kinds[kind], ms=6, color=ARM_COLOURS[list(kinds).index(kind)], label=kind)
            beside = [height for place, height in labels if abs(np.log10(x / place)) < LABEL_DECADES]
            height = max([y, *(other + LABEL_NATS for other in beside)])
            labels.append((x, height))
            axes.annotate(name.replace("_", " "), (1.06 * x, height), fontsize=7, va="center")
        axes.axhline(0, lw=1, ls="--", color=MUTED)
        axes.set_xscale("log")
        axes.set_xlim(0.8, 600)
        plain_ticks(axes.xaxis, [1, 3, 10, 30, 100, 300])
        axes.set_xlabel("generated tokens, in those of offline")
        axes.set_ylabel("golden at the end, less offline's (nats)")
        unique = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(unique.values(), unique.keys())
        runs.write_text(OUT / "figure.svg", to_svg(drawing))


def main() -> None:
    """Reads the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["build", "table"])
    parser.add_argument("--runs", type=Path, default=Path("runs/sweeps"))
    given = parser.parse_args()
    if given.action == "build":
        build(given.runs)
    else:
        write_tables(load())
        print((OUT / "policy.md").read_text())


if __name__ == "__main__":
    main()
