"""Checks of a teacher that gives text only: the responses in a column of the prompts' file. They need no weights."""

from __future__ import annotations

from assay.data.splitting import loose_key
from assay.doctor.behaviour import MANY_CUT
from assay.doctor.case import Case
from assay.doctor.findings import Outcome, not_applicable, note, passed, warning

MANY_ALIKE = 0.1
"""Share of responses that another prompt has, word for word."""
MANY_IDLE = 0.01
"""Share of responses that say nothing, or their prompt again."""


def given_responses(case: Case) -> Outcome:
    """D025: how many responses a prompt has; those that are cut, alike, without a word, or their prompt again."""
    if case.request.responses is None:
        return not_applicable("the teacher's responses are no column of the prompts' file")
    eos, per_prompt = case.tokenizer.eos_token_id, [len(case.rows[i].responses) for i in case.kept]
    texts = [(i, text) for i in case.kept for text in case.rows[i].responses]
    if not texts:
        return not_applicable("no prompt is kept")
    keys = [loose_key(text) for _, text in texts]
    cut = sum(ids[-1] != eos for i in case.kept for ids in case.given_ids[i]) / len(texts)
    alike = 1 - len(set(keys)) / len(texts)
    wordless = [i for i, text in texts if not any(map(str.isalnum, text))]
    repeating = [i for (i, _), key in zip(texts, keys, strict=True) if key in _said(case, i)]
    what = (
        f"{len(texts):,} responses, {min(per_prompt)} to {max(per_prompt)} to a prompt (a run takes {min(per_prompt)} "
        f"of each); {cut:.0%} are cut at {case.request.max_response_tokens} tokens, {alike:.0%} repeat another one, "
        f"{len(wordless)} hold no letter or digit, {len(repeating)} are their prompt again"
    )
    numbers = {
        "fewest_responses": min(per_prompt),
        "most_responses": max(per_prompt),
        "cut_share": cut,
        "alike_share": alike,
        "wordless": len(wordless),
        "repeating": len(repeating),
    }
    idle = sorted({case.rows[i].line for i in (*wordless, *repeating)})
    if len(wordless) + len(repeating) > MANY_IDLE * len(texts):
        shown = ", ".join(f"line {line}" for line in idle[:3])
        return warning(f"{what} (such as {shown}): the student learns them too", "take them out", **numbers)
    if cut > MANY_CUT:
        return warning(
            f"{what}: the student is rarely shown how a response ends", "raise --max-response-tokens", **numbers
        )
    if alike > MANY_ALIKE:
        return warning(
            f"{what}: one answer to many prompts teaches to leave the prompt unread",
            "look whether these are refusals or errors of the teacher's service, and take them out",
            **numbers,
        )
    return passed(what, **numbers)


def _said(case: Case, i: int) -> tuple[str, ...]:
    """What a response would merely repeat: the prompt, or the last message of a conversation."""
    said = case.rows[i].said
    return (loose_key(case.rows[i].text),) if isinstance(said, str) else (loose_key(said[-1].content),)


def limits_of_text(case: Case) -> Outcome:
    """D026: what no run of such a teacher can know, and what its verdict rests on."""
    if case.request.responses is None:
        return not_applicable("the teacher gives more than text")
    held_out = [case.rows[i] for i in case.kept if case.splits[i] == "held_out"]
    num_references = sum(row.reference is not None for row in held_out)
    rests_on = (
        f"the verdict, and an alarm that stops the run, rest on {num_references:,} held-out references"
        if num_references
        else "without held-out references there is no alarm, and the verdict is undecided"
    )
    return note(
        "with text alone the distance to the teacher's law is known up to a constant only; no fresh responses can be "
        "had; hard labels are the only loss; and the detector's stated error rates were measured on runs with the "
        f"exact proxy, so that {rests_on}"
    )
