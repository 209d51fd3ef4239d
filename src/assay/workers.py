"""Worker processes that run stages: spawned, one thread each if no config asks for more, ended with their parent.

Any ``concurrent.futures.Executor`` whose workers see the same files can take the place of the local one: what is
submitted is a function of this package and plain values.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from assay.config import Experiment
from assay.errors import AssayError, is_out_of_memory
from assay.ray_executor import RayExecutor
from assay.types import Progress

_LOWER = {
    "run_arm": (
        "lower distillation.training.batch_size, raise distillation.training.num_micro_batches, set "
        "distillation.training.gradient_checkpointing, or lower task.max_prompt_tokens and task.max_response_tokens"
    ),
    "fine_tune": "lower stage_one.batch_size, or task.max_prompt_tokens and task.max_response_tokens",
}
_LOWER_LENGTHS = "lower task.max_prompt_tokens and task.max_response_tokens, or take smaller models"
WORKER_WAS_KILLED = (
    "a worker process ended without an answer: killed from outside, by the system when memory runs out (then "
    f"{_LOWER['run_arm']}; else the same command resumes), or started by a script without `if __name__ == '__main__'`"
)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_workers(asked: int | None) -> int:
    """How many processes to use: those asked for, or one per core. Raises AssayError for less than one."""
    if asked is not None and asked < 1:
        raise AssayError(f"a sweep needs at least one worker, not {asked}")
    return asked or num_cores()


def message_queue() -> Any:
    """A queue on which workers report their progress."""
    return multiprocessing.get_context("spawn").Queue()


def local_executor(num_workers: int, messages: Any = None) -> ProcessPoolExecutor:
    """Spawned processes on this machine, one thread each; what they report goes to ``messages``, if there is one."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(messages,))


def capacity(executor: Executor, num_workers: int) -> int:
    """How many functions an executor carries out at once: on Ray as many as the living nodes have room for."""
    return executor.capacity() if isinstance(executor, RayExecutor) else num_workers


def submit(executor: Executor, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """``executor.submit``, with Ctrl-C kept from workers that are only starting.

    Raises AssayError when a worker was killed before.
    """
    # Blocked for the workers too, which inherit it: one that is still starting does not ignore Ctrl-C yet.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(function, *arguments)
    except BrokenProcessPool as error:
        raise AssayError(WORKER_WAS_KILLED) from error
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def end(executor: Executor) -> None:
    """Ends the workers at once; every file is written whole or not at all, so no moment is a bad one."""
    local = executor._processes if isinstance(executor, ProcessPoolExecutor) else None
    processes = list((local or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
        process.join()


_messages: Any = None


def _report(progress: Progress) -> None:
    if _messages is not None:
        _messages.put(progress)


def run_stage(
    experiment: Experiment, folder: Path, stage: str, *arguments: Any, report: Callable[[Progress], None] = _report
) -> Any:
    """Runs ``stages.<stage>`` of an experiment in this process; ``report`` is told where it stands."""
    import torch

    from assay import stages

    torch.set_num_threads(experiment.models.num_threads)
    try:
        return getattr(stages, stage)(experiment, folder, *arguments, report=report)
    except AssayError as error:
        if stage == "run_arm":
            raise AssayError(f"arm {arguments[0]!r}: {error}") from error
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        what = f"arm {arguments[0]!r}" if stage == "run_arm" else f"stage {stage!r}"
        raise AssayError(
            f"{what}: out of memory: {_LOWER.get(stage, _LOWER_LENGTHS)}; a changed config needs another folder, and "
            "with more memory the same command resumes"
        ) from error


def run_timed_stage(experiment: Experiment, folder: Path, stage: str, *arguments: Any) -> tuple[Any, float, float]:
    """What ``run_stage`` returns, and the seconds that it took: on the clock, and of the processor."""
    started, started_cpu = time.perf_counter(), time.process_time()
    found = run_stage(experiment, folder, stage, *arguments)
    return found, time.perf_counter() - started, time.process_time() - started_cpu


def _start_worker(messages: Any) -> None:
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends the workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # Every step frees its large arrays and asks for as much again, which the system then has to clear first: four times
    # faster in pages of 2 MB, where it has them. torch reads this once.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch

    from assay import stages  # noqa: F401  # it takes seconds: while other workers have begun, and not in a stage's time

    torch.set_num_threads(1)


def _die_with_parent() -> None:
    """A worker that outlived a killed parent would write into a folder that is no longer locked."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
