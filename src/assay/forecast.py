"""What an experiment will cost, counted from its config alone: tokens, operations, memory, disk, and time.

Tokens and operations are upper bounds, "at most": every prompt and response is taken to be as long as it may be; memory
and disk are estimates on the high side. Models are measured by their shapes (models/sizes.py), never loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from assay import provenance, runs
from assay.config import ArmConfig, Experiment, config_hash
from assay.config_file import from_dict
from assay.errors import AssayError
from assay.footprint import disk_bytes, memory_bytes
from assay.models.sizes import size_of
from assay.workload import Work, arm_work, responses_counted, stage_one_work


@dataclass(frozen=True)
class ArmForecast:
    """One arm, at most; ``generated_tokens`` and ``teacher_tokens`` mean what they do in summary.json."""

    name: str
    generated_tokens: int
    teacher_tokens: int


@dataclass(frozen=True)
class Forecast:
    """One run, at most. Tokens are response tokens; the prompts before them are in ``flops``.

    ``generated_tokens`` are sampled, ``trained_tokens`` passed forward and backward (SFT of both models, all arms),
    ``scored_tokens`` passed forward only (probe, teacher's signal). ``memory_bytes`` is the peak of one worker process,
    beyond what Python and torch take. None: unknown, for want of the sizes of ``unknown_models``.
    """

    arms: tuple[ArmForecast, ...]
    generated_tokens: int
    trained_tokens: int
    scored_tokens: int
    flops: int | None
    memory_bytes: int | None
    disk_bytes: int | None
    unknown_models: tuple[str, ...] = ()


def forecast(experiment: Experiment) -> Forecast:
    """What a run of ``experiment`` costs at most.

    2 operations per parameter and token forward, 6 for a token trained on [Kaplan et al. 2020]; prompt tokens pass the
    body (of an encoder-decoder model the encoder), response tokens the body or decoder and the output head. Attention's
    own products are left out. Raises AssayError when a checkpoint folder cannot be read.
    """
    stage_one = stage_one_work(experiment)
    works = {arm.name: arm_work(experiment, arm) for arm in experiment.arms}
    total = Work.total([stage_one, *works.values()])
    num_tokens = experiment.task.max_response_tokens
    arms = tuple(_arm_forecast(experiment, arm) for arm in experiment.arms)
    counts = (arms, total.num_written * num_tokens, total.num_trained * num_tokens, total.num_scored * num_tokens)
    names: dict[str, str] = {**experiment.models.names, **experiment.probe.judging_models}
    found = {role: size_of(name) for role, name in names.items()}
    sizes = {role: size for role, size in found.items() if size is not None}
    if len(sizes) < len(found):
        unknown = tuple(dict.fromkeys(names[role] for role, size in found.items() if size is None))
        return Forecast(*counts, None, None, None, unknown)
    return Forecast(
        *counts, total.flops(experiment, sizes), memory_bytes(experiment, sizes), disk_bytes(experiment, sizes)
    )


def measured_flops_per_second(manifest_paths: Iterable[Path]) -> float | None:
    """Forecast operations per second and worker process, over the finished runs of this machine; None without any.

    Numerator and denominator are both whole runs (upper bound; wall time with start-up and report), so a forecast of
    a like run divided by this is a measurement. Manifests of other processors, unfinished runs and runs that have
    copied a part from another one are left out.
    """
    flops, worker_seconds = 0, 0.0
    for path in manifest_paths:
        try:
            manifest = runs.read_json(path)
            if not provenance.is_manifest(manifest) or manifest["status"] != "finished":
                continue
            experiment = from_dict(manifest["config"])
        except AssayError:  # damaged, or of another version: no measurement
            continue
        if manifest["hardware"]["processor"] != provenance.processor():
            continue
        found = forecast(experiment)
        if found.flops is not None and not manifest.get("copied"):
            flops += found.flops
            # a sweep adds up the seconds of its workers, and makes stage 1 in one piece
            swept = "stage_one" in manifest["stage_seconds"]
            num_workers = 1 if swept else min(manifest["hardware"]["cores"], max(2, len(experiment.arms)))
            worker_seconds += manifest["wall_seconds"] * num_workers
    return flops / worker_seconds if worker_seconds > 0 else None


def plan_lines(experiments: Mapping[str, Experiment], flops_per_second: float | None, num_workers: int) -> list[str]:
    """A line for every config up to its seed, under the name of its first run, and a line for the total.

    ``flops_per_second`` is of one worker process; the time is that of ``num_workers`` of them, none of them idle.
    """
    groups: dict[str, list[str]] = {}
    for name, experiment in experiments.items():
        groups.setdefault(config_hash(dataclasses.replace(experiment, seed=0)), []).append(name)
    lines, parts, unknown = [], [], {}
    for names in groups.values():
        found = forecast(experiments[names[0]])
        unknown |= dict.fromkeys(found.unknown_models)
        parts.append(_times(found, len(names)))
        lines.append(_line(names[0], len(names), parts[-1], flops_per_second, num_workers))
    lines.append(_line("total", len(experiments), _sum(parts), flops_per_second, num_workers))
    if unknown:
        lines.append(f"unknown: the sizes of {', '.join(unknown)}; give a local checkpoint folder to have them counted")
    if flops_per_second is None:
        lines.append("the time is unknown until one run is finished on this machine, or a throughput is given")
    return lines


def _arm_forecast(experiment: Experiment, arm: ArmConfig) -> ArmForecast:
    num_tokens = experiment.task.max_response_tokens
    return ArmForecast(arm.name, *(count * num_tokens for count in responses_counted(experiment, arm)))


def _times(found: Forecast, num_runs: int) -> Forecast:
    """That many such runs, one after the other: tokens, operations and disk add up, memory does not."""
    return dataclasses.replace(
        found,
        generated_tokens=found.generated_tokens * num_runs,
        trained_tokens=found.trained_tokens * num_runs,
        scored_tokens=found.scored_tokens * num_runs,
        flops=None if found.flops is None else found.flops * num_runs,
        disk_bytes=None if found.disk_bytes is None else found.disk_bytes * num_runs,
    )


def _sum(parts: Iterable[Forecast]) -> Forecast:
    """The total of several; what is unknown in one is unknown in all."""
    parts = list(parts)
    flops = [part.flops for part in parts if part.flops is not None]
    memory = [part.memory_bytes for part in parts if part.memory_bytes is not None]
    disk = [part.disk_bytes for part in parts if part.disk_bytes is not None]
    known = len(flops) == len(parts)
    return Forecast(
        (),
        sum(part.generated_tokens for part in parts),
        sum(part.trained_tokens for part in parts),
        sum(part.scored_tokens for part in parts),
        sum(flops) if known else None,
        max(memory, default=0) if known else None,
        sum(disk) if known else None,
    )


def _line(name: str, num_runs: int, found: Forecast, flops_per_second: float | None, num_workers: int) -> str:
    known_time = found.flops is not None and flops_per_second is not None
    seconds = found.flops / (flops_per_second * num_workers) if known_time else None  # type: ignore[operator]
    tokens = (found.generated_tokens, found.trained_tokens, found.scored_tokens)
    written, trained, scored = (_scaled(count, 1000, "", " k", " M", " G", " T") for count in tokens)
    powers = [f" {prefix}FLOP" for prefix in ("", "k", "M", "G", "T", "P", "E", "Z")]
    return (
        f"{name}: {num_runs} run{'s' if num_runs != 1 else ''}, at most "
        f"{written} tokens written, {trained} trained on, {scored} scored; {_scaled(found.flops, 1000, *powers)}; "
        f"{_duration(seconds)} on {num_workers} worker{'s' if num_workers != 1 else ''}; "
        f"{_bytes(found.memory_bytes)} of memory each; {_bytes(found.disk_bytes)} of disk"
    )


def _scaled(value: float | None, base: int, *units: str) -> str:
    """Three digits and a unit; "unknown" for None."""
    if value is None:
        return "unknown" + units[0].rstrip()
    power = 0
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g}{units[power]}"


def _bytes(value: int | None) -> str:
    return "unknown" if value is None else _scaled(value, 1024, " B", " KiB", " MiB", " GiB", " TiB", " PiB")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "time unknown"
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
