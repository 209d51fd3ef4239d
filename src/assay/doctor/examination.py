"""``assay doctor``: from a pair of models and a file of prompts to all findings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from assay.doctor.case import Case, Request, read_case
from assay.doctor.checks import CHECKS, LENGTHS, LOADING, SAMPLING, Check
from assay.doctor.findings import Examination, Finding, Outcome, not_applicable
from assay.models.loading import check_device
from assay.validation import check_server_url

Weights = Literal["auto", "always", "never"]
"""Whether weights are loaded: "auto" unless a check that needs none of them refuses."""


def examine(request: Request, weights: Weights = "auto", say: Callable[[str], None] = lambda line: None) -> Examination:
    """Every check in its order; ``say`` hears what takes time.

    Raises AssayError for a model or a file of prompts that cannot be read.
    """
    check_device(request.device)
    if request.teacher is not None and "://" in request.teacher:
        check_server_url(request.teacher)  # a secret in it would be shown with every finding
    case = read_case(request)
    findings: list[Finding] = []
    for check in CHECKS.values():
        why_not = _why_not_measured(case, check, findings, weights) if check.needs_weights else None
        if check.code == LOADING and why_not is None:
            say("loading the models and trying them on a few prompts")
        outcome = check.examine(case) if why_not is None else not_applicable(f"not measured: {why_not}")
        findings.append(_finding(check, outcome))
    return Examination(request.teacher, request.student, str(request.prompts), tuple(findings))


def _finding(check: Check, outcome: Outcome) -> Finding:
    return Finding(check.code, check.name, outcome.status, outcome.what, outcome.advice, outcome.numbers)


def _why_not_measured(case: Case, check: Check, findings: list[Finding], weights: Weights) -> str | None:
    """Why a check that needs weights has nothing to go by; None where it can run."""
    if weights == "never":
        return "weights are not asked for"
    refused = [
        finding.code for finding in findings if finding.status == "refuse" and not CHECKS[finding.code].needs_weights
    ]
    if refused and weights == "auto":
        return f"{' and '.join(refused)} refuse, so no weights are loaded (--weights always loads them all the same)"
    if check.code == LOADING:
        return None
    if any(finding.code == LOADING and finding.status != "pass" for finding in findings):
        return "the models do not run"
    if any(finding.code == SAMPLING and finding.status == "refuse" for finding in findings):
        return "the server gives no responses"
    if not case.measured or any(finding.code == LENGTHS and finding.status == "refuse" for finding in findings):
        return "prompts and responses do not fit"
    return None
