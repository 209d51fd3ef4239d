"""Build the embedded task `translate` (English -> Spanish) from two public-domain Bibles.

    apt-get download sword-text-web sword-text-sparv
    for package in sword-text-*.deb; do dpkg-deb -x $package bibles; done
    pip install pysword==0.2.8  # reads SWORD modules; needed here only
    python tools/build_translate.py --sword bibles/usr/share/sword  # some three minutes, nearly all of it reading

Writes src/assay/data/corpora/translate.parquet: one row a pair of short segments, with its chapter and split.

Both modules mark most words with Strong's number of the Hebrew or Greek word that they render. The numbers that
two verses share show whether the verses are the same one (Reina-Valera counts some chapters as the Hebrew does),
and the numbers that two clauses share show which clauses belong together. A chapter lies in one split. Rows
outside `base` that are alike to a row of another split are left out.
"""

from __future__ import annotations

import argparse
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from operator import or_
from pathlib import Path

import numpy as np
import pyarrow as pa
from corpus_file import write_compactly
from pysword.modules import SwordModules

ENGLISH, SPANISH = "engWEB2015eb", "spaRV1909eb"
SHARES = {"base": 0.50, "oracle": 0.20, "distillation": 0.20, "held_out": 0.10}
"""Shares of the chapters."""
MAX_CHARACTERS = 70
MIN_WORDS = 2
MAX_CLAUSES = 4
"""At most so many clauses of one language in a pair."""
MAX_LENGTH_RATIO = 1.8
MIN_AGREEMENT = 0.6
"""Strong's numbers in both segments of a pair / in either, among the numbers in both verses."""
NEAR_DUPLICATE = 0.7
"""Jaccard similarity of the sets of English words from which two rows are alike."""

FUNCTION_WORD = re.compile(
    r"a|an|and|are|as|at|be|been|but|by|did|do|does|for|from|had|has|have|he|her|him|his|i|if|in|into|is|it|"
    r"its|let|may|me|my|nor|not|of|on|one|or|our|out|over|shall|she|should|so|than|that|the|their|them|then|"
    r"there|these|they|this|those|to|up|us|was|we|were|when|which|who|whom|will|with|would|you|your",
    re.IGNORECASE,
)
"""English words whose numbers are not used: the module gives function words the number of any neighbour."""


def read_chapters(sword: Path, module: str) -> dict[str, list[str]]:
    """Chapter, such as "Genesis 1" -> its verses with Strong's numbers as the only markup."""
    modules = SwordModules(str(sword))
    modules.parse_modules()
    bible = modules.get_bible_from_module(module)
    return {
        f"{book.name} {chapter}": [
            without_notes(verse) for verse in bible.get_iter(books=[book.name], chapters=[chapter], clean=False)
        ]
        for books in bible.get_structure().get_books().values()
        for book in books
        for chapter in range(1, book.num_chapters + 1)
    }


def without_notes(osis: str) -> str:
    """The verse without notes, names of speakers, Selah and every tag but <w>, which holds Strong's numbers."""
    verse = re.split(r'<div [^>]*type="glossary"', osis)[0]  # a glossary follows the last verse
    verse = re.sub(r"<(note|speaker)\b.*?</\1>", " ", verse)
    verse = re.sub(r'<l [^>]*type="selah"/>.*?<l [^>]*type="selah"/>', " ", verse)
    verse = re.sub(r"<(?!/?w\b)[^>]*>", " ", verse)
    return re.sub(r"\(?(<w[^>]*>)?Selah(</w>)?\.?\)?", " ", verse)


def plain(markup: str) -> str:
    """The words and punctuation, without quotation marks, parentheses and the stop at the end."""
    text = re.sub(r"‘([^‘’]+)’(?!\w)", r"\1", re.sub(r"<[^>]*>|[“”()]", "", markup))
    text = re.sub(r"‘|(?<![sS])’(?!\w)", "", text).replace("’", "'")
    return re.sub(r"\s+(?=[.,;:?!])", "", " ".join(text.split())).rstrip(".,;: ")


def numbers(markup: str) -> set[str]:
    """Strong's numbers of the words, function words of English excepted."""
    words = re.findall(r'<w lemma="([^"]*)">([^<]*)', markup)
    return {n for lemma, text in words if not FUNCTION_WORD.fullmatch(text) for n in re.findall(r"[HG]\d+", lemma)}


