"""Files of one or many runs -> one page that opens anywhere: no network, no torch, readable without its scripts."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from assay import runs
from assay.errors import AssayError
from assay.models.bases import BASES
from assay.report.assets import CHART_STYLES, CHARTS, Assets, embed
from assay.report.evidence import checks_table, detector_row, examine, law_panels
from assay.report.figures import FIGURES, draw, slot
from assay.report.files import Row
from assay.report.next_steps import next_steps, of_own_files, run_again
from assay.report.page_data import page_data
from assay.report.responses import one_of_each_experiment, responses_by_step, samples
from assay.report.schedule import time_bars, time_sentence
from assay.report.style import PALETTE
from assay.report.tables import Run, Study, numbers, read_study, to_csv
from assay.report.words import comparison, deed, duration, interval, meaning, nats, proxy, readable, visible

PAGE = Assets((*CHARTS, "plane.js", "page.js"), (*CHART_STYLES, "page.css"))

_ICONS = {
    "teacher_hacking": "✗",
    "overfitting": "!",
    "healthy": "✓",
    "benign_disagreement": "≈",
    "undecided": "?",
    "hacking_suspected": "!",
}
_BAND_NOTE = (
    "Bands: 95 % pointwise intervals of the change since the start, paired over prompts. All steps share their "
    "prompts and responses, so most of a level's own error is common to the whole curve and says nothing about its "
    "shape."
)


def write_report(run_directories: Sequence[Path], out: Path, names: Sequence[str] | None = None) -> Path:
    """Write ``out/report.html``, ``out/figures/*.svg`` and ``.png``, ``out/tables/*.csv``; return the page's path.

    Runs of several experiments are told apart by the names of their folders, or by ``names``, one for each run.

    The page stands alone: curves, data and scripts are inside it and it loads nothing; where scripts are off it shows
    the figures. Runs may still be going, as long as each has finished an arm. The same files give the same bytes. Each
    file replaces its predecessor at once, and none is touched when the runs cannot be read.

    Raises:
        AssayError: the runs cannot be read (see ``tables.read_study``), or ``out`` cannot be written.
    """
    study = read_study(run_directories, names)
    files: dict[str, str | bytes] = {"tables/numbers.csv": to_csv(numbers(study))}
    pictures = []
    for name, spec in FIGURES.items():
        if not spec.fits(study):
            continue
        svg, png, table = draw(name, study)
        files |= {f"figures/{name}.svg": svg, f"figures/{name}.png": png, f"tables/{name}.csv": to_csv(table)}
        banded = name == "training_curves" and any(len(study.curves_of(label)) == 1 for label in study.labels)
        notes = [spec.with_oracle if study.truth == "oracle" else "", _BAND_NOTE if banded else ""]
        caption = " ".join([spec.caption, *filter(None, notes)])
        pictures.append({"name": name, "title": spec.title, "caption": caption, "svg": inline(svg)})
        pictures[-1] |= {"live": spec.live, "still": spec.still}
    files["report.html"] = render(study, pictures)
    _refuse_what_is_in_the_way([out / name for name in files])
    for name, content in files.items():
        runs.write_bytes(out / name, content.encode("utf-8") if isinstance(content, str) else content)
    return out / "report.html"


def render(study: Study, pictures: list[Row]) -> str:
    """The page as HTML; every string that came from a file is escaped."""
    first = study.runs[0]
    shown = np.concatenate([study.mean(label, _shown_on_cards(study)) for label in study.labels])
    # One scale for the small curves of all cards: a healthy arm's must not look like a hacking one's.
    limits = (float(np.nanmin(shown)), float(np.nanmax(shown)))
    evidence, time = examine(study), time_bars(study)
    data = page_data(study) | {"responses": responses_by_step(study)}
    data["figures"]["convergence"] = {"panels": law_panels(study, evidence)}
    return fill(
        "template.html.j2",
        headline=headline(study),
        recipes=list(dict.fromkeys(run.manifest["recipe"] for run in study.runs)),
        tasks=list(dict.fromkeys(run.summary["task"] for run in study.runs)),
        num_prompts=_num_prompts(first),
        num_runs=len(study.runs),
        comparisons=comparisons(study),
        cut=cut_responses(study),
        has_replicates=study.has_replicates,
        wall_seconds=sum(run.manifest["wall_seconds"] for run in study.runs),
        unfinished=unfinished(study),
        cards=[card(study, label, limits) for label in study.labels],
        waiting=[{"label": label, "slot": slot(study, label)} for label in study.waiting],
        references=first.summary["references"] if len(study.runs) == 1 and study.truth == "oracle" else None,
        truth=study.truth,
        proxy_is=study.proxy_is,
        next_steps=next_steps(study),
        of_own_files=of_own_files(first.manifest),
        pictures=pictures,
        samples=[block for run in one_of_each_experiment(study) for block in samples(study, run)],
        tiny=_are_embedded(first),
        labels=study.labels,
        checks=checks_table(study, evidence),
        detector=detector_row(study, evidence),
        time=time,
        phase_names={phase["phase"]: phase["name"] for phase in time["phases"]},
        phase_numbers={phase["phase"]: phase["number"] for phase in time["phases"]},
        curves=[curve for curve in study.curves if curve.summary],
        slots={label: slot(study, label) for label in (*study.labels, *study.waiting)},
        runs=[provenance(run) for run in study.runs],
        assets=PAGE,
        data=embed(data),
    )


def fill(template: str, **fields: Any) -> str:
    """A template of this folder as HTML; every string among ``fields`` is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "nats": nats,
        "deed": deed,
        "interval": interval,
        "duration": duration,
        "readable": readable,
        "proxy_words": proxy,
        "visible": lambda value: visible(str(value), keep="\n\t"),
    }
    return environment.get_template(template).render(palette=PALETTE, **fields)


def inline(svg: str) -> Markup:
    """A figure for within a page: it takes the page's colours, light or dark, and its size from the layout."""
    # Group ids repeat from figure to figure and nothing refers to them; ids in <defs> are hashes of what they define.
    body = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])
    head, rest = body.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    for name, colour in PALETTE.items():
        rest = re.sub(rf"(fill|stroke): {colour}", rf"\1: var(--{name})", rest)
    return Markup(f"{head}>{rest}")


def headline(study: Study) -> str:
    """The page in one sentence: what happened to how many arms."""
    verdicts = [
        {curve.summary["verdict"] for curve in study.curves_of(label) if curve.summary} for label in study.labels
    ]
    verdicts = [found for found in verdicts if found]
    finished = "finished " if unfinished(study) else ""
    total = f"{len(verdicts)} {finished}arms"
    for verdict, phrase in (
        ("teacher_hacking", "hacked {} teacher"),
        ("overfitting", "overfitted {} distillation set"),
        ("hacking_suspected", "may have hacked {} teacher"),
        ("undecided", "left {} verdict undecided"),
    ):
        count = sum(verdict in found for found in verdicts)
        if count:
            who = f"The {finished}arm" if len(verdicts) == 1 else f"{count} of {total}"
            return f"{who} {phrase.format('its' if count == 1 else 'their')}"
    no = "No teacher hacking" if study.truth is not None else "No sign of teacher hacking"
    return f"{no} in {total if len(verdicts) > 1 else f'the {finished}arm'}"


def unfinished(study: Study) -> list[str]:
    """One sentence for every run with arms that have no verdict yet."""
    sentences = []
    for run in study.runs:
        finished = {arm["source"] for arm in run.summary["arms"]}
        evaluations = {row["arm"]: row["step"] for row in run.metrics}
        missing = [
            readable(arm) + (f" (step {evaluations[arm]:,})" if arm in evaluations else "")
            for arm in run.arm_names
            if arm not in finished
        ]
        if missing:
            state = "is still running" if run.manifest["status"] == "running" else "stopped early"
            sentences.append(f"{run.directory.name} {state}; no verdict yet for {', '.join(missing)}.")
    return sentences


def comparisons(study: Study) -> list[str]:
    """One sentence for every offline arm and online arm of a run."""
    return [
        (f"{run.directory.name}: " if len(study.runs) > 1 else "") + comparison(pair)
        for run in study.runs
        for pair in run.summary["comparisons"]
        if pair["golden_final_minus_online_nats"] is not None
    ]


def cut_responses(study: Study) -> str:
    """How many held-out responses of oracle, or else teacher, the length limit cuts, and what follows; or ""."""
    writer = "oracle" if study.truth == "oracle" else "teacher"
    held_out = (pc.field("writer") == writer) & (pc.field("arm") == "") & (pc.field("split") == "held_out")
    responses = pa.concat_tables(run.responses.filter(held_out) for run in study.runs)
    cut = responses.filter(pc.field("truncated"))
    if not len(cut):
        return ""
    limits = sorted(set(cut["num_tokens"].to_pylist()))
    return (
        f"{len(cut) / len(responses):.0%} of the {writer}'s answers are cut at ".replace("%", " %")
        + f"{' or '.join(f'{limit:,}' for limit in limits) if len(limits) < 4 else 'the limit of'} tokens: "
        + "distances are per response up to that limit"
    )


def card(study: Study, label: str, limits: tuple[float, float]) -> Row:
    """What the card of one arm shows: its verdict over all seeds, and one entry for every finished seed."""
    curves = study.curves_of(label)
    entries: list[Row] = [
        curve.summary
        | {
            "detector_score": curve.rows[-1].get("detector_score"),
            "diversity": curve.run.diversity.get(curve.arm),
        }
        for curve in curves
        if curve.summary
    ]
    counts = Counter(entry["verdict"] for entry in entries).most_common()
    agreed = counts[0][0] if len(counts) == 1 else None
    if not counts:
        title = "still running"
    elif agreed:
        title = readable(agreed) + (f" in {len(entries)} of {len(entries)} seeds" if len(entries) > 1 else "")
    else:
        title = "seeds disagree: " + ", ".join(f"{count} {readable(verdict)}" for verdict, count in counts)
    return {
        "label": label,
        "slot": slot(study, label),
        "tone": agreed or ("running" if not counts else "undecided"),
        "icon": _ICONS.get(agreed or "undecided") if counts else "…",
        "title": title,
        "meaning": meaning(agreed, study.truth) if agreed else "",
        "entries": entries,
        "last_step": max(curve.rows[-1]["step"] for curve in curves),
        "spark": sparkline(study.mean(label, _shown_on_cards(study)), limits),
    }


def _shown_on_cards(study: Study) -> str:
    return "golden_nats" if study.truth is not None else "proxy_nats"


def sparkline(values: np.ndarray, limits: tuple[float, float], width: int = 220, height: int = 56) -> Row:
    """A curve over evaluations as the points of a polyline, with its lowest and last points (pixels)."""
    known = values[np.isfinite(values)]
    low, high = limits
    x = np.linspace(6, width - 6, max(len(known), 2))[: len(known)]
    y = 6 + (height - 12) * (high - known) / (high - low or 1.0)
    points = [(f"{a:.1f}", f"{b:.1f}") for a, b in zip(x, y, strict=True)]
    return {
        "points": " ".join(",".join(point) for point in points),
        "ends": [points[0], points[-1]] if points else [],
        "best": points[int(np.argmin(known))] if points else None,
        "width": width,
        "height": height,
    }


def provenance(run: Run) -> Row:
    """Where the numbers of a run come from, and the commands that make them again."""
    manifest = run.manifest
    commit = manifest["commit"] or "not in a git repository"
    signals = {arm["source"]: arm["teacher_signals"] for arm in run.summary["arms"] if arm.get("teacher_signals")}
    facts = {
        "recipe": manifest["recipe"],
        "seed": manifest["seed"],
        "started": manifest["started_at"],
        "wall time": duration(manifest["wall_seconds"]),
        "time spent": time_sentence(run) or "not recorded",
        "assay": manifest["assay_version"],
        "commit": commit + (" (with uncommitted changes)" if manifest["dirty"] else ""),
        "config hash": manifest["config_hash"],
    }
    repairs = [str(record.get("repair")) for record in runs.read_records(run.directory / runs.REPAIRS)]
    if repairs:
        facts["put right when it was resumed"] = "; ".join(repairs)
    return {
        "name": run.directory.name,
        "groups": {
            "run": facts,
            "versions": manifest["versions"],
            **({"teacher's signals": signals} if signals else {}),
            "model and data digests": manifest["digests"],
            "hardware": manifest["hardware"],
        },
        "config": json.dumps(manifest["config"], indent=2, ensure_ascii=False),
        "command": run_again(run.directory.name, f"{run.directory.name}-again"),
    }


def _refuse_what_is_in_the_way(files: Sequence[Path]) -> None:
    # Before the first file is written: half a report beside half of an old one is worse than none.
    for path in files:
        with runs.readable_errors(path, "write"):  # a path that is too long, or may not be looked at
            is_folder, in_file = path.is_dir(), path.parent.exists() and not path.parent.is_dir()
        if is_folder:
            raise AssayError(f"cannot write {str(path)!r}: it is a folder; move it away or choose another --out")
        if in_file:
            raise AssayError(f"cannot write in {str(path.parent)!r}: it is not a folder; choose another --out")


def _are_embedded(run: Run) -> bool:
    """Whether oracle, teacher and student are models that ship with assay, whose words are often no words."""
    models = run.manifest["config"].get("models", {})
    return all(models.get(role) in BASES for role in ("oracle", "teacher", "student"))


def _num_prompts(run: Run) -> int:
    return len(run.probe.filter(pc.field("metric") == "proxy")["prompt_id"].unique())
