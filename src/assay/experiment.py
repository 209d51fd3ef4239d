"""One experiment, one direction: oracle → stage 1 → arms → verdicts → summary → report.

This process loads no model: it hands stages to worker processes (one thread each) and puts their files
together. The run directory is the only state: the same command on it resumes, or answers at once.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from assay import provenance, runs
from assay.config import Experiment, validate
from assay.errors import AssayError
from assay.report.html import write_report
from assay.results import merge_arms, write_summary
from assay.types import Progress

Listener = Callable[[Progress], None]

_RESULTS = ("metrics.jsonl", "probe.parquet", "responses.parquet", "summary.json", "report.html")

NUM_SHARDS = 2
"""Parts that the oracle's answers are written in; fixed, so that a run does not depend on the number of cores."""


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
        results = all((folder / name).exists() for name in _RESULTS)
        parts = (folder / "stage1").exists() and len(_finished(experiment, folder)) == len(experiment.arms)
        if manifest["status"] != "finished" or not (results or parts):
            _run_stages(experiment, folder, manifest, listener)
        elif not results:
            _write_results(experiment, folder, manifest["wall_seconds"])
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

    def write_results() -> None:
        _write_results(experiment, folder, seconds_before + time.perf_counter() - started)

    with _Workers(experiment, folder, listener) as workers:
        with timed("check_models"):
            provenance.pin_digests(manifest, workers.run([("check_models",)])[0])
        with timed("oracle_responses"):
            workers.run([("write_oracle_responses", shard, NUM_SHARDS) for shard in range(NUM_SHARDS)])
        with timed("sft"):
            roles = ("teacher", "student")
            digests = workers.run([("fine_tune", role, NUM_SHARDS) for role in roles])
            manifest["digests"] |= {f"{role}_after_sft": digest for role, digest in zip(roles, digests, strict=True)}
        with timed("arms"):
            # longest first, so that no core idles at the end: an offline arm samples only once
            arms = sorted(experiment.arms, key=lambda arm: all(s.refresh_every is None for s in arm.sources))
            workers.run([("run_arm", arm.name) for arm in arms], after_each=write_results)
    with timed("report"):
        write_results()
    manifest["status"] = "finished"
    runs.write_json(folder / "manifest.json", manifest)


def _write_results(experiment: Experiment, folder: Path, wall_seconds: float) -> None:
    """The run's own files from those of the arms that are finished."""
    finished = _finished(experiment, folder)
    merge_arms(folder, finished)
    write_summary(folder, experiment, finished, wall_seconds)
    write_report([folder], folder)


def _finished(experiment: Experiment, folder: Path) -> list[str]:
    return [arm.name for arm in experiment.arms if (folder / "arms" / arm.name / "finished.json").exists()]


class _Workers:
    """Worker processes that run stages, one thread and one stage at a time each; killed on the way out."""

    def __init__(self, experiment: Experiment, folder: Path, listener: Listener) -> None:
        self._experiment, self._folder, self._listener = experiment, folder, listener
        context = multiprocessing.get_context("spawn")
        self._messages: Any = context.Queue()
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool = ProcessPoolExecutor(
            max_workers=min(num_cores, max(NUM_SHARDS, len(experiment.arms))),
            mp_context=context,
            initializer=_start_worker,
            initargs=(self._messages,),
        )

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()  # every file is written whole or not at all: no moment is a bad one
            process.join()

    def run(self, jobs: Sequence[tuple[Any, ...]], after_each: Callable[[], None] = lambda: None) -> list[Any]:
        """Runs ``(stage function, *arguments)`` jobs and returns their results in order.

        An error of one job, or of ``after_each``, is raised once the other jobs are done: it costs them nothing.
        """
        # Blocked for the workers too, which inherit it: one that is still starting does not ignore Ctrl-C yet.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = [self._pool.submit(_run_job, self._experiment, self._folder, *job) for job in jobs]
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
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
            raise AssayError(
                "a worker process ended without an answer: killed from outside (out of memory? lower the batch size; "
                "the same command resumes), or started by a script without `if __name__ == '__main__'`"
            ) from error
        for failure in failures[-1:]:
            raise failure
        return results

    def _pass_on_messages(self) -> None:
        while True:
            try:
                self._listener(self._messages.get_nowait())
            except queue.Empty:
                return


_messages: Any = None


def _start_worker(messages: Any) -> None:
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends the workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _die_with_parent() -> None:
    """A worker that outlived a killed parent would write into a folder that is no longer locked."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_job(experiment: Experiment, folder: Path, stage: str, *arguments: Any) -> Any:
    from assay import stages

    try:
        return getattr(stages, stage)(experiment, folder, *arguments, report=_messages.put)
    except AssayError as error:
        if stage == "run_arm":
            raise AssayError(f"arm {arguments[0]!r}: {error}") from error
        raise
