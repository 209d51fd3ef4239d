"""Many experiments: every stage is made once, on all cores, and a failure costs only what hangs on it.

Each experiment has a run folder of its own, ``<recipe>-seed<n>-<hash>``, the same as ``run_experiment`` would make. The
stages of all of them are units of work on one executor. Experiments that agree on stage 1 share it, arms that agree on
everything share theirs: the first run computes a part and the others copy it, also from runs of earlier sweeps in the
same folder. What is finished is not run again.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from assay import provenance, runs, workers
from assay.config import ArmConfig, Experiment, config_hash, digest_of, to_dict
from assay.config_file import from_dict
from assay.errors import AssayError
from assay.experiment import before_the_arms, finished_arms, is_finished, write_results
from assay.validation import validate

Listener = Callable[[str], None]
MakeExecutor = Callable[[int], Executor]


def cells(base: Experiment, axes: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> list[Experiment]:
    """``base`` at every combination of the axes' values and every seed, seeds innermost.

    An axis is the dotted name of a config field, such as ``distillation.num_prompts``.
    Raises AssayError for no seed, a seed or value given twice, axes of which one is part of another, an unknown
    field, or a combination that cannot be run.
    """
    _check_axes(axes)
    if not seeds:
        raise AssayError("a sweep needs at least one seed: such as --seeds 1 2 3")
    if len(set(seeds)) < len(seeds):
        raise AssayError(f"a seed is given twice: {' '.join(map(str, seeds))}; give each once")
    found = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        for seed in seeds:
            config = to_dict(base) | {"seed": seed}
            for axis, value in point.items():
                _set(config, axis, value)
            experiment = from_dict(config)
            try:
                validate(experiment)
            except AssayError as error:
                named = ", ".join(f"{axis} = {value}" for axis, value in point.items())
                raise AssayError(f"{named or 'this sweep'}: {error}") from error
            found.append(experiment)
    if len(set(map(config_hash, found))) < len(found):
        raise AssayError("two values of an axis mean the same experiment: give each once")
    return found


def _check_axes(axes: Mapping[str, Sequence[Any]]) -> None:
    for axis, values in axes.items():
        if axis in ("seed", "recipe"):
            raise AssayError(f"{axis!r} is no axis: " + ("use --seeds" if axis == "seed" else "sweep one at a time"))
        if not values:
            raise AssayError(f"axis {axis!r} has no values: write {axis}=A,B")
        whole = next((other for other in axes if axis.startswith(f"{other}.")), None)
        if whole is not None:
            raise AssayError(
                f"axes {whole!r} and {axis!r} contradict each other: the second is a part of the first, "
                "leave one of them out"
            )


def _set(config: dict[str, Any], axis: str, value: Any) -> None:
    *path, last = axis.split(".")
    place = config
    for name in path:
        inner = place.setdefault(name, {})  # an unknown name is refused, with the nearest, when the config is read
        if not isinstance(inner, dict):
            raise AssayError(f"axis {axis!r}: {name!r} holds no fields that a sweep can set; write a config file")
        place = inner
    place[last] = value


def run_sweep(
    experiments: Sequence[Experiment],
    folder: Path,
    listener: Listener = lambda line: None,
    num_workers: int | None = None,
    make_executor: MakeExecutor = workers.local_executor,
) -> dict[str, str]:
    """Runs experiments in ``folder`` and returns what failed: the name of the run's folder and the reason.

    One process per core; another ``make_executor`` runs the stages elsewhere, on the same files (``RayExecutor``).
    Killed at any moment, the same call repeats only what had not ended. Call it under ``if __name__ == "__main__"``.
    Raises AssayError, before anything is computed, when a run folder is in use or holds something else.
    """
    for experiment in experiments:
        validate(experiment)
    num_workers = workers.num_workers(num_workers)
    runs.prepare_folder(folder)
    places = {run_folder(experiment, folder): experiment for experiment in experiments}
    runs.allow_open_files(len(places))  # a lock each
    with ExitStack() as stack:
        unfinished = []
        for place, experiment in places.items():
            if _is_finished(experiment, place):
                continue  # needs no lock: others may be reading it too
            runs.prepare_folder(place)
            stack.enter_context(runs.locked(place))
            unfinished.append(_Run(experiment, place, provenance.open_manifest(experiment, place)))
            runs.put_in_order(place)
        listener(f"{len(places)} runs, {len(places) - len(unfinished)} of them finished before")
        parts = _Parts(folder, listener)
        units = _plan(unfinished, parts)
        while any(unit.state == "waiting" for unit in units):  # again when a worker was killed: its pool is lost
            executor = make_executor(num_workers)
            try:
                _work(units, parts, executor, num_workers, listener)
            finally:
                workers.end(executor)
    return {run.folder.name: run.failure for run in unfinished if run.failure is not None}


def run_folder(experiment: Experiment, folder: Path) -> Path:
    """Where a sweep in ``folder`` keeps the run of an experiment."""
    return folder / f"{experiment.recipe}-seed{experiment.seed}-{config_hash(experiment)[:8]}"


def _is_finished(experiment: Experiment, place: Path) -> bool:
    """Whether nothing is left to do; only reads, since the folder may be another process's."""
    if not (place / "manifest.json").exists():
        return False
    manifest = runs.read_json(place / "manifest.json")
    own = provenance.is_manifest(manifest) and manifest["config_hash"] == config_hash(experiment)
    return own and is_finished(place, manifest)


