"""Fetched text: Debian's descriptions through the real parser, data sets of the hub through local stand-ins."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.data.debian import german_rows, parse_sources, parse_translations, synopsis_rows
from assay.data.hub import HUB, fetch_hub, instructions_row, split_rows, wmt_row, xsum_row
from assay.data.splitting import loose_key
from assay.errors import AssayError

ENGLISH = """\
Package: ping2
Description-md5: 01
Description-en: Ping utility
 Sends echoes to hosts and measures the time
 that each answer takes.
 .
 It counts what was lost: packets, mostly.
  * also a list

Package: ping2-doc
Description-md5: 02
Description-en: Manual of ping2
 Sends echoes to hosts and measures the time that each answer takes.
 .
 It counts what was lost, packets mostly. Also a list (manual).

Package: chess
Description-md5: 03
Description-en: Game of kings
 Plays against you at any of nine strengths.

Package: chess-old
Description-md5: 04
Description-en: game of kings.
 Something else entirely that nobody needs.

Package: bare
Description-md5: 05
Description-en: Nothing more to say
"""
GERMAN = """\
Package: ping2
Description-md5: 01
Description-de: Ping-Werkzeug für größere Netze
 Sendet Echos.

Package: chess
Description-md5: 03
Description-de: Game of Kings

Package: absent
Description-md5: 99
Description-de: Gibt es nicht
"""
PACKAGES = """\
Package: ping2
Version: 1

Package: ping2-doc
Source: ping2 (1.0+b1)

