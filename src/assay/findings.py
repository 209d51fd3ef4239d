"""From the runs of a study to its finding: does what a claim says show, with which effect and interval?

A claim is a list of *contrasts*: numbers, one for each world and seed, that lie above 0 where the claim holds. The seed
is the unit: a world's interval is Student's t over its seeds, so a world's prompts, pretrained models and corpus are
given. The finding is "agrees" when every contrast lies above 0 in every world, each interval taken by itself (the
claim is their conjunction, so no correction is due); "disagrees" when an interval lies below 0; else "undecided".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from assay import runs
from assay.diagnostics.verdict import compare_final, initial_fall
from assay.errors import AssayError
from assay.results import at_step, per_prompt
from assay.statistics import Estimate, mean_over_seeds, t_interval, two_sided_p

Value = Callable[[str, int], float]


@dataclass(frozen=True)
class Contrast:
    """What a claim says, in words, with one number for each world and seed (nats per sequence unless it says more)."""

    words: str
    values: dict[tuple[str, int], float]


class Outcomes:
    """The finished runs of a study, by world, seed and variant.

    Raises AssayError when a run is not finished.
    """

    def __init__(self, folders: Mapping[tuple[str, int, str], Path]) -> None:
        self._folders = dict(folders)
        self.keys = list(folders)
        # older summaries do not say these two
        known = {"truth": "oracle", "proxy_is": "exact"}
        self._summaries = {key: known | runs.read_json(folder / "summary.json") for key, folder in folders.items()}
        self._probes: dict[tuple[str, int, str], pa.Table] = {}
        self.worlds = list(dict.fromkeys(world for world, _, _ in folders))
        self.seeds = list(dict.fromkeys(seed for _, seed, _ in folders))
        self.variants = list(dict.fromkeys(variant for _, _, variant in folders))

    def references(self, world: str, seed: int, variant: str) -> dict[str, float]:
        """d(oracle, teacher), and golden and proxy at the start."""
        return self._summaries[world, seed, variant]["references"]

    @property
    def truth(self) -> str | None:
        """What golden is: a distance from the "oracle", the NLL of "references", or, for None, unknown."""
        return self._summaries[self.keys[0]]["truth"]

    def summary(self, world: str, seed: int, variant: str) -> dict[str, Any]:
        """The summary.json of one run."""
        return self._summaries[world, seed, variant]

    def folder(self, world: str, seed: int, variant: str) -> Path:
        """The folder of one run."""
        return self._folders[world, seed, variant]

    def records(self, world: str, seed: int, variant: str, arm: str) -> list[dict[str, Any]]:
        """The evaluations of one arm in order, as metrics.jsonl has them."""
        rows = runs.read_records(self._folders[world, seed, variant] / "metrics.jsonl")
        return sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["step"])

    def arms(self, world: str, seed: int, variant: str) -> list[dict[str, Any]]:
        """The entries of all arms of one run's summary.json."""
        return self._summaries[world, seed, variant]["arms"]

    def arm(self, world: str, seed: int, variant: str, arm: str = "offline") -> dict[str, Any]:
        """An arm's entry in summary.json."""
        return next(entry for entry in self.arms(world, seed, variant) if entry["source"] == arm)

    def excess(self, world: str, seed: int, variant: str, online: str) -> float:
        """The offline arm's hacking severity less what golden did in an online arm between the same steps."""
        pairs = self._summaries[world, seed, variant]["comparisons"]
        pair = next(pair for pair in pairs if pair["arm"] == "offline" and pair["online_arm"] == online)
        return pair["excess_hacking_nats"]

    def final(self, world: str, seed: int, variant: str, arm: str = "offline", metric: str = "golden") -> np.ndarray:
        """A metric of every held-out prompt [P], of the student that the arm leaves; the same prompts in all runs."""
        kept = self.arm(world, seed, variant, arm).get("kept_step")
        return at_step(*self.curve(world, seed, variant, arm, metric), kept)

    def curve(
        self, world: str, seed: int, variant: str, arm: str = "offline", metric: str = "golden"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps [S] and values [S, P] of a metric."""
        key = (world, seed, variant)
        if key not in self._probes:
            self._probes[key] = runs.read_table(self._folders[key] / "probe.parquet")
        return per_prompt(self._probes[key], arm, metric)

    def contrast(self, words: str, value: Value) -> Contrast:
        """``value(world, seed)`` for all worlds and seeds."""
        return Contrast(words, {(world, seed): value(world, seed) for world in self.worlds for seed in self.seeds})


Shape = Callable[[Outcomes], list[Contrast]]


def find(contrasts: Sequence[Contrast]) -> dict[str, Any]:
    """Finding, effect, interval and p-value of a claim; the headline is its first contrast, averaged over worlds.

    ``contrasts`` lists each contrast in each world. The p-value belongs to the conjunction: the largest of all.
    """
    worlds = list(dict.fromkeys(world for world, _ in contrasts[0].values))
    seeds = list(dict.fromkeys(seed for _, seed in contrasts[0].values))
    if len(seeds) < 2:
        raise AssayError(
            "a finding needs at least two seeds: the spread between them is its uncertainty; give more --seeds"
        )
    rows = []
    for contrast in contrasts:
        for world in worlds:
            values = [contrast.values[world, seed] for seed in seeds]
            estimate = mean_over_seeds([[value] for value in values])
            rows.append({"contrast": contrast.words, "world": world, **_numbers(estimate), "by_seed": values})
    by_seed = [[np.mean([contrasts[0].values[world, seed] for world in worlds])] for seed in seeds]
    headline = _numbers(mean_over_seeds(by_seed))
    if all(row["ci95"][0] > 0 for row in rows):
        finding = "agrees"
    else:
        finding = "disagrees" if any(row["ci95"][1] < 0 for row in rows) else "undecided"
    return {
        "finding": finding,
        "effect_nats": headline["effect_nats"],
        "ci95": headline["ci95"],
        "test": "Student's t over seeds, two-sided, for every contrast in every world; p_value is the largest",
        "p_value": max(row["p_value"] for row in rows),
        "num_seeds": len(seeds),
        "worlds": worlds,
        "contrasts": rows,
    }


def _numbers(estimate: Estimate) -> dict[str, Any]:
    interval = t_interval(estimate)
    return {
        "effect_nats": estimate.value,
        "ci95": [interval.low, interval.high],
        "p_value": two_sided_p(estimate),
    }


def u_shape(o: Outcomes) -> list[Contrast]:
    """Golden falls, then rises while the proxy falls or stagnates."""
    (variant,) = o.variants
    return [
        o.contrast("offline: severity of hacking", lambda w, s: o.arm(w, s, variant)["severity_hacking_nats"]),
        o.contrast("offline: golden's fall from the start to its best", lambda w, s: _fall(o, w, s, variant)),
    ]


def offline_hacks_online_does_not(o: Outcomes) -> list[Contrast]:
    """Golden rises offline, in excess of what it does online, and falls online."""
    (variant,) = o.variants
    found = [o.contrast("offline: severity of hacking", lambda w, s: o.arm(w, s, variant)["severity_hacking_nats"])]
    for online in ("online_teacher", "online_student"):
        found += [
            o.contrast(f"offline: its excess over {online}", lambda w, s, a=online: o.excess(w, s, variant, a)),
            o.contrast(f"{online}: golden's fall, start to end", lambda w, s, a=online: _change(o, w, s, variant, a)),
        ]
    return found


def on_every_task(o: Outcomes) -> list[Contrast]:
    """Offline hacks, and ends further from the oracle than either online arm."""
    (variant,) = o.variants
    return [
        o.contrast("offline: severity of hacking", lambda w, s: o.arm(w, s, variant)["severity_hacking_nats"]),
        *(
            o.contrast(f"golden at the end, offline less {online}", lambda w, s, a=online: _gap(o, w, s, variant, a))
            for online in ("online_teacher", "online_student")
        ),
    ]


def prompts_beat_completions(o: Outcomes) -> list[Contrast]:
    """At one size of the set golden is worse with fewer prompts, by more than the proxy shows."""
    most, *fewer = o.variants
    fewest = fewer[-1]

    def gap(metric: str, world: str, seed: int) -> float:
        a, b = (o.final(world, seed, variant, metric=metric) for variant in (fewest, most))
        return compare_final(a, b).value

    return [
        o.contrast(f"golden at the end, {fewest} less {most}", lambda w, s: gap("golden", w, s)),
        o.contrast("the same, less what the proxy shows", lambda w, s: gap("golden", w, s) - gap("proxy", w, s)),
    ]


def completions_help(o: Outcomes) -> list[Contrast]:
    """More completions per prompt, in a set that grows, improve golden and proxy."""
    fewest, most = o.variants[0], o.variants[-1]
    return [
        o.contrast(
            f"{metric} at the end, {fewest} less {most}",
            lambda w, s, m=metric: o.arm(w, s, fewest)[m]["final"] - o.arm(w, s, most)[m]["final"],
        )
        for metric in ("golden", "proxy")
    ]


def offline_ends_above_online(o: Outcomes) -> list[Contrast]:
    """Whatever is varied, offline ends further from the oracle than the online teacher."""
    return [
        o.contrast(
            f"{variant}: golden at the end, offline less online_teacher",
            lambda w, s, v=variant: _gap(o, w, s, v, "online_teacher"),
        )
        for variant in o.variants
    ]


def worse_teachers_hack_more(o: Outcomes) -> list[Contrast]:
    """The severity of hacking grows with d(oracle, teacher)."""

    def slope(world: str, seed: int) -> float:
        distance = [o.references(world, seed, variant)["d_oracle_teacher"] for variant in o.variants]
        severity = [o.arm(world, seed, variant)["severity_hacking_nats"] for variant in o.variants]
        return float(np.polyfit(distance, severity, 1)[0])

    return [o.contrast("severity of hacking per nat of d(oracle, teacher), least squares", slope)]


def some_fresh_responses_help(o: Outcomes) -> list[Contrast]:
    """A tenth of fresh responses already helps, and all of them help more."""
    return _in_between(o, "fresh_10", "offline less 10 % fresh", "10 % fresh less all fresh")


def refreshing_helps(o: Outcomes) -> list[Contrast]:
    """Responses written anew every ten passes already help, and every pass helps more."""
    return _in_between(o, "refresh_10", "offline less every 10", "every 10 passes less every pass")


def _in_between(o: Outcomes, arm: str, above: str, below: str) -> list[Contrast]:
    """An arm ends closer to the oracle than offline, and the online teacher closer still."""
    (variant,) = o.variants
    return [
        o.contrast(f"golden at the end, {above}", lambda w, s: _gap(o, w, s, variant, arm)),
        o.contrast(
            f"golden at the end, {below}",
            lambda w, s: _gap(o, w, s, variant, "online_teacher") - _gap(o, w, s, variant, arm),
        ),
    ]


def controls_differ(o: Outcomes) -> list[Contrast]:
    """No hacking when the teacher is the oracle or the student has nothing to forget; a deeper U without SFT."""
    main, oracle_as_teacher, random_student, without_sft = o.variants

    def severity(world: str, seed: int, variant: str) -> float:
        return o.arm(world, seed, variant)["severity_hacking_nats"]

    return [
        *(
            o.contrast(
                f"severity of hacking, {main} less {control}",
                lambda w, s, c=control: severity(w, s, main) - severity(w, s, c),
            )
            for control in (oracle_as_teacher, random_student)
        ),
        o.contrast(
            f"golden's first fall, {without_sft} less {main}",
            lambda w, s: _fall(o, w, s, without_sft) - _fall(o, w, s, main),
        ),
    ]


def _fall(o: Outcomes, world: str, seed: int, variant: str) -> float:
    return initial_fall(o.curve(world, seed, variant)[1])


def _change(o: Outcomes, world: str, seed: int, variant: str, arm: str) -> float:
    golden = o.arm(world, seed, variant, arm)["golden"]
    return golden["initial"] - golden["final"]


def _gap(o: Outcomes, world: str, seed: int, variant: str, arm: str) -> float:
    """Golden at the end: the offline arm less another one of the same run."""
    return o.arm(world, seed, variant)["golden"]["final"] - o.arm(world, seed, variant, arm)["golden"]["final"]
