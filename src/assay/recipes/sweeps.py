"""A sweep from its name to its files: the experiments of a study or of axes, their cost, their runs, what they show."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from assay import runs
from assay.config import Experiment
from assay.config_file import load
from assay.errors import AssayError, unknown_name
from assay.findings import Outcomes, find
from assay.forecast import measured_flops_per_second, plan_lines
from assay.ray_executor import RayConfig, RayExecutor, check_ray
from assay.recipes import RECIPES, get_recipe, is_config_file
from assay.recipes.scales import SCALES
from assay.recipes.studies import STUDIES, THREE_SEEDS, Key, Study, experiments_of
from assay.report.html import write_report
from assay.report.style import in_style, to_svg
from assay.study_report import mean_rows, run_rows, table_of_means
from assay.sweep import cells, run_folder, run_sweep
from assay.sweep_report import write_sweep
from assay.workers import local_executor, num_workers


@dataclass(frozen=True)
class Plan:
    """The experiments of a sweep by (world, seed, variant), and the study that they test, if any.

    Without a study, ``axes`` has the values of its axes by variant, and ``command`` makes the sweep again.
    """

    name: str
    experiments: dict[Key, Experiment]
    study: Study | None
    scale: str
    axes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    command: str = ""


def plan(
    target: str, axes: Sequence[str], seeds: Sequence[int] | None, worlds: Sequence[str] = (), scale: str = "tiny"
) -> Plan:
    """What to run: a study's experiments, or a recipe or config file at all values of ``axes`` ("field=A,B").

    ``seeds`` None takes a study's own seeds, or the recipe's. Raises AssayError for what contradicts itself.
    """
    if seeds is not None and not seeds:
        raise AssayError("a sweep needs at least one seed: such as --seeds 1 2 3")
    if target in STUDIES:
        if axes:
            raise AssayError(f"{target!r} is a study, which has its own axes: leave --axes out, or sweep a recipe")
        return Plan(target, _of_study(STUDIES[target], scale, seeds, worlds), STUDIES[target], scale)
    if worlds or scale != "tiny":
        raise AssayError(
            f"--worlds and --scale belong to studies ({', '.join(STUDIES)}), not to {target!r}: leave them out"
        )
    if is_config_file(target):
        base = load(Path(target))
    elif target in RECIPES:
        base = get_recipe(target)
    else:
        raise unknown_name("study or recipe", target, [*STUDIES, *RECIPES])
    values = _read_axes(axes)
    found = cells(base, values, [base.seed] if seeds is None else seeds)
    experiments = {(base.recipe, e.seed, _variant(e, values)): e for e in found}
    places = {_variant(e, values): {axis: _value(e, axis) for axis in values} for e in found}
    parts = ["assay", "sweep", target, *(["--axes", *axes] if axes else [])]
    parts += ["--seeds", *map(str, dict.fromkeys(e.seed for e in found))]
    return Plan(base.recipe, experiments, None, scale, places, shlex.join(parts))


def _of_study(study: Study, scale: str, seeds: Sequence[int] | None, worlds: Sequence[str]) -> dict[Key, Experiment]:
    if scale == "tiny":
        known = {world: get_recipe(world) for world in worlds or study.worlds}
    elif scale in SCALES:
        known = {world: make() for world, make in SCALES[scale].items()}
    else:
        raise unknown_name("scale", scale, ["tiny", *SCALES])
    for world in worlds:
        if world not in known:
            raise unknown_name(f"world of scale {scale!r}", world, known)
    chosen = list(seeds or (study.seeds if scale == "tiny" else THREE_SEEDS))
    if len(set(chosen)) < len(chosen) or len(set(worlds)) < len(worlds):
        raise AssayError("a seed or a world is given twice: give each once")
    return experiments_of(study, {world: known[world] for world in worlds or known}, chosen)


def _read_axes(axes: Sequence[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for text in axes:
        name, equals, values = text.partition("=")
        name = name.replace("-", "_")  # as flags write it
        if not equals or not name:
            raise AssayError(f"axis {text!r} cannot be read: write field=A,B, such as distillation.num_prompts=64,256")
        if name in found:
            raise AssayError(f"axis {name!r} is given twice: give all its values at once, {name}=A,B")
        try:
            found[name] = [yaml.safe_load(value) for value in values.split(",") if value.strip()]
        except yaml.YAMLError as error:
            raise AssayError(
                f"axis {text!r}: {str(error).splitlines()[0]}; write field=A,B, such as distillation.num_prompts=64,256"
            ) from error
    return found


def _variant(experiment: Experiment, axes: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{axis.split('.')[-1]} = {_value(experiment, axis)}" for axis in axes) or "as it is"


def _value(experiment: Experiment, axis: str) -> Any:
    place: Any = experiment
    for name in axis.split("."):
        place = getattr(place, name)
    return place


def cost(plan: Plan, folder: Path, workers: int | None, flops_per_second: float | None = None) -> list[str]:
    """What is left to run and what it costs at most (what runs share is counted for each), as lines.

    Times come from ``flops_per_second`` of one worker, or from the finished runs of ``folder``, if any.
    Raises AssayError for less than one worker, and for a speed that none has.
    """
    if flops_per_second is not None and not 0 < flops_per_second < math.inf:
        raise AssayError(f"--flops-per-second is {flops_per_second:g}: it must be above 0 and finite")
    count, left = num_workers(workers), {}
    for (world, seed, variant), experiment in plan.experiments.items():
        path = run_folder(experiment, folder) / "manifest.json"
        if not path.exists() or runs.read_json(path)["status"] != "finished":
            left[f"{world}, {variant}, from seed {seed}"] = experiment
    lines = [f"{plan.name}: {len(plan.experiments)} runs, {len(plan.experiments) - len(left)} of them finished before"]
    if not left:
        return lines
    speed = flops_per_second or measured_flops_per_second(sorted(folder.glob("*/manifest.json")))
    return lines + plan_lines(left, speed, count)


def document(plan: Plan, folder: Path, cost: Sequence[str], page: Path | None = None) -> dict[str, Any]:
    """What a sweep is and, with the ``page`` that it ended in, what it has found; schema ``assay.sweep/1``."""
    found: dict[str, Any] = {
        "schema": "assay.sweep/1",
        "sweep": plan.name,
        "cost": list(cost),
        "runs": [str(run_folder(experiment, folder).resolve()) for experiment in plan.experiments.values()],
        "finding": None,
        "path": None,
    }
    if page is None:
        return found
    finding = None if plan.study is None else runs.read_json(page.parent / "result.json")
    return found | {"finding": finding, "path": str(page.resolve())}


def carry_out(
    plan: Plan,
    folder: Path,
    out: Path,
    workers: int | None,
    listener: Callable[[str], None],
    ray: RayConfig | None = None,
) -> Path:
    """Runs what is missing and writes tables, figures and report into ``out``; returns the path of report.html.

    With ``ray`` the parts run on a Ray cluster, whose nodes all see ``folder``.

    Runs that fail do not stop the others. Raises AssayError naming them once all is done; a study's finding is
    written only when all its runs are finished.
    """
    experiments = plan.experiments
    make_executor: Callable[[int], Executor] = local_executor
    if ray is not None:
        check_ray()
        make_executor = lambda cores: RayExecutor(ray, folder, cores, workers, listener)  # noqa: E731
    failures = run_sweep(list(experiments.values()), folder, listener, workers, make_executor)
    if failures:
        reasons = list(dict.fromkeys(failures.values()))
        more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
        named = ", ".join(list(failures)[:3]) + (", …" if len(failures) > 3 else "")
        raise AssayError(
            f"{len(failures)} of {len(experiments)} runs failed ({named}): {reasons[0]}{more}; the same command tries "
            "them again"
        )
    outcomes = Outcomes({key: run_folder(experiment, folder) for key, experiment in experiments.items()})
    if plan.study is None:
        folders = [run_folder(experiment, folder) for experiment in experiments.values()]
        write_report(folders, out / "curves", [variant for _, _, variant in experiments])
        return write_sweep(out, outcomes, plan.name, plan.command, plan.axes)
    result = {"schema": "assay.finding/1", "recipe": plan.name, "scale": plan.scale, "claim": plan.study.claim}
    result |= find(plan.study.shape(outcomes)) | {"command": _command(plan, plan.study, outcomes)}
    with in_style():
        picture = to_svg(plan.study.draw(outcomes))
    page = write_sweep(out, outcomes, plan.name, result["command"], plan.axes, result, picture)
    runs.write_text(out / "figure.svg", picture)
    runs.write_text(out / "table.md", table_of_means(result, mean_rows(run_rows(outcomes))))
    runs.write_json(out / "result.json", result)
    return page


def _command(plan: Plan, study: Study, outcomes: Outcomes) -> str:
    parts = ["assay", "sweep", study.name]
    if plan.scale != "tiny":
        parts += ["--scale", plan.scale]
    elif tuple(outcomes.worlds) != study.worlds:
        parts += ["--worlds", *outcomes.worlds]
    if tuple(outcomes.seeds) != study.seeds:
        parts += ["--seeds", *map(str, outcomes.seeds)]
    return shlex.join(parts)
