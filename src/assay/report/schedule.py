"""Where the time of a run went: how busy its workers were, and what share the probe took. From files."""

from __future__ import annotations

from assay.report.tables import Run


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
