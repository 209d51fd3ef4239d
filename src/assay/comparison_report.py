"""The page of a comparison: paired differences with their intervals, what they cost, and what to do next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from assay import runs
from assay.comparison import ArmRow, Comparison, Contrast, Difference, Metric, as_text, to_rows
from assay.pareto import front_of
from assay.report.assets import embed
from assay.report.html import fill, inline
from assay.report.next_steps import run_again, with_seed
from assay.report.style import ARM_COLOURS, MUTED, in_style, to_svg
from assay.report.tables import to_csv
from assay.report.words import brackets, nats, readable, visible
from assay.statistics import mean_over_seeds, t_interval
from assay.sweep_report import SWEEP_PAGE

Row = dict[str, Any]

_LEVEL = 0.05
_OVER_SEEDS = (
    "Over seeds",
    "Means over seeds of the paired differences, Student's t over seeds: how a new seed is likely to end.",
)
_PAIRED = (
    "Run by run",
    "Paired over held-out prompts, Student's t over prompts: what is known of these very students. How far seeds "
    "differ is not in these intervals.",
)


def write_page(comparison: Comparison, page: Path) -> None:
    """Writes ``page`` (HTML) and beside it, under the same name, the numbers (.csv) and the figure (.svg).

    The page stands alone, and the same files give the same bytes. Raises AssayError when it cannot be written.
    """
    groups = [("over_seeds", *_OVER_SEEDS, comparison.over_seeds), ("paired", *_PAIRED, comparison.paired)]
    found = [(key, title, note, contrasts) for key, title, note, contrasts in groups if contrasts]
    labels = labels_of(comparison)
    with in_style():
        svg = to_svg(draw_differences([(title, contrasts) for _, title, _, contrasts in found], labels))
    cost = _cost(comparison, labels)
    html = fill(
        "compare.html.j2",
        headline=_headline(comparison, labels),
        reference=labels[comparison.reference],
        groups=[
            (title, note, [_contrast_row(c, key, labels) for c in contrasts]) for key, title, note, contrasts in found
        ],
        arms=_arm_rows(comparison, page.parent, labels),
        num_runs=len(comparison.folders),
        picture=inline(svg),
        fields=[(field, _by_value(comparison.rows, field)) for field in comparison.fields],
        unfinished=comparison.unfinished,
        next_steps=_next_steps(comparison, labels),
        costs=sorted(cost, key=lambda point: point["x"]),
        files=[page.with_suffix(suffix).name for suffix in (".csv", ".svg")],
        command=_command(comparison, page),
        assets=SWEEP_PAGE,
        data=embed({"cells": [], "fronts": [_scatter(comparison, cost)] if cost else []}),
    )
    runs.write_text(page.with_suffix(".csv"), to_csv(to_rows(comparison)))
    runs.write_text(page.with_suffix(".svg"), svg)
    runs.write_text(page, html)


def labels_of(comparison: Comparison) -> dict[str, str]:
    """For each arm's name one that people read: the arm and the values that differ; the same for its replicates.

    Names stay where that would not tell the arms of one seed apart.
    """
    fields = [field for field in comparison.fields if not field.startswith(("sources.", "digests."))]
    labels = {}
    for row in comparison.rows:
        values = [f"{field.split('.')[-1]} = {as_text(row.config[field])}" for field in fields if field in row.config]
        labels[row.name] = " · ".join([readable(row.arm), *values])
    if len({(labels[row.name], row.seed) for row in comparison.rows}) < len(comparison.rows):
        return {row.name: readable(row.name) for row in comparison.rows}
    return labels


def draw_differences(groups: Sequence[tuple[str, Sequence[Contrast]]], labels: dict[str, str]) -> Figure:
    """A dot with its 95 % interval for each contrast: golden at the left, proxy at the right, 0 is the reference."""
    lines = [(title, contrast) for title, contrasts in groups for contrast in contrasts]
    figure = Figure(figsize=(9, 1.1 + 0.3 * len(lines)), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    for axes, metric, colour in zip(panels, ("golden", "proxy"), ARM_COLOURS, strict=False):
        for y, (title, contrast) in enumerate(lines):
            difference = contrast.golden if metric == "golden" else contrast.proxy
            if isinstance(difference, str):
                axes.text(0, y, difference, fontsize=7, color=MUTED, ha="center", va="center")
                continue
            bounds = difference.interval
            axes.plot([bounds.low, bounds.high], [y, y], color=colour, lw=1.6)
            axes.plot([bounds.value], [y], "D" if title == _OVER_SEEDS[0] else "o", ms=5, color=colour)
        axes.axvline(0, color=MUTED, lw=0.9)
        axes.set_title(metric)
        axes.set_xlabel("at the end, less the reference, nats")
    panels[0].set_yticks(range(len(lines)), [_line_name(contrast, labels) for _, contrast in lines])
    panels[0].set_ylim(len(lines) - 0.4, -0.6)
    return figure


def _line_name(contrast: Contrast, labels: dict[str, str]) -> str:
    seeds = f"seed{'s' if len(contrast.seeds) > 1 else ''} {', '.join(map(str, contrast.seeds))}"
    return f"{labels[contrast.name]} · {seeds}"


def _contrast_row(contrast: Contrast, key: str, labels: dict[str, str]) -> Row:
    row: Row = {"name": labels[contrast.name]}
    row["seeds"] = ", ".join(map(str, contrast.seeds))
    unit = "seeds" if key == "over_seeds" else "prompts"
    metrics: tuple[Metric, ...] = ("golden", "proxy")
    for metric in metrics:
        row[metric] = _cells(getattr(contrast, metric), unit)
    return row


def _cells(difference: Difference | str, unit: str) -> Row:
    if isinstance(difference, str):
        return {"why": difference}
    bounds = difference.interval
    p = difference.p_value if difference.p_holm is None else difference.p_holm
    side = "closer" if bounds.value < 0 else "further"
    return {
        "why": "",
        "value": nats(bounds.value, signed=True),
        "bounds": brackets([bounds.low, bounds.high]),
        "n": f"n = {difference.n} {unit}",
        "p": _p(difference.p_value) + ("" if difference.p_holm is None else f" (Holm {_p(difference.p_holm)})"),
        "said": side if p <= _LEVEL else "not told apart",
    }


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"


def _headline(comparison: Comparison, labels: dict[str, str]) -> str:
    """How many arms end closer to the truth and further from it, by p-values adjusted where there are several."""
    contrasts = comparison.over_seeds or comparison.paired
    said = [_cells(contrast.golden, "").get("said", "not paired") for contrast in contrasts]
    total, reference = len(contrasts), labels[comparison.reference]
    arms = f"{total} arm{'s' if total > 1 else ''}"
    closer, further = said.count("closer"), said.count("further")
    return f"Of {arms}, {closer} ended closer to the truth than {reference}, and {further} further from it"


def _arm_rows(comparison: Comparison, place: Path, labels: dict[str, str]) -> list[Row]:
    rows = []
    for arm in comparison.rows:
        page = Path(comparison.folders[arm.run]) / "report.html"
        severity = arm.severity_hacking
        rows.append(
            {
                "name": labels[arm.name],
                "run": arm.run,
                "link": quote(os.path.relpath(page, os.path.realpath(place))) if page.exists() else None,
                "seed": arm.seed,
                "verdict": readable(arm.verdict),
                "severity": nats(severity.value) if severity else "–",
                "bounds": brackets([severity.low, severity.high]) if severity else "",
                "levels": [
                    nats(v) for v in (arm.golden_best, arm.golden_final, arm.proxy_final, arm.train_proxy_final)
                ],
                "tokens": f"{arm.generated_tokens:,}",
            }
        )
    return rows


def _by_value(rows: Sequence[ArmRow], field: str) -> list[tuple[str, str]]:
    holders: dict[str, list[str]] = {}
    for row in rows:
        value = as_text(row.config[field]) if field in row.config else "–"
        holders.setdefault(value, []).append(row.name if field.startswith("sources.") else row.run)
    return [(value, ", ".join(dict.fromkeys(names))) for value, names in holders.items()]


def _cost(comparison: Comparison, labels: dict[str, str]) -> list[Row]:
    """Golden at the end against generated tokens, a mean over seeds for each arm; [] where levels cannot be compared.

    They can where every arm was measured like the reference, and all arms have the same seeds.
    """
    groups: dict[str, list[ArmRow]] = {}
    for row in comparison.rows:
        groups.setdefault(labels[row.name], []).append(row)
    seeds = {tuple(sorted(row.seed for row in rows)) for rows in groups.values()}
    if len(seeds) > 1 or any(isinstance(contrast.golden, str) for contrast in comparison.paired):
        return []
    golden = [mean_over_seeds([[row.golden_final] for row in rows]) for rows in groups.values()]
    tokens = [sum(row.generated_tokens for row in rows) / len(rows) for rows in groups.values()]
    members = front_of(tokens, [estimate.value for estimate in golden])
    arms = list(dict.fromkeys(row.arm for row in comparison.rows))
    points = []
    for number, (label, rows) in enumerate(groups.items()):
        point: Row = {"slot": arms.index(rows[0].arm), "x": round(tokens[number], 1)}
        point |= {"y": round(golden[number].value, 4), "name": label, "front": number in members, "bounds": []}
        if golden[number].stderr is not None:
            bounds = t_interval(golden[number])
            point["bounds"] = [round(bounds.low, 4), round(bounds.high, 4)]
        points.append(point | {"num_seeds": len(rows)})
    return points


def _scatter(comparison: Comparison, points: list[Row]) -> Row:
    arms = dict.fromkeys(row.arm for row in comparison.rows)
    found = {"world": "", "kind": "generated", "xLabel": "tokens generated for distillation", "points": points}
    return found | {"arms": [{"name": readable(arm), "slot": slot} for slot, arm in enumerate(arms)]}


def _next_steps(comparison: Comparison, labels: dict[str, str]) -> list[Row]:
    best = min(comparison.rows, key=lambda row: row.golden_final)
    seed = max(row.seed for row in comparison.rows) + 1
    folders = [Path(folder).name for folder in comparison.folders.values()]
    steps = []
    if not comparison.over_seeds:
        steps.append(
            {
                "title": "Add seeds",
                "why": "These intervals are over prompts, for these students. Give runs of the same experiment with "
                "other seeds, and the page says how a new seed is likely to end. From the folder with the runs:",
                "paste": " && ".join(
                    run_again(name, with_seed(name, f"seed{seed}"), "--seed", str(seed)) for name in folders
                ),
            }
        )
    steps.append(
        {
            "title": "See how they came there",
            "why": "One report with the curves of all these runs, their checks and what they write. From the folder "
            "with the runs:",
            "paste": shlex.join(["assay", "report", *folders, "--out", "all-runs"]),
        }
    )
    steps.append(
        {
            "title": f"Take the student of {labels[best.name]}, seed {best.seed}",
            "why": "Its golden ended lowest, chosen on the data that shows it. This folder opens with from_pretrained.",
            "paste": shlex.quote(f"{Path(comparison.folders[best.run]).name}/arms/{best.arm}/student"),
        }
    )
    return [{key: visible(value) for key, value in step.items()} for step in steps]


def _command(comparison: Comparison, page: Path) -> str:
    folders = [Path(folder).name for folder in comparison.folders.values()]
    return shlex.join(["assay", "compare", *folders, "--reference", comparison.reference, "--out", page.name])
