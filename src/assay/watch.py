"""``assay watch``: a live view of a run, or of any log that grows; with mirrors to trackers. It only looks."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.live import Live

from assay.diagnosing import named_columns
from assay.errors import AssayError
from assay.integrations.trackers import Mirror
from assay.observation import Observation, Observer
from assay.report.words import readable, visible
from assay.runs import say
from assay.terminal import open_console
from assay.watch_frame import frame, standing, step_of

_LONGEST_INTERVAL = 3600.0


def watch(
    target: Path,
    named: Mapping[str, str],
    columns: Sequence[str],
    arm: str | None,
    interval: float,
    once: bool,
    trackers: Sequence[str],
    logdir: Path,
) -> None:
    """Shows ``target`` every ``interval`` seconds until its run has finished or Ctrl-C; with ``once`` a single time.

    A target that is not there yet, or cannot be read just now, is waited for. Raises AssayError for what waiting does
    not mend: a name of a column, an arm or a tracker; with ``once`` also for a target that holds nothing to show.
    """
    if not 0 < interval <= _LONGEST_INTERVAL:
        raise AssayError(f"--interval is {interval:g}: give seconds above 0, at most {_LONGEST_INTERVAL:g}")
    observer = Observer(target, {**named, **named_columns(columns)}, arm)
    console = open_console()
    with Mirror(trackers, logdir) as mirror:
        if once:
            _show_once(observer, mirror, console)
        elif console.is_terminal and not console.is_dumb_terminal:
            _show_live(observer, mirror, console, interval)
        else:
            _print_lines(observer, mirror, interval)


def _project(target: Path) -> str:
    """A run folder is a project, and a log lies in one."""
    whole = target.resolve()
    return (whole if (whole / "manifest.json").exists() else whole.parent).name or "assay"


def look(observer: Observer, mirror: Mirror) -> Observation:
    """One look, and what is new in it sent to the trackers."""
    seen = observer.look()
    for each in seen.watched:
        mirror.send(_project(observer.target), each.name, each.records)
    return seen


def _show_once(observer: Observer, mirror: Mirror, console: Console) -> None:
    seen = look(observer, mirror)
    if not seen.watched:
        why = "; ".join(trouble.removesuffix(": waiting for it") for trouble in seen.troubles)
        raise AssayError(f"{why}; give another path, or leave out --once to wait")
    console.print(frame(seen, time.time(), console.width))


def _show_live(observer: Observer, mirror: Mirror, console: Console, interval: float) -> None:
    """Frames on a screen of their own; the last one stays behind, under what libraries have said meanwhile."""
    said, seen = io.StringIO(), None
    try:
        with (
            contextlib.redirect_stderr(said),
            Live(
                console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            ) as live,
        ):
            while seen is None or not seen.is_finished:
                if seen is not None:
                    time.sleep(interval)
                seen = look(observer, mirror)
                left_out = [f"{name} is left out, it has failed: {why}" for name, why in mirror.dropped.items()]
                shown = replace(seen, troubles=(*seen.troubles, *left_out))
                live.update(frame(shown, time.time(), *console.size), refresh=True)
    except KeyboardInterrupt:
        pass
    sys.stderr.write(said.getvalue())
    if seen is not None:
        console.print(frame(seen, time.time(), console.width))


def _print_lines(observer: Observer, mirror: Mirror, interval: float) -> None:
    """A line for every step at which there is something new; troubles once each on stderr."""
    shown: dict[str, float | None] = {}
    troubles: set[str] = set()
    while True:
        seen = look(observer, mirror)
        for trouble in [each for each in seen.troubles if each not in troubles]:
            troubles.add(trouble)
            say(trouble)
        for each in seen.watched:
            if each.step is not None and shown.get(each.name) != each.step:
                shown[each.name] = each.step
                place = "" if each.total_steps is None else f"/{each.total_steps:,}"
                print(f"{readable(visible(each.name))} {step_of(each.step)}{place}: {standing(each)}", flush=True)
        if seen.is_finished:
            return
        time.sleep(interval)
