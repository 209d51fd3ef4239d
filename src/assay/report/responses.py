"""What everyone writes to the first held-out prompts: a few for a page without scripts, every step for the slider."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assay.report.files import Row
from assay.report.tables import Curve, Run, Study
from assay.report.token_colours import tokens_of
from assay.token_table import NUM_SAMPLE_PROMPTS

MAX_SAMPLE_CHARACTERS = 1_500
MAX_PAGE_CHARACTERS = 1_000_000
"""Of all that the slider can show, as JSON; beyond it every second, third, ... evaluation is left out."""
_FIXED = {"dataset": "reference", "oracle": "oracle", "teacher": "teacher"}


def one_of_each_experiment(study: Study) -> list[Run]:
    """The first run of each experiment: the page shows examples, not every seed."""
    return list({run.experiment: run for run in reversed(study.runs)}.values())[::-1]


def samples(study: Study, run: Run) -> list[Row]:
    """The first held-out prompts of a run, each with its responses: shared ones, then one row per arm."""
    chosen, held_out = _shown(run)
    rows, curves = held_out.to_pylist(), _first_seeds(study, run)
    blocks = []
    for prompt_id in chosen:
        mine = [row for row in rows if row["prompt_id"] == prompt_id]
        shared = [
            _cell(name, next(row for row in mine if row["writer"] == writer))
            for writer, name in _FIXED.items()
            if any(row["writer"] == writer for row in mine)
        ]
        arms = [{"label": curve.label, "cells": _student_cells(curve, mine)} for curve in curves]
        starts = {arm["cells"][0]["text"] for arm in arms if arm["cells"]}
        if len(starts) == 1:
            shared.append(next(arm["cells"][0] for arm in arms if arm["cells"]))
            arms = [{"label": arm["label"], "cells": arm["cells"][1:]} for arm in arms]
        arms = [arm for arm in arms if arm["cells"]]
        blocks.append({"run": run.directory.name, "prompt": _cut(mine[0]["prompt"]), "shared": shared, "arms": arms})
    return blocks


def responses_by_step(study: Study) -> Row:
    """For the slider: for each prompt its fixed responses, and of each label's first seed those of each evaluation.

    ``num_left_out`` evaluations of each arm are not among them, for the size of the page: the first and the last are.
    """
    every = 1
    while True:
        found = [block for run in one_of_each_experiment(study) for block in _blocks(study, run, every)]
        size = len(json.dumps(found, ensure_ascii=False))
        if size <= MAX_PAGE_CHARACTERS or all(len(arm["steps"]) <= 2 for block in found for arm in block["arms"]):
            break
        every = max(every + 1, every * size // MAX_PAGE_CHARACTERS)
    num_left_out = max((arm.pop("num_left_out") for block in found for arm in block["arms"]), default=0)
    return {"prompts": found, "num_left_out": num_left_out}


def _blocks(study: Study, run: Run, every: int) -> list[Row]:
    chosen, held_out = _shown(run)
    rows, tokens = held_out.to_pylist(), tokens_of(run)
    blocks = []
    for prompt_id in chosen:
        mine = [row for row in rows if row["prompt_id"] == prompt_id]
        fixed = [
            {"who": name, "text": _cut(row["text"]), "cut": row["truncated"]} | tokens.fixed(prompt_id, writer)
            for writer, name in _FIXED.items()
            for row in [next((row for row in mine if row["writer"] == writer), None)]
            if row is not None
        ]
        arms = []
        for curve in _first_seeds(study, run):
            written = _written(curve, mine)
            steps = sorted(written)
            kept = [step for i, step in enumerate(steps) if i % every == 0 or i == len(steps) - 1]
            if kept:
                arms.append(
                    {
                        "label": curve.label,
                        "steps": kept,
                        "texts": [_cut(written[step]["text"]) for step in kept],
                        "cut": [written[step]["truncated"] for step in kept],
                        "num_left_out": len(steps) - len(kept),
                    }
                    | tokens.of_student(curve, prompt_id, kept)
                )
        name = run.directory.name if len(study.runs) > 1 else ""
        blocks.append({"run": name, "prompt": _cut(mine[0]["prompt"]), "fixed": fixed, "arms": arms})
    return blocks


def _shown(run: Run) -> tuple[list[str], pa.Table]:
    """The first held-out prompts to which students wrote, and all rows of them."""
    held_out = run.responses.filter(pc.field("split") == "held_out")
    by_arms = held_out.filter(pc.field("arm") != "")["prompt_id"].unique()
    chosen = (by_arms if len(by_arms) else held_out["prompt_id"].unique())[:NUM_SAMPLE_PROMPTS]
    return chosen.to_pylist(), held_out.filter(pc.field("prompt_id").isin(chosen))


def _first_seeds(study: Study, run: Run) -> list[Curve]:
    # One seed of each label: the page shows examples, the parquet file holds them all.
    first = {curve.label: curve for curve in reversed(study.curves) if curve.run is run}
    return [first[label] for label in study.labels if label in first]


def _written(curve: Curve, rows: list[Row]) -> dict[int, Row]:
    """What the student wrote, by step; at the start, where the arm has nothing of its own, what all arms share."""
    mine = [row for row in rows if row["writer"] == "student" and row["arm"] in ("", curve.arm)]
    # Samples of the arm itself come first: they share their random numbers from step to step.
    mine.sort(key=lambda row: row["arm"] == "")
    written: dict[int, Row] = {}
    for row in mine:
        if row["arm"] == "" or row["seed"] == curve.seed:
            written.setdefault(row["step"], row)
    return written


def _student_cells(curve: Curve, rows: list[Row]) -> list[Row]:
    written = _written(curve, rows)
    if not written:
        return []
    golden = curve["golden_nats"]
    lowest = curve.rows[int(np.nanargmin(golden))]["step"] if np.isfinite(golden).any() else 0
    best_step = curve.summary["best_step"] if curve.summary else lowest
    start, end = min(written), max(written)
    best = min(written, key=lambda step: (abs(step - best_step), step))
    named: dict[int, list[str]] = {}
    for step, name in (
        (start, "start"),
        (best, "best" if best == best_step else "near the best"),
        (end, "end"),
    ):
        named.setdefault(step, []).append(name)
    # The start comes first and alone, so that arms that share it can show it once.
    cells = [_cell("student, start", written[start])]
    if best == start and end != start:
        cells.append({"who": "student, best", "note": "is the start itself", "text": None, "truncated": False})
    for step in sorted(set(named) - {start}):
        cells.append(_cell(f"student, {' and '.join(named[step])}", written[step], f"step {step:,}"))
    return cells


def _cell(who: str, row: Row, note: str = "") -> Row:
    return {"who": who, "note": note, "text": _cut(row["text"]), "truncated": row["truncated"]}


def _cut(text: str) -> str:
    rest = len(text) - MAX_SAMPLE_CHARACTERS
    return text if rest <= 0 else f"{text[:MAX_SAMPLE_CHARACTERS]} […{rest:,} more characters]"
