"""Refuses files that do not belong into the repository as they are.

    python tools/check_files.py FILE ...

Too large, YAML, TOML or JSON that cannot be read, text that does not end with one line break, lines that end with
white space or are left of a merge. Exit code 0: nothing found. 1: something, with a line for each fault.
"""

from __future__ import annotations

import json
import re
import sys
from fnmatch import fnmatch
from pathlib import Path

import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# bytes; the first pattern that fits counts
SIZES = {
    "src/assay/data/corpora/*.parquet": 3_000_000,
    "src/assay/models/embedded/*.safetensors": 3_000_000,
    "docs/reports/*.html": 3_000_000,
    "*": 500_000,
}

# written by programs (drawings, reports, tables, cards of models), or others' text that is kept as it came
AS_THEY_CAME = ("*.svg", "*.html", "*.csv", "*.json", "*.ipynb", "*.LICENSE.txt", "src/assay/report/assets/*.min.*")

LEFT_OF_A_MERGE = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)


def faults(path: str, content: bytes) -> list[str]:
    """One sentence for each fault of the file at `path`, relative to the repository."""
    limit = next(limit for pattern, limit in SIZES.items() if fnmatch(path, pattern))
    found = []
    if len(content) > limit:
        found.append(f"{path}: {len(content):,} bytes, more than {limit:,}: keep it elsewhere, or raise SIZES")
    if b"\0" in content:
        return found
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return [*found, f"{path}: no UTF-8 at byte {error.start}"]
    return found + _unreadable(path, text) + _untidy(path, text)


def _unreadable(path: str, text: str) -> list[str]:
    try:
        if path.endswith((".yaml", ".yml")):
            # events only: tags of programs (mkdocs has some) are fine
            list(yaml.parse(text, Loader=yaml.SafeLoader))
        elif path.endswith(".toml"):
            tomllib.loads(text)
        elif path.endswith((".json", ".ipynb")):
            json.loads(text)
    except (yaml.YAMLError, ValueError) as error:
        return [f"{path}: cannot be read: {' '.join(str(error).split())}"]
    return []


def _untidy(path: str, text: str) -> list[str]:
    found = [f"{path} line {_line(text, hit.start())}: left of a merge" for hit in LEFT_OF_A_MERGE.finditer(text)]
    if any(fnmatch(path, pattern) for pattern in AS_THEY_CAME) or not text:
        return found
    if "\r" in text:
        found.append(f"{path}: lines end in \\r: use \\n")
    if not text.endswith("\n") or text.endswith("\n\n"):
        found.append(f"{path}: does not end with one line break")
    found += [
        f"{path} line {_line(text, hit.start())}: white space at its end" for hit in re.finditer(r"[ \t]+$", text, re.M)
    ]
    return found


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def main(*paths: str) -> int:
    """Checks files; returns the exit code."""
    found = [fault for path in paths for fault in faults(path, Path(path).read_bytes())]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
