"""Writes the signatures of all public names of assay to tests/public_surface.txt.

    python tools/public_surface.py

Public are the names in ``assay.__all__``, and of a public class what assay itself defines without a leading underscore.
A function without an arrow returns nothing. tests/test_public_surface.py compares; docs/api-stability.md says what a
change needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = Path(__file__).parents[1] / "tests" / "public_surface.txt"
WIDTH = 120


def surface(module: ModuleType) -> str:
    """One block for each name of ``module.__all__``, in the order of the alphabet."""
    blocks = ("\n".join(_described(name, getattr(module, name))) for name in sorted(module.__all__))
    return "\n\n".join(blocks) + "\n"


def _described(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        members = _own_members(value)
        is_built = "__init__" in members and not getattr(value, "_is_protocol", False)
        yield _call(f"class {name}", inspect.signature(value)) if is_built else f"class {name}"
        # fields are in the constructor
        shown = sorted(set(members) - {field.name for field in fields(value)} if is_dataclass(value) else members)
        for member in shown:
            if not member.startswith("_"):
                yield from (f"    {line}" for line in _member(value, member).split("\n"))
    elif callable(value):
        yield _call(f"def {name}", inspect.signature(value))
    elif isinstance(value, Mapping):
        yield f"{name}: {', '.join(sorted(value))}"
    else:
        raise TypeError(f"{name} is a {type(value).__name__}: say in tools/public_surface.py how to pin one")


def _own_members(cls: type) -> dict[str, Any]:
    """Members by name, of the class and of those of its bases that are of its package."""
    package = cls.__module__.split(".")[0]
    bases = [base for base in reversed(cls.__mro__) if base.__module__.split(".")[0] == package]
    return {name: value for base in bases for name, value in vars(base).items()}


def _member(cls: type, name: str) -> str:
    value = _own_members(cls)[name]
    if isinstance(value, property):
        return f"{name}: {_annotation(inspect.signature(value.fget).return_annotation)}" if value.fget else name
    if isinstance(value, (classmethod, staticmethod)):
        return _call(f"{type(value).__name__} {name}", inspect.signature(getattr(cls, name)))
    if inspect.isfunction(value):
        return _call(f"def {name}", inspect.signature(value))
    return f"{name} = {_value(value)}"


def _call(name: str, signature: inspect.Signature) -> str:
    """On one line, or with a line for each parameter where it would be too long."""
    returns = signature.return_annotation
    end = "" if returns in (inspect.Signature.empty, None, "None") else f" -> {_annotation(returns)}"
    parts = list(_parameters(signature))
    line = f"{name}({', '.join(parts)}){end}"
    return line if len(line) <= WIDTH else "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){end}"])


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    named_only = False
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not named_only:
            yield "*"
        named_only |= parameter.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_POSITIONAL)
        text = stars.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not inspect.Parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not inspect.Parameter.empty:
            text += f" = {_value(parameter.default)}"
        yield text


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _value(value: Any) -> str:
    """The value as it is written; without the address that some have in memory."""
    text = repr(value)
    return f"<{type(value).__name__}>" if " at 0x" in text else text


if __name__ == "__main__":
    import assay

    FILE.write_text(surface(assay), encoding="utf-8")
    print(FILE)
