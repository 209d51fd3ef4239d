"""Checks of vocabularies, tokenizers and chat templates. They need no weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from assay.data.encoding import encode
from assay.doctor.case import Case
from assay.doctor.findings import Outcome, not_applicable, passed, refusal, warning
from assay.doctor.sides import Side
from assay.errors import AssayError

TEXT_ONLY = (
    "exact divergences need one vocabulary: choose models that share a tokenizer, or distil on the teacher's text "
    "alone (divergence hard_labels)"
)


def vocabulary(case: Case) -> Outcome:
    """D001: output rows of the models and the tokenizer's ids, to which a run cuts every law."""
    ids = case.num_ids
    numbers = {f"{side.role}_rows": side.vocab_size for side in case.sides} | {"tokenizer_ids": ids}
    rows = " and ".join(f"the {side.role} predicts {side.vocab_size:,} tokens" for side in case.sides)
    what = f"{rows}, the tokenizer has {ids:,} ids"
    for side in case.sides:
        if side.vocab_size < ids:
            lacking = f"{what}: the {side.role} lacks {ids - side.vocab_size:,} of them"
            return refusal(lacking, TEXT_ONLY, **numbers)
    padded = [f"{side.vocab_size - ids:,} of the {side.role}" for side in case.sides if side.vocab_size > ids]
    if not padded:
        return passed(what, **numbers)
    return passed(
        f"{what}: rows of padding ({' and '.join(padded)}) are cut off both laws in a run, which are renormalised; "
        "weights on disk stay whole",
        **numbers,
    )