def stage_one_key(experiment: Experiment) -> str:
    """Experiments with equal keys have the same stage 1: oracle responses, SFT, held-out answers."""
    config = to_dict(experiment)
    return digest_of(
        [config[name] for name in ("seed", "task", "models", "stage_one")] + [experiment.probe.num_prompts]
    )


def arm_key(experiment: Experiment, arm: ArmConfig) -> str:
    """Arms with equal keys have the same start, the same training and the same measurements."""
    config = to_dict(experiment)
    return digest_of([stage_one_key(experiment), config["distillation"], config["probe"], to_dict(arm)])


@dataclass
class _Run:
    """One experiment on its way: its folder, its manifest, and why it failed."""

    experiment: Experiment
    folder: Path
    manifest: dict[str, Any]
    failure: str | None = None


class _Parts:
    """Where a finished stage 1 or arm is, by its key: what one run has made, the others copy."""

    def __init__(self, folder: Path, listener: Listener) -> None:
        self._places: dict[str, Path] = {}
        self._digests: dict[str, dict[str, str]] = {}
        for path in sorted(folder.glob("*/manifest.json")):
            try:
                manifest = runs.read_json(path)
                if not provenance.is_manifest(manifest) or manifest["assay_version"] != metadata.version("assay"):
                    continue
                experiment = from_dict(manifest["config"])
            except AssayError as error:  # of a run that this sweep does not hold, or it would have been refused
                listener(f"nothing is shared with {path.parent.name}: {error}")
                continue
            self.note(_Run(experiment, path.parent, manifest))

    def note(self, run: _Run) -> None:
        """Notes the finished parts of a run.

        Raises AssayError when another run of the same config was made from other models or another corpus.
        """
        key = stage_one_key(run.experiment)
        if _has_stage_one(run.folder):
            known = self._digests.setdefault(key, {})
            if any(known.get(name, digest) != digest for name, digest in run.manifest["digests"].items()):
                raise AssayError(
                    f"{str(run.folder)!r} was made from other models or another text than its neighbours, under the "
                    "same names: move it away, or sweep in another folder"
                )
            known |= run.manifest["digests"]
            self._places.setdefault(key, run.folder / "stage1")
        for name in finished_arms(run.experiment, run.folder):
            arm = next(arm for arm in run.experiment.arms if arm.name == name)
            self._places.setdefault(arm_key(run.experiment, arm), run.folder / "arms" / name)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def bring(self, run: _Run) -> None:
        """Copies into the folder of a run what others have finished of it, and pins what that was made from."""
        experiment, key = run.experiment, stage_one_key(run.experiment)
        if key in self and not _has_stage_one(run.folder):
            provenance.pin_digests(run.manifest, self._digests[key])
            self._copy(key, run, "stage1")
        for arm in experiment.arms:
            if arm_key(experiment, arm) in self and arm.name not in finished_arms(experiment, run.folder):
                self._copy(arm_key(experiment, arm), run, f"arms/{arm.name}")

    def _copy(self, key: str, run: _Run, part: str) -> None:
        run.manifest["copied"] = list(dict.fromkeys([*run.manifest.get("copied", []), part]))
        runs.write_json(run.folder / "manifest.json", run.manifest)

        def write(temporary: Path) -> None:
            # nothing is resumed from a copy
            shutil.copytree(self._places[key], temporary, ignore=shutil.ignore_patterns("checkpoints*"))

        runs.write_atomically(run.folder / part, write)


def _has_stage_one(folder: Path) -> bool:
    return all((folder / "stage1" / f"held_out-{role}.parquet").exists() for role in ("teacher", "student"))


@dataclass
class _Unit:
    """One piece of work of a run; it waits until ``needs`` have succeeded and ``after`` have ended."""

    run: _Run
    stage: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    needs: list[_Unit] = field(default_factory=list)
    after: list[_Unit] = field(default_factory=list)
    state: str = "waiting"
    is_suspect: bool = False  # ran beside others when a worker was killed: runs alone the next time

    @property
    def is_ready(self) -> bool:
        ended = all(unit.state in ("done", "failed") for unit in self.after)
        return self.state == "waiting" and ended and all(unit.state == "done" for unit in self.needs)

    @property
    def is_doomed(self) -> bool:
        return self.state == "waiting" and any(unit.state == "failed" for unit in self.needs)


