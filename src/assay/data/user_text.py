"""A user's own text: prompts from the checked rows of a file, split without leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.data.chat import Conversation
from assay.data.splitting import (
    SHARES,
    Split,
    assign_splits,
    joined_groups,
    loose_key,
    near_duplicates,
    row_keys,
    without_oracle,
)
from assay.data.user_rows import REFERENCE, UserRow, is_unicode, read_rows, refuse
from assay.errors import AssayError, unknown_name
from assay.validation import template_columns

DEFAULT_TEMPLATE = "{prompt}"
OWN_SPLITS: dict[str, Split] = {
    "distillation": "distillation",
    "train": "distillation",
    "held_out": "held_out",
    "validation": "held_out",
    "test": "held_out",
}
"""What a file may call its own splits, in a run without an oracle."""
SHOWN_EXAMPLES = 5


@dataclass(frozen=True)
class SplitText:
    """The rows of a user's file that remain, each with its split, and what was found on the way.

    ``rows`` hold ``id``, ``prompt_text`` (the template filled, or the messages), ``content`` (the columns that it
    shows, or the messages without their roles, by which prompts are compared), ``conversation`` (None for a text),
    ``reference`` (None without one), ``responses``, ``group``, ``line`` (from 1) and ``split``. ``duplicates`` are
    pairs of lines: the one left out and the one kept.
    """

    rows: list[dict[str, Any]]
    num_read: int
    duplicates: list[tuple[int, int]]
    num_groups: int
    largest_group: int


@dataclass(frozen=True)
class LeakageReport:
    """What the splits of a user's file share, and how large they are.

    ``near_duplicates`` counts, per split, the rows that nearly repeat a row of a split before it (oracle,
    distillation, held_out); ``examples`` are a few of them: Jaccard index and the two prompts.
    """

    path: str
    num_read: int
    duplicates: list[tuple[int, int]]
    num_groups: int
    largest_group: int
    num_references: int
    rows_per_split: dict[str, int]
    near_duplicates: dict[str, int]
    examples: list[tuple[str, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as text, a fact a line."""
        kept = self.num_read - len(self.duplicates)
        shown = ", ".join(f"line {left} repeats line {kept}" for left, kept in self.duplicates[:SHOWN_EXAMPLES])
        near = sum(self.near_duplicates.values())
        per_split = ", ".join(f"{count} in {split}" for split, count in self.near_duplicates.items() if count)
        return [
            f"{self.path}: {self.num_read} rows, {self.num_references} of the {kept} kept have a reference",
            f"exact duplicates left out: {len(self.duplicates)}" + (f" ({shown})" if shown else ""),
            f"groups that stay together: {self.num_groups}, the largest of {self.largest_group} rows",
            *(f"{split}: {count} rows" for split, count in self.rows_per_split.items()),
            f"near-duplicates across splits: {near} rows ({near / kept:.1%})" + (f", {per_split}" if near else ""),
            *(f"  {_short(one)}  ~  {_short(other)}" for one, other in self.examples),
            *self._sizes(),
        ]

    def _sizes(self) -> Iterator[str]:
        sizes = self.rows_per_split
        stage_one = f"--stage-one.num-oracle-prompts {sizes['oracle']} " if "oracle" in sizes else ""
        if not all(sizes.values()):
            empty = next(split for split, count in sizes.items() if not count)
            yield f"too few groups for an experiment: no row fell into {empty}; add rows"
            return
        yield (
            f"possible at most: {stage_one}--distillation.num-prompts "
            f"{sizes['distillation']} --probe.num-prompts {sizes['held_out']} (less the prompts of more than "
            "task.max_prompt_tokens tokens)"
        )
        if sizes["held_out"] < 16:
            yield "a probe needs 16 held-out prompts or more: add rows"


def read_split(
    path: Path,
    template: str | None,
    reference: str = REFERENCE,
    responses: str | None = None,
    with_oracle: bool = True,
) -> SplitText:
    """The rows of a file with their splits; exact duplicates of prompt and answers are left out, the first kept.

    Rows that share a group, a prompt, or (without a group) a long reference are of one split. Without an oracle there
    is no split for it: its rows are distilled on, and the file may say in a column ``split`` where each row belongs.
    Raises AssayError for lines that cannot be used, for a template that cannot be filled, when more than half of
    the rows chain into one group, and when the file's own splits part a group.
    """
    rows = read_rows(path, reference, responses)
    numbered = _prompts(path, rows, template, {REFERENCE, "split", reference, responses})
    own = _own_splits(path, rows, numbered, with_oracle)
    kept: list[dict[str, Any]] = []
    first_line: dict[tuple[str, str | None, tuple[str, ...]], int] = {}
    duplicates: list[tuple[int, int]] = []
    for row in numbered:
        answer = None if row["reference"] is None else loose_key(row["reference"])
        key = (loose_key(row["content"]), answer, tuple(map(loose_key, row["responses"])))
        if key in first_line:
            duplicates.append((row["line"], first_line[key]))
        else:
            first_line[key] = row["line"]
            kept.append(row)
    splits, groups = assign_splits(_keys(kept))
    sizes = Counter(groups)
    largest = max(sizes.values())
    if own is not None:
        splits: list[Split] = [own[row["line"]] for row in kept]
    elif largest > 1 and largest > len(kept) / 2:
        example = next(row for row, group in zip(kept, groups, strict=True) if sizes[group] == largest)
        raise AssayError(
            f"{str(path)!r}: {largest} of {len(kept)} rows hang together as one group (such as line {example['line']}) "
            "by the same prompt, 'group' or long reference: they cannot be split; give rows that may be apart a "
            "'group' each, or show more columns in --template"
        )
    if not with_oracle:
        splits = [without_oracle(split) for split in splits]
    split_rows = [{**row, "split": split} for row, split in zip(kept, splits, strict=True)]
    return SplitText(split_rows, len(numbered), duplicates, len(sizes), largest)


