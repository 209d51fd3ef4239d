"""Checks of the prompts and references: lengths, leaks, repetitions. They need no weights."""

from __future__ import annotations

import math
from collections import Counter

from assay.data.splitting import LONG_REFERENCE, NEAR_DUPLICATE, loose_key, near_duplicates
from assay.doctor.case import Case
from assay.doctor.findings import Outcome, not_applicable, passed, refusal, warning
from assay.doctor.sides import Side
from assay.recipes.own import FEWEST_HELD_OUT

TOLERATED_SHARE = 0.01
"""Of prompts that are dropped, cut or nearly repeated, without a warning."""
FEWEST_TRAINED = 2


def lengths(case: Case) -> Outcome:
    """D009: the limits against the contexts, as a run holds them, and prompts and references against the limits."""
    limit, response = case.request.max_prompt_tokens, case.request.max_response_tokens
    num, kept = len(case.rows), case.kept
    references = [row.reference for row in case.rows if row.reference is not None]
    cut = sum(len(case.reference_ids(text)) > response for text in references)
    numbers = {
        "longest_prompt_tokens": max(map(len, case.all_prompt_ids)),
        "dropped": num - len(kept),
        "cut_references": cut,
    }
    contexts = ", ".join(f"{side.role} {side.context_tokens or 'unbounded'}" for side in case.sides)
    what = (
        f"prompts have up to {numbers['longest_prompt_tokens']:,} tokens, responses up to {response:,}, the contexts: "
        f"{contexts}; {numbers['dropped']:,} of {num:,} prompts are dropped as longer than {limit}, "
        f"{cut:,} of {len(references):,} references are cut"
    )
    room = min(_room(side, response) for side in case.sides)
    if room < limit:
        return refusal(
            f"{what}, and {limit} + {response} tokens are beyond a context",
            f"set --max-prompt-tokens to {room}" if room > 0 else "lower --max-response-tokens",
            **numbers,
        )
    if not kept:
        return refusal(what, "raise --max-prompt-tokens", **numbers)
    if numbers["dropped"] > TOLERATED_SHARE * num or cut > TOLERATED_SHARE * len(references):
        return warning(what, "raise --max-prompt-tokens or --max-response-tokens, or accept the loss", **numbers)
    return passed(what, **numbers)


def _room(side: Side, response_tokens: int) -> float:
    """Tokens that a context leaves for a prompt; an encoder-decoder model has one context for each of the two."""
    if side.context_tokens is None:
        return math.inf
    if side.config.is_encoder_decoder:
        return side.context_tokens if response_tokens <= side.context_tokens else 0
    return side.context_tokens - response_tokens


def leaked_references(case: Case) -> Outcome:
    """D010: references whose text is in their prompt, up to case, spaces and punctuation."""
    pairs = [(row, loose_key(row.reference)) for row in case.rows if row.reference is not None]
    if not pairs:
        return not_applicable("the prompts have no references")
    leaked = [row for row, key in pairs if len(key) >= LONG_REFERENCE and f" {key} " in f" {loose_key(row.text)} "]
    if not leaked:
        return passed(f"none of {len(pairs):,} references is contained in its prompt", leaked=0)
    shown = ", ".join(f"line {row.line}" for row in leaked[:3])
    return warning(
        f"{len(leaked):,} of {len(pairs):,} references are contained in their prompts ({shown}): their likelihood "
        "measures copying, not answering",
        "take the answers out of these prompts, or leave --references out",
        leaked=len(leaked),
    )


def repeated_prompts(case: Case) -> Outcome:
    """D011: held-out prompts that are distillation prompts, up to case, spaces and punctuation."""
    splits_of: dict[str, set[str]] = {}
    first_line: dict[str, int] = {}
    for row, split in zip(case.rows, case.splits, strict=True):
        key = loose_key(row.text)
        splits_of.setdefault(key, set()).add(split)
        first_line.setdefault(key, row.line)
    num_repeated = len(case.rows) - len(splits_of)
    across = [key for key, splits in splits_of.items() if len(splits) > 1]
    if across:
        key = across[0]
        return refusal(
            f"{len(across):,} prompts stand in more than one split (such as line {first_line[key]}, in "
            f"{' and '.join(sorted(splits_of[key]))}): what is called held out is trained on",
            "take them out of one split, or leave the splitting to assay (no column split, no --held-out)",
            across_splits=len(across),
            repeated=num_repeated,
        )
    whose = "your" if case.own_splits else "assay's"
    return passed(
        f"no prompt stands in two of {whose} splits; {num_repeated:,} repeat an earlier one of their own split",
        across_splits=0,
        repeated=num_repeated,
    )


def near_duplicate_prompts(case: Case) -> Outcome:
    """D012: prompts that nearly repeat one of another split."""
    pairs = near_duplicates([row.text for row in case.rows], case.splits)
    num, share = len(pairs), len(pairs) / len(case.rows)
    what = (
        f"{num:,} of {len(case.rows):,} prompts ({share:.1%}) share at least {NEAR_DUPLICATE:.0%} of their words with "
        "one of another split"
    )
    if share <= TOLERATED_SHARE:
        return passed(what, near_duplicates=num)
    one, other = (f"{case.rows[i].line} ({case.splits[i]})" for i in pairs[0])
    return warning(
        f"{what} (such as lines {other} and {one}): held-out values will look better than on new prompts",
        "give rows that belong together one 'group', or take them out",
        near_duplicates=num,
    )


def enough_prompts(case: Case) -> Outcome:
    """D013: prompts in each split that are not too long."""
    counts = Counter(case.splits[i] for i in case.kept)
    held_out, trained = counts["held_out"], counts["distillation"]
    what = f"prompts that fit: {trained:,} to distil on, {held_out:,} held out"
    if held_out < FEWEST_HELD_OUT or trained < FEWEST_TRAINED:
        return refusal(
            f"{what}; a run needs {FEWEST_TRAINED} and {FEWEST_HELD_OUT}",
            "add prompts, or raise --max-prompt-tokens",
            held_out=held_out,
        )
    return passed(what, held_out=held_out)
