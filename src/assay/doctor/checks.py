"""The checks in the order of asking: one function each, with a code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from assay.doctor import behaviour, cost, prompts, serving, settings, text_only, tokens
from assay.doctor.case import Case
from assay.doctor.findings import Outcome


@dataclass(frozen=True)
class Check:
    """A question about a pair; ``needs_weights``: it runs the models, and comes after all those that do not.

    Codes are in the order in which checks were written.
    """

    code: str
    name: str
    examine: Callable[[Case], Outcome]
    needs_weights: bool = False


LENGTHS = "D009"
LOADING = "D016"
SAMPLING = "D028"
"""What the other checks of behaviour rest on: prompts that fit, models that run, a server that samples."""
CHECKS: dict[str, Check] = {
    check.code: check
    for check in (
        Check("D001", "vocabulary", tokens.vocabulary),
        Check("D002", "shared ids", tokens.shared_ids),
        Check("D003", "end of sequence", tokens.end_of_sequence),
        Check("D004", "beginning and padding", tokens.beginning_and_padding),
        Check("D005", "chat template", tokens.chat_template),
        Check("D006", "special tokens in prompts", tokens.special_tokens),
        Check("D007", "soft cap", settings.soft_cap),
        Check("D008", "dropout", settings.dropout),
        Check(LENGTHS, "lengths", prompts.lengths),
        Check("D010", "leaked references", prompts.leaked_references),
        Check("D011", "repeated prompts", prompts.repeated_prompts),
        Check("D012", "near-duplicates", prompts.near_duplicate_prompts),
        Check("D013", "number of prompts", prompts.enough_prompts),
        Check("D014", "memory", cost.memory),
        Check("D015", "disk", cost.disk),
        Check("D024", "end of a turn", tokens.end_of_turn),
        Check("D025", "responses of the teacher", text_only.given_responses),
        Check("D026", "what text cannot tell", text_only.limits_of_text),
        Check("D027", "served teacher", serving.server),
        Check(LOADING, "runs in assay", behaviour.runs_in_assay, needs_weights=True),
        Check(SAMPLING, "mass that is listed", serving.captured_mass, needs_weights=True),
        Check("D017", "mass on padded rows", behaviour.padding_mass, needs_weights=True),
        Check("D018", "labels in place", behaviour.labels_in_place, needs_weights=True),
        Check("D019", "student is itself", behaviour.student_is_itself, needs_weights=True),
        Check("D020", "teacher better than student", behaviour.better_teacher, needs_weights=True),
        Check("D021", "first distance", behaviour.first_distance, needs_weights=True),
        Check("D022", "response lengths", behaviour.response_lengths, needs_weights=True),
        Check("D023", "time", cost.run_time, needs_weights=True),
    )
}
