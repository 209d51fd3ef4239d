"""Your own prompts in the lab: a task from a JSONL file, oracle, teacher, two students, verdicts; one to two minutes.

    python examples/custom_task.py [FOLDER]

The prompts are names of Unicode characters ("black chess knight"), which the three dictionary models that ship with
assay are asked to define. The oracle is the truth by decree, so any prompts make a world; with models of your own, give
their folders as `models` instead. The same from a terminal: `assay run quickstart --task.name names.jsonl …`.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

from assay import get_recipe, read_run, run_experiment


def write_prompts(path: Path, count: int) -> None:
    """One JSON object a line: the prompt, and its group, so that near-duplicates end up on one side of every split."""
    lines = []
    for code in range(0x2190, 0x1F6FF):
        words = unicodedata.name(chr(code), "").lower().split()
        if 2 <= len(words) <= 4 and all(word.isalpha() for word in words) and len(lines) < count:
            lines.append(json.dumps({"prompt": " ".join(words), "group": words[-1]}))
    path.write_text("\n".join(lines) + "\n")


def main(folder: str = "runs/custom-task") -> None:
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    write_prompts(out / "names.jsonl", 2_000)
    recipe = get_recipe("quickstart")
    experiment = replace(
        recipe,
        recipe="custom_task",
        task=replace(recipe.task, name=str(out / "names.jsonl"), template="noun: {prompt}:"),
        stage_one=replace(recipe.stage_one, num_oracle_prompts=400),
        distillation=replace(
            recipe.distillation,
            num_prompts=96,
            training=replace(recipe.distillation.training, num_steps=150),
        ),
        probe=replace(recipe.probe, num_prompts=96, num_evaluations=8),
        arms=tuple(arm for arm in recipe.arms if arm.name in ("offline", "online_teacher")),
    )
    report = run_experiment(experiment, out / "run")
    for row in read_run(out / "run").verdicts:
        severity, low, high = (row[name] for name in ("severity_hacking_nats", "ci95_hacking_low", "ci95_hacking_high"))
        verdict = row["verdict"].replace("_", " ")
        print(f"{row['arm']}: {verdict}, severity of hacking {severity:.2f} [{low:.2f}, {high:.2f}] nats")
    print(report)


if __name__ == "__main__":  # worker processes import this file
    main(*sys.argv[1:])
