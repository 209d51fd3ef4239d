"""The commands that list what ships, or bring it here: recipes and studies, embedded bases, tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from assay.arguments import Shown
from assay.errors import AssayError
from assay.output import NORMAL
from assay.recipes import RECIPES


def recipes(output: Shown = NORMAL) -> None:
    """List the recipes, and the studies that `assay sweep` runs."""
    from assay.recipes.studies import STUDIES
    from assay.terminal import open_console, print_pairs

    whats = [(name, (recipe.__doc__ or "").splitlines()[0]) for name, recipe in RECIPES.items()]
    claims = [(name, study.claim) for name, study in STUDIES.items()]

    def text() -> None:
        console = open_console()
        print_pairs(console, whats, 20)
        console.print("\nstudies, for `assay sweep`:")
        print_pairs(console, claims, 20)

    document = {
        "schema": "assay.recipes/1",
        "recipes": [{"name": name, "what": what} for name, what in whats],
        "studies": [{"name": name, "claim": claim} for name, claim in claims],
    }
    output.answer(document, text)


def bases(
    action: Positional[Literal["list", "build"]] = "list",
    names: tuple[str, ...] = (),
    out: Path = Path("runs/bases"),
    output: Shown = NORMAL,
) -> None:
    """List the embedded bases, or build them again from the *base* split (resumable).

    Args:
        action: "build" trains them again: well over an hour for all of them on one idle core.
        names: Which ones; all by default.
        out: Where built bases go; copy them over src/assay/models/embedded to ship them.
    """
    from assay.models.bases import BASES, base_path
    from assay.runs import read_json, say
    from assay.terminal import open_console, print_pairs

    chosen = names or tuple(BASES)
    if action == "build":
        from assay.pretraining import build_bases

        build_bases(chosen, out, say)
        output.answer({"schema": "assay.path/1", "path": str(out.resolve())}, lambda: None, out.resolve())
        return
    cards = {name: read_json(base_path(name) / "card.json") for name in chosen}
    pairs = [(name, _card_line(card)) for name, card in cards.items()]
    document = {"schema": "assay.bases/1", "bases": [{"name": name, **card} for name, card in cards.items()]}
    output.answer(document, lambda: print_pairs(open_console(), pairs, 26))


def tasks(
    action: Positional[Literal["list", "check", "fetch"]] = "list",
    target: Positional[str | None] = None,
    template: str | None = None,
    reference: str | None = None,
    responses: str | None = None,
    without_oracle: bool = False,
    output: Shown = NORMAL,
) -> None:
    """List the tasks, check a file of your own prompts for leaks between its splits, or fetch a task beforehand.

    Args:
        action: "check" reports on a file, "fetch" brings a task into the cache, for machines without network.
        target: A .jsonl or .parquet file or a "dataset:ID" to check, or the name of a task to fetch.
        template: How a row of the file becomes a prompt: its columns in braces; "{prompt}" by default.
        reference: The column with the human answers; "reference" by default.
        responses: The column with the responses of a teacher that gives text only.
        without_oracle: Split the file as a run without an oracle does, with its own column "split" if it has one.
    """
    from assay.data.hub import DATASET
    from assay.data.tasks import describe_tasks, fetch_corpus, get_task
    from assay.data.user_text import leakage_report
    from assay.report.words import visible
    from assay.terminal import open_console, print_lines, print_pairs

    if action == "list":
        found = describe_tasks()
        own = f"or the path of a .jsonl or .parquet file, or {DATASET}ID of the hub: assay tasks check FILE"

        def text() -> None:
            console = open_console()
            print_pairs(console, [(task["name"], _task_line(task)) for task in found], 21)
            print_lines([own])

        output.answer({"schema": "assay.tasks/1", "tasks": found}, text)
        return
    if target is None:
        wanted = "a file: give FILE.jsonl" if action == "check" else "the name of a task: give one of `assay tasks`"
        raise AssayError(f"assay tasks {action} needs {wanted}")
    if action == "check":
        task = get_task(target, template, reference=reference, responses=responses, with_oracle=not without_oracle)
        if not task.own:
            raise AssayError(
                f"assay tasks check is for your own text; {target!r} has splits of its own: give a .jsonl file"
            )
        found = leakage_report(fetch_corpus(task), template, task.reference, responses, task.with_oracle)
        document = {"schema": "assay.tasks_check/1", **dataclasses.asdict(found)}
        output.answer(document, lambda: print_lines([visible(line) for line in found.lines()]))
    else:
        path = fetch_corpus(get_task(target))
        output.answer({"schema": "assay.path/1", "path": str(path)}, lambda: None, path)


def _card_line(card: dict[str, object]) -> str:
    return (
        f"{card['num_parameters']:>9,} parameters, {card['num_steps']} steps on {card['num_prompts']:,} pairs, "
        f"{card['final_loss_nats_per_token']} nats/token, {card['seconds_on_one_core']} s to build, {card['digest']}"
    )


def _task_line(task: dict[str, Any]) -> str:
    origin = "ships" if task["ships"] else f"fetched; {'is here' if task['here'] else 'is not here yet'}"
    return f"{origin:26} {task['template']!r} -> {task['reference']}; licence: {task['licence']}"