def aligned_verses(english: list[str], spanish: list[str]) -> list[tuple[str, str]]:
    """Verse pairs that share more numbers than either shares with a neighbour; none when a fifth do not.

    Where one text lacks verses or counts them otherwise, the chapter is shifted from there on, or as a whole.
    """
    of_english, of_spanish = [numbers(verse) for verse in english], [numbers(verse) for verse in spanish]

    def shared(i: int, j: int) -> float:
        if not 0 <= i < len(english) or not of_spanish[j]:
            return 0.0
        return len(of_english[i] & of_spanish[j]) / len(of_spanish[j])

    same = [
        j for j in range(len(spanish)) if shared(j, j) > max(0.2, *(shared(j + shift, j) for shift in (-2, -1, 1, 2)))
    ]
    return [(english[j], spanish[j]) for j in same] if len(same) >= 0.8 * max(len(english), len(spanish)) else []


def clauses(verse: str) -> list[str]:
    """The verse cut after every punctuation mark that a space follows, and at dashes."""
    return [part for part in re.split(r"(?<=[.,;:?!”’])(?<![^\W\d_]’)\s+|—", verse) if plain(part)]


def aligned_segments(english: str, spanish: str) -> Iterator[tuple[str, str]]:
    """Segment pairs of a verse pair: the monotone alignment of clauses that agrees best on Strong's numbers.

    A segment is a run of 1 to MAX_CLAUSES clauses. A pair of segments scores 1 for each number in both, -1/2 for
    each in only one, minus twice the log-ratio of their lengths as in [Gale and Church 1993], and a little for being
    short; the best sum is found by dynamic programming. Pairs that agree too little or are too long are left out.
    """
    known = {number: 1 << k for k, number in enumerate(sorted(numbers(english) & numbers(spanish)))}
    parts = clauses(english), clauses(spanish)
    runs = [runs_of(side, known) for side in parts]
    best: dict[tuple[int, int], tuple[float, list[tuple[str, str]]]] = {(0, 0): (0.0, [])}
    for i in range(1, len(parts[0]) + 1):
        for j in range(1, len(parts[1]) + 1):
            candidates = [
                (best[start, begin][0] + score(e, s), start, begin, e, s)
                for start, e in runs[0][i]
                for begin, s in runs[1][j]
                if (start, begin) in best
            ]
            if candidates:
                total, start, begin, e, s = max(candidates, key=lambda candidate: candidate[0])
                pair = [(e[0], s[0])] if plausible(e, s) else []
                best[i, j] = total, best[start, begin][1] + pair
    yield from best.get((len(parts[0]), len(parts[1])), (0.0, []))[1]


Run = tuple[str, int]
"""A run of clauses: its plain text, and the set of its known numbers as bits."""


def runs_of(parts: list[str], known: dict[str, int]) -> list[list[tuple[int, Run]]]:
    """For each end, the runs of 1 to MAX_CLAUSES clauses up to it, with the index of their first clause."""
    masks = [sum(known.get(number, 0) for number in numbers(part)) for part in parts]
    return [
        [
            (start, (plain(" ".join(parts[start:end])), list(accumulate(masks[start:end], or_))[-1]))
            for start in range(max(0, end - MAX_CLAUSES), end)
        ]
        for end in range(len(parts) + 1)
    ]


def score(english: Run, spanish: Run) -> float:
    both, one = (english[1] & spanish[1]).bit_count(), (english[1] ^ spanish[1]).bit_count()
    return 0.5 + both - 0.5 * one - 2.0 * abs(math.log(len(english[0]) / len(spanish[0])))


def plausible(english: Run, spanish: Run) -> bool:
    """Whether the segments are short, well formed and, by numbers and lengths, translations of one another."""
    lengths = [len(english[0]), len(spanish[0])]
    either = (english[1] | spanish[1]).bit_count()
    return (
        max(lengths) <= min(MAX_CHARACTERS, MAX_LENGTH_RATIO * min(lengths))
        and min(len(text.split()) for text, _ in (english, spanish)) >= MIN_WORDS
        and (english[1] & spanish[1]).bit_count() >= max(1, MIN_AGREEMENT * either)
        and all(spanish[0].count(opening) == spanish[0].count(closing) for opening, closing in ("¿?", "¡!"))
        and not re.search(r"[A-ZÀ-Þ]{2}", english[0] + spanish[0])  # initials of chapters, acrostics, inscriptions
    )


