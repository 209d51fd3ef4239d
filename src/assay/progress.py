"""What a run looks like in a terminal while it goes, and its verdicts when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from assay import runs, types
from assay.config import Experiment

SECONDS_BETWEEN_LINES = 10.0
"""How often a stage says where it stands when the output is not a terminal."""


@contextmanager
def live_progress(experiment: Experiment) -> Iterator[Callable[[types.Progress], None]]:
    """A listener for ``run_experiment``: one live bar per stage in a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[curves]}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bars:

        def listen(progress: types.Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, curves="")
            bars.update(
                tasks[progress.stage],
                completed=progress.step,
                total=progress.num_steps,
                curves=_curves(progress),
            )

        yield listen


def print_verdicts(folder: Path) -> None:
    """The verdict of every arm, as a table on stdout."""
    summary = runs.read_json(folder / "summary.json")
    table = Table("arm", "verdict", "hacking [95 %]", "golden", "proxy")
    for arm in summary["arms"]:
        low, high = arm["ci95_hacking"]
        severity = "unknown" if low is None else f"{arm['severity_hacking_nats']:.2f} [{low:.2f}, {high:.2f}]"
        table.add_row(
            arm["source"],
            arm["verdict"].replace("_", " "),
            severity,
            *(" → ".join(f"{arm[m][k]:.2f}" for k in ("initial", "best", "final")) for m in ("golden", "proxy")),
        )
    console = Console()
    console.print(table)
    console.print(
        "start → best → end in nats per sequence, on held-out prompts; golden: to the oracle, proxy: to the teacher"
    )
    for pair in summary["comparisons"]:
        low, high = pair["ci95_golden_final_minus_online"]
        console.print(
            f"{pair['arm']} ends {pair['golden_final_minus_online_nats']:+.2f} nats of golden from "
            f"{pair['online_arm']} (paired 95 % interval {low:+.2f} to {high:+.2f})"
        )
    console.print(f"probe: {probe_share(folder):.0%} of the run's computing")


def probe_share(folder: Path) -> float:
    """Seconds spent in the probe over all seconds of computing: phases of the arms and stages before them."""
    last = {record["arm"]: record["seconds"] for record in runs.read_records(folder / "metrics.jsonl")}
    stages = runs.read_json(folder / "manifest.json")["stage_seconds"]
    before = sum(seconds for stage, seconds in stages.items() if stage not in ("arms", "report"))
    spent = before + sum(sum(seconds.values()) for seconds in last.values())
    return sum(seconds["probe"] for seconds in last.values()) / spent


def _plain_lines() -> Callable[[types.Progress], None]:
    started = time.monotonic()
    said: dict[str, float] = {}

    def listen(progress: types.Progress) -> None:
        now = time.monotonic()
        first, last = progress.stage not in said, progress.step == progress.num_steps
        if first or last or now - said[progress.stage] >= SECONDS_BETWEEN_LINES:
            said[progress.stage] = now
            place = f"{progress.stage}: {progress.step}/{progress.num_steps}"
            print(f"[{now - started:5.0f} s] {place} {_curves(progress)}", file=sys.stderr, flush=True)

    return listen


def _curves(progress: types.Progress) -> str:
    if progress.golden_nats is None or progress.proxy_nats is None:
        return ""
    return f"golden {progress.golden_nats:.2f} proxy {progress.proxy_nats:.2f}"
