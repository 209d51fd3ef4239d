"""The same world, offline, with a distillation set that is made diverse in different ways."""

from __future__ import annotations

import dataclasses

from assay.config import ARMS, Experiment

POOL = 8
"""Candidates for each prompt that is chosen."""

TEMPERATURES = (0.7, 1.3)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "define": ("{part_of_speech} {lemmas}:", "{part_of_speech}; {lemmas}:"),
    "translate": ("en: {english}; es:", "en: {english}. es:"),
    "summarize": ("{kind} {name}: {body}. summary:", "{kind} {name} {body} summary:"),
}
"""Further templates of the embedded tasks; docs/diversity.md says how many prompts pass the check under each."""


def diversity(world: Experiment) -> dict[str, Experiment]:
    """Offline alone: as it is; prompts chosen from a pool of 8× as many; responses at two temperatures; templates.

    "templates" is there for the tasks of ``TEMPLATES``; its set is larger by the prompts that pass.
    """
    variants: dict[str, dict[str, object]] = {
        "random": {},
        "k_centre": {"selection": "k_centre", "num_candidates": POOL * world.distillation.num_prompts},
        "facility_location": {
            "selection": "facility_location",
            "num_candidates": POOL * world.distillation.num_prompts,
        },
    }
    variants |= {f"temperature_{t:g}": {"sampling_temperature": t} for t in TEMPERATURES}
    if world.task.name in TEMPLATES:
        variants["templates"] = {"augmentation": "templates", "templates": TEMPLATES[world.task.name]}
    return {
        name: dataclasses.replace(
            world,
            arms=(ARMS["offline"],),
            distillation=dataclasses.replace(world.distillation, **changes),  # type: ignore[arg-type]
        )
        for name, changes in variants.items()
    }
