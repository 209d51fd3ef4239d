"""What can be seen of a run, or of a log that grows, while it goes: evaluations, verdicts so far, speed, samples.

Only reads: no file is written and no lock is taken, so a run that is watched is the run that is not.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assay import runs
from assay.config import flat
from assay.diagnosing import diagnosis_of
from assay.diagnostics.detector import Diagnosis
from assay.diagnostics.trajectory import Trajectory
from assay.errors import AssayError, unknown_name
from assay.integrations.logs import Log, is_run, read_log
from assay.report.files import read_manifest, read_summary
from assay.report.words import deed

Stamp = tuple[tuple[int, int] | None, ...]
_ACTION = {"kind": str, "reason": str, "completions": (int, type(None)), "fraction": (int, float, type(None))}


@dataclass(frozen=True)
class Watched:
    """One arm of a run, or one log, as far as it has come.

    ``log`` and ``diagnosis`` are None before the second evaluation. ``records`` are the numbers of each evaluation
    with their step, as trackers take them. ``seconds_per_step`` and ``total_steps`` are None where they are unknown;
    ``changed_at`` is the time of the last record (seconds since 1970).
    """

    name: str
    step: float | None = None
    total_steps: int | None = None
    is_finished: bool = False
    log: Log | None = None
    diagnosis: Diagnosis | None = None
    alarm_step: int | None = None
    deeds: tuple[str, ...] = ()
    records: tuple[tuple[int, dict[str, float]], ...] = ()
    seconds_per_step: float | None = None
    changed_at: float | None = None
    trouble: str = ""

    def seconds_left(self, now: float) -> float | None:
        """Steps that are left times seconds per step, less what has passed since the last record; None if unknown.

        0 is overdue: nobody knows then.
        """
        if self.is_finished:
            return 0.0
        if self.step is None or self.total_steps is None or self.seconds_per_step is None or self.changed_at is None:
            return None
        return max((self.total_steps - self.step) * self.seconds_per_step - max(now - self.changed_at, 0.0), 0.0)


@dataclass(frozen=True)
class Samples:
    """The last free-running responses of a student: prompts with what it made of them."""

    name: str
    step: int
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Observation:
    """All that one look has found. ``troubles`` say why the look before had to be kept, or what is waited for."""

    title: str
    place: str = ""
    phase: str = ""
    watched: tuple[Watched, ...] = ()
    samples: Samples | None = None
    is_finished: bool = False
    notes: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()

    def seconds_left(self, now: float) -> float | None:
        """Until the last arm ends, if as many work at once as now and those that wait take as long; None if unknown."""
        begun = [each for each in self.watched if each.step is not None and not each.is_finished]
        left = [each.seconds_left(now) for each in begun]
        known = [seconds for seconds in left if seconds is not None]
        if not known or len(known) < len(begun):
            return None
        waiting = sum(each.step is None for each in self.watched)
        whole = [(each.total_steps or 0) * (each.seconds_per_step or 0.0) for each in begun]
        return max(max(known), (sum(known) + waiting * sum(whole) / len(whole)) / len(begun))


class Observer:
    """Looks at a target again and again; what has not changed on disk is not read again.

    ``columns`` and ``arm`` are those of ``read_log``. A look that fails keeps what the look before has found, and says
    why.
    """

    def __init__(self, target: Path, columns: Mapping[str, str], arm: str | None) -> None:
        self.target, self.columns, self.arm = target, dict(columns), arm
        self._last = Observation("waiting", str(target))
        self._known: dict[str, tuple[Stamp, Watched]] = {}
        self._samples: tuple[Stamp, Samples | None] = ((), None)
        self._times: list[tuple[float, float]] = []
        self._arms: list[str] = []

    def look(self) -> Observation:
        """What is there now. Raises AssayError for an arm that the run does not have."""
        try:
            self._last = self._look()
        except AssayError as error:
            return replace(self._last, troubles=(str(error),))
        except OSError as error:
            return replace(self._last, troubles=(f"cannot read {str(self.target)!r}: {error.strerror or error}",))
        if self._arms and self.arm is not None and self.arm not in self._arms:
            raise unknown_name("arm", self.arm, self._arms)
        return self._last

    def _look(self) -> Observation:
        if not self.target.exists():
            raise AssayError(f"{str(self.target)!r} does not exist yet: waiting for it")
        return self._look_at_run() if self._is_run() else self._look_at_log()

    def _is_run(self) -> bool:
        names = {each.name for each in self.target.iterdir()} if self.target.is_dir() else set()
        return "manifest.json" in names and is_run(names)

    def _look_at_run(self) -> Observation:
        manifest = read_manifest(self.target / "manifest.json")
        summary = self.target / "summary.json"
        judged = {entry["source"] for entry in read_summary(summary)["arms"]} if summary.exists() else set()
        names = self._arms = [arm["name"] for arm in manifest["config"]["arms"]]
        config = flat(manifest["config"])
        total = config.get("distillation.training.num_steps")
        total = total if isinstance(total, int) and _is_number(total) else None
        chosen = names if self.arm is None else [name for name in names if name == self.arm]
        watched = tuple(self._arm(name, total, name in judged) for name in chosen)
        troubles = [each.trouble for each in watched if each.trouble]
        try:
            samples = self._last_samples(chosen)
        except AssayError as error:
            samples = self._samples[1]
            troubles.append(str(error))
        is_finished = manifest["status"] == "finished" or (set(names) <= judged and self._all_ended(names))
        return Observation(
            f"{manifest['recipe']}, seed {manifest['seed']}",
            str(self.target),
            "finished" if is_finished else self._phase(names, config.get("models.oracle", "") is not None),
            watched,
            samples,
            is_finished or (self.arm is not None and all(each.is_finished for each in watched)),
            troubles=tuple(troubles),
        )

    def _all_ended(self, names: Sequence[str]) -> bool:
        return all((self.target / "arms" / name / "finished.json").exists() for name in names)

    def _phase(self, names: Sequence[str], has_oracle: bool) -> str:
        if self._all_ended(names):
            return "writing the report"
        if any((self.target / "arms" / name / "metrics.jsonl").exists() for name in names):
            ended = sum((self.target / "arms" / name / "finished.json").exists() for name in names)
            return f"stage 2: {ended} of {len(names)} arms finished"
        if not (self.target / "stage1").exists():
            return "loading models"
        return "stage 1: responses and fine-tuning" if has_oracle else "held-out responses"

    def _arm(self, name: str, total: int | None, is_judged: bool) -> Watched:
        folder = self.target / "arms" / name
        paths = [folder / "metrics.jsonl", folder / "finished.json", self.target / "summary.json"]
        stamp = _stamp(paths)
        before = self._known.get(name)
        if before is not None and before[0] == stamp:
            return before[1]
        try:
            found = self._read_arm(name, folder / "metrics.jsonl", total, is_judged)
        except AssayError as error:
            return replace(before[1] if before else Watched(name, total_steps=total), trouble=str(error))
        self._known[name] = stamp, found
        return found

    def _read_arm(self, name: str, metrics: Path, total: int | None, is_judged: bool) -> Watched:
        if metrics.exists():
            records, changed_at = runs.read_records(metrics), metrics.stat().st_mtime
        else:  # an arm that has not begun, or a run of which only the merged files are kept
            records, changed_at = runs.read_records(self.target / "metrics.jsonl") if is_judged else [], None
            records = [record for record in records if record.get("arm") == name]
        if len(records) < 2:
            log = None
        elif is_judged:
            log = read_log(self.target, self.columns, name)
        else:
            log = replace(read_log(metrics, self.columns), arm=name, folder=self.target)
        alarms = [record["step"] for record in records if record.get("alarm") and _is_number(record.get("step"))]
        return Watched(
            name,
            _number(records[-1].get("step")) if records else None,
            total,
            is_judged,
            log,
            diagnosis_of(log, self.columns.get("golden")) if log else None,
            alarms[0] if alarms else None,
            tuple(_deeds(records, metrics)),
            tuple(_flat_records(records)),
            _computing_seconds_per_step(records),
            changed_at,
        )

    def _last_samples(self, names: Sequence[str]) -> Samples | None:
        files = [file for name in names for file in _newest(self.target / "arms" / name / "samples")]
        if not files:
            return None
        newest = max(files, key=lambda file: file.stat().st_mtime)
        stamp = _stamp([newest])
        if stamp != self._samples[0]:
            rows = runs.read_table(newest).to_pylist()
            if not all(isinstance(row.get("prompt"), str) and isinstance(row.get("text"), str) for row in rows):
                raise runs.damaged(newest, ValueError("prompts and texts are missing"))
            pairs = tuple((row["prompt"], row["text"]) for row in rows)
            self._samples = stamp, Samples(newest.parent.parent.name, int(newest.stem), pairs)
        return self._samples[1]

    def _look_at_log(self) -> Observation:
        path = _newest_state(self.target)
        files = sorted(path.iterdir()) if path.is_dir() else [path, Path(f"{path}-wal")]
        stamp = _stamp(files)
        before = self._known.get("")
        if before is not None and before[0] == stamp:
            return self._last
        changed_at = max(file.stat().st_mtime for file in files if file.exists())
        log = read_log(path, self.columns, self.arm)
        trajectory, diagnosis = log.trajectory, diagnosis_of(log, self.columns.get("golden"))
        total, is_finished = _trainer_steps(path)
        step = float(trajectory.steps[-1])
        watched = Watched(
            log.arm or self.target.name,
            step,
            total,
            is_finished,
            log,
            diagnosis,
            records=tuple(_log_records(trajectory, diagnosis)),
            seconds_per_step=self._seconds_per_step(step, changed_at),
            changed_at=changed_at,
        )
        self._known[""] = stamp, watched
        phase = f"{len(trajectory)} evaluations" + (", finished" if is_finished else "")
        return Observation(self.target.name, str(path), phase, (watched,), None, is_finished, tuple(log.guesses))

    def _seconds_per_step(self, step: float, changed_at: float) -> float | None:
        """From the times at which the file had grown; unknown until it has grown once while it was watched."""
        if self._times and step < self._times[-1][0]:
            self._times.clear()  # the log was begun anew
        if not self._times or step > self._times[-1][0]:
            self._times.append((step, changed_at))
        if len(self._times) < 2:
            return None
        (first, begin), (last, end) = self._times[-2:]
        return (end - begin) / (last - first) if end > begin else None  # a clock that was set back tells nothing


def _stamp(paths: Sequence[Path]) -> Stamp:
    """Size and time of each file: equal stamps, equal content."""
    found = [path.stat() if path.exists() else None for path in paths]
    return tuple(None if each is None else (each.st_mtime_ns, each.st_size) for each in found)


def _newest(samples: Path) -> list[Path]:
    files = [file for file in samples.glob("*.parquet") if file.stem.isdecimal()]
    return [max(files)] if files else []


def _newest_state(target: Path) -> Path:
    """The trainer_state.json of the last checkpoint, in a folder where a trainer leaves checkpoints."""
    states = target.glob("checkpoint-*/trainer_state.json") if target.is_dir() else ()
    steps = {state: state.parent.name.removeprefix("checkpoint-") for state in states}
    return max(
        (state for state, step in steps.items() if step.isdecimal()), key=lambda s: int(steps[s]), default=target
    )


def _trainer_steps(path: Path) -> tuple[int | None, bool]:
    """How many steps a trainer_state.json says there will be, and whether they are done; (None, False) elsewhere."""
    if path.name != "trainer_state.json":
        return None, False
    try:
        state = json.loads(path.read_bytes())
    except ValueError:  # lines of records are a log too
        return None, False
    if not isinstance(state, dict):
        return None, False
    total, step = _number(state.get("max_steps")), _number(state.get("global_step"))
    if total is None or total <= 0:
        return None, False
    return int(total), step is not None and step >= total


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and _is_number(value) else None


def _deeds(records: Sequence[Mapping[str, Any]], path: Path) -> Iterator[str]:
    for record in records:
        action = record.get("action")
        if action is None:
            continue
        is_whole = isinstance(action, dict) and isinstance(record.get("step"), int)
        if not is_whole or not all(isinstance(action.get(name), kind) for name, kind in _ACTION.items()):
            raise runs.damaged(path, ValueError(f"an action is {action!r}"))
        yield deed({**action, "step": record["step"]})


def _flat_records(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, dict[str, float]]]:
    for record in records:
        values = {f"assay/{name}": value for name, value in flat({**record}).items() if _is_number(value)}
        step = values.pop("assay/step", None)
        values.pop("assay/seed", None)
        if step is not None:
            yield int(step), {name.replace(".", "/"): float(value) for name, value in values.items()}


def _log_records(log: Trajectory, diagnosis: Diagnosis) -> Iterator[tuple[int, dict[str, float]]]:
    """The columns of a log; the last record has the detector's score. Steps that are no whole numbers are counted."""
    whole = bool((log.steps == log.steps.round()).all())
    for place, step in enumerate(log.steps.tolist()):
        row = {f"assay/{name}": float(values[place]) for name, values in log.columns.items()}
        if place == len(log) - 1 and diagnosis.score is not None:
            row["assay/detector_score"] = diagnosis.score
        yield int(step) if whole else place, {name: value for name, value in row.items() if math.isfinite(value)}


def _computing_seconds_per_step(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the last two evaluations: seconds of computing in between over steps; a pause of the run does not count."""
    if len(records) < 2:
        return None
    spent, steps = [], []
    for record in records[-2:]:
        seconds, step = record.get("seconds"), _number(record.get("step"))
        if not isinstance(seconds, dict) or step is None or not all(map(_is_number, seconds.values())):
            return None
        spent.append(sum(seconds.values()))
        steps.append(step)
    return (spent[1] - spent[0]) / (steps[1] - steps[0]) if steps[1] > steps[0] and spent[1] >= spent[0] else None
