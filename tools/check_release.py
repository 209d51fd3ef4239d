"""Refuses a release whose tag, version and changelog do not agree; prints the changelog's section, for the notes.

    python tools/check_release.py v1.2.3

Exit code 0: they agree. 1: not, with a line for each fault on stderr.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# MAJOR.MINOR.PATCH, and what Python's versions write for a candidate (1.0.0rc1)
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(rc[1-9]\d*)?")


def section(changelog: str, version: str) -> str | None:
    """The text below `## [VERSION] - YYYY-MM-DD` up to the next section; None where there is no such heading."""
    found = re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## \[|\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    return None if found is None else found.group(1).strip()


def faults(tag: str, pyproject: str, citation: str, changelog: str) -> list[str]:
    """One sentence for each disagreement."""
    stated = re.search(r'^version = "(.+)"$', pyproject, re.MULTILINE)
    if stated is None:
        return ["pyproject.toml states no version"]
    version = stated.group(1)
    found = []
    if VERSION.fullmatch(version) is None:
        found.append(f"version {version} of pyproject.toml is not MAJOR.MINOR.PATCH")
    if tag != f"v{version}":
        found.append(f"tag {tag} is not v{version}, the version of pyproject.toml: set one to the other")
    cited = re.search(r"^version: (.+)$", citation, re.MULTILINE)
    if cited is None or cited.group(1) != version:
        found.append(f"CITATION.cff does not say version: {version}")
    if not section(changelog, version):
        found.append(
            f"CHANGELOG.md has no '## [{version}] - YYYY-MM-DD' with text below it: move it there from Unreleased"
        )
    return found


def main(tag: str, folder: str = ".") -> int:
    """Checks the repository in `folder`; returns the exit code."""
    names = ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")
    pyproject, citation, changelog = ((Path(folder) / name).read_text(encoding="utf-8") for name in names)
    found = faults(tag, pyproject, citation, changelog)
    print("\n".join(found) or section(changelog, tag.removeprefix("v")), file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
