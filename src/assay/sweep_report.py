"""The page of a sweep: maps over its cells, their curves, the Pareto front, its finding and what to do next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from assay import runs
from assay.errors import AssayError
from assay.findings import Outcomes
from assay.heat_map import Axes, maps
from assay.pareto import Point, front, points_of
from assay.report.assets import CHART_STYLES, CHARTS, Assets, embed
from assay.report.html import fill, inline
from assay.report.style import in_style, to_png, to_svg
from assay.report.tables import to_csv
from assay.report.words import brackets, nats, readable, visible
from assay.study_report import contrast_rows, mean_rows, run_rows
from assay.sweep_cells import Cell, cell_rows, cells_of, interval_is_over
from assay.sweep_figures import can_draw_map, draw_cells, draw_front, draw_map

SWEEP_PAGE = Assets((*CHARTS, "sweep.js"), (*CHART_STYLES, "page.css", "sweep.css"))
MOST_PANELS = 60
"""Curves of more cells than this are left to the tables: nobody reads so many."""
_TOKENS = {"generated": "tokens generated for distillation", "teacher": "tokens scored by the teacher"}

Row = dict[str, Any]


def write_sweep(
    out: Path,
    outcomes: Outcomes,
    name: str,
    command: str,
    axes: Axes,
    study: Mapping[str, Any] | None = None,
    picture: str | None = None,
) -> Path:
    """Writes report.html, runs.csv, cells.csv, front.csv and figures into ``out``; returns the page's path.

    ``axes`` has the values of every variant, {} where variants are names. ``study`` is the content of result.json and
    ``picture`` the study's own figure (SVG). The page stands alone, and the same files give the same bytes.

    Raises AssayError when a run's files do not belong together, or ``out`` cannot be written.
    """
    cells = cells_of(outcomes)
    refuse_unlike(outcomes)
    kinds = list(_TOKENS) if outcomes.truth is not None else []
    points = {(world, kind): points_of([cell for cell in cells if cell.world == world], kind)
              for world in outcomes.worlds for kind in kinds}  # fmt: skip
    fronts = {key: front(found) for key, found in points.items()}
    found_maps = maps(cells, axes)
    pictures, files = _drawn(cells, found_maps, points, fronts)
    files |= {"runs.csv": to_csv(run_rows(outcomes)), "cells.csv": to_csv(cell_rows(cells))}
    if fronts:
        files["front.csv"] = to_csv(_front_rows(fronts))
    best = _best(cells)
    files["report.html"] = fill(
        "sweep.html.j2",
        name=name,
        command=command,
        headline=_headline(name, best, study),
        best=best and {"name": _name(best), "level": best.level("golden_end")},
        truth=outcomes.truth,
        worlds=outcomes.worlds,
        seeds=outcomes.seeds,
        interval_over=interval_is_over(len(outcomes.seeds)),
        num_cells=len(cells),
        num_runs=len(outcomes.keys),
        study=study,
        contrasts=contrast_rows(study) if study else [],
        picture=inline(picture) if picture else None,
        next_steps=_next_steps(outcomes, best, command, study),
        maps=found_maps,
        figures={path for path in files if path.startswith("figures/")},
        pictures=pictures,
        num_left_out=max(len(cells) - MOST_PANELS, 0),
        fronts=_front_tables(fronts),
        tokens=_TOKENS,
        means=mean_rows(run_rows(outcomes)),
        links=_links(outcomes, out),
        has_curves=(out / "curves" / "report.html").exists(),
        provenance=_provenance(outcomes),
        assets=SWEEP_PAGE,
        data=embed({"cells": _panels(cells[:MOST_PANELS]), "fronts": _scatter(points, fronts)}),
    )
    for path, content in files.items():
        runs.write_bytes(out / path, content.encode("utf-8") if isinstance(content, str) else content)
    return out / "report.html"


def _drawn(
    cells: Sequence[Cell],
    found_maps: Sequence[Row],
    points: Mapping[tuple[str, str], list[Point]],
    fronts: Mapping[tuple[str, str], list[Point]],
) -> tuple[dict[str, Markup], dict[str, str | bytes]]:
    """What readers without scripts see in the page, by name; and all figures as SVG and PNG, by path."""
    with in_style():
        drawn = {"cells": draw_cells(cells[:MOST_PANELS])}
        if fronts:
            drawn["front"] = draw_front(points, fronts)
        shown = list(drawn)
        num_seeds = len(cells[0].seeds)
        drawn |= {f"map-{found['metric']}": draw_map(found, num_seeds) for found in found_maps if can_draw_map(found)}
        svgs = {name: to_svg(figure) for name, figure in drawn.items()}
        files: dict[str, str | bytes] = {f"figures/{name}.svg": svg for name, svg in svgs.items()}
        files |= {f"figures/{name}.png": to_png(figure) for name, figure in drawn.items()}
    return {name: inline(svgs[name]) for name in shown}, files


def refuse_unlike(o: Outcomes) -> None:
    """Raises AssayError when the runs measure unlike things, which no map can show in one colour."""
    for measure in ("truth", "proxy_is"):
        kinds = {o.summary(*key)[measure] for key in o.keys}
        if len(kinds) > 1:
            raise AssayError(
                f"these runs differ in {measure} ({', '.join(map(str, sorted(kinds, key=str)))}), which no map can "
                "show in one colour: sweep them one by one"
            )


def _name(cell: Cell) -> str:
    """A cell in words; what is the same for all cells of its sweep is left out."""
    parts = [cell.world] if len(cell.outcomes.worlds) > 1 else []
    parts += [readable(cell.arm)] + ([cell.variant] if len(cell.outcomes.variants) > 1 else [])
    return " · ".join(parts)


def _best(cells: Sequence[Cell]) -> Cell | None:
    """The cell whose golden ends lowest; None without a truth, and in several worlds, which no golden compares."""
    known = [(level.value, number) for number, cell in enumerate(cells) if (level := cell.level("golden_end"))]
    return cells[min(known)[1]] if known and len(cells[0].outcomes.worlds) == 1 else None


def _headline(name: str, best: Cell | None, study: Mapping[str, Any] | None) -> str:
    if study:
        return f"{study['recipe']}: {study['finding']}"
    return f"Golden ends lowest with {_name(best)}" if best else f"A sweep of {name}"


def _next_steps(o: Outcomes, best: Cell | None, command: str, study: Mapping[str, Any] | None) -> list[Row]:
    fresh = [str(max(o.seeds) + number) for number in range(1, 1 + max(len(o.seeds), 3))]
    again = shlex.split(command)
    if "--seeds" in again:
        again = again[: again.index("--seeds")]
    again += ["--seeds", *fresh]
    why = "The best of many looks better than it is: what was chosen on these seeds is to be reported on others."
    if len(o.seeds) == 1:
        why = "With one seed nobody knows how far seeds differ: the intervals here are over prompts, for this run only."
    steps = [{"title": "Repeat it on fresh seeds", "why": why, "paste": shlex.join(again)}]
    if study and study["finding"] == "undecided":
        steps[0]["why"] = "The claim is neither shown nor refuted; more seeds make its intervals narrower. " + why
    others = [key for key in o.keys if best is None or key[2] != best.variant]
    first = next((key for key in o.keys if best is None or key[2] == best.variant), o.keys[0])
    shown = [o.folder(*first), *(o.folder(*key) for key in others if key[1] == first[1] and key[0] == first[0])]
    folders = list(dict.fromkeys(folder.name for folder in shown))
    title = "Set the arms beside each other, prompt by prompt"
    why = (
        "The maps show levels, whose errors their arms share. Paired differences are far more precise. From the "
        f"folder with the runs, here those of seed {first[1]}:"
    )
    reference = ["--reference", f"{o.folder(*first).name}/{best.arm}" if len(folders) > 1 else best.arm] if best else []
    paste = ["assay", "compare", *folders[:6], *reference, "--out", "compare.html"]
    steps.append({"title": title, "why": why, "paste": shlex.join(paste)})
    if best:
        steps.append(
            {
                "title": f"Take the student of {_name(best)}",
                "why": "Its golden ended lowest. This folder of its run opens with from_pretrained.",
                "paste": shlex.join([f"{o.folder(*first).name}/arms/{best.arm}/student"]),
            }
        )
    return [{key: visible(value) for key, value in step.items()} for step in steps]


def _panels(cells: Sequence[Cell]) -> list[Row]:
    """One panel for each cell: golden and proxy over steps; all panels of a world on one scale."""
    found = []
    for cell in cells:
        series = []
        for number, metric in enumerate(("golden", "proxy")):
            levels = cell.curve(metric)
            if all(level is None for level in levels):
                continue
            line: Row = {"label": metric, "slot": number, "seed": None}
            line |= {"values": [level and round(level.value, 4) for level in levels]}
            known = [level is not None and level.low is not None for level in levels]
            for bound in ("low", "high"):
                line[bound] = [round(getattr(level, bound), 4) for level in levels] if all(known) else None
            series.append(line)
        found.append({"world": cell.world, "title": _name(cell), "x": cell.steps, "series": series})
        found[-1] |= {"xLabel": "optimiser step", "yLabel": "nats", "logX": True, "logY": False}
    for world in {cell.world for cell in cells}:
        mine = [panel for panel in found if panel["world"] == world]
        values = [v for p in mine for s in p["series"] for key in ("values", "low", "high") for v in s[key] or [] if v]
        room = 0.05 * (max(values) - min(values)) or 0.5
        for panel in mine:
            panel["yRange"] = [min(values) - room, max(values) + room]
    return found


def _scatter(points: Mapping[tuple[str, str], list[Point]], fronts: Mapping[tuple[str, str], list[Point]]) -> list[Row]:
    found = []
    for (world, kind), all_points in points.items():
        arms = list(dict.fromkeys(point.cell.arm for point in all_points))
        members = {id(point) for point in fronts[world, kind]}
        dots = [
            {
                "slot": arms.index(point.cell.arm),
                "x": round(point.tokens, 1),
                "y": round(point.golden.value, 4),
                "bounds": [round(v, 4) for v in (point.golden.low, point.golden.high) if v is not None],
                "name": f"{_name(point.cell)}, step {point.step:,}",
                "front": id(point) in members,
            }
            for point in all_points
        ]
        found.append({"world": world, "kind": kind, "xLabel": _TOKENS[kind], "points": dots})
        found[-1]["arms"] = [{"name": readable(arm), "slot": slot} for slot, arm in enumerate(arms)]
    return found


def _front_rows(fronts: Mapping[tuple[str, str], list[Point]]) -> list[Row]:
    return [
        {"world": world, "tokens": kind, "variant": p.cell.variant, "arm": p.cell.arm, "step": p.step,
         "num_tokens": p.tokens, "golden_nats": p.golden.value, "golden_nats_low": p.golden.low,
         "golden_nats_high": p.golden.high, "num_seeds": len(p.cell.seeds)}
        for (world, kind), members in fronts.items()
        for p in members
    ]  # fmt: skip


def _front_tables(fronts: Mapping[tuple[str, str], list[Point]]) -> list[Row]:
    return [
        {
            "world": world,
            "kind": kind,
            "rows": [
                {
                    "name": _name(p.cell),
                    "step": f"{p.step:,}",
                    "tokens": f"{p.tokens:,.0f}",
                    "golden": nats(p.golden.value),
                    "bounds": brackets([p.golden.low, p.golden.high]) if p.golden.low is not None else "",
                    "end": p.step == p.cell.steps[-1],
                }
                for p in members
            ],
        }
        for (world, kind), members in fronts.items()
    ]


def _links(o: Outcomes, out: Path) -> list[Row]:
    found = []
    for world, seed, variant in o.keys:
        folder = o.folder(world, seed, variant)
        page = folder / "report.html"
        path = os.path.relpath(os.path.realpath(page), os.path.realpath(out))
        row = {"world": world, "seed": seed, "variant": variant, "run": folder.name}
        found.append(row | {"link": quote(path) if page.exists() else None})
    return found


def _provenance(o: Outcomes) -> Row:
    manifests = [runs.read_json(o.folder(*key) / "manifest.json") for key in o.keys]
    commits = [m["commit"] + (" (with uncommitted changes)" if m["dirty"] else "") for m in manifests if m["commit"]]
    return {
        "assay": ", ".join(dict.fromkeys(m["assay_version"] for m in manifests)),
        "commit": ", ".join(dict.fromkeys(commits)) or "not in a git repository",
        "started": min(m["started_at"] for m in manifests),
        "config hashes": ", ".join(dict.fromkeys(m["config_hash"] for m in manifests)),
    }
