"""The files of a run directory, read and checked: damage of any kind ends in one sentence."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assay.errors import AssayError
from assay.token_table import LOG_PROBS, LOWEST_NATS, TOKENS_SCHEMA

Row = dict[str, Any]
Table = list[Row]

BANDED = ("golden", "proxy", "train_proxy")
"""The metrics whose curves carry a band; each has a column ``<metric>_nats`` in metrics.jsonl."""
TOO_LARGE = 2.0**63
"""No number of a run comes near; beyond it, columns of integers and axes of figures overflow."""
MAX_DEPTH = 50
"""Of JSON. What is nested deeper was not written by assay, and could not be printed."""
_REPAIR = "delete it (manifest.json: the whole run folder) and repeat the command that made the run"

_TEXT, _COUNT, _NUMBER = (str,), (int,), (int, float)
_MAYBE = (int, float, type(None))
_INTERVAL = [_MAYBE, _MAYBE]
_LEVELS = {"initial": _NUMBER, "best": _NUMBER, "best_step": _COUNT, "final": _NUMBER, "final_stderr": _MAYBE}
_MAYBE_LEVELS = (dict, type(None))
"""Of a run without a truth there are none; ``_check_truth`` looks inside."""

_MANIFEST: Row = {
    "schema": "assay.manifest/1",
    "recipe": _TEXT,
    "config": {
        "arms": [{"name": _TEXT}],
        "?probe": {"?judges": [{"name": _TEXT, "kind": _TEXT, "higher_is_better": (bool, type(None))}]},
    },
    "config_hash": _TEXT,
    "assay_version": _TEXT,
    "versions": (dict,),
    "commit": (str, type(None)),
    "dirty": (bool, type(None)),
    "digests": (dict,),
    "seed": _COUNT,
    "hardware": (dict,),
    "started_at": _TEXT,
    "wall_seconds": _NUMBER,
    "stage_seconds": {...: _MAYBE},
    "?num_workers": _COUNT,
    "?worker_seconds": {...: {"available": _NUMBER, "busy": _NUMBER, "cpu": _NUMBER}},
    "status": _TEXT,
}
_SUMMARY: Row = {
    "schema": "assay.summary/1",
    "unit": "nats_per_sequence",
    "task": _TEXT,
    "?truth": (str, type(None)),
    "?proxy_is": _TEXT,
    "references": {"d_oracle_teacher": _MAYBE, "golden_at_start": _MAYBE, "proxy_at_start": _NUMBER},
    "arms": [
        {
            "source": _TEXT,
            "seed": _COUNT,
            "verdict": _TEXT,
            "reason": _TEXT,
            "severity_nats": _MAYBE,
            "ci95": _INTERVAL,
            "severity_hacking_nats": _MAYBE,
            "ci95_hacking": _INTERVAL,
            "severity_overfitting_nats": _MAYBE,
            "ci95_overfitting": _INTERVAL,
            "smallest_detectable_nats": _MAYBE,
            "onset_step": (int, type(None)),
            "best_step": _COUNT,
            "?detector": {"verdict": _TEXT, "score": _MAYBE, "recommended_step": _NUMBER},
            "golden": _MAYBE_LEVELS,
            "proxy": _LEVELS,
            "train_proxy": {"final": _MAYBE},
            "generated_tokens": _COUNT,
            "teacher_tokens": _COUNT,
            "?kept_step": _COUNT,
            "?teacher_signals": (str, type(None)),
            "?alarm_step": (int, type(None)),
            "?actions": [
                {
                    "step": _COUNT,
                    "kind": _TEXT,
                    "reason": _TEXT,
                    "completions": (int, type(None)),
                    "fraction": _MAYBE,
                }
            ],
        }
    ],
    "?comparisons": [
        {
            "arm": _TEXT,
            "online_arm": _TEXT,
            "golden_final_minus_online_nats": _MAYBE,
            "ci95_golden_final_minus_online": _INTERVAL,
            "?excess_hacking_nats": _MAYBE,
            "?ci95_excess_hacking": _INTERVAL,
        }
    ],
}
_METRICS: Row = {
    "arm": _TEXT,
    "seed": _COUNT,
    "step": _COUNT,
    "epoch": _NUMBER,
    **dict.fromkeys([f"{metric}_nats" for metric in ("proxy", "train_proxy")], _NUMBER),
    "golden_nats": _MAYBE,
    "reference_nll_nats": _MAYBE,
    "kl_from_start_nats": _MAYBE,
    "student_entropy_nats_per_token": _MAYBE,
    "teacher_entropy_nats_per_token": _MAYBE,
    "response_tokens_mean": _MAYBE,
    "truncated_fraction": _MAYBE,
    "repetition_fraction": _MAYBE,
    "distinct_2": _MAYBE,
    "?detector_score": _MAYBE,
    "seconds": {...: _NUMBER},
}
_TEXTS = {f"distinct_{n}": _MAYBE for n in (1, 2, 3)} | {"compression_ratio": _MAYBE}
_DIVERSITY: Row = {
    "schema": "assay.diversity/1",
    "num_prompts": _COUNT,
    "num_pairs": _COUNT,
    "num_vendi_rows": [_COUNT, _COUNT],
    "prompts": _TEXTS,
    "responses": _TEXTS,
    **{f"vendi_{rows}_{kind}": _NUMBER for rows in ("prompts", "pairs") for kind in ("ngrams", "embedding")},
    "held_out_distance": _NUMBER,
    "?augmentation": {
        "num_added": _COUNT,
        "num_tried": _COUNT,
        "dropped": {...: _COUNT},
        "fall_nats_per_token": _MAYBE,
    },
}
_PROBE = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("metric", pa.string()),
        ("prompt_id", pa.string()),
        ("value_nats", pa.float64()),
    ]
)
_RESPONSES = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("split", pa.string()),
        ("writer", pa.string()),
        ("text", pa.string()),
        ("num_tokens", pa.int64()),
        ("truncated", pa.bool_()),
    ]
)
_WRITERS = ("student", "oracle", "teacher", "dataset")


def read_manifest(path: Path) -> Row:
    """manifest.json."""
    return _checked(_parse(_read_bytes(path), str(path)), _MANIFEST, str(path))


def read_summary(path: Path) -> Row:
    """summary.json; ``comparisons`` and what a policy did are empty where an older version has left them out."""
    summary = _checked(_parse(_read_bytes(path), str(path)), _SUMMARY, str(path))
    _check_truth(summary, str(path))
    pairs = summary.setdefault("comparisons", [])
    for arm in summary["arms"]:
        arm |= {"alarm_step": None, "actions": []} | arm
    if any(("excess_hacking_nats" in pair) != ("ci95_excess_hacking" in pair) for pair in pairs):
        raise AssayError(f"'comparisons' of {path} has an excess without its interval: {_REPAIR}")
    return summary


def _check_truth(summary: Row, where: str) -> None:
    """Fills in what older versions had, an oracle and an exact proxy; golden is there unless there is no truth."""
    truth, proxy_is = summary.setdefault("truth", "oracle"), summary.setdefault("proxy_is", "exact")
    for name, value, known in (
        ("truth", truth, ("oracle", "references", None)),
        ("proxy_is", proxy_is, ("exact", "lower_bound", "up_to_a_constant")),
    ):
        if value not in known:
            raise AssayError(f"{name!r} of {where} is {reprlib.repr(value)}, which this version of assay does not know")
    golden = None if truth is None else _LEVELS
    for arm in summary["arms"]:
        _checked(arm["golden"], golden, f"'golden' of {where}")
    levels = {"golden_at_start": truth is not None, "d_oracle_teacher": truth == "oracle"}
    for name, is_there in levels.items():
        shape = _NUMBER if is_there else None
        _checked(summary["references"][name], shape, f"{name!r} of {where}")


def read_metrics(path: Path, running: bool) -> Table:
    """metrics.jsonl; while the run is ``running``, without a last line that is still being written."""
    lines = _read_bytes(path).split(b"\n")
    # A line without its newline is still being written (or its writer was killed): it is not a record yet.
    unfinished = lines.pop()
    if unfinished and not running:
        raise AssayError(f"{path} breaks off in its last line, the file is damaged: {_REPAIR}")
    rows = []
    for number, line in enumerate(lines, start=1):
        where = f"line {number} of {path}"
        row = _parse(line, where)
        judges = [key for key in row if key.startswith("judge_")] if isinstance(row, dict) else []
        judged = dict.fromkeys([*judges, *(f"{key.removesuffix('_stderr')}_stderr" for key in judges)], _MAYBE)
        rows.append(_checked(row, _METRICS | judged, where))
    return rows


def read_diversity(path: Path) -> Row | None:
    """diversity.json of an arm; None where there is none: the arm has not finished, or an older version ran it."""
    return _checked(_parse(_read_bytes(path), str(path)), _DIVERSITY, str(path)) if path.exists() else None


def read_probe(path: Path) -> pa.Table:
    """The columns of probe.parquet that the report uses."""
    table = _read_parquet(path, _PROBE)
    # Not below the limit: NaN is not either.
    if not (np.abs(table["value_nats"].to_numpy()) < TOO_LARGE).all():
        raise AssayError(f"'value_nats' of {path} holds a number that no run has, the file is damaged: {_REPAIR}")
    return table


def read_responses(path: Path) -> pa.Table:
    """The columns of responses.parquet that the report uses."""
    return _read_parquet(path, _RESPONSES)


def read_tokens(path: Path) -> pa.Table | None:
    """tokens.parquet (``token_table``); None where it has no rows, or is not there: an older version ran every arm.

    Every response is in it once, its positions 0, 1, 2, … in rows that follow each other, and no log-probability is
    below ``LOWEST_NATS``.
    """
    if not path.exists():
        return None
    table = _read_parquet(path, TOKENS_SCHEMA, LOG_PROBS[1:])
    for name in LOG_PROBS:
        known = table[name].drop_null().to_numpy()
        # Rounding may bring a probability above 1; NaN is not between these either.
        if not ((known >= LOWEST_NATS) & (known <= 1e-3)).all():
            raise AssayError(f"{name!r} of {path} holds what is no log-probability, the file is damaged: {_REPAIR}")
    if unknown := set(table["writer"].unique().to_pylist()) - set(_WRITERS):
        raise AssayError(f"{path} has responses of {reprlib.repr(min(unknown))}, the file is damaged: {_REPAIR}")
    if not _are_whole(table):
        raise AssayError(f"{path} has a response whose tokens are not all in their order, once: {_REPAIR}")
    return table if table.num_rows else None


def _are_whole(tokens: pa.Table) -> bool:
    """Whether every response is there once, its positions counting from 0 in rows that follow each other."""
    position = tokens["position"].to_numpy()
    is_first = position == 0
    if not is_first[:1].all() or not (is_first[1:] | (position[1:] == position[:-1] + 1)).all():
        return False
    responses = tokens.select(["arm", "seed", "step", "prompt_id", "writer"])
    first = responses.filter(pa.array(is_first))
    is_of_one = responses.equals(first.take(np.cumsum(is_first) - 1))
    return is_of_one and first.group_by(first.column_names).aggregate([]).num_rows == first.num_rows


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AssayError(
            f"{path} is missing: either this is not a run directory or its first arm has not finished yet"
        ) from error
    except OSError as error:
        raise AssayError(f"cannot read {path} ({error.strerror or error}): {_REPAIR}") from error


def _parse(text: bytes, where: str) -> Any:
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:
        raise AssayError(f"{where} is not valid JSON ({error}), the file is damaged: {_REPAIR}") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = [list(each.values()) if isinstance(each, dict) else each for each in level]
        level = [each for values in inside if isinstance(values, list) for each in values]
    if level:
        raise _too_deep(where)
    return value


def _too_deep(where: str) -> AssayError:
    return AssayError(f"{where} is nested more than {MAX_DEPTH} deep, assay never writes that: {_REPAIR}")


def _read_parquet(path: Path, schema: pa.Schema, nullable: Sequence[str] = ()) -> pa.Table:
    data = pa.BufferReader(_read_bytes(path))
    try:
        table = pq.read_table(data).select(schema.names).cast(schema)
        table.validate(full=True)
    except (pa.ArrowException, KeyError, OSError, UnicodeDecodeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise AssayError(f"{path} is not the table expected here ({reason}), the file is damaged: {_REPAIR}") from error
    for name in schema.names:
        if table[name].null_count and name not in nullable:
            raise AssayError(f"{name!r} of {path} holds nulls, the file is damaged: {_REPAIR}")
    return table


def _checked(value: Any, shape: Any, where: str) -> Any:
    # shape: a dict of required keys (``?key``: may be absent, ``...``: whatever keys there are), a list whose
    # entries share a shape (its length counts when above 1), a tuple of types, or a constant.
    if isinstance(shape, dict):
        _check_object(value, shape, where)
    elif isinstance(shape, list):
        if not isinstance(value, list) or (len(shape) > 1 and len(value) != len(shape)):
            raise AssayError(f"{where} is not the list it should be, the file is damaged: {_REPAIR}")
        for entry in value:
            _checked(entry, shape[0], where)
    elif isinstance(shape, tuple):
        if not isinstance(value, shape) or (isinstance(value, bool) and bool not in shape):
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in shape)
            raise AssayError(f"{where} is {reprlib.repr(value)} but should be {names}, the file is damaged: {_REPAIR}")
        # Not below the limit: NaN is not either.
        if isinstance(value, (int, float)) and not abs(value) < TOO_LARGE:
            raise AssayError(
                f"{where} is {reprlib.repr(value)}, a number that no run has, the file is damaged: {_REPAIR}"
            )
    elif value != shape:
        raise AssayError(f"{where} is {reprlib.repr(value)}, and this version of assay reads {shape!r}: {_REPAIR}")
    return value


def _check_object(value: Any, shape: dict[Any, Any], where: str) -> None:
    if not isinstance(value, dict):
        raise AssayError(f"{where} should be an object, the file is damaged: {_REPAIR}")
    if ... in shape:
        wanted = [(key, shape[...]) for key in value]
    else:
        wanted = [(key.removeprefix("?"), inner) for key, inner in shape.items() if key[0] != "?" or key[1:] in value]
    for key, inner in wanted:
        if key not in value:
            raise AssayError(f"{where} lacks {key!r}, it was written by another version: {_REPAIR}")
        _checked(value[key], inner, f"{reprlib.repr(key)} of {where}")
