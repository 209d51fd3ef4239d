"""The README.md beside a student's weights: how it was distilled, from what, and what the verdict on it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from assay import runs
from assay.report.files import Row
from assay.report.tables import Run, read_run, to_markdown
from assay.report.words import brackets, deed, meaning, nats, proxy, readable, truth, visible


def write_model_cards(folder: Path, arms: Sequence[str]) -> None:
    """README.md into ``arms/NAME/best`` and ``arms/NAME/student`` of these finished arms of a run."""
    run = read_run(folder)
    for arm in arms:
        for which in ("best", "student"):
            place = folder / "arms" / arm / which
            if place.exists():
                runs.write_text(place / "README.md", model_card(run, arm, which))


def model_card(run: Run, arm: str, which: str) -> str:
    """The card of the ``best`` or the last (``student``) student of an arm, in Markdown with the hub's front matter."""
    entry = next(e for e in run.summary["arms"] if e["source"] == arm)
    config = run.manifest["config"]
    models, distillation, training = config["models"], config["distillation"], config["distillation"]["training"]
    sources = next(a["sources"] for a in config["arms"] if a["name"] == arm)
    teacher = models["oracle"] if models["teacher_is_oracle"] else models["teacher"]
    front = {"base_model": models["student"], "tags": ["knowledge-distillation", "assay"]}
    facts = {
        "student before": f"{models['student']} ({models['student_initialisation']} weights)",
        "teacher": "text only, from the column of a file" if teacher is None else teacher,
        "task": f"{config['task']['name']}: {distillation['num_prompts']:,} prompts × "
        f"{distillation['completions_per_prompt']} responses of up to {config['task']['max_response_tokens']:,} tokens",
        "responses written by": "; ".join(_source(source) for source in sources),
        "loss": f"{training['divergence']}, {training['num_steps']:,} steps of {training['batch_size']} sequences, "
        f"learning rate {training['learning_rate']:g}, {training['schedule']}",
        "tokens": f"{entry['generated_tokens']:,} generated, {entry['teacher_tokens']:,} by or through the teacher",
        "truth": truth(run.summary["truth"]),
        "proxy": proxy(run.summary["proxy_is"]),
        "config, assay": f"{run.manifest['config_hash']}, {run.manifest['assay_version']}",
    }
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),  # in ASCII, which YAML reads everywhere
        "---",
        "",
        f"# {_cell(which)} student of arm {_cell(readable(arm))}",
        "",
        _which(entry, which),
        "",
        f"**Verdict on the run: {readable(entry['verdict'])}.** "
        f"{meaning(entry['verdict'], run.summary['truth'])} {_severity(entry)}".rstrip(),
        "",
        _cell(entry["reason"]),
        "",
        *[f"- {_cell(deed(action))}" for action in entry["actions"]],
        *([""] if entry["actions"] else []),
        *to_markdown([{"": name, "how": _cell(value)} for name, value in facts.items()]),
        "",
        "Nats per sequence on held-out prompts, lower is better:",
        "",
        *to_markdown(_levels(entry, run.summary["truth"])),
        "",
        "Weights, tokenizer and this card are read by `from_pretrained`. Figures and samples: report.html of the run.",
        "",
    ]
    return "\n".join(lines)


def _which(entry: Row, which: str) -> str:
    best, kept = entry["best_step"], entry["kept_step"]
    if which == "best":
        return f"The student of step {best:,}: the one to keep."
    same = "the one to keep" if best == kept else f"the one to keep is that of step {best:,}, in the folder `best`"
    return f"The student of step {kept:,}, which the run has left; {same}."


def _severity(entry: Row) -> str:
    if entry["severity_hacking_nats"] is None:
        return ""
    hacking, overfitting = (
        f"{nats(entry[f'severity_{part}_nats'])} nats {brackets(entry[f'ci95_{part}'])}"
        for part in ("hacking", "overfitting")
    )
    return f"Hacking {hacking}, overfitting {overfitting} (95 % intervals over prompts)."


def _source(source: Row) -> str:
    every = source["refresh_every"]
    how_often = "kept for good" if every is None else f"new every {every} {source['refresh_unit']}"
    return f"the {source['writer']}, {how_often}"


def _levels(entry: Row, kind: str | None) -> list[Row]:
    names = {"golden": "golden" if kind == "oracle" else "golden up to a constant", "proxy": "proxy"}
    return [
        {
            "": name,
            "start": nats(entry[key]["initial"]),
            "best": f"{nats(entry[key]['best'])} (step {entry[key]['best_step']:,})",
            "end": nats(entry[key]["final"]),
        }
        for key, name in names.items()
        if entry[key] is not None
    ]


def _cell(value: str) -> str:
    """Text from a config or a file, which may not begin a new line or cell of Markdown, or markup."""
    return visible(value).replace("|", "\\|").replace("<", "&lt;")
