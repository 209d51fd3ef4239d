"""Several processes, one model: what each rank computes, and how all of them come to hold the same values.

``torchrun`` and ``accelerate launch`` start the same program several times; each process is a rank. All of them go
through a run in step, on the same config and the same files. What costs time (sampling, scoring, a training batch) is
shared out by rows and brought together again, so that every rank then decides the same; rank 0 alone writes files, and
the others wait for what came of it. In a process on its own nothing here does anything. docs/scale.md
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from assay import runs
from assay.errors import AssayError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others before it takes them for lost."""

BUCKET_SIZE = 2**24
"""Numbers that are summed over ranks at a time."""

_rank, _num_ranks = 0, 1
_is_acting_for_all = False
_has_left = False
_owns_group = False


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    given = os.environ
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= given.keys() and given["WORLD_SIZE"] not in ("", "0", "1")


def start() -> None:
    """Joins the other ranks, if a launcher has started several; does nothing in a process on its own, or again.

    gloo on CPUs, NCCL on GPUs, of which a rank takes the one with its local number. Raises AssayError when the ranks
    do not find each other.
    """
    global _rank, _num_ranks, _owns_group
    if not launched() or _num_ranks > 1:
        return
    import torch
    import torch.distributed as dist

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise AssayError(
                f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot join the others "
                f"({str(error).splitlines()[0]}): look at --nnodes, --rdzv-endpoint and the network of this machine"
            ) from error
        _owns_group = True
    _rank, _num_ranks = dist.get_rank(), dist.get_world_size()
    runs.let_one_write(_write_for_all)


def end(code: str | int | None) -> None:
    """Parts from the other ranks and ends this process with exit code ``code``, if ``start`` has made the group.

    At once, without the interpreter's shutdown: caches of torch (FSDP's meshes, defaults of torch.distributed.nn) keep
    the group's threads alive beyond ``destroy_process_group``, and one that is still at work then ends in SIGABRT.
    """
    if not _owns_group:
        return
    import torch.distributed as dist

    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def leave() -> None:
    """From now on this rank waits for nobody, because it is about to end with an error that others may not have met.

    Rank 0 still writes; the others write nothing.
    """
    global _has_left
    _has_left = _num_ranks > 1


def rank() -> int:
    """The number of this process, from 0."""
    return _rank


def num_ranks() -> int:
    """How many processes go through the run together."""
    return _num_ranks


def check_device(device: str) -> None:
    """Raises AssayError for a device that several ranks cannot have each for itself."""
    if _num_ranks == 1 or not device.startswith("cuda"):
        return
    import torch

    if ":" in device:
        raise AssayError(f"models.device {device!r} names one device for {_num_ranks} ranks: set it to 'cuda'")
    if int(os.environ.get("LOCAL_RANK", "0")) >= torch.cuda.device_count():
        raise AssayError(
            f"this machine has {torch.cuda.device_count()} GPUs, fewer than it has ranks: lower --nproc-per-node"
        )


def rows(count: int) -> list[int]:
    """Which of ``count`` rows are this rank's: every ``num_ranks``-th; a rank may have none."""
    return list(range(_rank, count, _num_ranks))


def part(lengths: Sequence[int]) -> slice:
    """Rows that follow each other, for each rank about equally much of their lengths in all; a rank may have none."""
    middles = [end - length / 2 for end, length in zip(itertools.accumulate(lengths), lengths, strict=True)]
    owners = [int(middle * _num_ranks / sum(lengths)) for middle in middles]
    return slice(bisect.bisect_left(owners, _rank), bisect.bisect_right(owners, _rank))


