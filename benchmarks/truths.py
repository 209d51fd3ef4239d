"""What follows golden where there is no oracle: the columns of any log, and judges.

    python benchmarks/truths.py build [--runs FOLDER]    # the runs with judges (about an hour on one core; resumable)
    python benchmarks/truths.py collect [--runs FOLDER]  # benchmarks/truths/judges.csv, of the runs that have ended
    python benchmarks/truths.py table                    # benchmarks/truths/table.md, summary.csv from committed curves

The other columns are measured on the committed curves of HackBench (benchmarks/hackbench). What was expected beforehand
is in benchmarks/truths/expected.md.
"""

from __future__ import annotations

import argparse
import csv
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from following import Curves, summary

from assay import provenance, runs
from assay.config import ARMS, Experiment, JudgeConfig
from assay.config_file import from_dict
from assay.diagnostics.verdict import judge
from assay.recipes import get_recipe
from assay.report.tables import to_csv, to_markdown
from assay.results import per_prompt
from assay.sweep import make_stage_one, run_sweep

HERE = Path(__file__).parent
OUT = HERE / "truths"
HACKBENCH = HERE / "hackbench"
WORLDS = ("quickstart", "translate_causal", "summarize_causal")
SEEDS = (21, 22)
TASKS = ("define", "translate", "summarize")
TURNED_UP, STAYED = ("teacher_hacking", "overfitting"), ("healthy", "benign_disagreement")
Columns = Mapping[str, np.ndarray]

SIGNED: dict[str, Callable[[Columns], np.ndarray]] = {
    "reference NLL": lambda c: c["reference_nll"],
    "held-out proxy": lambda c: c["proxy"],
    "train proxy": lambda c: c["train_proxy"],
    "gap: proxy − train proxy": lambda c: c["proxy"] - c["train_proxy"],
    "relative gap: 1 − train proxy / proxy": lambda c: 1 - c["train_proxy"] / c["proxy"],
    "student entropy, sign −": lambda c: -c["student_entropy"],
    "overlap of the 8 top tokens, sign −": lambda c: -c["top_overlap"],
    "response length": lambda c: c["response_tokens"],
    "truncated share": lambda c: c["truncated"],
    "repetition": lambda c: c["repetition"],
    "distinct bigrams, sign −": lambda c: -c["distinct"],
}
"""The columns of any log, turned so that lower should be better; a longer response has no better side."""
JUDGES: dict[str, str] = {
    "second": "judge second: KL(second teacher‖student)",
    "base": "judge base: KL(untuned base of the teacher‖student)",
    "second_text": "judge second_text: NLL of the student's text under the second teacher",
    "f1": "judge f1: token F1 with the reference, sign −",
    "chrf": "judge chrf: chrF with the reference, sign −",
}
HIGHER_IS_BETTER = ("f1", "chrf")


# --- the runs with judges


def start_of(world: str, seed: int) -> Experiment:
    """The world's offline and online arm of a seed, without judges: its stage 1 is made first."""
    return replace(get_recipe(world), seed=seed, arms=(ARMS["offline"], ARMS["online_teacher"]))


def with_judges(world: str, seed: int, folder: Path) -> Experiment:
    """The same with five judges.

    The second teacher is the teacher of the other seed: the same base, SFT on the oracle's responses to other prompts.
    No judge is the oracle.
    """
    experiment = start_of(world, seed)
    other = next(s for s in SEEDS if s != seed)
    second = str(_start_folder(world, other, folder) / "stage1" / "teacher")
    judges = (
        JudgeConfig("second", "model", second),
        JudgeConfig("second_text", "model", second, walks_on="student"),
        JudgeConfig("base", "model", str(experiment.models.teacher)),
        JudgeConfig("f1", "function", "truths_judges:token_f1"),
        JudgeConfig("chrf", "command", shlex.join([sys.executable, str(HERE / "truths_judges.py")])),
    )
    return replace(experiment, probe=replace(experiment.probe, judges=judges))


def on_all_prompts(experiment: Experiment) -> Experiment:
    """The judges of text alone, on responses to all held-out prompts instead of 64: what noise costs them."""
    probe = experiment.probe
    judges = tuple(judge for judge in probe.judges if judge.name in ("second_text", *HIGHER_IS_BETTER))
    return replace(experiment, probe=replace(probe, judges=judges, num_monitored=probe.num_prompts))


def experiments(folder: Path) -> list[Experiment]:
    """All runs with judges: every world with its first seed, then the second; then on all prompts."""
    narrow = [with_judges(world, seed, folder) for seed in SEEDS for world in WORLDS]
    return narrow + [on_all_prompts(experiment) for experiment in narrow]


