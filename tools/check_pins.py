"""Refuses a constraints.txt that is out of step with pyproject.toml.

    python tools/check_pins.py

Every dependency, those of the extras and of the build too, needs exactly one pin that applies (`name==version`, with a
marker or without) and lies in its range. Python 3.10 needs pins for what users install; assay is developed, built and
documented on 3.11 or later, which TRL needs too.

Exit code 0: in step. 1: not, with a line for each fault.
"""

from __future__ import annotations

import sys
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# what builds the package, as if it were an extra
BUILD = "build-system"

# Python versions and the extras that need no pins there
PYTHONS: dict[str, set[str]] = {"3.10": {"dev", "docs", "trl", BUILD}, "3.11": set(), "3.12": set()}


def faults(pyproject: str, constraints: str) -> list[str]:
    """One sentence for each dependency without its pin, and for each line that pins nothing."""
    pins, found = _pins(constraints)
    stated = tomllib.loads(pyproject)
    project = stated["project"]
    extras = {
        "": project["dependencies"],
        **project["optional-dependencies"],
        BUILD: stated["build-system"]["requires"],
    }
    for python, without in PYTHONS.items():
        for extra, lines in extras.items():
            if extra not in without:
                found += [_fault(Requirement(line), pins, python) for line in lines]
    return list(dict.fromkeys(fault for fault in found if fault))


def _pins(constraints: str) -> tuple[list[Requirement], list[str]]:
    pins, found = [], []
    for number, line in enumerate(constraints.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            pin = Requirement(line)
        except InvalidRequirement as error:
            found.append(f"constraints.txt line {number}: {line!r} is no requirement: {str(error).splitlines()[0]}")
            continue
        if [specifier.operator for specifier in pin.specifier] != ["=="] or "*" in str(pin.specifier):
            found.append(f"constraints.txt line {number}: {line!r} names no single version: write name==version")
        else:
            pins.append(pin)
    return pins, found


def _fault(requirement: Requirement, pins: list[Requirement], python: str) -> str:
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    name = canonicalize_name(requirement.name)
    if requirement.marker is not None and not requirement.marker.evaluate(environment):
        return ""
    versions = [
        next(iter(pin.specifier)).version
        for pin in pins
        if canonicalize_name(pin.name) == name and (pin.marker is None or pin.marker.evaluate(environment))
    ]
    if not versions:
        return f"{name} has no pin in constraints.txt for Python {python}: add {name}==VERSION, as it was tested"
    if len(versions) > 1:
        return (
            f"{name} has {len(versions)} pins in constraints.txt for Python {python} ({', '.join(versions)}): keep one"
        )
    if not requirement.specifier.contains(versions[0], prereleases=True):
        return (
            f"{name}=={versions[0]} in constraints.txt is not in the range of pyproject.toml, {requirement.specifier}"
        )
    return ""


def main(folder: str = ".") -> int:
    """Checks the repository in `folder`; returns the exit code."""
    pyproject, constraints = (
        (Path(folder) / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "constraints.txt")
    )
    found = faults(pyproject, constraints)
    print("\n".join(found) or "constraints.txt pins every dependency of pyproject.toml")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
