"""Checks of a teacher behind a server. They ask it a few questions."""

from __future__ import annotations

from assay.doctor.case import Case
from assay.doctor.findings import Outcome, not_applicable, passed, refusal, warning
from assay.errors import AssayError

FEWEST_MASS = 0.9
"""Mass of the listed tokens, on average, below which most of what a divergence compares is one bucket."""
SCORED_SEQUENCES = 4


def server(case: Case) -> Outcome:
    """D027: the server answers, has the model, the student's tokenizer and the context, as a run asks at its start."""
    if not case.is_served:
        return not_applicable("the teacher is not served")
    request = case.request
    try:
        served = case.served
        served.check_lengths(request.max_prompt_tokens, request.max_response_tokens)
    except AssayError as error:
        return refusal(f"the served teacher cannot be used: {error}", "mend the server or the flag that it names")
    context = "not stated" if served.max_context_tokens is None else f"{served.max_context_tokens:,} tokens"
    return passed(
        f"{served.name} is there, has the student's tokenizer and scores given tokens; its context: {context}",
        listed_tokens=served.num_top,
    )


def captured_mass(case: Case) -> Outcome:
    """D028: the probability of the tokens that the server lists, along a few of its own responses."""
    if not case.is_served:
        return not_applicable("the teacher is not served")
    try:
        pairs = case.teacher_pairs
        signal = case.served.top_k(pairs[: min(SCORED_SEQUENCES, len(pairs))])
    except AssayError as error:
        return refusal(f"the served teacher does not sample or score: {error}", "mend the server as said")
    mass = signal.log_p_NK.double().exp().sum(dim=1).mean().item()
    what = f"the {case.served.num_top} tokens that the server lists hold {mass:.1%} of its law on average"
    if mass < FEWEST_MASS:
        return warning(
            f"{what}: the rest is one bucket, and the distance is a loose lower bound",
            "raise models.server.top_k (and the server's --max-logprobs)",
            captured_mass=mass,
        )
    return passed(what, captured_mass=mass)