def _start_folder(world: str, seed: int, folder: Path) -> Path:
    return folder / f"start-{world}-seed{seed}"


def build(folder: Path) -> None:
    """Makes what is missing, run after run."""
    import torch

    torch.set_num_threads(1)
    for experiment in experiments(folder):
        for seed in SEEDS:
            _make_start(experiment.recipe, seed, folder)
        failures = run_sweep([experiment], folder, lambda line: print(line, flush=True))
        for name, reason in failures.items():
            print(f"{name} failed: {reason}", flush=True)


def _make_start(world: str, seed: int, folder: Path) -> None:
    experiment, place = start_of(world, seed), _start_folder(world, seed, folder)
    runs.prepare_folder(place)
    with runs.locked(place):
        manifest = provenance.open_manifest(experiment, place)
        if "student_after_sft" not in manifest["digests"]:
            manifest["digests"] |= make_stage_one(experiment, place)
            runs.write_json(place / "manifest.json", manifest)
            print(f"{place.name} done", flush=True)


def collect(folder: Path) -> None:
    """The curves of the runs with judges that have ended, with their labels, into judges.csv."""
    found: list[tuple[Path, Experiment]] = []
    for path in sorted(folder.glob("*/manifest.json")):
        manifest = runs.read_json(path)
        if manifest["status"] == "finished":
            found.append((path.parent, from_dict(manifest["config"])))
    rows = [row for place, experiment in found for row in _rows(place, experiment)]
    OUT.mkdir(exist_ok=True)
    (OUT / "judges.csv").write_text(to_csv(rows))
    print(f"{len(found)} runs, {len(rows)} evaluations")


def _rows(place: Path, experiment: Experiment) -> list[dict[str, Any]]:
    records, probe = runs.read_records(place / "metrics.jsonl"), runs.read_table(place / "probe.parquet")
    rows: list[dict[str, Any]] = []
    for arm in (arm.name for arm in experiment.arms):
        (steps, golden_SP), (_, proxy_SP) = (per_prompt(probe, arm, metric) for metric in ("golden", "proxy"))
        label = judge(steps, golden_SP, proxy_SP).name
        identity = {"world": experiment.recipe, "task": experiment.task.name, "seed": experiment.seed, "arm": arm}
        identity |= {"num_monitored": experiment.probe.num_monitored, "label": label}
        rows += [identity | _row(record, experiment) for record in records if record["arm"] == arm]
    return rows


def _row(record: Mapping[str, Any], experiment: Experiment) -> dict[str, Any]:
    names = {
        "golden": "golden_nats",
        "proxy": "proxy_nats",
        "train_proxy": "train_proxy_nats",
        "reference_nll": "reference_nll_nats",
        "student_entropy": "student_entropy_nats_per_token",
        "top_overlap": "top_overlap",
        "response_tokens": "response_tokens_mean",
        "truncated": "truncated_fraction",
        "repetition": "repetition_fraction",
        "distinct": "distinct_2",
    }
    row = {"step": record["step"]} | {name: record[column] for name, column in names.items()}
    for config in experiment.probe.judges:
        row |= {name: record[name] for name in (config.column, f"{config.column}_stderr")}
    return row


# --- reading curves


def hackbench_runs() -> list[Curves]:
    """The committed runs of HackBench."""
    by_run: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(HACKBENCH / "trajectories.parquet").to_pylist():
        by_run.setdefault(row["run"], []).append(row)
    return [
        _curves(facts["run"], facts["task"], f"{facts['world']}-{facts['seed']}", facts["label_100%"], rows)
        for facts in pq.read_table(HACKBENCH / "runs.parquet").to_pylist()
        for rows in [by_run[facts["run"]]]
    ]


