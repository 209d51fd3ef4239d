"""Functions for tasks of Ray: a module of its own, which a worker imports without the tests and what they need."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from assay.errors import AssayError


def dies(folder: Path, times: int) -> str:
    """Kills its own process so many times; then says with how many threads it computes, and where."""
    with (folder / f"lives-{times}").open("a") as file:
        file.write("x")
    if (folder / f"lives-{times}").stat().st_size <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    import torch

    return f"{torch.get_num_threads()} {Path.cwd()}"


def is_refused(folder: Path) -> None:
    """Bad input, as a part finds it."""
    raise AssayError(f"{folder.name} is refused")


def is_alone(folder: Path) -> bool:
    """Whether no other task was inside at the same time."""
    try:
        (folder / "inside").mkdir()
    except FileExistsError:
        return False
    time.sleep(0.7)
    (folder / "inside").rmdir()
    return True


def never_ends(folder: Path) -> None:
    """Writes its process id, and waits."""
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(1000)
