"""The files of a checkpoint before anything loads them: what is refused by its name or its first bytes."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.utils.hub import cached_file

from assay.errors import AssayError
from assay.file_kinds import NUM_TELLING_BYTES, refuse_stand_in

INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
_PLAIN_FORMATS = (".json", ".jinja", ".model", ".safetensors", ".txt")


def check_descriptions(name: str, checkpoint: str) -> None:
    """Raises AssayError for a local folder of stand-ins for files, or of an adapter without the model under it."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in _PLAIN_FORMATS and path.is_file():
            try:
                with path.open("rb") as file:
                    refuse_stand_in(path, file.read(NUM_TELLING_BYTES))
            except OSError as error:
                raise AssayError(
                    f"cannot read {str(path)!r}: {error.strerror or error}; see that it is there and may be read"
                ) from error
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise AssayError(f"{name!r} holds an adapter alone: merge it into its base model, and save that as a whole")


def check_weights(name: str, checkpoint: str, allow_pickle: bool) -> None:
    """Raises AssayError for pickled weights that were not asked for, and for shards outside of the checkpoint.

    An index that names anything but safetensors would have transformers unpickle it, whatever it was told.
    """
    folder = Path(checkpoint)
    if not allow_pickle and folder.is_dir() and any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors*")):
        raise pickled(name)
    shards = _json(name, checkpoint, INDEX).get("weight_map", {})
    for shard in shards.values() if isinstance(shards, dict) else ():
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or "\\" in shard:
            raise AssayError(
                f"the {INDEX} of model {name!r} names {shard!r}, which is outside of its folder: refused, "
                "save the model again as a whole"
            )
        if not shard.endswith(".safetensors"):
            raise AssayError(
                f"the {INDEX} of model {name!r} names {shard!r}, which is no safetensors file: refused, "
                "save the model again as safetensors"
            )
    _json(name, checkpoint, GENERATION)


def pickled(name: str) -> AssayError:
    """The error for a model whose weights are pickled only."""
    return AssayError(
        f"model {name!r} has no safetensors, and assay reads safetensors only, since a pickled file can run code: "
        "convert it, or set models.allow_pickle to true if you trust it"
    )


def _json(name: str, checkpoint: str, file: str) -> dict[str, Any]:
    """A JSON object of the checkpoint; empty where there is no such file."""
    try:
        path = cached_file(
            checkpoint,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
        )
        content = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AssayError(
            f"cannot read {file} of model {name!r}: {str(error).splitlines()[0]}; mend it, or fetch the model again"
        ) from error
    if not isinstance(content, dict):
        raise AssayError(f"{file} of model {name!r} is no JSON object: mend it, or fetch the model again")
    return content