def assign_splits(chapters: list[str], seed: int) -> dict[str, str]:
    """Chapter -> split, at random by SHARES."""
    order = np.random.default_rng(seed).permutation(len(chapters))
    ends = np.round(np.cumsum(list(SHARES.values())) * len(chapters))
    return {chapters[i]: list(SHARES)[int(np.searchsorted(ends, place, side="right"))] for place, i in enumerate(order)}


def letters(text: str) -> str:
    """The text reduced to lower-case letters without accents: spellings that look alike have the same."""
    return re.sub(r"[^a-z]", "", unicodedata.normalize("NFKD", text.lower()))


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9']+", text.lower()))


def similar_sets(sets: Iterable[frozenset[str]]) -> Iterator[tuple[frozenset[str], frozenset[str]]]:
    """All pairs of distinct sets whose Jaccard similarity is at least NEAR_DUPLICATE.

    With the words in order of rarity, two such sets share one of their first n - ceil(threshold n) + 1 words
    [Chaudhuri, Ganti and Kaushik 2006]: only those are looked up.
    """
    distinct = sorted(set(sets), key=sorted)
    frequency = Counter(word for one in distinct for word in one)
    with_word = defaultdict(list)
    for one in distinct:
        rare = sorted(one, key=lambda word: (frequency[word], word))
        prefix = rare[: len(one) - math.ceil(NEAR_DUPLICATE * len(one)) + 1]
        for other in {other for word in prefix for other in with_word[word]}:
            if len(one & other) >= NEAR_DUPLICATE * len(one | other):
                yield one, other
        for word in prefix:
            with_word[word].append(one)


def alike_elsewhere(rows: list[dict[str, str]]) -> set[int]:
    """Rows outside `base` with the letters of either text, or nearly the English words, of a row of another split."""
    splits_of: dict[str | frozenset[str], set[str]] = defaultdict(set)
    keys = [(f"en {letters(row['english'])}", f"es {letters(row['spanish'])}", words(row["english"])) for row in rows]
    for row, row_keys in zip(rows, keys, strict=True):
        for key in row_keys:
            splits_of[key].add(row["split"])
    near = {key: set(splits) for key, splits in splits_of.items()}
    for one, other in similar_sets(words_of_row for _, _, words_of_row in keys):
        near[one] |= splits_of[other]
        near[other] |= splits_of[one]
    return {
        i
        for i, (row, row_keys) in enumerate(zip(rows, keys, strict=True))
        if row["split"] != "base" and any(len(near[key]) > 1 for key in row_keys)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sword", type=Path, required=True, help="folder with mods.d and modules of both packages")
    parser.add_argument("--seed", type=int, default=0)
    corpora = Path(__file__).parents[1] / "src/assay/data/corpora"
    parser.add_argument("--out", type=Path, default=corpora / "translate.parquet")
    arguments = parser.parse_args()

    english, spanish = (read_chapters(arguments.sword, module) for module in (ENGLISH, SPANISH))
    verses = {chapter: aligned_verses(english[chapter], spanish[chapter]) for chapter in spanish}
    print("left out, numbered differently:", ", ".join(chapter for chapter in verses if not verses[chapter]))
    splits = assign_splits([chapter for chapter in verses if verses[chapter]], arguments.seed)
    pairs = [(*pair, chapter) for chapter in verses for verse in verses[chapter] for pair in aligned_segments(*verse)]
    chapter_of: dict[tuple[str, str, str], str] = {}
    for e, s, chapter in pairs:
        chapter_of.setdefault((e, s, splits[chapter]), chapter)
    rows = [
        {"english": e, "spanish": s, "chapter": chapter, "split": split}
        for (e, s, split), chapter in chapter_of.items()
    ]
    alike = alike_elsewhere(rows)
    kept = [row for i, row in enumerate(rows) if i not in alike]
    write_compactly(
        pa.table({column: pa.array([row[column] for row in kept]) for column in rows[0]}),
        arguments.out,
        ["chapter", "split"],
    )
    print(f"{sum(map(len, verses.values()))} verses, {len(pairs)} pairs, {len(rows)} without duplicates in a split")
    print(f"{arguments.out}: {len(kept)} rows, {arguments.out.stat().st_size / 1e6:.2f} MB")
    print({split: sum(row["split"] == split for row in kept) for split in SHARES})


if __name__ == "__main__":
    main()
