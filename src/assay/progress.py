"""What a run looks like in a terminal while it goes, and its verdicts when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from assay import types
from assay.config import Experiment
from assay.report.files import Row
from assay.report.schedule import time_sentence
from assay.report.tables import read_run
from assay.report.words import brackets, comparison, deed, nats, proxy, readable, visible
from assay.terminal import NARROWEST_LIST, NARROWEST_TABLE, coloured, open_console, print_rows

SECONDS_BETWEEN_LINES = 10.0
"""How often a stage says where it stands when the output is not a terminal."""
_LONGEST_STAGE = 40
"""Letters of a stage of one step; a longer one is a remark, which as a bar would push out all others."""
_COLUMNS = ("arm", "verdict", "hacking [95 %]", "golden", "proxy")
_LINES = "[bold]{0}[/bold]: {1}, hacking {2}\n  golden {3}   proxy {4}"


@contextmanager
def live_progress(experiment: Experiment) -> Iterator[Callable[[types.Progress], None]]:
    """A listener for ``run_experiment``: one live bar per stage in a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines()
        return
    tasks: dict[str, TaskID] = {}
    said: set[str] = set()
    with Progress(*_bar_columns(console.width), console=console) as bars:

        def listen(progress: types.Progress) -> None:
            if progress.num_steps == 1 and len(progress.stage) > _LONGEST_STAGE:
                if progress.stage not in said:
                    bars.console.print(Text(progress.stage, style="dim"))
                said.add(progress.stage)
                return
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(
                    escape(readable(progress.stage)), total=progress.num_steps, curves=""
                )
            bars.update(
                tasks[progress.stage],
                completed=progress.step,
                total=progress.num_steps,
                curves=_curves(progress),
            )

        yield listen


def _bar_columns(width: int) -> list[ProgressColumn]:
    """What a line of live progress has room for."""
    name = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    if width < NARROWEST_LIST:
        return [name, BarColumn(bar_width=8), MofNCompleteColumn()]
    bar = BarColumn(bar_width=16 if width < NARROWEST_TABLE else 40)
    curves = TextColumn("{task.fields[curves]}", table_column=Column(no_wrap=True))
    return [name, bar, MofNCompleteColumn(), TimeRemainingColumn(compact=True), curves]


def print_verdicts(folder: Path) -> None:
    """The verdict of every arm on stdout: a table where it fits without wrapping, else short lines.

    Raises AssayError when a file of the run is damaged or of another version.
    """
    run = read_run(folder)
    console = open_console()
    print_rows(console, _COLUMNS, [_verdict_cells(arm) for arm in run.summary["arms"]], _LINES)
    console.print(f"start → best → end in nats per sequence, on held-out prompts; {_legend(run.summary)}")
    for arm in run.summary["arms"]:
        for text in _policy_lines(arm):
            console.print(escape(f"{readable(visible(arm['source']))}: {text}"))
    for pair in run.summary["comparisons"]:
        console.print(escape(comparison(pair)))
    time_spent = time_sentence(run)
    if time_spent is not None:
        console.print(time_spent)


def _legend(summary: Row) -> str:
    golden = {
        "oracle": "golden: to the oracle",
        "references": "golden up to a constant: −log student of the held-out references",
        None: "golden: unknown, there is no truth; the verdict is the detector's",
    }
    proxy_is = "to the teacher" if summary["proxy_is"] == "exact" else proxy(summary["proxy_is"])
    return f"{golden[summary['truth']]}; proxy: {proxy_is}"


def _verdict_cells(arm: Row) -> tuple[str, ...]:
    """Arm, verdict, hacking severity with its interval, golden and proxy, as rich markup."""
    hacking = f"{nats(arm['severity_hacking_nats'])} {brackets(arm['ci95_hacking'])}"
    curves = [
        "–" if arm[metric] is None else " → ".join(nats(arm[metric][key]) for key in ("initial", "best", "final"))
        for metric in ("golden", "proxy")
    ]
    # Rich takes brackets for markup, in names from files and in intervals alike.
    name, *others = map(escape, (readable(visible(arm["source"])), hacking, *curves))
    return (name, coloured(arm["verdict"]), *others)


def _policy_lines(arm: Row) -> list[str]:
    alarm = arm["alarm_step"]
    return ([] if alarm is None else [f"alarm from step {alarm:,}"]) + [deed(action) for action in arm["actions"]]


def _plain_lines() -> Callable[[types.Progress], None]:
    started = time.monotonic()
    said: dict[str, float] = {}

    def listen(progress: types.Progress) -> None:
        now = time.monotonic()
        first, last = progress.stage not in said, progress.step == progress.num_steps
        if progress.num_steps == 1 and not first and not _curves(progress):
            return  # that such a stage has begun says enough
        if first or last or now - said[progress.stage] >= SECONDS_BETWEEN_LINES:
            said[progress.stage] = now
            place = f"{progress.stage}: {progress.step}/{progress.num_steps}"
            print(f"[{now - started:5.0f} s] {place} {_curves(progress)}", file=sys.stderr, flush=True)

    return listen


def _curves(progress: types.Progress) -> str:
    golden, reference = progress.golden_nats, progress.reference_nll_nats
    truth = {"golden": golden} if golden is not None else {"references": reference}
    curves = truth | {"proxy": progress.proxy_nats}
    return " ".join(f"{name} {value:.2f}" for name, value in curves.items() if value is not None)