def shared(what: str, count: int, compute: Callable[[list[int]], Sequence[T]]) -> list[T]:
    """One value for each of ``count`` rows, on every rank: ``compute`` is given this rank's rows, if it has any."""
    mine = rows(count)
    found = list(compute(mine)) if mine else []
    if _num_ranks == 1:
        return found
    parts = _exchange(what, found)
    return [parts[row % _num_ranks][row // _num_ranks] for row in range(count)]


def totals(what: str, values: Sequence[float]) -> list[float]:
    """The sum over ranks of each value; the same bits on every rank."""
    if _num_ranks == 1:
        return list(values)
    return [math.fsum(parts) for parts in zip(*_exchange(what, list(values)), strict=True)]


def most(what: str, count: int) -> int:
    """The largest count of all ranks."""
    return count if _num_ranks == 1 else max(_exchange(what, count))


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Every gradient becomes its sum over ranks; a rank without rows adds zeros, and None stays where all have none.

    Those of weights that are divided between ranks are summed on their way back already.
    """
    if _num_ranks == 1:
        return
    import torch
    import torch.distributed as dist

    trained = [p for p in parameters if p.requires_grad and not hasattr(p, "device_mesh")]
    with _in_company("the gradients"):
        counts = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
        dist.all_reduce(counts)
        for bucket in _buckets([p for p, count in zip(trained, counts.tolist(), strict=True) if count]):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
            dist.all_reduce(flat)
            for p, summed in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = summed.view_as(p)


def agree(what: str, value: str) -> None:
    """Raises AssayError on every rank when ``value`` is not the same on all."""
    if _num_ranks == 1:
        return
    digests = _exchange(what, hashlib.sha256(value.encode()).hexdigest())
    if len(set(digests)) > 1:
        raise AssayError(
            f"the {_num_ranks} ranks do not agree on {what}: give all machines the same files, versions and kind of "
            "processor; the same command goes on from the last checkpoint"
        )


def by_first(what: str, do: Callable[[], T]) -> T:
    """What ``do`` returns, or raises as AssayError, on rank 0: on every rank, once all have come here."""
    global _is_acting_for_all
    if _num_ranks == 1 or _is_acting_for_all:
        return do()
    _exchange(what, None)
    outcome: tuple[Any, AssayError | None] = None, None
    if _rank == 0:
        _is_acting_for_all = True
        try:
            outcome = do(), None
        except AssayError as error:
            outcome = None, error
        finally:
            _is_acting_for_all = False
    value, error = _exchange(f"what came of {what}", outcome)[0]
    if error is not None:
        raise outcome[1] or error
    return value


@contextmanager
def own_random_numbers(step: int) -> Iterator[None]:
    """Within it torch draws numbers of this rank's own (dropout): a function of its seed so far, the step and the rank.

    Afterwards the generators are as before, and so alike on all ranks. Nothing changes in a process on its own.
    """
    if _num_ranks == 1:
        yield
        return
    import numpy as np
    import torch

    seed = int(np.random.SeedSequence([torch.initial_seed(), step, _rank]).generate_state(1, np.uint64)[0] >> 1)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _write_for_all(what: str, do: Callable[[], None]) -> bool:
    """The writer of ``runs``: says whether this process may take what was written as there."""
    if _has_left:
        if _rank == 0:
            do()
        return True
    by_first(what, do)
    return _rank == 0


def _exchange(what: str, value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    import torch.distributed as dist

    found: list[Any] = [None] * _num_ranks
    with _in_company(what):
        dist.all_gather_object(found, (what, value))
    for other, (theirs, _) in enumerate(found):
        if theirs != what:
            raise AssayError(
                f"the ranks are not in step: rank {_rank} is at {what}, rank {other} at {theirs}; give all machines "
                "the same files and versions; the same command goes on from the last checkpoint"
            )
    return [value for _, value in found]


@contextmanager
def _in_company(what: str) -> Iterator[None]:
    """torch.distributed raises RuntimeError when another rank is gone, or silent for too long."""
    try:
        yield
    except RuntimeError as error:
        leave()
        raise AssayError(
            f"rank {_rank} of {_num_ranks} has lost another at {what} ({str(error).splitlines()[0]}): see what the "
            "rank that ended first said; the same command goes on from the last checkpoint"
        ) from error


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one dtype and device together, up to ``BUCKET_SIZE`` numbers where one alone is not larger."""
    bucket: list[Tensor] = []
    for p in parameters:
        kinds = {(other.dtype, other.device) for other in (*bucket, p)}
        if bucket and (len(kinds) > 1 or sum(q.numel() for q in bucket) + p.numel() > BUCKET_SIZE):
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket
