"""Where the time of a run went: its phases, how busy its workers were, what share the probe took. From files."""

from __future__ import annotations

import numpy as np

from assay.report.files import Row
from assay.report.style import PHASE_COLOURS
from assay.report.tables import Run, Study
from assay.report.words import readable

STAGE_NAMES = {
    "check_models": "checking the models",
    "oracle_responses": "responses of the oracle",
    "sft": "SFT of teacher and student",
    "arms": "the arms",
}
PHASE_NAMES = {
    "sample": "sampling",
    "teacher": "teacher",
    "student": "student",
    "probe": "probe",
    "setup": "loading",
    "data": "batches",
    "checkpoint": "checkpoints",
    "write": "writing",
    "end": "the end",
    "rest": "other",
}


def arm_phases(study: Study) -> list[str]:
    """The phases that any arm has recorded, in the order of ``PHASE_NAMES``."""
    used = [phase for curve in study.curves for phase in curve.rows[-1]["seconds"]]
    return sorted(set(used), key=[*PHASE_NAMES, *used].index)


def phase_seconds(study: Study) -> dict[tuple[str, str], dict[str, float]]:
    """Seconds by phase of every ("arm", label), and of every ("stage", name) around the arms; means over seeds."""
    bars = {
        ("arm", label): {
            phase: _mean([curve.rows[-1]["seconds"].get(phase) for curve in study.curves_of(label)])
            for phase in arm_phases(study)
        }
        for label in study.labels
    }
    for stage in dict.fromkeys(stage for run in study.runs for stage in run.manifest["stage_seconds"]):
        seconds = _mean([run.manifest["stage_seconds"].get(stage) for run in study.runs])
        # The arms have their own bars, and what took no time needs none.
        if stage != "arms" and seconds >= 0.05:
            bars["stage", stage] = {stage: seconds}
    return bars


def time_bars(study: Study) -> Row:
    """For the page: a bar for each arm and stage with its parts in percent of the longest; how busy workers were."""
    bars = phase_seconds(study)
    longest = max((sum(parts.values()) for parts in bars.values()), default=0.0) or 1.0
    rows = [
        {
            "kind": kind,
            "name": STAGE_NAMES.get(name, readable(name)) if kind == "stage" else readable(name),
            "seconds": sum(parts.values()),
            "parts": [
                {"phase": phase, "seconds": seconds, "percent": 100 * seconds / longest}
                for phase, seconds in parts.items()
                if seconds > 0
            ],
        }
        for (kind, name), parts in bars.items()
    ]
    phases = [
        {"phase": phase, "name": PHASE_NAMES.get(phase, readable(phase)), "number": number % len(PHASE_COLOURS)}
        for number, phase in enumerate(arm_phases(study))
    ]
    busy = [
        {
            "run": run.directory.name if len(study.runs) > 1 else "",
            "workers": run.manifest.get("num_workers"),
            "stages": {STAGE_NAMES.get(name, readable(name)): 100 * share for name, share in found.items()},
        }
        for run in study.runs
        for found in [busy_by_stage(run)]
        if found
    ]
    return {"rows": rows, "phases": phases, "busy": busy}


def busy_by_stage(run: Run) -> dict[str, float]:
    """Of each stage, the share of its workers' seconds in which they had something to do; where it was recorded."""
    seconds = run.manifest.get("worker_seconds") or {}
    return {name: each["busy"] / each["available"] for name, each in seconds.items() if each["available"] > 0}


def probe_share(run: Run) -> float | None:
    """Seconds spent in the probe over all seconds of computing: phases of the arms and stages before them.

    None when the run has not recorded the seconds of its stages.
    """
    stages = run.manifest["stage_seconds"]
    last = {record["arm"]: record["seconds"] for record in run.metrics}
    before = sum(seconds or 0.0 for stage, seconds in stages.items() if stage not in ("arms", "report"))
    spent = before + sum(sum(seconds.values()) for seconds in last.values())
    if not stages or spent <= 0:
        return None
    return sum(seconds.get("probe", 0.0) for seconds in last.values()) / spent


def busy_share(run: Run) -> float | None:
    """Seconds in which a worker had a stage or an arm to run, over all seconds of all workers.

    The rest is starting up, and waiting for others at the end of a stage. None where it was not recorded: before a
    stage has ended, and in runs of a sweep, whose workers are not theirs alone.
    """
    seconds = run.manifest.get("worker_seconds") or {}
    available = sum(of_stage["available"] for of_stage in seconds.values())
    return sum(of_stage["busy"] for of_stage in seconds.values()) / available if available > 0 else None


def time_sentence(run: Run) -> str | None:
    """ "2 workers, 93% busy; probe: 4% of the run's computing", as far as it is known."""
    busy, probe = busy_share(run), probe_share(run)
    parts = []
    if busy is not None:
        number = run.manifest["num_workers"]
        parts.append(f"{number} worker{'s' if number != 1 else ''}, {busy:.0%} busy")
    if probe is not None:
        parts.append(f"probe: {probe:.0%} of the run's computing")
    return "; ".join(parts) or None


def _mean(seconds: list[float | None]) -> float:
    return float(np.mean([value or 0.0 for value in seconds]))
