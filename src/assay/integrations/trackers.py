"""Mirrors of metrics to TensorBoard, Trackio and W&B, through the tracker interface of accelerate.

What is on disk is the truth; a tracker shows a copy of it, and no run ever waits for one or fails with it. A run of
assay is one project with a run for each arm; a log is one run in a project named after its folder.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import io
import os
import sqlite3
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.errors import AssayError, unknown_name

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Record = tuple[int, Mapping[str, float]]
"""A step with the numbers that belong to it."""

TRACKERS = ("tensorboard", "trackio", "wandb")


class Mirror:
    """Trackers by name, opened when the first records arrive; a context manager that closes them.

    A tracker that fails (disk full, no network) is said once on stderr and left out from then on: see ``dropped``.
    TensorBoard's event files go to ``logdir``/PROJECT/RUN, the others know where by their own settings. Every mirror
    sends all records from the first on.

    Raises AssayError for a tracker that is unknown or not installed.
    """

    def __init__(self, names: Sequence[str], logdir: Path) -> None:
        for name in names:
            if name not in TRACKERS:
                raise unknown_name("tracker", name, TRACKERS)
        self._logdir = logdir
        self._failures = {name: _load(name) for name in names}
        self._open: dict[tuple[str, str], GeneralTracker] = {}
        self._num_sent: dict[tuple[str, str], int] = {}
        self.dropped: dict[str, str] = {}
        """Trackers that have failed, with why."""

    def __enter__(self) -> Mirror:
        self._hook, self._show = threading.excepthook, warnings.showwarning
        if self._failures:
            threading.excepthook = self._without_failed_writes
            warnings.showwarning = self._hear
        return self

    def __exit__(self, *exception: object) -> None:
        for (name, _), tracker in self._open.items():
            self._try(name, tracker.finish)
        self._open.clear()
        threading.excepthook, warnings.showwarning = self._hook, self._show

    def send(self, project: str, run: str, records: Sequence[Record]) -> None:
        """Sends what is new of a run: ``records`` are all of it so far, the first ones those of the call before."""
        for name in self._failures:
            key = name, run
            for step, values in records[self._num_sent.get(key, 0) :]:
                self._try(name, lambda: self._tracker(name, project, run).log(dict(values), step=step))  # noqa: B023
            self._num_sent[key] = max(len(records), self._num_sent.get(key, 0))

    def _tracker(self, name: str, project: str, run: str) -> GeneralTracker:
        if (name, run) not in self._open:
            tracker = _make(name, project, run, self._logdir)
            # In a context of its own: Trackio would end the run that it finds in the present one.
            contextvars.copy_context().run(tracker.start)
            self._open[name, run] = tracker
        return self._open[name, run]

    def _try(self, name: str, call: Callable[[], Any]) -> None:
        if name in self.dropped:
            return
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # stdout is for what was asked for
                call()
        except self._failures[name] as error:
            self._drop(name, str(error) or type(error).__name__)

    def _drop(self, name: str, why: str) -> None:
        if name not in self.dropped:
            self.dropped[name] = why
            print(f"assay: {name} is left out from here on, it has failed: {why}", file=sys.stderr)

    def _without_failed_writes(self, failure: threading.ExceptHookArgs) -> None:
        # TensorBoard's writing thread ends with the error that its next caller gets too.
        if not issubclass(failure.exc_type, OSError):
            self._hook(failure)

    def _hear(self, message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
        # Trackio writes in a thread of its own, and says in a warning what it could not write.
        if category is UserWarning and Path(filename).parent.name == "trackio":
            self._drop("trackio", str(message))
        else:
            self._show(message, category, filename, *rest, **more)


def _load(name: str) -> tuple[type[Exception], ...]:
    """Imports a tracker's library and accelerate; returns the errors that the tracker raises when it fails."""
    try:
        from accelerate.state import PartialState

        library = importlib.import_module(name)
        if name == "tensorboard":
            importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        package = "wandb accelerate" if name == "wandb" else "'assay[trackers]'"
        raise AssayError(f"cannot mirror to {name} ({error}): pip install {package}") from error
    PartialState(cpu=True)  # what accelerate's trackers log with wants it
    if name == "wandb":
        return OSError, library.errors.Error
    return (OSError, ValueError, sqlite3.Error) if name == "trackio" else (OSError,)


def _make(name: str, project: str, run: str, logdir: Path) -> GeneralTracker:
    from accelerate import tracking

    if name == "tensorboard":
        # A run's name comes from a file: it must not lead out of the folder.
        return tracking.TensorBoardTracker(run.replace(os.sep, "_"), logdir / project)
    if name == "trackio":
        quiet = {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False}
        return tracking.TrackioTracker(project, name=run, **quiet)
    return tracking.WandBTracker(project, name=run, reinit="create_new")
