"""A folder of numbered parquet files, which `assay generate` writes and which is read as one file of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from assay import runs
from assay.errors import AssayError

MANIFEST = "generation.json"


def is_sharded(path: Path) -> bool:
    """Whether a path is such a folder."""
    return (path / MANIFEST).is_file()


def shard_path(folder: Path, index: int) -> Path:
    """Where a shard is: its name is its number alone, nothing that a file of prompts says."""
    return folder / f"shard-{index:05d}.parquet"


def shard_paths(folder: Path) -> Iterator[Path]:
    """The shards of a finished folder, in their order; AssayError for an unfinished one, or when one is missing."""
    manifest = runs.read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("status") != "finished":
        raise AssayError(f"{str(folder)!r} is not finished: the command that began it goes on where it was")
    for index in range(int(manifest["num_shards"])):
        path = shard_path(folder, index)
        if not path.exists():
            raise AssayError(f"{str(path)!r} is missing: the command that made its folder makes it again")
        yield path
