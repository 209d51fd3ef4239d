"""What ``make audit`` says of pip-audit's answers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts import loaded


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    return loaded("tools/audit.py")


CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
FLAWED = {"name": "jinja2", "version": "3.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1"], "aliases": []}]}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0+cpu)"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([CLEAN], 0, "1 of 1 packages audited"),
        ([CLEAN, FLAWED], 1, "jinja2 3.0: PYSEC-1, fixed in 3.1"),
        ([CLEAN, SKIPPED], 1, "torch: not audited"),
        ([SKIPPED], 2, "not audited: the advisory service gave no answer about any package"),
        ([], 2, "not audited"),
    ],
)
def test_what_was_not_audited_is_never_called_clean(
    packages: list[dict[str, Any]], code: int, said: str, audit: Any
) -> None:
    lines, found = audit.verdict({"dependencies": packages})
    assert found == code
    assert said in "\n".join(lines)


def test_a_pip_audit_that_says_nothing_is_no_clean_answer(
    audit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "pip-audit"
    program.write_text("#!/bin/sh\necho 'no network' >&2\nexit 1\n")
    program.chmod(0o755)
    assert audit.main(str(program), "constraints.txt") == 2
    assert "exit code 1: no network" in capsys.readouterr().out
