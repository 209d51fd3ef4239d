"""One experiment, one direction: oracle → stage 1 → arms → verdicts → summary → report.

This process loads no model: it hands stages to worker processes (one thread each) and puts their files
together. Where a launcher has started several processes for one run, each of them runs the stages itself, one after the
other, in step with the others (``ranks``). The run directory is the only state: the same command on it resumes, or
answers at once.
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

from assay import provenance, ranks, runs, workers
from assay.config import Experiment, config_hash
from assay.errors import AssayError
from assay.report.html import write_report
from assay.report.model_card import write_model_cards
from assay.results import merge_arms, write_summary
from assay.types import Progress
from assay.validation import validate

Listener = Callable[[Progress], None]

_RESULTS = ("metrics.jsonl", "probe.parquet", "responses.parquet", "tokens.parquet", "summary.json", "report.html")

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
    ``if __name__ == "__main__"`` in a script. Under ``torchrun`` or ``accelerate launch`` every process calls it, with
    the same arguments (docs/scale.md).
    Raises AssayError with one sentence for bad input; what was computed stays on disk.
    """
    validate(experiment)
    ranks.start()
    ranks.check_device(experiment.models.device)
    ranks.agree("the config and the folder of the run", f"{config_hash(experiment)} {folder}")
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
        except BaseException:
            ranks.leave()
            raise
        finally:
            spent = manifest["stage_seconds"].get(stage, 0.0) + time.perf_counter() - begin
            manifest["stage_seconds"][stage] = spent
            manifest["wall_seconds"] = seconds_before + time.perf_counter() - started
            runs.write_json(folder / "manifest.json", manifest)

    def write_so_far() -> None:
        write_results(experiment, folder, seconds_before + time.perf_counter() - started)

    manifest["num_ranks"] = ranks.num_ranks()
    with (_Workers if ranks.num_ranks() == 1 else _InStep)(experiment, folder, listener) as pool:
        manifest["num_workers"] = pool.num_workers
        with timed("check_models"), pool.at_work(manifest, "check_models"):
            provenance.pin_digests(manifest, pool.run([("check_models",)])[0])
        for part in before_the_arms(experiment):
            with timed(part.name), pool.at_work(manifest, part.name):
                found = pool.run(part.jobs)
                manifest["digests"] |= dict(zip(part.digests, found, strict=bool(part.digests)))
        with timed("arms"), pool.at_work(manifest, "arms"):
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


def _add_worker_seconds(manifest: dict[str, Any], stage: str, available: float, busy: float, cpu: float) -> None:
    """What a stage had of the workers, on top of what it had before the run was interrupted."""
    now = {"available": available, "busy": busy, "cpu": cpu}
    before = manifest.setdefault("worker_seconds", {}).get(stage, {})
    manifest["worker_seconds"][stage] = {key: before.get(key, 0.0) + value for key, value in now.items()}


class _InStep:
    """The stages of one experiment in this process, one after the other, in step with those of all other ranks."""

    num_workers = 1

    def __init__(self, experiment: Experiment, folder: Path, listener: Listener) -> None:
        self._experiment, self._folder = experiment, folder
        self._listener: Listener = listener if ranks.rank() == 0 else lambda progress: None

    def __enter__(self) -> _InStep:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    @contextmanager
    def at_work(self, manifest: dict[str, Any], stage: str) -> Iterator[None]:
        """Adds the stage's time to ``worker_seconds``; waiting for other ranks counts as busy."""
        begin, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            _add_worker_seconds(manifest, stage, spent, spent, time.process_time() - cpu)

    def run(self, jobs: Sequence[tuple[Any, ...]], after_each: Callable[[], None] = lambda: None) -> list[Any]:
        """Runs ``(stage function, *arguments)`` jobs and returns their results in order; the first error ends all."""
        results = []
        for stage, *arguments in jobs:
            found = workers.run_stage(self._experiment, self._folder, stage, *arguments, report=self._listener)
            results.append(found)
            after_each()
        return results


class _Workers:
    """Worker processes for the stages of one experiment."""

    def __init__(self, experiment: Experiment, folder: Path, listener: Listener) -> None:
        self._experiment, self._folder, self._listener = experiment, folder, listener
        self._messages = workers.message_queue()
        most = max(NUM_SHARDS, len(experiment.arms))
        self.num_workers = min(max(1, workers.num_cores() // experiment.models.num_threads), most)
        self._executor = workers.local_executor(self.num_workers, self._messages)
        self._busy_seconds = self._cpu_seconds = 0.0  # of jobs that have ended

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        workers.end(self._executor)

    @contextmanager
    def at_work(self, manifest: dict[str, Any], stage: str) -> Iterator[None]:
        """Adds to ``worker_seconds`` what the stage had of the workers: all their time, and what of it they used."""
        begin, busy, cpu = time.perf_counter(), self._busy_seconds, self._cpu_seconds
        try:
            yield
        finally:
            available = self.num_workers * (time.perf_counter() - begin)
            _add_worker_seconds(manifest, stage, available, self._busy_seconds - busy, self._cpu_seconds - cpu)

    def run(self, jobs: Sequence[tuple[Any, ...]], after_each: Callable[[], None] = lambda: None) -> list[Any]:
        """Runs ``(stage function, *arguments)`` jobs and returns their results in order.

        An error of one job, or of ``after_each``, is raised once the other jobs are done: it costs them nothing.
        """
        futures = [
            workers.submit(self._executor, workers.run_timed_stage, self._experiment, self._folder, *job)
            for job in jobs
        ]
        waiting: set[Future[Any]] = set(futures)
        failures: list[AssayError] = []
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            self._pass_on_messages()
            ended = [future for future in done if future.exception() is None]
            for _, busy, cpu in (future.result() for future in ended):
                self._busy_seconds, self._cpu_seconds = self._busy_seconds + busy, self._cpu_seconds + cpu
            if ended:
                try:
                    after_each()
                except AssayError as error:
                    failures.append(error)
        try:
            results = [future.result()[0] for future in futures]
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