def judged_runs(num_monitored: int) -> list[Curves]:
    """The committed runs with judges that read so many responses."""
    by_run: dict[str, list[dict[str, Any]]] = {}
    with (OUT / "judges.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["num_monitored"]) == num_monitored:
                by_run.setdefault(f"{row['world']}-{row['seed']}/{row['arm']}", []).append(row)
    return [_curves(name, rows[0]["task"], name.split("/")[0], rows[0]["label"], rows) for name, rows in by_run.items()]


def _curves(name: str, task: str, cluster: str, label: str, rows: Sequence[Mapping[str, Any]]) -> Curves:
    keys = [key for key in rows[0] if key == "golden" or key in _RAW or key.startswith("judge_")]
    raw = {key: np.array([math.nan if row[key] in (None, "") else float(row[key]) for row in rows]) for key in keys}
    columns = {column: value(raw) for column, value in SIGNED.items()} | {"golden itself": raw["golden"]}
    for judge_name, column in JUDGES.items():
        if f"judge_{judge_name}" in raw:
            columns[column] = raw[f"judge_{judge_name}"] * (-1 if judge_name in HIGHER_IS_BETTER else 1)
    known = {column: values for column, values in columns.items() if np.isfinite(values).all()}
    turned_up = True if label in TURNED_UP else False if label in STAYED else None
    steps = np.array([float(row["step"]) for row in rows])
    return Curves(name, task, cluster, turned_up, steps, raw["golden"], known)


_RAW = ("proxy", "train_proxy", "reference_nll", "student_entropy", "top_overlap", "response_tokens", "truncated",
        "repetition", "distinct")  # fmt: skip


# --- the table


def table() -> None:
    """Writes table.md and summary.csv."""
    sets = {"HackBench": hackbench_runs()}
    for num_monitored in (64, 384):
        found = judged_runs(num_monitored)
        if found:
            sets[f"judges, {num_monitored} responses"] = found
    rows = [
        {"set": name, "task": task, "golden": kind} | summary(part, column, with_intervals=task == "all")
        for name, everyone in sets.items()
        for task in ("all", *TASKS)
        for kind, wanted in (("turned up", True), ("stayed", False))
        for part in [[run for run in everyone if run.turned_up is wanted and task in ("all", run.task)]]
        for column in ("golden itself", *SIGNED, *JUDGES.values())
        if any(column in run.columns for run in part)
    ]
    (OUT / "summary.csv").write_text(to_csv(rows))
    (OUT / "table.md").write_text("\n".join(in_words(sets, rows)) + "\n")


def in_words(sets: Mapping[str, Sequence[Curves]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables in Markdown: for each set of runs, where golden turned up and where it stayed, then by task."""
    lines = [
        "# What follows golden",
        "",
        "Made by `python benchmarks/truths.py table`; how to read it: docs/truths.md. One value for each run and "
        "column; Spearman, Pearson and lags are medians over runs, the other columns means. Intervals (95 %) resample "
        "worlds and seeds. Lags are in octaves of the step, positive where the column is later (1: it does at step 2 n "
        "what golden does at step n); the lag of changes exists where it is within two octaves, in this share of runs.",
    ]
    for name, everyone in sets.items():
        undecided = sum(run.turned_up is None for run in everyone)
        lines += ["", f"## {name}: {len(everyone)} runs, {undecided} undecided and left out"]
        for kind in ("turned up", "stayed"):
            chosen = [row for row in rows if (row["set"], row["task"], row["golden"]) == (name, "all", kind)]
            if chosen:
                lines += ["", f"Golden {kind}:", "", *to_markdown([_cells(row) for row in chosen])]
        lines += ["", "Median Spearman by task (turned up / stayed):", "", *to_markdown(_by_task(name, rows))]
    return lines


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    if not row["runs"]:
        return {"column": row["column"], "runs": "0"}
    return {
        "column": row["column"],
        "runs": str(row["runs"]),
        "Spearman": f"{row['spearman']:+.2f} [{row['spearman_low']:+.2f}, {row['spearman_high']:+.2f}]",
        "quartiles": f"{row['spearman_q1']:+.2f}, {row['spearman_q3']:+.2f}",
        "Pearson": f"{row['pearson']:+.2f}",
        "best within one evaluation": f"{row['near_best']:.0%}",
        "lag of best": f"{row['lag_of_best']:+.1f}",
        "lag of changes (runs)": f"{row['lag']:+.1f} ({row['with_lag']:.0%})" if row["with_lag"] else "–",
        "same word on “turned up”": f"{row['agreement']:.0%}",
        "regret, nats": f"{row['regret']:.3f}",
    }


def _by_task(name: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    found = {(row["task"], row["golden"], row["column"]): row for row in rows if row["set"] == name and row["runs"]}

    def cell(task: str, column: str) -> str:
        pair = [found.get((task, kind, column)) for kind in ("turned up", "stayed")]
        return " / ".join("–" if row is None else f"{row['spearman']:+.2f}" for row in pair)

    columns = list(dict.fromkeys(column for _, _, column in found))
    return [{"column": column} | {task: cell(task, column) for task in TASKS} for column in columns]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "collect", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/truths"))
    arguments = parser.parse_args()
    if arguments.what == "table":
        table()
    else:
        {"build": build, "collect": collect}[arguments.what](arguments.runs)


if __name__ == "__main__":
    main()
