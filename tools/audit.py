"""Asks pip-audit about the pinned versions, and says plainly when it could not be asked.

    python tools/audit.py PIP_AUDIT constraints.txt

Exit code 0: no known vulnerability. 1: some, or packages that nothing is known of. 2: the advisory service gave no
answer at all, so nothing was audited (pip-audit itself would end with 0).
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def verdict(found: dict[str, Any]) -> tuple[list[str], int]:
    """What to print and the exit code, from pip-audit's JSON."""
    packages = found.get("dependencies", [])
    skipped = [package for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return ["not audited: the advisory service gave no answer about any package"], 2
    lines = [
        f"{package['name']} {package['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'none'}"
        for package in packages
        for flaw in package.get("vulns", [])
    ]
    lines += [f"{package['name']}: not audited: {package['skip_reason']}" for package in skipped]
    asked = len(packages) - len(skipped)
    return [*lines, f"{asked} of {len(packages)} packages audited"], 1 if lines else 0


def main(pip_audit: str, requirements: str) -> int:
    """Runs pip-audit over pinned requirements; returns the exit code."""
    command = [pip_audit, "--requirement", requirements, "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True)
    try:
        lines, code = verdict(json.loads(done.stdout))
    except ValueError:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        lines, code = [f"not audited: pip-audit ends with exit code {done.returncode}: {said}"], 2
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
