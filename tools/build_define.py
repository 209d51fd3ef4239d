"""Build the embedded task `define` (word and part of speech -> gloss) from WordNet 3.0.

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python tools/build_define.py --wordnet wordnet/usr/share/wordnet

Writes src/assay/data/corpora/define.parquet: one row a synonym set, with its split. Synonym sets that share
a lemma or a gloss are joined into groups, and a group lies in one split. Polysemous words chain a quarter of
WordNet into a single group: it goes to `base`, the split that is used for pretraining and tokenizer only. Rows
of the other splits that still share a spelling with another split ("slam-dunk", "slam dunk") are left out.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from corpus_file import write_compactly

from assay.data.splitting import joined_groups

PART_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
SHARES = {"base": 0.50, "oracle": 0.20, "distillation": 0.22, "held_out": 0.08}
"""Shares of the synonym sets outside the giant group."""


def read_synsets(wordnet: Path) -> Iterator[dict[str, str]]:
    """Synonym sets of the four data files [WNDB(5WN)]: part of speech, lemmas, gloss."""
    for name in ("noun", "verb", "adj", "adv"):
        for line in (wordnet / f"data.{name}").read_text(encoding="ascii").splitlines():
            if line.startswith("  "):  # the licence at the head of each file
                continue
            data, gloss = line.split(" | ", 1)
            fields = data.split()
            num_words = int(fields[3], 16)
            lemmas = [re.sub(r"\((a|p|ip)\)$", "", word) for word in fields[4 : 4 + 2 * num_words : 2]]
            yield {
                "part_of_speech": PART_OF_SPEECH[fields[2]],
                "lemmas": ", ".join(lemma.replace("_", " ") for lemma in lemmas),
                "gloss": first_sense(gloss),
            }


def first_sense(gloss: str) -> str:
    """The gloss up to its first semicolon, without remarks in parentheses and examples in quotation marks."""
    bare = re.sub(r"\s*\([^()]*\)", "", gloss)
    return re.split(r'[;:]|\s*"', bare)[0].strip() or re.split(r'\s*"', gloss)[0].strip(" ;")


def near_duplicate_keys(row: dict[str, str]) -> list[str]:
    """Two synonym sets with a key in common are near-duplicates: same lemma or same gloss, letters only."""
    gloss = re.sub(r"[^a-z0-9]+", " ", row["gloss"].lower()).strip()
    return [f"lemma:{lemma.lower()}" for lemma in row["lemmas"].split(", ")] + [f"gloss:{gloss}"]


def groups_of(rows: list[dict[str, str]]) -> list[list[int]]:
    """Connected components under shared keys, largest first."""
    members = defaultdict(list)
    for i, first in enumerate(joined_groups([near_duplicate_keys(row) for row in rows])):
        members[first].append(i)
    return sorted(members.values(), key=lambda group: (-len(group), group[0]))


def assign_splits(groups: list[list[int]], seed: int) -> dict[int, str]:
    """Row -> split: the giant group to `base`, the others at random by SHARES."""
    splits = dict.fromkeys(groups[0], "base")
    choice = np.random.default_rng(seed).choice(list(SHARES), size=len(groups) - 1, p=list(SHARES.values()))
    for group, split in zip(groups[1:], choice, strict=True):
        splits |= dict.fromkeys(group, str(split))
    return splits


def loose_keys(row: dict[str, str]) -> list[str]:
    """Spellings that look alike: lemmas and gloss reduced to letters and digits."""
    texts = [*(f"lemma {lemma}" for lemma in row["lemmas"].split(", ")), f"gloss {row['gloss']}"]
    return [re.sub(r"[^a-z0-9]", "", text.lower()) for text in texts]


def straddlers(rows: list[dict[str, str]], splits: dict[int, str]) -> set[int]:
    """Rows outside `base` that share a loose key with a row of another split."""
    splits_of = defaultdict(set)
    for i, row in enumerate(rows):
        for key in loose_keys(row):
            splits_of[key].add(splits[i])
    return {
        i
        for i, row in enumerate(rows)
        if splits[i] != "base" and any(len(splits_of[key]) > 1 for key in loose_keys(row))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun, data.verb, …")
    parser.add_argument("--seed", type=int, default=0)
    corpora = Path(__file__).parents[1] / "src/assay/data/corpora"
    parser.add_argument("--out", type=Path, default=corpora / "define.parquet")
    arguments = parser.parse_args()

    rows = list(read_synsets(arguments.wordnet))
    groups = groups_of(rows)
    splits = assign_splits(groups, arguments.seed)
    kept = sorted(set(range(len(rows))) - straddlers(rows, splits))
    columns = {key: pa.array([rows[i][key] for i in kept]) for key in rows[0]}
    columns["split"] = pa.array([splits[i] for i in kept])
    write_compactly(pa.table(columns), arguments.out, ["part_of_speech", "split"])
    print(f"{arguments.out}: {len(kept)} of {len(rows)} rows, {arguments.out.stat().st_size / 1e6:.2f} MB")
    print({split: sum(splits[i] == split for i in kept) for split in SHARES})


if __name__ == "__main__":
    main()
