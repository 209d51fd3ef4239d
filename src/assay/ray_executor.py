"""Ray as the workers of a sweep: each part is a task on some node of a cluster, begun again where its node dies.

All nodes see the sweep's folder, and nothing else passes between them but a function of this package and its arguments.
Checkpoints are in that folder too, so a part that is begun again goes on where it was. A part is held by a lock while a
task works on it: where a node is only believed to be dead, its successor waits for it instead of computing beside it.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from assay import runs
from assay.errors import AssayError

JOURNALS = ".ray"
"""Folder beside the runs with one file for each part: which node began it and which ended it, a line each time."""

_PATIENCE_SECONDS = 600.0
"""How long a task waits for another one that still works on the same part."""

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns about what it will do in other versions
    "RAY_USAGE_STATS_ENABLED": "0",
}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Read by Ray, on Linux too, as "no clusters": all its ports are then opened on 127.0.0.1 alone."""


@dataclass(frozen=True)
class RayConfig:
    """Where the parts of a sweep run with ``--engine ray``, and what each of them takes of a node."""

    address: str | None = None
    """Of a running cluster, as HOST:PORT, or "auto" on one of its machines; by default Ray is started here alone."""
    cpus: float = 1.0
    """Of a node for each part, which computes with one thread."""
    gpus: float = 0.0
    """Of a node for each part; a fraction shares one."""
    memory_gib: float | None = None
    """Of a node for each part: Ray counts it and does not enforce it."""
    retries: int = 3
    """How often a part is begun again whose worker or node has died."""
    placement: Literal["spread", "pack"] = "spread"
    """Over the nodes evenly, or filling one after the other."""

    def __post_init__(self) -> None:
        if self.cpus <= 0 or self.gpus < 0 or (self.memory_gib is not None and self.memory_gib <= 0):
            raise AssayError("a part of a sweep on Ray needs more than 0 cpus, 0 gpus or more, and more than 0 memory")
        if self.retries < 0:
            raise AssayError(f"retries must be 0 or more, not {self.retries}")
        if self.address is not None and "://" in self.address:
            raise AssayError(
                f"the address {self.address!r} is one of Ray's client: start the sweep on a machine of the cluster, "
                "with --address auto"
            )

    @property
    def resources(self) -> dict[str, float]:
        """What a part takes, under Ray's names, memory in bytes; what it takes nothing of is left out."""
        taken = {"CPU": self.cpus, "GPU": self.gpus, "memory": (self.memory_gib or 0) * 2**30}
        return {name: amount for name, amount in taken.items() if amount > 0}