def shared_ids(case: Case) -> Outcome:
    """D002: both tokenizers have the same token at every id, and read every prompt and reference alike."""
    if case.teacher is None:
        return not_applicable(case.why_no_teacher)
    one, other = case.teacher.tokenizer, case.tokenizer
    if one is None:
        return refusal(
            "the teacher ships no tokenizer, so nothing proves that its ids are the student's",
            "put the files of the tokenizer that it was trained with into its folder",
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
    assert case.teacher is not None
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
    """D003: the token that ends responses in a run, in each config, generation config and tokenizer."""
    end, student = int(case.tokenizer.eos_token_id), case.student  # type: ignore[arg-type]
    for side in case.sides:
        if not side.eos_token_ids:
            return refusal(f"no config of the {side.role} states what ends a response", "set its eos_token_id")
    if end not in student.eos_token_ids:
        return refusal(
            f"the student's tokenizer ends a response with {student.token(end)}, its configs with {_listed(student)}: "
            "responses would not end where it stops",
            f"make eos_token of its tokenizer_config.json one of the configs', or add {end} to eos_token_id",
        )
    if case.teacher is not None:
        found = _end_of_the_teacher(case.teacher, student, end)
        if found is not None:
            return found
    for side in case.sides:
        stops = side.generation.get("eos_token_id")
        if stops is not None and end not in (stops if isinstance(stops, list) else [stops]):
            return warning(
                f"generation_config.json of the {side.role} leaves out {side.token(end)}: generate() runs on past the "
                "end that is taught",
                "add it to eos_token_id there",
            )
    both = "tokenizers and configs of both end" if case.teacher is not None else "tokenizer and configs end"
    return passed(f"{both} a response with {_listed(student)}")


def _end_of_the_teacher(teacher: Side, student: Side, end: int) -> Outcome | None:
    """What is wrong where the teacher ends its responses otherwise than a run, which goes by the student's tokenizer.

    None where it does not.
    """
    taught = min(teacher.eos_token_ids) if teacher.tokenizer is None else int(teacher.tokenizer.eos_token_id)  # type: ignore[arg-type]
    mend = (
        f"set eos_token_id to {taught} in the student's config.json and generation_config.json, and eos_token in its "
        "tokenizer_config.json"
    )
    if end not in teacher.eos_token_ids:
        return refusal(
            f"the student will never be taught to stop: the teacher ends with {_listed(teacher)}, the student's EOS is "
            f"{student.token(end)}, so it learns to write the one and runs on past it",
            mend,
        )
    if taught != end:
        return warning(
            f"the teacher's tokenizer ends a response with {teacher.token(taught)}, a run with the student's "
            f"{student.token(end)}: what the teacher writes after its own end is learnt too",
            mend,
        )
    if teacher.eos_token_ids != student.eos_token_ids:
        return warning(
            f"both end with {teacher.token(end)}, but the teacher stops at {_listed(teacher)} and the student at "
            f"{_listed(student)}: outside of assay one of them ends responses where the other goes on",
            "make eos_token_id of config.json and generation_config.json list the same tokens",
        )
    return None


def _listed(side: Side) -> str:
    return ", ".join(map(side.token, sorted(side.eos_token_ids)))


def beginning_and_padding(case: Case) -> Outcome:
    """D004: what each tokenizer puts before a prompt, and what it pads with."""
    pads = list(dict.fromkeys(map(_pad, case.sides)))
    what = f"pad: {' and '.join(pads)} (assay pads nothing that is scored; a trainer that masks this id in labels may "
    what += "mask the end)"
    if case.request.chat_template:
        return passed(f"BOS: what the chat template writes; {what}")
    ours, teacher = case.work.framing.before, case.teacher
    theirs = ours if teacher is None or teacher.tokenizer is None else teacher.framing(teacher.tokenizer).before
    if teacher is None or ours == theirs:
        return passed(f"BOS: {_named(case.student, ours)} before a prompt; {what}")
    return warning(
        f"BOS is added before prompts by one and not by the other: the teacher's tokenizer adds "
        f"{_named(teacher, theirs)}, the student's {_named(case.student, ours)}; a run uses the student's, so the "
        "teacher is asked otherwise than it was trained to be",
        "save the teacher's tokenizer beside the student, or make both tokenizers add the same",
    )


def _named(side: Side, token_ids: Sequence[int]) -> str:
    return " ".join(map(side.token, token_ids)) or "nothing"


def _pad(side: Side) -> str:
    pad = None if side.tokenizer is None else side.tokenizer.pad_token_id
    return "none" if pad is None else side.token(int(pad))  # type: ignore[arg-type]


def chat_template(case: Case) -> Outcome:
    """D005: whether the models were tuned for chats, for the same ones, and whether the prompts are rendered so."""
    templates = [side.chat_template for side in case.sides]
    if not any(templates):
        return passed("no model has a chat template: prompts are plain text to them")
    hashes = [f"the {side.role}'s chat template is {_template_hash(side.chat_template)}" for side in case.sides]
    what = ", ".join(hashes)
    if not case.request.chat_template:
        return warning(
            f"{what}, but prompts are fed as plain text: a model that was tuned for chats answers another question",
            "give --chat-template, or take models that were not tuned for chats",
        )
    teacher, student = case.teacher, case.student.chat_template
    if student is None:
        return warning(
            f"{what}: the student was never shown the teacher's turns, and its first distance is large",
            "expect more steps; the teacher's template is saved with the distilled student",
        )
    if teacher is None or teacher.tokenizer is None or teacher.chat_template == student:
        return passed(what)
    if teacher.chat_template is None:
        return warning(
            f"{what}: the teacher was never shown the student's turns",
            "give the teacher the template that it was tuned with, or leave --chat-template out",
        )
    theirs = [case.render(row.said, teacher.tokenizer) for row in case.rows]
    unlike = [i for i, rendered in enumerate(case.rendered) if rendered != theirs[i]]
    if not unlike:
        return passed(f"{what}; all {len(case.rows):,} prompts are rendered alike", unlike_prompts=0)
    return warning(
        f"{what}: {len(unlike):,} of {len(case.rows):,} prompts are rendered otherwise (line "
        f"{case.rows[unlike[0]].line}: {_short(theirs[unlike[0]])} and {_short(case.rendered[unlike[0]])}); a run uses "
        "the student's, so the teacher is shown turns that it was not tuned on",
        "save the teacher's chat template beside the student, or choose a pair of one family",
        unlike_prompts=len(unlike),
    )


def end_of_turn(case: Case) -> Outcome:
    """D024: the special token that the chat template writes after an answer is the one that ends responses."""
    chat, end = case.encoder.chat, case.tokenizer.eos_token
    if chat is None:
        return not_applicable("prompts are plain text, not turns of a chat")
    try:
        after = chat.after_answer()
    except AssayError as error:
        return not_applicable(str(error))
    ids = case.tokenizer.encode(after, add_special_tokens=False)
    marks = [token_id for token_id in ids if token_id in case.encoder.control_ids]
    if not marks:
        return passed(f"the chat template writes no special token after an answer; a run ends responses at {end}")
    turn = str(case.tokenizer.convert_ids_to_tokens(marks[0]))
    if marks[0] == case.tokenizer.eos_token_id:
        return passed(f"the chat template ends an answer with {turn}, as a run does")
    return warning(
        f"responses of the chat template end with {turn}, but the run ends them at {end}: past {turn} a tuned model "
        "goes on with what no turn holds, up to the limit, and the student learns it",
        f"set eos_token in the student's tokenizer_config.json to {turn}, and eos_token_id in the models' configs to "
        f"{marks[0]} or a list with it",
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
