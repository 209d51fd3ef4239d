"""What a study and a sweep leave behind beside their page: tables and the figures of studies, from files of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from assay.diagnostics.verdict import compare_final
from assay.findings import Outcomes
from assay.report.style import ARM_COLOURS, INK, MUTED
from assay.report.tables import to_markdown
from assay.report.words import nats, readable
from assay.statistics import mean_over_seeds, t_interval

Draw = Callable[[Outcomes], Figure]
Row = dict[str, Any]

_CURVES = (("train_proxy", "train proxy"), ("proxy", "proxy"), ("golden", "golden"))


def run_rows(o: Outcomes) -> list[Row]:
    """One row for each world, seed, variant and arm, all numbers in full precision."""
    rows = []
    for world, seed, variant in o.keys:
        for arm in o.arms(world, seed, variant):
            row: Row = {"world": world, "seed": seed, "variant": variant, "arm": arm["source"]}
            row |= {"d_oracle_teacher_nats": o.references(world, seed, variant)["d_oracle_teacher"]}
            row |= {key: arm[key] for key in ("verdict", "best_step", "onset_step")}
            for key, bounds in (("severity_nats", "ci95"), ("severity_hacking_nats", "ci95_hacking"),
                                ("severity_overfitting_nats", "ci95_overfitting")):  # fmt: skip
                row |= {key: arm[key], f"{key}_low": arm[bounds][0], f"{key}_high": arm[bounds][1]}
            for curve in ("golden", "proxy"):
                row |= {f"{curve}_{part}_nats": (arm[curve] or {}).get(part) for part in ("initial", "best", "final")}
            row |= {"train_proxy_final_nats": arm["train_proxy"]["final"]}
            rows.append(row | {key: arm[key] for key in ("generated_tokens", "teacher_tokens")})
    return rows


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """Of ``run_rows``, for each world, variant and arm: means over seeds with t intervals, and the verdicts counted."""
    found = []
    for world, variant, arm in dict.fromkeys((row["world"], row["variant"], row["arm"]) for row in rows):
        mine = [row for row in rows if (row["world"], row["variant"], row["arm"]) == (world, variant, arm)]
        verdicts = [row["verdict"] for row in mine]
        counted = {name: verdicts.count(name) for name in dict.fromkeys(verdicts)}
        found.append(
            {
                "world": world,
                "variant": variant,
                "arm": readable(arm),
                "verdicts": ", ".join(f"{readable(name)} {n}/{len(mine)}" for name, n in counted.items()),
                "d(oracle, teacher)": _mean(mine, "d_oracle_teacher_nats"),
                "hacking severity": _mean(mine, "severity_hacking_nats", interval=True),
                "golden start": _mean(mine, "golden_initial_nats"),
                "golden best": _mean(mine, "golden_best_nats"),
                "golden end": _mean(mine, "golden_final_nats", interval=True),
                "proxy end": _mean(mine, "proxy_final_nats"),
                "train proxy end": _mean(mine, "train_proxy_final_nats"),
            }
        )
    return found


def _mean(rows: Sequence[Row], key: str, interval: bool = False) -> str:
    values = [row[key] for row in rows]
    if any(value is None for value in values):
        return "–"
    estimate = mean_over_seeds([[value] for value in values])
    if not interval or estimate.stderr is None:
        return nats(estimate.value)
    bounds = t_interval(estimate)
    return f"{nats(estimate.value)} [{nats(bounds.low)}, {nats(bounds.high)}]"


def table_of_means(study: Mapping[str, Any], means: Sequence[Row]) -> str:
    """Claim, finding, contrasts and means in Markdown."""
    low, high = study["ci95"]
    lines = [
        f"# {study['recipe']}: {study['finding']}",
        f"\n*{study['claim']}.*\n",
        f"Headline effect: {study['effect_nats']:.2f} nats [{low:.2f}, {high:.2f}], {study['num_seeds']} seeds. "
        f"Made by `{study['command']}`. Nats per sequence; means over seeds with 95 % t intervals; all seeds of a "
        "world share its pretrained models and its corpus.\n",
        *to_markdown(contrast_rows(study)),
        "",
        *to_markdown(means),
    ]
    return "\n".join(lines) + "\n"


def contrast_rows(study: Mapping[str, Any]) -> list[Row]:
    """The contrasts of a finding as text: each lies above 0 in its world if the claim holds."""
    return [
        {
            "contrast (above 0 by the claim)": row["contrast"],
            "world": row["world"],
            "mean [95 %]": f"{row['effect_nats']:.2f} [{row['ci95'][0]:.2f}, {row['ci95'][1]:.2f}]",
            "p": f"{row['p_value']:.2g}",
            "by seed": ", ".join(f"{value:.2f}" for value in row["by_seed"]),
        }
        for row in study["contrasts"]
    ]


def plane(o: Outcomes) -> Figure:
    """Golden over proxy, one panel per world, one path per arm: means over seeds from the start (ring) to the end."""
    figure, panels = _panels(o.worlds)
    for axes, world in zip(panels, o.worlds, strict=False):
        (variant,) = o.variants
        for number, arm in enumerate(_arms(o, world, variant)):
            proxy_S, golden_S = (_mean_curve(o, world, variant, arm, metric)[1] for metric in ("proxy", "golden"))
            axes.plot(proxy_S, golden_S, "-o", ms=3, color=ARM_COLOURS[number], label=readable(arm))
            axes.plot(proxy_S[:1], golden_S[:1], "o", ms=8, mfc="none", mec=INK)
        axes.set(title=world, xlabel="proxy, nats", ylabel="golden, nats")
    return _with_legend(figure, panels[0])


def curves(o: Outcomes) -> Figure:
    """Train proxy, proxy and golden over steps, one row per world: means over seeds, one thin line per seed."""
    (variant,) = o.variants
    figure = Figure(figsize=(9, 2.1 * len(o.worlds) + 0.6), layout="constrained")
    grid = figure.subplots(len(o.worlds), 3, squeeze=False)
    for row, world in zip(grid, o.worlds, strict=True):
        for axes, (metric, name) in zip(row, _CURVES, strict=True):
            for number, arm in enumerate(_arms(o, world, variant)):
                steps_S, mean_S, by_seed = _mean_curve(o, world, variant, arm, metric)
                for values_S in by_seed:
                    axes.plot(steps_S, values_S, color=ARM_COLOURS[number], lw=0.5, alpha=0.5)
                axes.plot(steps_S, mean_S, color=ARM_COLOURS[number], label=readable(arm))
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
            axes.set_title(f"{name}, {world}", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("optimiser step")
    return _with_legend(figure, grid[0][0])


def differences(o: Outcomes) -> Figure:
    """At the end, every variant less the first: train proxy, proxy and golden, one point per seed with its interval.

    Intervals are paired over held-out prompts; those of the train proxy, whose pairs differ, are left out.
    """
    first, *others = o.variants
    figure, panels = _panels(o.worlds, width=4.6)
    for axes, world in zip(panels, o.worlds, strict=False):
        for number, variant in enumerate(others):
            for place, (metric, _) in enumerate(_CURVES):
                x = place + (number - (len(others) - 1) / 2) * 0.36
                for i, seed in enumerate(o.seeds):
                    value, low, high = _difference(o, world, seed, variant, first, metric)
                    xs = x + (i - (len(o.seeds) - 1) / 2) * 0.05
                    error = [[value - low], [high - value]] if math.isfinite(low) else None
                    axes.errorbar([xs], [value], error, fmt="o", ms=3, lw=1, color=ARM_COLOURS[number],
                                  label=f"{variant} less {first}" if (i, place) == (0, 0) else None)  # fmt: skip
        axes.axhline(0, color=MUTED, lw=0.8)
        axes.set_xticks(range(3), [name for _, name in _CURVES])
        axes.set(title=world, ylabel="difference at the end, nats")
    return _with_legend(figure, panels[0])


def ends(o: Outcomes) -> Figure:
    """Golden's change from start to end and the severity of hacking: one point per seed, the mean as a bar."""
    figure = Figure(figsize=(9, 0.6 + 0.34 * _num_lines(o)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    lines = [(w, v, a) for w in o.worlds for v in o.variants for a in _arms(o, w, v)]
    arms = list(dict.fromkeys(arm for _, _, arm in lines))
    for y, (world, variant, arm) in enumerate(lines):
        entries = [o.arm(world, seed, variant, arm) for seed in o.seeds]
        change = [entry["golden"]["final"] - entry["golden"]["initial"] for entry in entries]
        for axes, values in ((left, change), (right, [entry["severity_hacking_nats"] for entry in entries])):
            colour = ARM_COLOURS[arms.index(arm) % len(ARM_COLOURS)]
            axes.plot(values, [y] * len(values), "o", ms=4, color=colour, alpha=0.6)
            axes.plot([np.mean(values)] * 2, [y - 0.3, y + 0.3], color=colour, lw=2.5)
    for axes, title in ((left, "golden: end less start, nats"), (right, "severity of hacking, nats")):
        axes.axvline(0, color=MUTED, lw=0.8)
        axes.set_title(title)
    # what is the same on every line is left out
    shown = [k for k in range(3) if k == 2 or len({line[k] for line in lines}) > 1]
    left.set_yticks(range(len(lines)), [" · ".join(readable(line[k]) for k in shown) for line in lines])
    left.invert_yaxis()
    return figure


def _num_lines(o: Outcomes) -> int:
    return sum(len(_arms(o, world, variant)) for world in o.worlds for variant in o.variants)


def _arms(o: Outcomes, world: str, variant: str) -> list[str]:
    return [arm["source"] for arm in o.arms(world, o.seeds[0], variant)]


def _mean_curve(
    o: Outcomes, world: str, variant: str, arm: str, metric: str
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    found = [o.curve(world, seed, variant, arm, metric) for seed in o.seeds]
    by_seed = [values_SP.mean(axis=1) for _, values_SP in found]
    return found[0][0], np.mean(by_seed, axis=0), by_seed


def _difference(
    o: Outcomes, world: str, seed: int, variant: str, first: str, metric: str
) -> tuple[float, float, float]:
    """Value and interval of a metric at the end, a variant less the first one; no interval for the train proxy."""
    a, b = (o.final(world, seed, which, metric=metric) for which in (variant, first))
    if metric == "train_proxy":
        return float(a.mean() - b.mean()), math.nan, math.nan
    found = compare_final(a, b)
    return found.value, found.low, found.high


def _panels(worlds: Sequence[str], width: float = 3.0) -> tuple[Figure, list[Axes]]:
    columns = min(len(worlds), 3)
    rows = math.ceil(len(worlds) / columns)
    figure = Figure(figsize=(max(width * columns, 4.5), 2.7 * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(worlds) :]:
        axes.remove()
    return figure, panels


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=max(len(labels), 1))
    return figure
