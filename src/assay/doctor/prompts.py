"""Checks of the prompts and references: lengths, leaks, repetitions. They need no weights."""

from __future__ import annotations

from collections import Counter

from assay.data.splitting import LONG_REFERENCE, NEAR_DUPLICATE, loose_key, near_duplicates
from assay.doctor.case import Case
from assay.doctor.findings import Outcome, not_applicable, passed, refusal, warning

TOLERATED_SHARE = 0.01
"""Of prompts that are dropped, cut or nearly repeated, without a warning."""
FEWEST_HELD_OUT = 16
"""Prompts that a probe needs."""


def lengths(case: Case) -> Outcome:
    """D009: prompts and responses against the limits and both contexts."""
    limit, response = case.request.max_prompt_tokens, case.request.max_response_tokens
    num, kept = len(case.rows), case.kept
    beyond = [i for i in kept if not case.fits(i)]
    references = [row.reference for row in case.rows if row.reference is not None]
    cut = sum(len(case.reference_ids(text)) > response for text in references)
    numbers = {
        "longest_prompt_tokens": max(map(len, case.all_prompt_ids)),
        "dropped": num - len(kept),
        "beyond_context": len(beyond),
        "cut_references": cut,
    }
    contexts = " and ".join(f"{side.role} {side.context_tokens or 'unbounded'}" for side in case.sides)
    what = (
        f"prompts have up to {numbers['longest_prompt_tokens']:,} tokens, responses up to {response:,}, the contexts: "
        f"{contexts}; {numbers['dropped']:,} of {num:,} prompts are dropped as longer than {limit or 'any limit'}, "
        f"{cut:,} of {len(references):,} references are cut"
    )
    if beyond:
        fitting = max((len(case.all_prompt_ids[i]) for i in kept if case.fits(i)), default=0)
        return refusal(
            f"{what}, {len(beyond):,} kept prompts with a response are beyond a context",
            f"set --max-prompt-tokens to {fitting}" if fitting else "lower --max-response-tokens",
            **numbers,
        )
    if not kept:
        return refusal(what, "raise --max-prompt-tokens", **numbers)
    if numbers["dropped"] > TOLERATED_SHARE * num or cut > TOLERATED_SHARE * len(references):
        return warning(what, "raise --max-prompt-tokens or --max-response-tokens, or accept the loss", **numbers)
    return passed(what, **numbers)


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
        "take the answers out of these prompts, or leave --reference out",
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
    """D013: prompts in each split."""
    counts = Counter(case.splits)
    held_out = sum(count for split, count in counts.items() if split.lower() not in ("oracle", "distillation", "train"))
    rest = len(case.rows) - held_out
    what = "prompts per split: " + ", ".join(f"{split} {count:,}" for split, count in sorted(counts.items()))
    if held_out < FEWEST_HELD_OUT or rest == 0:
        return warning(
            f"{what}; a probe needs {FEWEST_HELD_OUT} held-out prompts or more, and training some of its own",
            "add prompts",
            held_out=held_out,
        )
    return passed(what, held_out=held_out)
