"""Finished runs side by side: where their configs differ, and which arm ends closer to the truth, how surely.

Everything comes from the files of the runs. Two arms are compared prompt by prompt, so only where both were measured
on the same held-out prompts and the same frozen responses; where they were not, the comparison says so in a word.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from assay import runs as run_files
from assay.config import flat
from assay.errors import AssayError, unknown_name
from assay.report.files import Row, read_manifest
from assay.report.tables import Run, read_run, to_csv
from assay.report.words import visible
from assay.statistics import Estimate, Interval, holm, mean_estimate, mean_over_seeds, t_interval, two_sided_p

Metric = Literal["golden", "proxy"]

_DIGEST_OF = {"oracle": "models.oracle", "teacher": "models.teacher", "student": "models.student"}
_DIGEST_OF |= {"corpus": "task.name", "chat_template": "task.chat_template"}


@dataclass(frozen=True)
class ArmRow:
    """One finished arm of one run. All values in nats per sequence; lower is better.

    ``config`` holds the fields in which the given runs differ, as dotted names; ``sources.…`` are the arm's own,
    ``digests.…`` appear where one name stands for different files. A field that a run does not have is absent.
    """

    name: str
    run: str
    arm: str
    seed: int
    recipe: str
    task: str
    config: dict[str, Any]
    verdict: str
    severity_hacking: Interval | None
    golden_best: float
    golden_final: float
    proxy_final: float
    train_proxy_final: float | None
    generated_tokens: int


@dataclass(frozen=True)
class Difference:
    """Mean of (arm − reference) over ``n`` pairs with its 95 % t interval and two-sided p-value.

    ``p_holm`` is the p-value adjusted for all p-values of the same list of contrasts; None when it is the only one.
    """

    interval: Interval
    p_value: float
    p_holm: float | None
    n: int


@dataclass(frozen=True)
class Contrast:
    """One arm against the reference, at its last evaluation. A word instead of a difference: why there is none."""

    name: str
    reference: str
    seeds: tuple[int, ...]
    golden: Difference | str
    proxy: Difference | str


@dataclass(frozen=True)
class Comparison:
    """What ``compare_runs`` found. ``fields`` are the config fields that differ, ``unfinished`` what was left out.

    ``folders`` says where each run of ``rows`` is.

    ``paired`` has pairs of held-out prompts as its units, for the students at hand; ``over_seeds`` has seeds.
    """

    rows: tuple[ArmRow, ...]
    fields: tuple[str, ...]
    reference: str
    paired: tuple[Contrast, ...]
    over_seeds: tuple[Contrast, ...]
    unfinished: tuple[str, ...]
    folders: dict[str, str]


def compare_runs(folders: Sequence[Path], reference: str | None = None) -> Comparison:
    """Every finished arm of the runs in ``folders``, each against the reference arm.

    ``reference`` is an arm, a run (its first arm) or "RUN/ARM"; the first arm of the first run by default. An arm is
    set against the reference of its own seed where a run of the reference's experiment has that seed. Runs which
    agree on config (up to the seed) and base models are replicates: with two or more seeds in common, ``over_seeds``
    has the mean over seeds of the paired differences.

    Raises:
        AssayError: a folder is no run or damaged or of another format, a run is there twice, fewer than two arms
            are finished, or no arm has the name of the reference.
    """
    runs, unfinished = _read_runs(folders)
    arms = _finished_arms(runs)
    if len(arms) < 2:
        found = "only one finished arm" if arms else "no finished arm"
        raise AssayError(f"there is {found} in what was given, nothing to compare: give more runs, or wait for them")
    chosen = _find_reference(arms, reference)
    index = {(arm.experiment, arm.entry["source"], arm.row.seed): arm for arm in arms}
    paired = []
    pairs: dict[tuple[str, str], list[tuple[_Arm, _Arm]]] = {}
    for arm in arms:
        base = index.get((chosen.experiment, chosen.entry["source"], arm.row.seed), chosen)
        if base is arm:
            continue
        paired.append(_contrast(arm, base, [(arm, base)]))
        if base.row.seed == arm.row.seed:
            pairs.setdefault((arm.experiment, arm.entry["source"]), []).append((arm, base))
    over_seeds = [_contrast(of[0][0], chosen, of) for of in pairs.values() if len(of) > 1]
    return Comparison(
        rows=tuple(arm.row for arm in arms),
        fields=tuple(dict.fromkeys(field for arm in arms for field in arm.row.config)),
        reference=chosen.row.name,
        paired=_with_holm(paired),
        over_seeds=_with_holm(over_seeds),
        unfinished=tuple(unfinished),
        folders={name: str(run.directory) for name, run in runs.items()},
    )


def to_rows(comparison: Comparison) -> list[Row]:
    """The comparison as a flat table: a row of kind "arm" for each arm, then "over_seeds" for each mean over seeds."""
    contrasts = {contrast.name: contrast for contrast in comparison.paired}
    rows = []
    for arm in comparison.rows:
        severity = arm.severity_hacking
        row: Row = {"kind": "arm", "name": arm.name, "run": arm.run, "arm": arm.arm, "seeds": arm.seed}
        row |= {"recipe": arm.recipe, "task": arm.task}
        row |= {f"config.{field}": as_text(arm.config[field]) for field in comparison.fields if field in arm.config}
        row |= {"verdict": arm.verdict}
        row |= _interval_columns("severity_hacking_nats", severity)
        row |= {"golden_best": arm.golden_best, "golden_final": arm.golden_final, "proxy_final": arm.proxy_final}
        row |= {"train_proxy_final": arm.train_proxy_final, "generated_tokens": arm.generated_tokens}
        rows.append(row | (_contrast_columns(contrasts[arm.name]) if arm.name in contrasts else {}))
    for contrast in comparison.over_seeds:
        row = {"kind": "over_seeds", "name": contrast.name, "seeds": " ".join(map(str, contrast.seeds))}
        rows.append(row | _contrast_columns(contrast))
    return rows


def write_csv(comparison: Comparison, path: Path) -> None:
    """Writes ``to_rows`` as CSV in full precision; what is unknown is an empty cell."""
    run_files.write_text(path, to_csv(to_rows(comparison)))


def as_text(value: Any) -> str:
    """A config value as people write it, without control characters."""
    return visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


@dataclass(frozen=True)
class _Arm:
    """A finished arm with the files that it came from. ``experiment`` is what was run, whatever the seed."""

    row: ArmRow
    run: Run
    entry: Row
    experiment: str

    def final(self, metric: Metric) -> tuple[list[str], np.ndarray]:
        """Prompt ids in order and their values (nats) of the student that the arm leaves."""
        chosen = (pc.field("arm") == self.entry["source"]) & (pc.field("seed") == self.row.seed)
        rows = self.run.probe.filter(chosen & (pc.field("metric") == metric))
        if not len(rows):
            raise AssayError(
                f"{self.run.directory / 'probe.parquet'} has no {metric!r} of {self.entry['source']!r}, "
                f"seed {self.row.seed}: the files do not belong together; "
                "repeat the command that made the run in another folder"
            )
        last = int(rows["step"].to_numpy().max())
        rows = rows.filter(pc.field("step") == self.entry.get("kept_step", last))
        per_prompt = rows.group_by("prompt_id").aggregate([("value_nats", "mean")]).sort_by("prompt_id")
        return per_prompt["prompt_id"].to_pylist(), per_prompt["value_nats_mean"].to_numpy()

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """What golden and, with the last two, proxy were measured on; None where the files do not tell.

        Where references are the truth, they take the place of the oracle's responses.
        Texts are compared themselves, whatever corpus they came from. A text does not say where its prompt was cut,
        nor how it was rendered, so the limits and the chat template count too.
        """
        digests, config = self.run.manifest["digests"], flat(self.run.manifest["config"])
        prompts, truth = set(self.final("golden")[0]), self.run.summary["truth"]
        answers = {
            "oracle": self._answers("oracle" if truth == "oracle" else "dataset", prompts),
            "teacher": self._answers("teacher", prompts),
        }
        limits = [config.get(f"task.{key}") for key in ("template", "max_prompt_tokens")]
        if "chat_template" in digests:
            limits.append(digests["chat_template"])
        drawn_with = [self.row.seed, config.get("task.max_response_tokens")]
        return {
            "prompts": [sorted(prompts), limits],
            "oracle": digests.get("oracle") if truth == "oracle" else truth,
            "oracle responses": answers["oracle"] and [answers["oracle"], drawn_with],
            "teacher": digests.get("teacher_after_sft" if truth == "oracle" else "teacher"),
            "teacher responses": answers["teacher"] and [answers["teacher"], drawn_with],
        }

    def _answers(self, writer: str, prompts: set[str]) -> list[Row] | None:
        """What ``writer`` answered to the held-out prompts before distillation; None unless to all of them."""
        shared = (pc.field("arm") == "") & (pc.field("split") == "held_out") & (pc.field("writer") == writer)
        rows = self.run.responses.filter(shared).sort_by("prompt_id")
        found = rows.select(["prompt_id", "prompt", "text", "num_tokens", "truncated"]).to_pylist()
        return found if {row["prompt_id"] for row in found} >= prompts else None


def _read_runs(folders: Sequence[Path]) -> tuple[dict[str, Run], list[str]]:
    """The runs by a name of their own, and the names of what is not finished."""
    if not folders:
        raise AssayError("no run folder was given: name at least one")
    directories: list[Path] = []
    for folder in folders:
        directory = Path(os.path.realpath(folder))
        if directory in directories:
            raise AssayError(f"{folder} is given twice: name each run once")
        directories.append(directory)
    runs: dict[str, Run] = {}
    unfinished: list[str] = []
    for directory, name in zip(directories, _names(directories), strict=True):
        begun = not (directory / "summary.json").exists() and (directory / "manifest.json").exists()
        if begun and read_manifest(directory / "manifest.json")["status"] == "running":
            unfinished.append(name)
            continue
        runs[name] = run = read_run(directory)
        if run.summary["truth"] is None:
            raise AssayError(f"{directory} has no truth to compare by: give its prompts references, and run it again")
        finished = {entry["source"] for entry in run.summary["arms"]}
        unfinished += [visible(f"{name}/{arm}") for arm in run.arm_names if arm not in finished]
    return runs, unfinished


def _names(directories: Sequence[Path]) -> list[str]:
    """As many last parts of each path as tell all of them apart."""
    for num_parts in range(1, max(len(directory.parts) for directory in directories)):
        names = [visible("/".join(directory.parts[-num_parts:])) for directory in directories]
        if len(set(names)) == len(names):
            return names
    return [visible(str(directory)) for directory in directories]


def _finished_arms(runs: dict[str, Run]) -> list[_Arm]:
    configs = _differing(runs)
    arms: dict[tuple[str, str, int], _Arm] = {}
    for name, run in runs.items():
        experiment = json.dumps([run.experiment, _digests(run)], sort_keys=True)
        for entry in run.summary["arms"]:
            key = (experiment, entry["source"], entry["seed"])
            if key in arms:
                raise AssayError(
                    f"{run.directory} repeats seed {entry['seed']} of {entry['source']!r} from "
                    f"{arms[key].run.directory}: give only one of them"
                )
            arm = visible(entry["source"])
            row = ArmRow(
                name=f"{name}/{arm}" if len(runs) > 1 else arm,
                run=name,
                arm=arm,
                seed=entry["seed"],
                recipe=visible(run.manifest["recipe"]),
                task=visible(run.summary["task"]),
                config=configs[name, entry["source"]],
                verdict=entry["verdict"],
                severity_hacking=_severity(entry),
                golden_best=entry["golden"]["best"],
                golden_final=entry["golden"]["final"],
                proxy_final=entry["proxy"]["final"],
                train_proxy_final=entry["train_proxy"]["final"],
                generated_tokens=entry["generated_tokens"],
            )
            arms[key] = _Arm(row, run, entry, experiment)
    return list(arms.values())


def _severity(entry: Row) -> Interval | None:
    value, (low, high) = entry["severity_hacking_nats"], entry["ci95_hacking"]
    return None if value is None or low is None or high is None else Interval(value, low, high)


def _find_reference(arms: Sequence[_Arm], reference: str | None) -> _Arm:
    if reference is None:
        return arms[0]
    wanted = visible(reference)
    for key in ("name", "arm", "run"):
        for arm in arms:
            if getattr(arm.row, key) == wanted:
                return arm
    raise unknown_name("reference", wanted, [arm.row.name for arm in arms])


def _digests(run: Run) -> dict[str, Any]:
    """Of the base models and the corpus; a student that is drawn with the seed is not a base."""
    digests = {role: run.manifest["digests"].get(role) for role in _DIGEST_OF}
    if flat(run.manifest["config"]).get("models.student_initialisation") == "random":
        del digests["student"]
    return digests


def _differing(runs: dict[str, Run]) -> dict[tuple[str, str], dict[str, Any]]:
    """For each finished arm of each run, the config fields that are not the same in all of ``runs``.

    The seed, the recipe and the task have columns of their own. The sources of an arm are compared with those of the
    arms of that name.
    """
    common: dict[str, dict[str, Any]] = {}
    own: dict[tuple[str, str], dict[str, Any]] = {}
    for name, run in runs.items():
        config = run.manifest["config"]
        common[name] = flat(
            {key: value for key, value in config.items() if key not in ("arms", "seed", "recipe")}, in_lists=True
        )
        sources = {
            arm["name"]: flat({k: v for k, v in arm.items() if k != "name"}, in_lists=True) for arm in config["arms"]
        }
        own |= {(name, entry["source"]): sources.get(entry["source"], {}) for entry in run.summary["arms"]}
    fields = _fields_that_differ(list(common.values()))
    digests = {name: _digests(run) for name, run in runs.items()}
    for role in _fields_that_differ(list(digests.values())):
        if _DIGEST_OF[role] not in fields:
            fields.append(f"digests.{role}")
            for name in runs:
                common[name] |= {f"digests.{role}": digests[name].get(role)}
    fields = [field for field in fields if field != "task.name"]
    chosen = {}
    for (name, arm), values in own.items():
        same_name = [other for (_, arm_of_other), other in own.items() if arm_of_other == arm]
        kept = {field: common[name][field] for field in fields if field in common[name]}
        kept |= {field: values[field] for field in _fields_that_differ(same_name) if field in values}
        chosen[name, arm] = {visible(field): value for field, value in kept.items()}
    return chosen


def _fields_that_differ(configs: Sequence[dict[str, Any]]) -> list[str]:
    """In the order in which they come; an absent field differs from any value."""
    fields = dict.fromkeys(field for config in configs for field in config)
    return [f for f in fields if len({json.dumps(c[f], sort_keys=True) if f in c else "" for c in configs}) > 1]


def _contrast(arm: _Arm, reference: _Arm, pairs: Sequence[tuple[_Arm, _Arm]]) -> Contrast:
    """One pair: over its prompts. Several, of different seeds: over the seeds."""
    found: dict[str, Difference | str] = {}
    for metric in ("golden", "proxy"):
        differences = [_per_prompt(a, b, metric) for a, b in pairs]
        reasons = [reason for reason in differences if isinstance(reason, str)]
        values = [values_P for values_P in differences if not isinstance(values_P, str)]
        if reasons:
            found[metric] = reasons[0]
        else:
            found[metric] = _difference(mean_over_seeds(values) if len(pairs) > 1 else mean_estimate(values[0]))
    seeds = tuple(a.row.seed for a, _ in pairs)
    return Contrast(arm.row.name, reference.row.name, seeds, found["golden"], found["proxy"])


def _per_prompt(arm: _Arm, reference: _Arm, metric: Metric) -> np.ndarray | str:
    """Final values of an arm less those of the reference, prompt by prompt, or why they cannot be paired."""
    names = ["prompts", "oracle", "oracle responses", "teacher", "teacher responses"]
    if arm.run is not reference.run:
        for name in names[:3] if metric == "golden" else names:
            theirs, ours = reference.conditions[name], arm.conditions[name]
            if theirs is None or ours is None:
                return f"unknown {name}"
            if theirs != ours:
                return f"other {name}"
    (ids, values_P), (reference_ids, reference_P) = arm.final(metric), reference.final(metric)
    if ids != reference_ids:
        return "other prompts"
    return values_P - reference_P if len(ids) > 1 else "one prompt"


def _difference(estimate: Estimate) -> Difference:
    return Difference(t_interval(estimate), two_sided_p(estimate), None, estimate.n)


def _with_holm(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    """The contrasts with p-values adjusted for all of theirs together, where there are several."""
    found = [d for contrast in contrasts for d in (contrast.golden, contrast.proxy) if isinstance(d, Difference)]
    if len(found) < 2:
        return tuple(contrasts)
    adjusted = iter(holm([difference.p_value for difference in found]))

    def adjust(difference: Difference | str) -> Difference | str:
        return difference if isinstance(difference, str) else dataclasses.replace(difference, p_holm=next(adjusted))

    return tuple(dataclasses.replace(c, golden=adjust(c.golden), proxy=adjust(c.proxy)) for c in contrasts)


def _contrast_columns(contrast: Contrast) -> Row:
    row: Row = {"reference": contrast.reference}
    for metric, difference in (("golden", contrast.golden), ("proxy", contrast.proxy)):
        known = None if isinstance(difference, str) else difference
        row |= _interval_columns(f"{metric}_minus_reference", known and known.interval)
        row |= {f"{metric}_{key}": known and getattr(known, key) for key in ("p_value", "p_holm", "n")}
        row[f"{metric}_not_paired"] = difference if isinstance(difference, str) else None
    return row


def _interval_columns(name: str, interval: Interval | None) -> Row:
    bounds = dataclasses.astuple(interval) if interval else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), bounds, strict=True))
