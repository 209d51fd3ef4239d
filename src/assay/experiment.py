"""One experiment, one direction: oracle → stage 1 → arms → verdicts → summary → report.

This process loads no model: it hands stages to worker processes (one thread each) and puts their files
together. The run directory is the only state: the same command on it resumes, or answers at once.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay import provenance, runs, workers
from assay.config import Experiment
from assay.errors import AssayError
from assay.report.html import write_report
from assay.report.model_card import write_model_cards
from assay.results import merge_arms, write_summary
from assay.types import Progress
from assay.validation import validate

Listener = Callable[[Progress], None]

_RESULTS = ("metrics.jsonl", "probe.parquet", "responses.parquet", "summary.json", "report.html")

NUM_SHARDS = 2
"""Parts that the oracle's answers are written in; fixed, so that a run does not depend on the number of cores."""


@dataclass(frozen=True)
class Part:
    """Jobs (stage function, arguments) that may run side by side; ``digests`` name the digests that they return."""

    name: str
    jobs: list[tuple[Any, ...]]
    digests: tuple[str, ...] = ()


def before_the_arms(experiment: Experiment) -> list[Part]:
    """Stage 1, part after part; without an oracle only everyone's answers to the held-out prompts."""
    if experiment.models.oracle is None:
        roles = ("teacher", "student")
        return [Part("held_out", [("answer_held_out", role) for role in roles], roles)]
    return [
        Part("oracle_responses", [("write_oracle_responses", shard, NUM_SHARDS) for shard in range(NUM_SHARDS)]),
        Part(
            "sft",
            [("fine_tune", role, NUM_SHARDS) for role in ("teacher", "student")],
            ("teacher_after_sft", "student_after_sft"),
        ),
    ]


def run_experiment(experiment: Experiment, folder: Path, listener: Listener = lambda progress: None) -> Path:
    """Runs an experiment in ``folder`` and returns the path of its report.html, rewritten after every arm.

    A finished run of the same config answers at once; an interrupted one goes on where it stopped; a folder
    that holds anything else is refused. Worker processes are spawned: call it under
    ``if __name__ == "__main__"`` in a script.
    Raises AssayError with one sentence for bad input; what was computed stays on disk.
    """
    validate(experiment)
    runs.prepare_folder(folder)
    with runs.locked(folder):
        manifest = provenance.open_manifest(experiment, folder)
        runs.put_in_order(folder)
        parts = (folder / "stage1").exists() and len(finished_arms(experiment, folder)) == len(experiment.arms)
        if is_finished(folder, manifest):
            pass
        elif manifest["status"] == "finished" and parts:
            write_results(experiment, folder, manifest["wall_seconds"])
        else:
            _run_stages(experiment, folder, manifest, listener)
    return folder / "report.html"


def _run_stages(experiment: Experiment, folder: Path, manifest: dict[str, Any], listener: Listener) -> None:
    started, seconds_before = time.perf_counter(), manifest["wall_seconds"]

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = manifest["stage_seconds"].get(stage, 0.0) + time.perf_counter() - begin
            manifest["stage_seconds"][stage] = spent
            manifest["wall_seconds"] = seconds_before + time.perf_counter() - started
            runs.write_json(folder / "manifest.json", manifest)

    def write_so_far() -> None:
        write_results(experiment, folder, seconds_before + time.perf_counter() - started)

    with _Workers(experiment, folder, listener) as pool:
        with timed("check_models"):
            provenance.pin_digests(manifest, pool.run([("check_models",)])[0])
        for part in before_the_arms(experiment):
            with timed(part.name):
                found = pool.run(part.jobs)
                manifest["digests"] |= dict(zip(part.digests, found, strict=bool(part.digests)))
        with timed("arms"):
            # longest first, so that no core idles at the end: an offline arm samples only once
            arms = sorted(experiment.arms, key=lambda arm: all(s.refresh_every is None for s in arm.sources))
            pool.run([("run_arm", arm.name) for arm in arms], after_each=write_so_far)
    with timed("report"):
        write_so_far()
    manifest["status"] = "finished"
    runs.write_json(folder / "manifest.json", manifest)


def is_finished(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a run has ended and all its results are there."""
    return manifest["status"] == "finished" and all((folder / name).exists() for name in _RESULTS)


def write_results(experiment: Experiment, folder: Path, wall_seconds: float) -> None:
    """The run's own files from those of the arms that are finished."""
    finished = finished_arms(experiment, folder)
    merge_arms(folder, finished)
    write_summary(folder, experiment, finished, wall_seconds)
    write_report([folder], folder)
    write_model_cards(folder, finished)


def finished_arms(experiment: Experiment, folder: Path) -> list[str]:
    """The names of the arms whose last step is on disk."""
    return [arm.name for arm in experiment.arms if (folder / "arms" / arm.name / "finished.json").exists()]


class _Workers:
    """Worker processes for the stages of one experiment."""

    def __init__(self, experiment: Experiment, folder: Path, listener: Listener) -> None:
        self._experiment, self._folder, self._listener = experiment, folder, listener
        self._messages = workers.message_queue()
        most = max(NUM_SHARDS, len(experiment.arms))
        self._executor = workers.local_executor(min(workers.num_cores(), most), self._messages)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        workers.end(self._executor)

    def run(self, jobs: Sequence[tuple[Any, ...]], after_each: Callable[[], None] = lambda: None) -> list[Any]:
        """Runs ``(stage function, *arguments)`` jobs and returns their results in order.

        An error of one job, or of ``after_each``, is raised once the other jobs are done: it costs them nothing.
        """
        futures = [
            workers.submit(self._executor, workers.run_stage, self._experiment, self._folder, *job) for job in jobs
        ]
        waiting: set[Future[Any]] = set(futures)
        failures: list[AssayError] = []
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            self._pass_on_messages()
            if any(future.exception() is None for future in done):
                try:
                    after_each()
                except AssayError as error:
                    failures.append(error)
        try:
            results = [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise AssayError(workers.WORKER_WAS_KILLED) from error
        for failure in failures[-1:]:
            raise failure
        return results

    def _pass_on_messages(self) -> None:
        while True:
            try:
                self._listener(self._messages.get_nowait())
            except queue.Empty:
                return
