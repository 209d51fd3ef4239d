"""Whole experiments as functions: each returns the config of one experiment, its dials chosen and frozen.

Add one here and it appears in ``assay recipes`` and ``assay run``. The first line of the docstring is its
description.
"""

from __future__ import annotations

from collections.abc import Callable

from assay.config import Experiment
from assay.errors import unknown_name
from assay.recipes.controls import oracle_as_teacher, random_student
from assay.recipes.quickstart import quickstart
from assay.recipes.worlds import WORLDS

RECIPES: dict[str, Callable[[], Experiment]] = {
    recipe.__name__: recipe for recipe in (quickstart, *WORLDS, oracle_as_teacher, random_student)
}


def get_recipe(name: str) -> Experiment:
    """The experiment of that name; AssayError with the nearest name when there is none."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()


def is_config_file(target: str) -> bool:
    """Whether the name is a config file's rather than a recipe's."""
    return target.endswith((".yaml", ".yml", ".json")) or "/" in target
