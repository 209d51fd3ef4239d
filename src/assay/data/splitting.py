"""Splits that share no near-duplicates: loose keys, joined groups, a stable choice of split, and a check of it all."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

Split = Literal["base", "oracle", "distillation", "held_out"]
SPLITS: tuple[Split, ...] = ("base", "oracle", "distillation", "held_out")

SHARES: dict[Split, float] = {"oracle": 0.45, "distillation": 0.40, "held_out": 0.15}
"""Shares of the groups of a corpus whose models come pretrained: there is no ``base``."""
NEAR_DUPLICATE = 0.7
"""Word Jaccard from which two texts count as near-duplicates."""
LONG_REFERENCE = 20
"""Characters of a loose key from which a shared reference joins two rows: shorter ones are labels ("yes", "Paris")."""
COMMON_WORD_ROWS = 100
"""Rows from which a corpus is large enough to tell its template's words from the content."""


@dataclass(frozen=True)
class Survey:
    """What a task holds for a run: prompts that fit its token limit, by split, and what comes with them.

    ``num_responses`` is the least number of the teacher's responses to any prompt to distil on; 0 where no column
    holds them. ``num_references`` counts held-out prompts that have one.
    """

    num_prompts: dict[Split, int]
    num_responses: int = 0
    num_references: int = 0


class _Separators(dict[int, int]):
    """``str.translate`` table: letters, marks, digits and symbols stay, all else (punctuation, controls) is a space."""

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LMNS" else ord(" ")
        return self[code]


_separators = _Separators()


def loose_key(text: str) -> str:
    """The text up to case, whitespace and punctuation: two texts of one key are the same to a reader.

    Symbols stay ("2 + 3" is not "2 < 3"). Text that is nothing but punctuation is its own key.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_separators).split()) or text.strip()


def row_keys(prompt: str, reference: str | None, group: str | None) -> list[str]:
    """Rows with a key in common belong to one group: the same prompt, group, or (without a group) long reference."""
    keys = [f"prompt {loose_key(prompt)}"]
    if group is not None:
        keys.insert(0, f"group {group}")
    elif reference is not None and len(key := loose_key(reference)) >= LONG_REFERENCE:
        keys.append(f"reference {key}")
    return keys


def joined_groups(keys_of_rows: Sequence[Sequence[str]]) -> list[int]:
    """Row → first row of its group: connected components under shared keys."""
    parent = list(range(len(keys_of_rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[str, int] = {}
    for i, keys in enumerate(keys_of_rows):
        for key in keys:
            one, other = sorted((root(i), root(first_with.setdefault(key, i))))
            parent[other] = one
    return [root(i) for i in range(len(parent))]


def split_of(group_key: str, shares: Mapping[Split, float] = SHARES) -> Split:
    """The split of a group by the SHA-256 of its key: it does not depend on the other groups."""
    digest = hashlib.sha256(group_key.encode()).digest()
    rest = int.from_bytes(digest[:8], "big") / 2**64 * sum(shares.values())
    for split, share in shares.items():
        rest -= share
        if rest < 0:
            return split
    return list(shares)[-1]


def without_oracle(split: Split) -> Split:
    """The split in a run without an oracle: what would have been its prompts are distilled on; held out stays so."""
    return "distillation" if split == "oracle" else split


def assign_splits(
    keys_of_rows: Sequence[Sequence[str]], shares: Mapping[Split, float] = SHARES
) -> tuple[list[Split], list[int]]:
    """Split and group (its first row) of every row: groups never straddle splits.

    A group is drawn by the first key of its first row, so that appended rows change no other row's split, unless
    they join two groups: the earlier one then takes the later one in.
    """
    groups = joined_groups(keys_of_rows)
    split_of_group: dict[int, Split] = {first: split_of(keys_of_rows[first][0], shares) for first in set(groups)}
    return [split_of_group[first] for first in groups], groups


def near_duplicates(texts: Sequence[str], labels: Sequence[Hashable]) -> list[tuple[int, int]]:
    """``(i, j)``, j < i: for each text an earlier text of another label with |words ∩| / |words ∪| ≥ NEAR_DUPLICATE.

    At most one pair per text. Words in more than half of at least COMMON_WORD_ROWS texts are not compared: they are
    a template's. Exact, by prefix filtering [Chaudhuri et al. 2006, Bayardo et al. 2007]: two sets that are that
    alike share one of the rarest words of each.
    """
    words_of = [set(loose_key(text).split()) for text in texts]
    rows_with = Counter(word for words in words_of for word in words)
    common = {word for word, count in rows_with.items() if count > len(texts) / 2 and len(texts) >= COMMON_WORD_ROWS}
    pairs: list[tuple[int, int]] = []
    earlier_with: dict[str, list[int]] = defaultdict(list)
    for i, all_words in enumerate(words_of):
        words = words_of[i] = all_words - common or all_words
        rarest_first = sorted(words, key=lambda word: (rows_with[word], word))
        prefix = rarest_first[: len(words) - ceil(NEAR_DUPLICATE * len(words)) + 1]
        compared: set[int] = set()
        for word in prefix:
            partner = _first_alike(i, earlier_with[word], words_of, labels, compared)
            if partner is not None:
                pairs.append((i, partner))
                break
        for word in prefix:
            earlier_with[word].append(i)
    return pairs


def _first_alike(
    i: int, candidates: Sequence[int], words_of: Sequence[set[str]], labels: Sequence[Hashable], compared: set[int]
) -> int | None:
    words, label, size = words_of[i], labels[i], len(words_of[i])
    for j in candidates:
        other = words_of[j]
        if labels[j] == label or not NEAR_DUPLICATE * size <= len(other) <= size / NEAR_DUPLICATE or j in compared:
            continue
        compared.add(j)
        shared = len(words & other)
        if shared >= NEAR_DUPLICATE * (size + len(other) - shared):
            return j
    return None
