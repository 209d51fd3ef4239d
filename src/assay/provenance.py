"""A run explains itself: what was run, by which code, on what machine."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from assay import runs
from assay.config import Experiment, config_hash, flat, to_dict
from assay.errors import AssayError

_KINDS: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "config_hash": str,
    "status": str,
    "assay_version": str,
    "digests": dict,
    "stage_seconds": dict,
    "wall_seconds": (int, float),
}
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow")


def open_manifest(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """The manifest of the run in ``folder``, begun if there is none.

    Raises AssayError when the folder holds a run of another config, an unfinished run of another version of
    assay, or files that are no run at all.
    """
    path = folder / "manifest.json"
    if not path.exists():
        # a process that was killed while it wrote the manifest leaves what write_atomically had begun
        if any(child.name != runs.LOCK and not child.name.startswith(f".{path.name}.") for child in folder.iterdir()):
            raise AssayError(
                f"{str(folder)!r} is not empty and holds no run: choose another folder (--out, in a sweep --runs)"
            )
        manifest = _new_manifest(experiment)
        runs.write_json(path, manifest)
        return manifest
    manifest = runs.read_json(path)
    if not is_manifest(manifest):
        raise AssayError(
            f"{str(path)!r} is not the manifest of a run: choose another folder (--out, in a sweep --runs)"
        )
    if manifest["status"] != "finished" and not manifest["digests"] and not (folder / "stage1").exists():
        # Nothing was computed: that run was refused, for a model or a name that only its first stage looks up.
        manifest = _new_manifest(experiment)
        runs.write_json(path, manifest)
        return manifest
    if manifest["config_hash"] != config_hash(experiment):
        raise AssayError(
            f"{str(folder)!r} holds a run of another config ({', '.join(_differences(manifest, experiment))}): "
            "choose another folder (--out, in a sweep --runs)"
        )
    if manifest["status"] != "finished" and manifest["assay_version"] != metadata.version("assay"):
        raise AssayError(
            f"{str(folder)!r} holds an unfinished run of assay {manifest['assay_version']}: finish it with that "
            "version, or choose another folder (--out, in a sweep --runs)"
        )
    return manifest


def is_manifest(value: Any) -> bool:
    """Whether a JSON value is the manifest of a run, of any version."""
    whole = isinstance(value, dict) and value.keys() >= _KINDS.keys()
    return whole and all(isinstance(value[key], kind) for key, kind in _KINDS.items())


def pin_digests(manifest: dict[str, Any], found: dict[str, str]) -> None:
    """Notes what a run was begun with; AssayError when it is resumed with other models or another corpus."""
    changed = [name for name, digest in found.items() if manifest["digests"].get(name, digest) != digest]
    if changed:
        raise AssayError(
            f"the {changed[0]} has changed since this run was begun: choose another folder (--out, in a sweep --runs)"
        )
    manifest["digests"] |= found


def _new_manifest(experiment: Experiment) -> dict[str, Any]:
    commit, dirty = _git_state()
    return {
        "schema": "assay.manifest/1",
        "recipe": experiment.recipe,
        "config": to_dict(experiment),
        "config_hash": config_hash(experiment),
        "seed": experiment.seed,
        "assay_version": metadata.version("assay"),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "commit": commit,
        "dirty": dirty,
        "digests": {},
        "hardware": {
            "machine": platform.machine(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        },
        "started_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "wall_seconds": 0.0,
        "stage_seconds": {},
        "status": "running",
    }


def _differences(manifest: dict[str, Any], experiment: Experiment) -> list[str]:
    theirs, ours = flat(manifest.get("config", {})), flat(to_dict(experiment))
    missing = object()
    differing = [key for key in sorted(theirs | ours) if theirs.get(key, missing) != ours.get(key, missing)]
    return [f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in differing[:3]] or ["unreadable"]


@functools.cache  # once for all runs of a sweep
def _git_state() -> tuple[str | None, bool | None]:
    """Commit and dirty flag of the source tree that assay runs from; None for an installed wheel."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here)]
    try:
        tracked = subprocess.run([*command, "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=10)
        if tracked.returncode != 0:
            return None, None
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None, None
    return commit.stdout.strip(), bool(status.stdout.strip())


def processor() -> str:
    """The processor's name as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