def _plan(unfinished: Sequence[_Run], parts: _Parts) -> list[_Unit]:
    """The units of all runs, in the order in which they are wished for; the first run that needs a part makes it."""
    makers: dict[str, _Unit] = {}
    units: list[_Unit] = []
    for run in unfinished:
        key = stage_one_key(run.experiment)
        start = _Unit(run, "stage_one", make_stage_one, after=[makers[key]] if key in makers else [])
        units.append(start)
        if key not in parts:
            makers.setdefault(key, start)
        arms = []
        # longest first: an offline arm samples only once
        for arm in sorted(run.experiment.arms, key=lambda arm: all(s.refresh_every is None for s in arm.sources)):
            key = arm_key(run.experiment, arm)
            if key not in parts:
                if key not in makers:
                    makers[key] = _Unit(run, "arms", workers.run_stage, ("run_arm", arm.name), needs=[start])
                    units.append(makers[key])
                arms.append(makers[key])
        units.append(_Unit(run, "report", make_results, needs=[start], after=arms))
    return units


def _work(units: Sequence[_Unit], parts: _Parts, executor: Executor, num_workers: int, listener: Listener) -> None:
    """Hands units to the executor until all have ended, or a killed worker has broken it.

    Of several units that a broken executor takes with it nobody knows which one is to blame: they wait again.
    """
    running: dict[Future[Any], tuple[_Unit, float]] = {}
    is_new, is_broken = True, False
    while True:
        for unit in units:
            if unit.is_doomed:
                _end(unit, "failed", "left out", units, listener)
        most = workers.capacity(executor, num_workers)
        for unit in sorted((unit for unit in units if unit.is_ready), key=lambda unit: not unit.is_suspect):
            is_alone = unit.is_suspect or any(other.is_suspect for other, _ in running.values())
            if is_broken or len(running) >= (1 if is_alone else most):
                break
            try:
                parts.bring(unit.run)
            except AssayError as error:
                unit.run.failure = unit.run.failure or str(error)
                _end(unit, "failed", f"failed: {error}", units, listener)
                continue
            try:
                future = workers.submit(executor, unit.function, unit.run.experiment, unit.run.folder, *unit.arguments)
            except AssayError:  # it broke since it was last heard of
                if is_new:
                    raise
                is_broken = True
                break
            running[future] = (unit, time.perf_counter())
            unit.state, is_new = "running", False
        if not running:
            return
        is_alone = len(running) == 1 and not is_broken
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            unit, started = running.pop(future)
            error = future.exception()
            is_broken = is_broken or isinstance(error, BrokenProcessPool)
            if isinstance(error, BrokenProcessPool) and not is_alone:
                unit.state, unit.is_suspect = "waiting", True
                continue
            reason = _settle(unit, error, None if error else future.result(), time.perf_counter() - started)
            parts.note(unit.run)
            _end(unit, "failed" if error else "done", f"failed: {reason}" if error else "done", units, listener)


def _settle(unit: _Unit, error: BaseException | None, result: Any, seconds: float) -> str | None:
    """Writes into the run's manifest what a unit has found; notes and returns why it failed."""
    run, spent = unit.run, unit.run.manifest["stage_seconds"]
    spent[unit.stage] = spent.get(unit.stage, 0.0) + seconds
    run.manifest["wall_seconds"] += seconds  # one core's: units of a run may run side by side
    missing = [arm.name for arm in run.experiment.arms if arm.name not in finished_arms(run.experiment, run.folder)]
    reason = None
    if unit.stage == "report" and missing:
        reason = f"arm {missing[0]!r} failed in the run that it is shared with"
    elif isinstance(error, BrokenProcessPool):
        reason = workers.WORKER_WAS_KILLED
    elif error is not None:
        line = (str(error).splitlines() or [""])[0]
        reason = line if isinstance(error, AssayError) else f"{type(error).__name__}: {line}"
    elif unit.stage == "stage_one":
        run.manifest["digests"] |= result
    elif unit.stage == "report":
        run.manifest["status"], run.failure = "finished", None
    run.failure = run.failure or reason  # the first is the cause of those that follow
    runs.write_json(run.folder / "manifest.json", run.manifest)
    return reason


def _end(unit: _Unit, state: str, outcome: str, units: Sequence[_Unit], listener: Listener) -> None:
    unit.state = state
    ended = sum(unit.state in ("done", "failed") for unit in units)
    what = " ".join([unit.stage, *unit.arguments[1:]])
    listener(f"[{ended}/{len(units)}] {unit.run.folder.name}: {what} {outcome}")


def make_stage_one(experiment: Experiment, folder: Path) -> dict[str, str]:
    """Checks the models and makes stage 1, as far as it is not there; returns the digests of models and corpus."""
    manifest = runs.read_json(folder / "manifest.json")
    digests = workers.run_stage(experiment, folder, "check_models")
    provenance.pin_digests(manifest, digests)
    for part in before_the_arms(experiment):
        found = [workers.run_stage(experiment, folder, *job) for job in part.jobs]
        digests |= dict(zip(part.digests, found, strict=bool(part.digests)))
    return digests


def make_results(experiment: Experiment, folder: Path) -> None:
    """Merged tables, summary and report of the arms that are finished; AssayError when there is none."""
    if not finished_arms(experiment, folder):
        raise AssayError("no arm is finished: run the experiment first")
    write_results(experiment, folder, runs.read_json(folder / "manifest.json")["wall_seconds"])
