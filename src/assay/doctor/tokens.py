"""Checks of vocabularies, tokenizers and chat templates. They need no weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from assay.data.encoding import encode
from assay.doctor.case import Case
from assay.doctor.findings import Outcome, not_applicable, passed, refusal, warning
from assay.doctor.sides import Side

TEXT_ONLY = (
    "exact divergences need one vocabulary: choose models that share a tokenizer, or distil on the teacher's text "
    "alone (divergence hard_labels)"
)


def vocabulary(case: Case) -> Outcome:
    """D001: output rows of both models and the tokenizer's ids; which rule of models.vocabulary serves."""
    teacher, student, ids = case.teacher.vocab_size, case.student.vocab_size, case.num_ids
    numbers = {"teacher_rows": teacher, "student_rows": student, "tokenizer_ids": ids}
    what = f"the teacher predicts {teacher:,} tokens, the student {student:,}, the tokenizer has {ids:,} ids"
    for side in case.sides:
        if side.vocab_size < ids:
            lacking = f"{what}: the {side.role} lacks {ids - side.vocab_size:,} of them"
            return refusal(lacking, TEXT_ONLY, **numbers)
    if teacher == student:
        padded = f"; both pad their output with {teacher - ids:,} rows" if teacher > ids else ""
        return passed(f'{what}: rule "same"{padded}', **numbers)
    return warning(
        f'{what}: {teacher - ids:,} and {student - ids:,} rows are padding, so only rule "shared" can compare them',
        f'set models.vocabulary to "shared": both laws are cut to the {ids:,} ids and renormalised, weights on disk '
        "stay whole",
        **numbers,
    )


def shared_ids(case: Case) -> Outcome:
    """D002: both tokenizers have the same token at every id, and read every prompt and reference alike."""
    one, other = case.teacher.tokenizer, case.student.tokenizer
    if one is None or other is None:
        role = "teacher" if one is None else "student"
        return warning(
            f"the {role} ships no tokenizer: that it was trained with the other's is taken on trust",
            f"put the tokenizer's files into the {role}'s folder to have them compared",
        )
    ours, theirs = _tokens_by_id(one), _tokens_by_id(other)
    differing = [i for i in sorted(ours | theirs) if ours.get(i) != theirs.get(i)]
    unlike = [i for i, text in enumerate(case.rendered) if case.encode(text, one) != case.encode(text, other)]
    references = [row.reference for row in case.rows if row.reference is not None]
    unlike_references = [text for text in references if encode(one, f" {text}") != encode(other, f" {text}")]
    numbers = {
        "differing_ids": len(differing),
        "unlike_prompts": len(unlike),
        "unlike_references": len(unlike_references),
    }
    if not any(numbers.values()):
        return passed(
            f"both tokenizers have the same {len(ours):,} tokens and give the same ids on {len(case.rows):,} prompts"
            f" and {len(references):,} references",
            **numbers,
        )
    examples = [f"id {i} is {ours.get(i)!r} and {theirs.get(i)!r}" for i in differing[:1]]
    examples += [f"the prompt of line {case.rows[i].line}" for i in unlike[:1]]
    what = (
        f"{len(differing):,} ids are other tokens, {len(unlike):,} of {len(case.rows):,} prompts and "
        f"{len(unlike_references):,} of {len(references):,} references have other ids (such as {', '.join(examples)})"
    )
    return refusal(what, _way_out(case, ours, theirs), **numbers)


def _way_out(case: Case, ours: dict[int, str], theirs: dict[int, str]) -> str:
    """One tokenizer may lack only tokens for which its model has output rows."""
    for side, its, others in ((case.student, theirs, ours), (case.teacher, ours, theirs)):
        if its.items() < others.items() and max(others) < side.vocab_size:
            return (
                f"the {side.role} has output rows for the tokens that its tokenizer lacks: give it the other's "
                "tokenizer files; its rows for them may never have been trained"
            )
    return TEXT_ONLY


def _tokens_by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {token_id: token for token, token_id in tokenizer.get_vocab().items()}


def end_of_sequence(case: Case) -> Outcome:
    """D003: the tokens that end a response, in each config, generation config and tokenizer."""
    for side in case.sides:
        if not side.eos_token_ids:
            return refusal(f"no config of the {side.role} states what ends a response", "set its eos_token_id")
        if side.tokenizer is not None and side.tokenizer.eos_token_id not in side.eos_token_ids:
            return refusal(
                f"the {side.role}'s tokenizer ends a response with {side.token(_eos(side))}, its configs with "
                f"{_listed(side)}: responses would not end where it stops",
                f"make eos_token of its tokenizer_config.json one of the configs', or add {_eos(side)} to eos_token_id",
            )
    taught, own = _eos(case.teacher), _eos(case.student)
    if taught != own:
        return refusal(
            f"the student will never be taught to stop: the teacher ends with {case.teacher.token(taught)}, the "
            f"student's EOS is {case.student.token(own)}, so it learns to write the one and runs on past it",
            f"set eos_token_id to {taught} in the student's config.json and generation_config.json, and eos_token in "
            "its tokenizer_config.json",
        )
    if case.teacher.eos_token_ids != case.student.eos_token_ids:
        return warning(
            f"both end with {case.teacher.token(taught)}, but the teacher stops at {_listed(case.teacher)} and the "
            f"student at {_listed(case.student)}: outside of assay one of them ends responses where the other goes on",
            "make eos_token_id of config.json and generation_config.json list the same tokens",
        )
    for side in case.sides:
        stops = side.generation.get("eos_token_id")
        if stops is not None and _eos(side) not in (stops if isinstance(stops, list) else [stops]):
            return warning(
                f"generation_config.json of the {side.role} leaves out {side.token(_eos(side))}: generate() runs on "
                "past the end that is taught",
                "add it to eos_token_id there",
            )
    return passed(f"tokenizers and configs of both end a response with {_listed(case.teacher)}")


def _eos(side: Side) -> int:
    """The token that ends the responses of a side: its tokenizer's, else the first that its configs state."""
    own = None if side.tokenizer is None else side.tokenizer.eos_token_id
    return min(side.eos_token_ids) if own is None else int(own)  # type: ignore[arg-type]


def _listed(side: Side) -> str:
    return ", ".join(map(side.token, sorted(side.eos_token_ids)))


def beginning_and_padding(case: Case) -> Outcome:
    """D004: what each tokenizer puts before a prompt, and what it pads with."""
    added = [() if side.tokenizer is None else side.framing(side.tokenizer).before for side in case.sides]
    pads = [_pad(side) for side in case.sides]
    what = f"pad: {' and '.join(pads)}" if pads[0] != pads[1] else f"pad: {pads[0]}, in both"
    what += " (assay pads nothing that is scored; a trainer that masks this id in labels may mask the end)"
    if case.request.chat_template:
        return passed(f"BOS: what the chat template writes; {what}")
    if added[0] == added[1] or None in (case.teacher.tokenizer, case.student.tokenizer):
        return passed(f"BOS: {_named(case.teacher, added[0])} before a prompt, by both tokenizers; {what}")
    return warning(
        f"BOS is added before prompts by one and not by the other: the teacher's tokenizer adds "
        f"{_named(case.teacher, added[0])}, the student's {_named(case.student, added[1])}; a run uses the teacher's, "
        "so the student is trained on beginnings that its own tokenizer will not give it",
        "save the teacher's tokenizer with the distilled student, or make both tokenizers add the same",
    )


def _named(side: Side, token_ids: Sequence[int]) -> str:
    return " ".join(map(side.token, token_ids)) or "nothing"


def _pad(side: Side) -> str:
    pad = None if side.tokenizer is None else side.tokenizer.pad_token_id
    return "none" if pad is None else side.token(int(pad))  # type: ignore[arg-type]


def chat_template(case: Case) -> Outcome:
    """D005: whether the models were tuned for chats, for the same ones, and whether the prompts are rendered so."""
    teacher, student = case.teacher.chat_template, case.student.chat_template
    hashes = [_template_hash(template) for template in (teacher, student)]
    if teacher is None and student is None:
        return passed("neither model has a chat template: prompts are plain text to both")
    what = f"the teacher's chat template is {hashes[0]}, the student's {hashes[1]}"
    if not case.request.chat_template:
        return warning(
            f"{what}, but prompts are fed as plain text: a model that was tuned for chats answers another question",
            "give --chat-template, or take models that were not tuned for chats",
        )
    if case.student.tokenizer is None or student is None:
        return warning(
            f"{what}: the student was never shown the teacher's turns, and its first distance is large",
            "save the teacher's tokenizer with the distilled student, and expect more steps",
        )
    if teacher == student:
        return passed(f"both have the chat template {hashes[0]}")
    unlike = [
        i
        for i, rendered in enumerate(case.rendered)
        if rendered != case.render(case.rows[i].said, case.student.tokenizer)
    ]
    if not unlike:
        return passed(f"{what}; all {len(case.rows):,} prompts are rendered alike", unlike_prompts=0)
    example = case.render(case.rows[unlike[0]].said, case.student.tokenizer)
    return warning(
        f"{what}: {len(unlike):,} of {len(case.rows):,} prompts are rendered otherwise (line "
        f"{case.rows[unlike[0]].line}: {_short(case.rendered[unlike[0]])} and {_short(example)}); a run uses the "
        "teacher's, so the student is trained on turns that its own template will not write",
        "save the teacher's chat template with the distilled student, or choose a pair of one family",
        unlike_prompts=len(unlike),
    )


def special_tokens(case: Case) -> Outcome:
    """D006: prompts that already hold special tokens, as if a template had rendered them."""
    special = sorted(
        {
            token.content
            for side in case.sides
            if side.tokenizer is not None
            for token in side.tokenizer.added_tokens_decoder.values()
            if token.special
        }
    )
    if not special:
        return not_applicable("the tokenizers have no special tokens")
    found = [(row.line, token) for row in case.rows for token in special if token in row.text]
    lines = {line for line, _ in found}
    if not found:
        return passed(f"no prompt holds one of the {len(special)} special tokens", prompts=0)
    what = f"{len(lines):,} of {len(case.rows):,} prompts hold special tokens (line {found[0][0]}: {found[0][1]})"
    if case.request.chat_template:
        return warning(
            f"{what}: they are spelt out as text inside the template's own turns, not read as tokens",
            "give the messages' text alone",
            prompts=len(lines),
        )
    return warning(
        f"{what}: in plain prompts they are spelt out as text, not read as tokens",
        "give the text alone, and --chat-template",
        prompts=len(lines),
    )


def _template_hash(template: str | None) -> str:
    return "absent" if template is None else hashlib.sha256(template.encode()).hexdigest()[:8]


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