def leakage_report(
    path: Path,
    template: str | None = None,
    reference: str = REFERENCE,
    responses: str | None = None,
    with_oracle: bool = True,
) -> LeakageReport:
    """What ``assay tasks check`` prints: rows, duplicates, groups, splits, and what the splits still share."""
    text = read_split(path, template, reference, responses, with_oracle)
    named = list(SHARES) if with_oracle else [split for split in SHARES if split != "oracle"]
    rows = sorted(text.rows, key=lambda row: named.index(row["split"]))
    splits = [row["split"] for row in rows]
    pairs = near_duplicates([row["content"] for row in rows], splits)
    found = Counter(splits[i] for i, _ in pairs)
    return LeakageReport(
        path=str(path),
        num_read=text.num_read,
        duplicates=text.duplicates,
        num_groups=text.num_groups,
        largest_group=text.largest_group,
        num_references=sum(row["reference"] is not None for row in rows),
        rows_per_split={split: splits.count(split) for split in named},
        near_duplicates={split: found[split] for split in named},
        examples=[(_named(rows[i]), _named(rows[j])) for i, j in pairs[:SHOWN_EXAMPLES]],
    )


def _keys(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [row_keys(row["content"], row["reference"], row["group"]) for row in rows]


def _own_splits(
    path: Path, rows: Sequence[UserRow], prompts: Sequence[dict[str, Any]], with_oracle: bool
) -> dict[int, Split] | None:
    """The split of each line as the file gives it; None when it gives none."""
    if not any(row.columns.get("split") is not None for row in rows):
        return None
    if with_oracle:
        raise AssayError(
            f"{str(path)!r} has a column 'split', which a run with an oracle cannot use, since it needs three splits: "
            "take it out or rename it, and assay splits the file itself"
        )
    own: dict[int, Split] = {}
    unknown: list[tuple[int, str]] = []
    for row in rows:
        name = row.columns.get("split")
        if isinstance(name, str) and name in OWN_SPLITS:
            own[row.line] = OWN_SPLITS[name]
        else:
            unknown.append((row.line, f"has the split {name!r}: it must be one of {', '.join(OWN_SPLITS)}"))
    refuse(path, unknown, len(rows))
    parted: list[tuple[int, str]] = []
    first_in: dict[tuple[int, Split], int] = {}
    for row, group in zip(prompts, joined_groups(_keys(prompts)), strict=True):
        split = own[row["line"]]
        other: Split = "held_out" if split == "distillation" else "distillation"
        first_in.setdefault((group, split), row["line"])
        if (group, other) in first_in:
            parted.append((row["line"], f"is in {split}, but line {first_in[group, other]} of its group in {other}"))
    refuse(path, parted, len(rows))
    return own


def _prompts(
    path: Path, rows: Sequence[UserRow], template: str | None, reserved: set[str | None]
) -> list[dict[str, Any]]:
    """Rows with their prompt text: messages, or the template filled with columns that must be text in every row.

    ``reserved`` columns a template may not show: the answers, and what is no text of a prompt.
    """
    columns = template_columns(template or DEFAULT_TEMPLATE)
    plain = [row for row in rows if row.conversation is None]
    known = {column for row in plain for column in row.columns}.difference(reserved)
    for column in columns if plain else ():
        if column in reserved:
            raise AssayError(f"the template shows {column!r}, which the model must not see: take it out")
        if column not in known:
            raise unknown_name("column in the template", column, known)
    problems = [
        (row.line, f"column {column!r} of the template is {_kind(row.columns.get(column))}, not text")
        for row in plain
        for column in columns
        if not (isinstance(row.columns.get(column), str) and is_unicode(row.columns[column]))
    ]
    if template not in (None, DEFAULT_TEMPLATE):
        talks = [row.line for row in rows if row.conversation is not None]
        problems += [(line, "is a conversation, which no template fills: leave the template out") for line in talks]
    refuse(path, sorted(problems), len(rows))
    prompts = []
    for row in rows:
        text, content = _filled(row, template or DEFAULT_TEMPLATE, columns)
        group = row.columns.get("group")
        prompts.append(
            {
                "id": row.id,
                "prompt_text": text,
                "content": content,
                "conversation": row.conversation,
                "reference": row.reference,
                "responses": row.responses,
                "group": None if group is None else str(group),
                "line": row.line,
            }
        )
    empty = [(prompt["line"], "gives an empty prompt") for prompt in prompts if not prompt["prompt_text"].strip()]
    refuse(path, empty, len(rows))
    return prompts


def _filled(row: UserRow, template: str, columns: Sequence[str]) -> tuple[str, str]:
    """A prompt as it is shown, and the text of it by which prompts are compared."""
    if row.conversation is not None:
        return _shown(row.conversation), "\n".join(message.content for message in row.conversation)
    text = template.format(**{column: row.columns[column] for column in columns})
    return text, "\n".join(row.columns[column] for column in sorted(set(columns)))


def _shown(conversation: Conversation) -> str:
    """A conversation for people: who says what, or the text alone where a user says one thing."""
    if len(conversation) == 1:
        return conversation[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in conversation)


def _kind(value: object) -> str:
    return "missing" if value is None else type(value).__name__


def _named(row: dict[str, Any]) -> str:
    return f"line {row['line']} ({row['split']}): {row['prompt_text']}"


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else f"{flat[:59]}…"
