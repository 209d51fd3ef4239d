"""The embedded corpus of English-Spanish segments: pairs translate one another, and splits share nothing alike."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import resources

import numpy as np
import pyarrow.parquet as pq
import pytest

from assay.data.tasks import SPLITS

CORPORA = resources.files("assay.data.corpora")
Row = dict[str, str]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    with CORPORA.joinpath("translate.parquet").open("rb") as file:
        return pq.read_table(file).to_pylist()


def without_accents(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def english_words(row: Row) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", row["english"].lower()))


def test_splits_are_large_enough_and_rows_short(rows: list[Row]) -> None:
    sizes = Counter(row["split"] for row in rows)
    assert set(sizes) == set(SPLITS)
    assert sizes["base"] >= 15_000
    assert sizes["oracle"] >= 6_500
    assert sizes["distillation"] >= 3_000
    assert sizes["held_out"] >= 1_000
    assert sum(sizes.values()) >= 35_000
    assert max(len(row[side]) for row in rows for side in ("english", "spanish")) <= 70
    assert min(len(row[side].split()) for row in rows for side in ("english", "spanish")) >= 2


def test_a_chapter_lies_in_one_split_and_a_split_repeats_no_pair(rows: list[Row]) -> None:
    splits_of = defaultdict(set)
    for row in rows:
        splits_of[row["chapter"]].add(row["split"])
    assert len(splits_of) > 1_000
    assert [chapter for chapter, splits in splits_of.items() if len(splits) > 1] == []
    assert max(Counter((row["english"], row["spanish"], row["split"]) for row in rows).values()) == 1


@pytest.mark.parametrize("side", ["english", "spanish"])
def test_no_text_is_in_two_splits_however_it_is_spelled(rows: list[Row], side: str) -> None:
    splits_of = defaultdict(set)
    for row in rows:
        splits_of[re.sub(r"[^a-z]", "", without_accents(row[side].lower()))].add(row["split"])
    assert len(splits_of) > 30_000
    assert [key for key, splits in splits_of.items() if len(splits) > 1] == []


def test_no_english_text_is_nearly_that_of_another_split(rows: list[Row]) -> None:
    """Jaccard similarity of the word sets, one row in twenty outside `base` against all rows."""
    words_of = [english_words(row) for row in rows]
    rows_with = defaultdict(list)
    for i, words in enumerate(words_of):
        for word in words:
            rows_with[word].append(i)
    sizes = np.array([len(words) for words in words_of])
    splits = np.array([row["split"] for row in rows])
    sample = np.flatnonzero(splits != "base")[::20]
    assert len(sample) > 800
    alike = []
    for i in sample:
        shared = np.bincount(np.concatenate([rows_with[word] for word in words_of[i]]), minlength=len(rows))
        near = shared >= 0.7 * (sizes[i] + sizes - shared)
        assert near[i]
        alike += [(rows[i]["english"], rows[j]["english"]) for j in np.flatnonzero(near & (splits != splits[i]))]
    assert alike == []


def test_nothing_of_markup_notes_or_headings_is_left(rows: list[Row]) -> None:
    for side in ("english", "spanish"):
        characters = set("".join(row[side] for row in rows))
        assert {c for c in characters if not c.isalpha()} <= set(" ,.;:?!¿¡'-")
        assert all(c.isascii() for c in characters) or side == "spanish"
        odd = [row for row in rows if re.search(r"^\W*$|\s\s|^\s|[\s.,;:]$|[A-ZÀ-Þ]{2}|[HG]\d", row[side])]
        assert odd == []
    assert not any("Selah" in row["english"] + row["spanish"] for row in rows)
    assert all(row["spanish"].count("¿") == row["spanish"].count("?") for row in rows)


def name_agreement(rows: Sequence[Row], spanish: Sequence[str]) -> float:
    """Share of the names spelled alike in both languages, accents aside, that the Spanish segment has too."""
    names = [set(re.findall(r"(?<=\w )[A-Z][a-z]{3,}", row["english"])) for row in rows]
    pattern = re.compile(r"\b[A-Z][a-z]{3,}")
    spanish_names = [set(pattern.findall(without_accents(text))) for text in spanish]
    frequency = Counter(name for row_names in spanish_names for name in row_names)
    found = [
        name in there for here, there in zip(names, spanish_names, strict=True) for name in here & frequency.keys()
    ]
    assert len(found) > 5_000
    return sum(found) / len(found)


def test_names_in_a_pair_agree_and_in_neighbouring_pairs_do_not(rows: list[Row]) -> None:
    spanish = [row["spanish"] for row in rows]
    assert name_agreement(rows, spanish) > 0.85
    assert name_agreement(rows, spanish[1:] + spanish[:1]) < 0.25


@pytest.mark.parametrize(
    ("english", "spanish"),
    [
        ("seven", "siete|setecient[oa]s"),
        ("twelve", "doce|duodécim[oa]"),
        ("forty", "cuarenta"),
        ("hundred", r"\w*cient[oa]s?|cien"),
    ],
)
def test_numbers_agree(rows: list[Row], english: str, spanish: str) -> None:
    there = [row["spanish"].lower() for row in rows if re.search(rf"\b{english}\b", row["english"].lower())]
    assert len(there) > 50
    assert sum(bool(re.search(rf"\b({spanish})\b", text)) for text in there) > 0.9 * len(there)


def test_lengths_go_together_in_pairs_and_not_in_shuffled_ones(rows: list[Row]) -> None:
    lengths = np.array([(len(row["english"]), len(row["spanish"])) for row in rows], dtype=float)
    shuffled = np.random.default_rng(0).permutation(lengths[:, 1])
    assert np.corrcoef(lengths.T)[0, 1] > 0.8
    assert abs(np.corrcoef(lengths[:, 0], shuffled)[0, 1]) < 0.05


def test_chapters_that_the_two_texts_number_differently_are_left_out(rows: list[Row]) -> None:
    """Where the Spanish text counts as the Hebrew does, verse i of one is another verse of the other."""
    shifted = {"Genesis 32", "Exodus 8", "Psalms 51", "Joel 3", "Jonah 2", "Malachi 4"}
    chapters = {row["chapter"] for row in rows}
    assert not shifted & chapters
    assert {"Genesis 31", "Exodus 7", "Psalms 23", "Joel 1", "Jonah 3", "Malachi 3"} <= chapters


def test_the_corpus_is_small_and_its_notice_says_what_it_is_and_is_not() -> None:
    assert len(CORPORA.joinpath("translate.parquet").read_bytes()) <= 2_000_000
    notice = " ".join(CORPORA.joinpath("translate.LICENSE.txt").read_text(encoding="utf-8").split())
    assert "THIS CORPUS IS NOT THE WORLD ENGLISH BIBLE" in notice
    assert '"World English Bible" is a trademark of eBible.org' in notice
    assert "https://ebible.org/web/" in notice
    assert "Reina-Valera 1909" in notice
    assert notice.count("in the Public Domain") >= 2
