"""What a check says, and what all of them say together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["pass", "note", "warning", "refuse", "not_applicable"]

SCHEMA = "assay.doctor/1"
EXIT_CODES = {"pass": 0, "warnings": 1, "refuse": 3}
"""2 is left for bad input (AssayError)."""


@dataclass(frozen=True)
class Outcome:
    """What one check has found: ``what`` is a sentence with its numbers, ``advice`` one that says what to do.

    ``advice`` is empty where nothing has to be done. ``numbers`` are those of ``what``, for programs.
    """

    status: Status
    what: str
    advice: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """An outcome under the code and the name of its check."""

    code: str
    name: str
    status: Status
    what: str
    advice: str
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Examination:
    """All findings about a pair of models and a file of prompts, in the order of the checks.

    ``teacher`` is None where its text is all there is.
    """

    teacher: str | None
    student: str
    prompts: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Literal["pass", "warnings", "refuse"]:
        """The worst of the findings; notes and what is not applicable count nothing."""
        found = {finding.status for finding in self.findings}
        return "refuse" if "refuse" in found else "warnings" if "warning" in found else "pass"

    @property
    def exit_code(self) -> int:
        """0 pass, 1 warnings, 3 refuse."""
        return EXIT_CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "teacher": self.teacher,
            "student": self.student,
            "prompts": self.prompts,
            "findings": [asdict(finding) | {"numbers": _finite(finding.numbers)} for finding in self.findings],
        }


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinities."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def passed(what: str, **numbers: float) -> Outcome:
    """Nothing to do."""
    return Outcome("pass", what, numbers=numbers)


def note(what: str) -> Outcome:
    """What should be known of every run of this kind; there is nothing to do."""
    return Outcome("note", what)


def warning(what: str, advice: str, **numbers: float) -> Outcome:
    """A run is possible, and will not do what one may expect."""
    return Outcome("warning", what, advice, numbers)


def refusal(what: str, advice: str, **numbers: float) -> Outcome:
    """A run would fail, or mean nothing."""
    return Outcome("refuse", what, advice, numbers)


def not_applicable(why: str) -> Outcome:
    """There is nothing to look at; this is no pass."""
    return Outcome("not_applicable", why)
