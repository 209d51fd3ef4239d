"""The site's charts: data from committed results, as a title, labels and panels of series over steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
WORLD = "quickstart"
SEEDS = (11, 12, 13, 14, 15)
ARMS = ("offline", "online_teacher", "online_student")
UNSEEN_WORLDS = ("define_seq2seq", "translate_causal", "translate_seq2seq", "summarize_causal", "summarize_seq2seq")
STRATEGIES = {
    "offline": ("offline, one response per prompt", "offline"),
    "anchor": ("the same with a KL anchor of weight 1", "four"),
    "completions_x8": ("eight stored responses per prompt", "online_student"),
    "online_teacher": ("fresh responses of the teacher", "online_teacher"),
}
Row = dict[str, Any]
Line = tuple[str, str, dict[int, float]]


def quickstart() -> Row:
    """Proxy and golden of the quickstart's three arms: means of the five seeds of benchmarks/lab, from HackBench."""
    arm_of = quickstart_runs()
    curves = [row for row in _rows("hackbench/trajectories.parquet") if row["run"] in arm_of]

    def panel(title: str, column: str) -> Row:
        of_arm = {arm: [row for row in curves if arm_of[row["run"]] == arm] for arm in ARMS}
        return _panel(title, [(arm.replace("_", " "), arm, _mean(of_arm[arm], column)) for arm in ARMS])

    panels = [panel("proxy: distance from the teacher", "proxy"), panel("golden: distance from the truth", "golden")]
    return _figure("The quickstart on held-out prompts, means of five seeds", panels)


def cures() -> Row:
    """Golden less its start under four strategies, means over two seeds of each world in which no dial was chosen."""
    curves = [
        row for row in _rows("cures/curves.parquet") if row["world"] in UNSEEN_WORLDS and row["strategy"] in STRATEGIES
    ]
    starts = {(row["world"], row["seed"], row["strategy"]): row["golden_nats"] for row in curves if row["step"] == 0}
    for row in curves:
        row["change"] = row["golden_nats"] - starts[row["world"], row["seed"], row["strategy"]]
    lines = [
        (name, colour, _mean([row for row in curves if row["strategy"] == key], "change"))
        for key, (name, colour) in STRATEGIES.items()
    ]
    return _figure(
        "Golden on held-out prompts, means over five worlds", [_panel("golden less golden at step 0", lines)]
    )


FIGURES: dict[str, Callable[[], Row]] = {figure.__name__: figure for figure in (quickstart, cures)}


def quickstart_runs() -> dict[str, str]:
    """The arm of each run of the quickstart: of the one experiment of a seed that has all three arms."""
    experiments: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for row in _rows("hackbench/runs.parquet"):
        if row["world"] == WORLD and row["seed"] in SEEDS and row["arm"] in ARMS and _is_plain(row):
            experiments[row["run"].rsplit("/", 1)[0]][row["arm"]] = row["run"]
    return {run: arm for arms in experiments.values() if len(arms) == len(ARMS) for arm, run in arms.items()}


def _is_plain(row: Row) -> bool:
    """Whether no dial of the world was turned."""
    dials = {
        "num_prompts": 256,
        "completions_per_prompt": 1,
        "divergence": "forward_kl",
        "learning_rate": 3e-4,
        "schedule": "constant",
        "num_steps": 300,
        "teacher": "define-teacher",
        "student": "define-student",
    }
    return all(row[name] == value for name, value in dials.items())


def _rows(path: str) -> list[Row]:
    return pq.read_table(BENCHMARKS / path).to_pylist()


def _mean(rows: Iterable[Row], column: str) -> dict[int, float]:
    """The mean of a column at each step."""
    values: defaultdict[int, list[float]] = defaultdict(list)
    for row in rows:
        values[row["step"]].append(row[column])
    return {step: round(sum(found) / len(found), 4) for step, found in sorted(values.items())}


def _panel(title: str, lines: list[Line]) -> Row:
    steps = sorted({step for *_, values in lines for step in values})
    series = [
        {"name": name, "colour": colour, "y": [values.get(step) for step in steps]} for name, colour, values in lines
    ]
    return {"title": title, "x": steps, "series": series}


def _figure(title: str, panels: list[Row]) -> Row:
    return {"title": title, "x_label": "step", "y_label": "nats per sequence", "panels": panels}