Package: chess
Source: games
"""


# --- Debian


def test_a_translation_index_is_read_as_deb822(tmp_path: Path) -> None:
    path = tmp_path / "Translation-en"
    path.write_text(ENGLISH, encoding="utf-8")
    with path.open(encoding="utf-8") as file:
        found = list(parse_translations(file, "en"))
    assert [d.package for d in found] == ["ping2", "ping2-doc", "chess", "chess-old", "bare"]
    assert found[0].synopsis == "Ping utility"
    assert found[0].body == (
        "Sends echoes to hosts and measures the time that each answer takes. It counts what was lost: packets, mostly. "
        "* also a list"
    )
    assert found[-1].body == ""
    assert list(parse_translations(ENGLISH.splitlines(), "de")) == []
    assert parse_sources(PACKAGES.splitlines()) == {"ping2": "ping2", "ping2-doc": "ping2", "chess": "games"}


def test_synopsis_rows_hold_no_near_duplicates_and_no_synopsis_twice() -> None:
    english = list(parse_translations(ENGLISH.splitlines(), "en"))
    rows = synopsis_rows(english, parse_sources(PACKAGES.splitlines()))
    assert [row["package"] for row in rows] == ["chess", "ping2"]
    assert all(set(row) == {"package", "description", "synopsis", "split"} for row in rows)
    assert rows == synopsis_rows(reversed(english), parse_sources(PACKAGES.splitlines()))


def test_german_is_joined_on_the_digest_without_what_is_untranslated() -> None:
    english, german = parse_translations(ENGLISH.splitlines(), "en"), parse_translations(GERMAN.splitlines(), "de")
    rows = german_rows(english, german, parse_sources(PACKAGES.splitlines()))
    assert [(row["english"], row["german"]) for row in rows] == [("Ping utility", "Ping-Werkzeug für größere Netze")]


def test_packages_of_one_source_are_in_one_split() -> None:
    index = "\n".join(
        f"Package: p{i}\nDescription-md5: {i}\nDescription-en: tool number {i}\n words{i} of{i} its{i} own{i}\n"
        for i in range(400)
    )
    sources = {f"p{i}": f"s{i // 4}" for i in range(400)}
    rows = synopsis_rows(parse_translations(index.split("\n"), "en"), sources)
    assert len(rows) == 400
    splits_of: dict[str, set[str]] = {}
    for row in rows:
        splits_of.setdefault(sources[row["package"]], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert set(Counter(row["split"] for row in rows)) == {"oracle", "distillation", "held_out"}


def fetch(name: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "assay", "tasks", "fetch", name]
    kept = {key: value for key, value in os.environ.items() if key != "PATH"}
    environment = {**kept, "XDG_CACHE_HOME": str(cache), **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_without_apt_one_sentence_and_nothing_in_the_cache(tmp_path: Path) -> None:
    result = fetch("debian-de", tmp_path, PATH=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("assay: task 'debian-de' is fetched with apt, which this machine")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_cache_is_used_and_refused_when_damaged(tmp_path: Path) -> None:
    """Without apt: it can only come from the cache."""
    from assay.data.tasks import TASKS, corpus_digest, corpus_rows, load_prompts
    from assay.models.loading import load_tokenizer

    folder = tmp_path / "assay" / "tasks"
    folder.mkdir(parents=True)
    rows = [{"english": f"word {i}", "german": f"Wort {i}", "split": "oracle"} for i in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "debian-de.parquet")
    digest = subprocess.run(["sha256sum", folder / "debian-de.parquet"], capture_output=True, text=True, check=True)
    (folder / "debian-de.json").write_text(json.dumps({"digest": digest.stdout[:16]}))
    result = fetch("debian-de", tmp_path, PATH=str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip() == str(folder / "debian-de.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert list(corpus_rows(TASKS["debian-de"])) == rows
        prompts = load_prompts(TASKS["debian-de"], "oracle", load_tokenizer("define-oracle"), 40, 24, 9)
        assert {prompt.text for prompt in prompts} == {f"English: word {i}\nGerman:" for i in range(9)}
        (folder / "debian-de.parquet").write_bytes(b"damaged")
        with pytest.raises(AssayError, match="damaged: delete it"):
            corpus_digest(TASKS["debian-de"])


# --- the hub


def example(name: str, i: int, split: str = "train") -> dict[str, Any]:
    match name:
        case "xsum":
            return {"document": f"Long {split}\n\ntext {i}", "summary": f"{split} text {i}", "id": str(i)}
        case "wmt14-de-en":
            return {"translation": {"de": f"Satz {split} {i}", "en": f"Sentence {split} {i}"}}
        case _:
            return {"task_name": "t", "id": str(i), "definition": "Add.", "inputs": f"{split} {i}", "targets": f"{i}"}


def test_examples_become_rows() -> None:
    assert xsum_row(example("xsum", 1)) == {"document": "Long train text 1", "summary": "train text 1"}
    assert wmt_row(example("wmt14-de-en", 1)) == {"german": "Satz train 1", "english": "Sentence train 1"}
    row = instructions_row(example("natural-instructions", 1))
    assert row == {"task_name": "t", "definition": "Add.", "inputs": "train 1", "targets": "1"}
    assert xsum_row({"document": "\n", "summary": "s", "id": "1"}) is None


@pytest.mark.parametrize("name", sorted(HUB))
def test_own_splits_are_kept_and_what_is_held_out_is_not_trained_on(name: str) -> None:
    dataset = HUB[name]
    train = [example(name, i) for i in range(200)]
    held_out = [example(name, i, "test") for i in range(20)]
    rows = split_rows(dataset, [*train, *train[:50], *held_out[:5]], [*held_out, *held_out[:3]])
    sizes = Counter(row["split"] for row in rows)
    assert sizes["held_out"] == 20
    assert sizes["oracle"] + sizes["distillation"] == 200
    assert sizes["oracle"] / 200 == pytest.approx(dataset.oracle_share, abs=0.1)
    assert len({tuple(loose_key(row[column]) for column in dataset.prompt) for row in rows}) == 220


def test_a_data_set_of_another_form_is_refused() -> None:
    with pytest.raises(AssayError, match="other columns than expected \\(article, highlights\\)"):
        split_rows(HUB["xsum"], [{"article": "a", "highlights": "b"}], [])


def local(name: str, folder: Path, rows: Mapping[str, int]) -> Any:
    """A stand-in of a hub data set: its parquet files, two for the train split."""
    folder.mkdir()
    for split, num_rows in rows.items():
        for part in range(2 if split == "train" else 1):
            examples = [example(name, i + part * num_rows, split) for i in range(num_rows)]
            pq.write_table(pa.Table.from_pylist(examples), folder / f"{split}-{part:05d}.parquet")
    return dataclasses.replace(HUB[name], id=str(folder), config=None, revision=None)


@pytest.mark.parametrize("name", sorted(HUB))
def test_a_local_data_set_is_streamed_in_part(name: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    dataset = local(name, tmp_path / "data", {"train": 300, "validation": 40, "test": 40})
    dataset = dataclasses.replace(dataset, num_train=100, num_held_out=20)
    rows, facts = fetch_hub(dataset, name)
    sizes = Counter(row["split"] for row in rows)
    assert (sizes["oracle"] + sizes["distillation"], sizes["held_out"], facts["num_read"]) == (100, 20, 120)
    assert rows == fetch_hub(dataset, name)[0]
    heads = {f"{split} {i}" for split, start in (("train", 0), ("train", 300)) for i in range(start, start + 50)}
    told = " ".join(" ".join(row.values()) for row in rows if row["split"] != "held_out")
    assert all(head.split()[1] in told.split() for head in heads)


def test_a_data_set_that_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    absent = dataclasses.replace(HUB["xsum"], id=str(tmp_path / "absent"), revision=None)
    with pytest.raises(AssayError, match=r"could not be read from the hub's data set .* needs network once"):
        fetch_hub(absent, "xsum")
    no_test = local("xsum", tmp_path / "data", {"train": 30, "validation": 4})
    with pytest.raises(AssayError, match="Bad split: test"):
        fetch_hub(no_test, "xsum")


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    """In a process of its own whose import of ``datasets`` fails, whether it is installed or not."""
    code = "import sys; sys.modules['datasets'] = None; from assay.cli import main; main(['tasks', 'fetch', 'xsum'])"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "assay: task 'xsum' needs the package 'datasets', which is not installed: pip install 'assay[datasets]'"
    )


# --- a data set of the user's choice


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "assay" / "tasks"


def talk(i: int, split: str = "train") -> dict[str, Any]:
    answer = {"role": "assistant", "content": f"answer {i}"}
    return {"messages": [{"role": "user", "content": f"{split} question number {i}"}, answer], "source": "here"}


def saved(folder: Path, rows: list[dict[str, Any]], split: str = "train") -> str:
    """A folder as ``datasets`` saves it, read by its path."""
    import datasets

    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    return f"dataset:{folder}"


def test_a_data_set_gives_the_prompts_of_a_file_of_the_same_rows(tmp_path: Path, cache: Path) -> None:
    from assay.data.tasks import corpus_digest, corpus_rows, get_task

    rows = [talk(i) for i in range(80)]
    name = saved(tmp_path / "data", rows)
    saved(tmp_path / "data", [talk(i, "test") for i in range(20)], "test")
    file = tmp_path / "same.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = corpus_rows(get_task(name))
    assert list(found) == list(corpus_rows(get_task(str(file))))
    assert found[0]["reference"] == "answer 0"
    assert {row["content"] for row in corpus_rows(get_task(f"{name}:test"))} == {
        talk(i, "test")["messages"][0]["content"] for i in range(20)
    }
    (facts,) = [json.loads(path.read_text()) for path in cache.glob("*.json") if '"train"' in path.read_text()]
    assert facts["dataset"] == str(tmp_path / "data")
    assert facts["num_read"] == 80
    assert facts["digest"] == corpus_digest(get_task(name))


def test_a_data_set_is_read_once_and_again_when_its_folder_changes(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from assay.data.tasks import corpus_digest, corpus_rows, get_task

    name = saved(tmp_path / "data", [talk(i) for i in range(40)])
    digest = corpus_digest(get_task(name))
    assert "fetching task" in capsys.readouterr().err
    assert corpus_digest(get_task(name)) == digest
    assert capsys.readouterr().err == ""
    saved(tmp_path / "data", [talk(i) for i in range(41)])
    assert corpus_digest(get_task(name)) != digest
    assert len(corpus_rows(get_task(name))) == 41


def test_jsonl_of_a_folder_and_plain_prompts_with_columns(tmp_path: Path, cache: Path) -> None:
    from assay.data.tasks import corpus_rows, get_task

    folder = tmp_path / "data"
    folder.mkdir()
    lines = [json.dumps({"prompt": f"p {i}", "gold": f"g {i}", "says": [f"s {i}"]}) for i in range(40)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    task = get_task(f"dataset:{folder}", "Q: {prompt}", reference="gold", responses="says", with_oracle=False)
    for i, row in enumerate(corpus_rows(task)):
        assert (row["prompt_text"], row["reference"], row["responses"]) == (f"Q: p {i}", f"g {i}", (f"s {i}",))


@pytest.mark.parametrize("name", ["dataset:", "dataset:a::b", "dataset:a:b:c:d"])
def test_a_name_that_names_no_data_set_is_refused(name: str) -> None:
    from assay.data.tasks import get_task

    with pytest.raises(AssayError, match="names no data set: write dataset:ID, dataset:ID:SPLIT or"):
        get_task(name)


def test_a_data_set_that_holds_no_prompts_or_is_not_there_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    from assay.data.tasks import corpus_rows, get_task

    other = saved(tmp_path / "other", [{"text": "a"}])
    with pytest.raises(AssayError, match=r"the data set of task .* has no column 'prompt' or 'messages': it has text"):
        corpus_rows(get_task(other))
    with pytest.raises(AssayError, match=r"from the folder .* \(.*validation.*\): give a folder of"):
        corpus_rows(get_task(f"{other}:validation"))
    with pytest.raises(AssayError, match=r"from the hub's data set 'nobody/nothing' \(.*\): it needs network once"):
        corpus_rows(get_task("dataset:nobody/nothing"))
    assert not cache.exists() or list(cache.iterdir()) == []