def check_ray() -> None:
    """Raises AssayError when Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise AssayError("--engine ray needs the library ray: pip install 'assay[ray]', or leave it out")


class RayExecutor(Executor):
    """Carries out functions as tasks of a Ray cluster, in a process with one thread each.

    A task whose worker or node dies is begun again on a living one, ``config.retries`` times. ``num_cores`` are those
    of this machine, for a cluster that is started here; no more than ``num_workers`` tasks run at once where that is
    given. Raises AssayError when Ray is not installed or cannot be reached, when no node has what a task takes, and
    when a node does not see ``folder`` and this process's own, or has another version of assay.
    """

    def __init__(
        self,
        config: RayConfig,
        folder: Path,
        num_cores: int,
        num_workers: int | None = None,
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:
        check_ray()
        self._config, self._num_workers, self._announce = config, num_workers, announce
        at_once = num_workers or max(1, math.floor(num_cores / config.cpus))
        self._ray = _connect(config, math.ceil(at_once * config.cpus))
        self._is_over = threading.Event()
        self._threads = ThreadPoolExecutor(256, thread_name_prefix="ray-task")
        self._site = _Site.found_by(folder)
        self._task = self._ray.remote(_carry_out).options(
            num_cpus=config.cpus,
            num_gpus=config.gpus,
            memory=config.resources.get("memory"),
            max_retries=0,  # ours count a node that has too little memory too, which Ray would try for ever
            scheduling_strategy="SPREAD" if config.placement == "spread" else "DEFAULT",
        )
        try:
            self._check_nodes()
        except BaseException:
            self.shutdown(cancel_futures=True)
            raise

    def capacity(self) -> int:
        """How many tasks the nodes that live now have room for, no more than ``num_workers``, and at least one."""
        room = sum(self._room(node) for node in self._nodes())
        return max(1, room if self._num_workers is None else min(room, self._num_workers))

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """A future of ``function(*arguments)``, which is importable on every node; it takes no named arguments."""
        if named:
            raise TypeError("a part of a sweep takes no named arguments")
        return self._threads.submit(self._follow, function, arguments)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Waits for what runs, or cancels it, and leaves the cluster; one that was started here ends."""
        if cancel_futures:
            self._is_over.set()
        self._threads.shutdown(wait=True, cancel_futures=cancel_futures)  # cancelled, they end within half a second
        self._site.token.unlink(missing_ok=True)
        self._ray.shutdown()

    def _follow(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Begins a task until it comes to its end, with a result or an error of its own."""
        errors = self._ray.exceptions
        died = (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.LocalRayletDiedError)
        for retry in range(self._config.retries + 1):
            task = self._task.remote(self._site, function, arguments)
            while not self._ray.wait([task], timeout=0.5)[0]:
                if self._is_over.is_set():
                    self._ray.cancel(task, force=True)
                    raise CancelledError
            try:
                return self._ray.get(task)
            except died as error:
                left = self._config.retries - retry
                self._announce(f"{_name(function, arguments)}: {_in_words(error)}; retries left: {left}")
            except errors.RayTaskError as error:
                raise error.cause from None
        raise AssayError(
            f"its worker or node died {self._config.retries + 1} times (out of memory? ask for more with --memory-gib, "
            "or lower the batch size); the same command resumes"
        )

    def _check_nodes(self) -> None:
        """Has every node look for what a task needs."""
        nodes, asked = self._nodes(), self._config.resources
        if not any(self._room(node) for node in nodes):
            most = {name: max(node["Resources"].get(name, 0) for node in nodes) for name in asked}
            named = ", ".join(f"{name} {amount:g} where the most is {most[name]:g}" for name, amount in asked.items())
            raise AssayError(
                f"no node of the Ray cluster has what a part takes: {named}; "
                "ask for less (--cpus, --gpus, --memory-gib), or add a node"
            )
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = self._ray.remote(_look)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        looks = [look.options(num_cpus=0, scheduling_strategy=place).remote(self._site) for place in places]
        for node, found in zip(nodes, looks, strict=True):
            try:
                problem = self._ray.get(found, timeout=300)
            except self._ray.exceptions.RayError as error:
                line = str(getattr(error, "cause", error)).strip().splitlines()[-1:]
                problem = f"it cannot run assay ({' '.join(line)})"
            if problem is not None:
                raise AssayError(
                    f"node {node['NodeManagerAddress']} of the Ray cluster is of no use: {problem}; "
                    "mend it, or take it out of the cluster"
                )

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _room(self, node: dict[str, Any]) -> int:
        return math.floor(
            min(node["Resources"].get(name, 0) / amount for name, amount in self._config.resources.items())
        )


def _connect(config: RayConfig, num_cpus: int) -> Any:
    """The module ray, connected to a cluster or, without an address, to one that is started here on loopback alone."""
    for name, value in (_QUIET | (_LOOPBACK if config.address is None else {})).items():
        os.environ.setdefault(name, value)
    import ray
    import ray._private.worker
    import ray.exceptions

    ray._private.worker._worker_logs_enabled = False  # or each death is told on stdout, whatever log_to_driver says
    where: dict[str, Any] = {"address": config.address or "local"}
    if config.address is None:  # results are small
        where |= {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    try:
        _reach(config.address)
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AssayError(
            f"cannot reach Ray at {config.address or 'this machine'!r}: {line}; see that it runs there (--address)"
        ) from error
    own_address = ray.util.get_node_ip_address()
    if config.address is None and not own_address.startswith("127."):
        ray.shutdown()
        raise AssayError(
            f"Ray would listen on {own_address}, since this process had imported it before: give the address of a "
            "cluster, or start the sweep first"
        )
    return ray


def _reach(address: str | None) -> None:
    """Raises OSError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _in_words(error: Exception) -> str:
    return {
        "WorkerCrashedError": "its worker died",
        "OutOfMemoryError": "its worker was ended for want of memory",
    }.get(type(error).__name__, "its node died")


@dataclass(frozen=True)
class _Site:
    """What a task must find on its node: the sweep's folder, by a token in it, and the folder that it was begun in."""

    token: Path
    secret: str
    working_folder: Path
    version: str

    @classmethod
    def found_by(cls, folder: Path) -> _Site:
        """The site of this process, with a token written into ``folder``."""
        secret = secrets.token_hex(16)
        token = folder.absolute() / JOURNALS / f"token-{secret[:8]}"
        runs.write_text(token, secret)
        return cls(token, secret, Path.cwd(), metadata.version("assay"))

    def problem(self) -> str | None:
        """Why a task cannot work here, or None."""
        own = metadata.version("assay")
        if own != self.version:
            return f"it has assay {own}, not {self.version}: install one version on every node"
        try:
            is_seen = self.token.read_text(encoding="utf-8") == self.secret
        except OSError:
            is_seen = False
        if not (is_seen and self.working_folder.is_dir()):
            missing = self.working_folder if is_seen else self.token.parent.parent
            return f"it does not see {str(missing)!r}: use a file system that all nodes share"
        return None


def _look(site: _Site) -> str | None:
    return site.problem()


def _carry_out(site: _Site, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What a task does on its node."""
    problem = site.problem()  # this node may have joined after the sweep began
    if problem is not None:
        raise AssayError(
            f"node {socket.gethostname()} of the Ray cluster is of no use: {problem}; "
            "mend it, or take it out of the cluster"
        )
    os.chdir(site.working_folder)  # paths in a config may be relative
    import torch

    torch.set_num_threads(1)
    with _held(site.token.with_name(f"{_name(function, arguments)}.jsonl")):
        return function(*arguments)


def _name(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """What a part is called: its function, its run and its arm."""
    plain = [a.name if isinstance(a, Path) else a for a in arguments if isinstance(a, Path | str)]
    return "-".join([function.__name__, *plain])


@contextmanager
def _held(journal: Path) -> Iterator[None]:
    """Holds a part for this task, and notes in its journal that it was begun here, and ended unless there is an error.

    The lock dies with its holder. Raises AssayError when another task holds it for longer than ten minutes.
    """
    import ray

    where = {"node": ray.get_runtime_context().get_node_id(), "host": socket.gethostname(), "pid": os.getpid()}
    until = time.monotonic() + _PATIENCE_SECONDS
    with runs.readable_errors(journal, "write"):
        file = journal.open("a", encoding="utf-8")
    with file:
        while True:
            with runs.readable_errors(journal, "lock"):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
            if time.monotonic() > until:
                raise AssayError(f"another task is still at work on the part of {str(journal)!r}: begin again later")
            time.sleep(0.2)
        runs.append_record(journal, {"event": "begun"} | where)
        yield
        runs.append_record(journal, {"event": "ended"} | where)
