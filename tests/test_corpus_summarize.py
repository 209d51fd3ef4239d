"""The embedded docstrings: plain words, sizes, notices, and that near-duplicates never straddle two splits."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache
from importlib import resources

import pyarrow.parquet as pq

from assay.data.tasks import SPLITS

CORPORA = resources.files("assay.data.corpora")
COLUMNS = ("module", "kind", "name", "body", "summary", "split")


@cache
def rows() -> list[dict[str, str]]:
    with CORPORA.joinpath("summarize.parquet").open("rb") as file:
        return pq.read_table(file).to_pylist()


def loose(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def words_of(row: dict[str, str]) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", f"{row['body']} {row['summary']}".lower()))


def splits_by_key(*keys_of_row: tuple[str, str]) -> dict[str, set[str]]:
    splits_of: dict[str, set[str]] = defaultdict(set)
    for key, split in keys_of_row:
        splits_of[key].add(split)
    return splits_of


def test_every_row_has_every_column_and_a_known_kind() -> None:
    assert all(tuple(row) == COLUMNS and all(row.values()) for row in rows())
    assert {row["kind"] for row in rows()} == {"module", "class", "function"}
    assert all(row["name"].isidentifier() for row in rows())
    assert all(row["name"] == row["module"].rsplit(".", 1)[-1] for row in rows() if row["kind"] == "module")


def test_no_summary_and_no_body_is_in_two_splits_however_it_is_spelled() -> None:
    for column in ("summary", "body"):
        splits_of = splits_by_key(*((loose(row[column]), row["split"]) for row in rows()))
        assert len(splits_of) > 20_000
        assert [key for key, splits in splits_of.items() if len(splits) > 1] == []


def test_a_package_path_and_so_a_module_lies_in_one_split() -> None:
    paths = ((".".join(row["module"].split(".")[:2]), row["split"]) for row in rows())
    splits_of = splits_by_key(*paths)
    assert len(splits_of) > 500
    assert [path for path, splits in splits_of.items() if len(splits) > 1] == []


def test_no_row_has_mostly_the_words_of_a_row_of_another_split() -> None:
    """Two sets with Jaccard >= 0.7 share one of the rarest words, those that make up 30 % of each and one more."""
    words = [words_of(row) for row in rows()]
    frequency = Counter(word for row_words in words for word in row_words)
    order = {word: (count, word) for word, count in frequency.items()}
    rarest = [sorted(row_words, key=order.__getitem__)[: int(0.3 * len(row_words)) + 1] for row_words in words]
    with_word: dict[str, list[int]] = defaultdict(list)
    for i, row_words in enumerate(rarest):
        for word in row_words:
            with_word[word].append(i)
    sample = [i for i, row in enumerate(rows()) if row["split"] != "base"][::20]
    assert len(sample) > 600
    alike = []
    for i in sample:
        for j in {j for word in rarest[i] for j in with_word[word] if rows()[j]["split"] != rows()[i]["split"]}:
            if len(words[i] & words[j]) >= 0.7 * len(words[i] | words[j]):
                alike.append((rows()[i], rows()[j]))
    assert alike == []


def test_no_pair_occurs_twice_in_a_split() -> None:
    pairs = Counter((row["split"], loose(row["body"]), loose(row["summary"])) for row in rows())
    assert [pair for pair, count in pairs.items() if count > 1] == []


def test_the_splits_are_four_and_large_enough() -> None:
    sizes = Counter(row["split"] for row in rows())
    assert set(sizes) == set(SPLITS)
    assert sizes["base"] >= 8_000
    assert sizes["oracle"] >= 5_500
    assert sizes["distillation"] >= 2_000
    assert sizes["held_out"] >= 700


def test_bodies_and_summaries_keep_to_their_lengths() -> None:
    for row in rows():
        assert len(row["body"]) <= 160
        assert len(row["body"].split()) >= 6
        assert row["body"][-1] in ".!?"
        assert len(row["summary"]) <= 72
        assert len(row["summary"].split()) >= 3
        assert not row["summary"].endswith("..")


def test_no_code_and_no_markup_is_left() -> None:
    markup = re.compile(r"`|>>>|::|:\w+:|:param|@param|https?:|[*|\\$#={}<>\[\]]|\s\s|\n|\(\)|\b[A-Z]\{")
    assert [row for row in rows() if markup.search(row["body"]) or markup.search(row["summary"])] == []
    assert all((row["body"] + row["summary"]).isascii() for row in rows())


def test_the_corpus_is_small_and_names_every_package_with_its_version_and_licence() -> None:
    assert len(CORPORA.joinpath("summarize.parquet").read_bytes()) <= 1_600_000
    notice = CORPORA.joinpath("summarize.LICENSE.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^([\w -]+)==(\S+): (\S+)\n  modules: (.+)\n  (Copyright|Authors)", notice, re.MULTILINE)
    assert len(entries) > 50
    named = {module for entry in entries for module in entry[3].split(", ")}
    assert named == {row["module"].split(".")[0] for row in rows()}
    quoted = set(re.findall(r"^={80}\n([\w.-]+), as it comes with .+\n={80}$", notice, re.MULTILINE))
    assert {licence for _, _, licence, _, _ in entries} == quoted
    for words in (
        "Redistribution and use in source and binary forms",
        "Permission is hereby granted, free of charge",
        "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION",
        "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
    ):
        assert words in notice
