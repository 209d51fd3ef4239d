"""A user's own text: refused by line, never executed, split without leaks, stable when rows are appended."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.cli import main
from assay.config import Experiment, TaskConfig
from assay.data.splitting import SHARES, assign_splits, joined_groups, loose_key, near_duplicates, split_of
from assay.data.tasks import corpus_digest, corpus_rows, get_task, load_prompts
from assay.data.user_text import leakage_report, read_split
from assay.errors import AssayError
from assay.models.loading import load_tokenizer
from assay.validation import template_columns, validate

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(num: int, seed: int = 0, length: int = 8) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(WORDS, k=length)) for _ in range(num)]


def splits_by_prompt(path: Path) -> dict[str, str]:
    return {row["prompt_text"]: row["split"] for row in read_split(path, None).rows}


# --- what a file may hold


def test_jsonl_and_parquet_of_the_same_rows_give_the_same_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": text, "reference": text.upper() if i % 3 else None} for i, text in enumerate(texts(300))]
    tokenizer = load_tokenizer("define-oracle")
    loaded = []
    for name in ("a.jsonl", "a.parquet"):
        task = get_task(str(write(tmp_path / name, rows)))
        loaded.append(load_prompts(task, "oracle", tokenizer, 60, 24, num_prompts=80, seed=4))
    assert loaded[0] == loaded[1]
    assert len({prompt.id for prompt in loaded[0]}) == 80
    for prompt in loaded[0]:
        assert (prompt.reference is None) == (prompt.reference_ids == ())
        assert tokenizer.decode(prompt.token_ids) == prompt.text
    assert {prompt.reference is None for prompt in loaded[0]} == {True, False}


def test_ids_are_the_rows_own_and_a_template_shows_any_text_column(tmp_path: Path) -> None:
    rows = [{"prompt": text, "id": i, "line": f"of {i}", "hint": "say"} for i, text in enumerate(texts(200))]
    task = get_task(str(write(tmp_path / "a.jsonl", rows)), "{hint}: {prompt} ({line}) {{=}}")
    prompts = load_prompts(task, "distillation", load_tokenizer("define-oracle"), 99, 24, num_prompts=20)
    for prompt in prompts:
        assert prompt.text == f"say: {rows[int(prompt.id)]['prompt']} (of {prompt.id}) {{=}}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"prompt": "a"', "line 2 is not JSON"),
        (b"", "line 2 is empty"),
        (b"[1, 2]", "line 2 is not a JSON object"),
        (b'{"text": "a"}', "line 2 has no 'prompt'"),
        (b'{"prompt": null}', "line 2 has no 'prompt'"),
        (b'{"prompt": " "}', "line 2 'prompt' is empty"),
        (b'{"prompt": 3}', "line 2 'prompt' is int, not text"),
        (b'{"prompt": ["a"]}', "line 2 'prompt' message 1 is str, not an object with 'role' and 'content'"),
        (b'{"prompt": "a", "reference": 3}', "line 2 'reference' is int, not text"),
        (b'{"prompt": "a", "reference": ""}', "line 2 'reference' is empty"),
        (b'{"prompt": "a", "id": true}', "line 2 'id' is bool"),
        (b'{"prompt": "a", "group": {"b": 1}}', "line 2 'group' is dict"),
        (b'{"prompt": "a", "id": "first"}', "line 2 id 'first' is already that of line 1"),
        (b'{"prompt": "a", "prompt": "b"}', "line 2 is not JSON (an object names a column twice"),
        (b'{"prompt": "a", "x": NaN}', "line 2 is not JSON (NaN"),
        (b'{"prompt": "\\ud800"}', "line 2 'prompt' holds half of a surrogate pair"),
        (b'{"prompt": "caf\xe9"}', "line 2 byte 16 is not UTF-8"),
        (b"[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_by_number(line: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"prompt": "one", "id": "first"}\n' + line + b'\n{"prompt": "three"}\n')
    with pytest.raises(AssayError) as caught:
        read_split(path, None)
    assert "mine.jsonl" in str(caught.value)
    assert "1 of 3 lines" in str(caught.value)
    assert words in str(caught.value)


def test_of_many_bad_lines_the_first_are_named_and_all_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": text if i % 2 else ""} for i, text in enumerate(texts(20))])
    with pytest.raises(
        AssayError, match=r"10 of 20 lines.*line 1 .*; line 3 .*; line 5 .*; and 7 more; mend these lines"
    ):
        read_split(path, None)


def test_a_final_line_without_its_end_windows_line_ends_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "eins"}\r\n{"prompt": "zwei \xe2\x80\xa8 drei"}')
    assert [row["prompt_text"] for row in read_split(path, None).rows] == ["eins", "zwei \u2028 drei"]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "text.parquet").write_text("no parquet")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "a.txt").write_text("x")
    write(tmp_path / "other.parquet", [{"text": "a"}])
    for name, words in [
        ("empty.jsonl", "holds no rows"),
        ("text.parquet", "not a parquet file"),
        ("folder.jsonl", "cannot read"),
        ("absent.jsonl", "No such file"),
        ("other.parquet", "no column 'prompt' or 'messages': it has text"),
    ]:
        with pytest.raises(AssayError, match=words):
            load_prompts(get_task(str(tmp_path / name)), "oracle", load_tokenizer("define-oracle"), 16, 24, 1)
    with pytest.raises(AssayError, match=r"ends in \.jsonl or \.parquet"):
        get_task(str(tmp_path / "a.txt"))


# --- templates


@pytest.mark.parametrize(
    "template",
    [
        "{prompt.__class__}",
        "{prompt[0]}",
        "{prompt!r}",
        "{prompt:>9}",
        "{prompt:{prompt}}",
        "{}",
        "{0}",
        "{prompt",
        "}",
        "x",
    ],
)
def test_a_template_can_only_insert_columns(template: str, tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="template"):
        template_columns(template)
    with pytest.raises(AssayError, match="template"):
        validate(Experiment(task=TaskConfig(template=template)))
    with pytest.raises(AssayError, match="template"):
        read_split(write(tmp_path / "a.jsonl", [{"prompt": "a"}]), template)


def test_a_template_that_cannot_be_filled_names_the_nearest_column_or_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "question": "b", "reference": "c"}, {"prompt": "d", "size": 3}])
    with pytest.raises(AssayError, match="unknown column in the template 'qestion': did you mean 'question'"):
        read_split(path, "{qestion}")
    with pytest.raises(AssayError, match="shows 'reference', which the model must not see"):
        read_split(path, "{prompt} {reference}")
    with pytest.raises(AssayError, match="line 2 column 'question' of the template is missing"):
        read_split(path, "{question}")
    with pytest.raises(AssayError, match="line 2 column 'size' of the template is int"):
        read_split(write(path, [{"prompt": "a", "size": "b"}, {"prompt": "d", "size": 3}]), "{size}")


# --- duplicates, groups, splits


def test_what_reads_the_same_has_one_key_and_what_does_not_has_two() -> None:
    same = ["Slam-dunk,  now", "slam dunk now!", "SLAM\tDUNK: NOW", "ｓｌａｍ dunk (now)"]
    assert len({loose_key(text) for text in same}) == 1
    other = ["12 + 3", "1 + 23", "12 < 3", "123", "की", "का", "?", "!", "cafe", "café"]
    assert len({loose_key(text) for text in other}) == len(other)


def test_repeats_are_left_out_and_other_answers_to_a_prompt_stay_beside_it(tmp_path: Path) -> None:
    base = texts(100)
    rows = [{"prompt": text, "reference": f"r{i}"} for i, text in enumerate(base)]
    rows += [{"prompt": base[7].upper() + "!", "reference": "R7."}, {"prompt": base[8], "reference": "another"}]
    found = read_split(write(tmp_path / "a.jsonl", rows), None)
    assert found.duplicates == [(101, 8)]
    assert (found.num_read, len(found.rows), found.num_groups) == (102, 101, 100)
    assert len({row["split"] for row in found.rows if row["prompt_text"] == base[8]}) == 1


def test_groups_never_straddle_splits(tmp_path: Path) -> None:
    """A row's own group, the same prompt, the same long reference: joined through one another."""
    drawn = random.Random(1)
    rows = [
        {"prompt": prompt, "reference": drawn.choice(texts(400, 5)), "group": drawn.choice([None, f"g{i % 90}"])}
        for i, prompt in enumerate(texts(500, 2))
    ]
    rows += [{"prompt": row["prompt"].title(), "reference": "else"} for row in rows[::7]]
    found = read_split(write(tmp_path / "a.jsonl", rows), None)
    splits_of = defaultdict(set)
    for row in found.rows:
        splits_of[f"prompt {loose_key(row['prompt_text'])}"].add(row["split"])
        if row["group"] is not None:
            splits_of[f"group {row['group']}"].add(row["split"])
        elif len(row["reference"]) >= 20:
            splits_of[f"reference {loose_key(row['reference'])}"].add(row["split"])
    assert len(splits_of) < 2 * len(found.rows)
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert {row["split"] for row in found.rows} == set(SHARES)


def test_joined_groups_are_the_connected_components() -> None:
    drawn = random.Random(0)
    keys = [[f"k{drawn.randrange(60)}" for _ in range(2)] for _ in range(50)]
    linked = np.array([[bool(set(a) & set(b)) for b in keys] for a in keys])
    for _ in range(6):
        linked = linked @ linked
    assert joined_groups(keys) == [int(np.flatnonzero(row)[0]) for row in linked]


def test_labels_do_not_join_rows_and_a_chain_of_half_the_rows_is_refused(tmp_path: Path) -> None:
    labelled = [{"prompt": text, "reference": "yes" if i % 2 else "no"} for i, text in enumerate(texts(100))]
    assert read_split(write(tmp_path / "a.jsonl", labelled), None).num_groups == 100
    chained = [row | {"reference": "one long answer that many rows share"} for row in labelled[:51]] + labelled[51:]
    with pytest.raises(AssayError, match=r"51 of 100 rows hang together as one group \(such as line 1\).*'group'"):
        read_split(write(tmp_path / "b.jsonl", chained), None)
    apart = [row | {"group": str(i)} for i, row in enumerate(chained)]
    assert read_split(write(tmp_path / "c.jsonl", apart), None).num_groups == 100


def test_the_words_of_a_template_change_no_split(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": text} for text in texts(200)])
    plain, worded = read_split(path, None), read_split(path, "Translate into Latin: {prompt} =")
    assert [row["split"] for row in plain.rows] == [row["split"] for row in worded.rows]


def test_appended_rows_change_no_split(tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in texts(600)]
    before = splits_by_prompt(write(tmp_path / "a.jsonl", rows[:400]))
    after = splits_by_prompt(write(tmp_path / "b.jsonl", rows))
    assert len(after) > len(before)
    assert before.items() <= after.items()


def test_shares_are_as_said() -> None:
    drawn = [split_of(f"key {i}") for i in range(20_000)]
    for split, share in SHARES.items():
        assert abs(drawn.count(split) / len(drawn) - share) < 4 * (share * (1 - share) / len(drawn)) ** 0.5
    assert sum(SHARES.values()) == pytest.approx(1)
    only = {split_of(f"key {i}", {"oracle": 0.9, "distillation": 0.8}) for i in range(100)}
    assert only == {"oracle", "distillation"}


def test_appending_a_link_moves_the_later_group_to_the_earlier() -> None:
    keys = [["prompt a"], ["prompt b"], ["prompt a", "prompt b"]]
    apart, joined = assign_splits(keys[:2])[0], assign_splits(keys)[0]
    assert joined == [apart[0]] * 3


# --- the check for leaks


@pytest.mark.parametrize("num_shared", [0, 3])
def test_near_duplicates_are_those_of_a_comparison_of_all_pairs(num_shared: int) -> None:
    drawn = random.Random(3)
    base = texts(60, 4, length=9)
    variants = [" ".join([*text.split()[: drawn.randrange(5, 9)], *drawn.choices(WORDS, k=2)]) for text in base]
    everything = [" ".join([*WORDS[:num_shared], text]) for text in base + variants]
    labels = [drawn.randrange(3) for _ in everything]
    sets = [set(text.split()) - (set(WORDS[:num_shared]) if num_shared else set()) for text in everything]
    alike = {
        (j, i)
        for i, j in combinations(range(len(sets)), 2)
        if labels[i] != labels[j] and len(sets[i] & sets[j]) >= 0.7 * len(sets[i] | sets[j])
    }
    found = near_duplicates(everything, labels)
    assert set(found) <= alike
    assert {i for i, _ in found} == {i for i, _ in alike}
    assert 5 < len(found) < 60


def test_texts_that_are_just_alike_enough_are_found_though_their_rarest_words_differ() -> None:
    whole = WORDS[:10]
    for part in (whole[:7], whole[3:]):
        assert near_duplicates([" ".join(part), " ".join(whole)], "ab") == [(1, 0)]
        assert near_duplicates([" ".join(whole), " ".join(part)], "ab") == [(1, 0)]
        assert near_duplicates([" ".join(whole), " ".join(part[1:])], "ab") == []


def test_the_report_finds_leaks_that_were_planted(tmp_path: Path) -> None:
    rows = [{"prompt": text, "group": f"g{i}"} for i, text in enumerate(texts(300, length=12))]
    clean = leakage_report(write(tmp_path / "a.jsonl", rows))
    assert sum(clean.near_duplicates.values()) == 0
    planted = [{"prompt": f"{row['prompt']} indeed", "group": f"h{i}"} for i, row in enumerate(rows[:100])]
    leaky = leakage_report(write(tmp_path / "b.jsonl", rows + planted))
    crossing = sum(split_of(f"group g{i}") != split_of(f"group h{i}") for i in range(100))
    assert sum(leaky.near_duplicates.values()) == crossing > 30
    assert len(leaky.examples) == 5
    assert sum(leaky.rows_per_split.values()) == 400 == leaky.num_groups


def test_tasks_check_prints_the_report_and_tasks_lists_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": text, "kind": "say"} for text in [*texts(200), texts(1)[0]]])
    task = get_task(str(path), "{kind} {prompt}")
    main(["tasks", "check", str(path), "--template", task.template])
    printed = capsys.readouterr().out
    assert "201 rows, 0 of the 200 kept have a reference" in printed
    assert "exact duplicates left out: 1 (line 201 repeats line 1)" in printed
    sizes = [int(word) for word in printed.split("possible at most:")[1].split() if word.isdigit()]
    assert sum(sizes) == 200
    tokenizer = load_tokenizer("define-oracle")
    load_prompts(task, "held_out", tokenizer, 99, 24, num_prompts=sizes[2])
    with pytest.raises(AssayError, match=f"among the {sizes[2]} rows"):
        load_prompts(task, "held_out", tokenizer, 99, 24, num_prompts=sizes[2] + 1)
    main(["tasks"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("define", "debian-de", "xsum"))
    with pytest.raises(SystemExit) as caught:
        main(["tasks", "check"])
    assert caught.value.code == 2


# --- conversations


def said(text: str, system: str | None = None) -> list[dict[str, str]]:
    return ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": text}]


def chat_tokenizer() -> Any:
    tokenizer = load_tokenizer("define-oracle")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    return tokenizer


def test_conversations_of_jsonl_and_parquet_give_the_prompts_of_the_chat_template(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [*said(text, "Be brief."), {"role": "assistant", "content": f"To {text}"}], "id": str(i)}
        for i, text in enumerate(texts(200))
    ]
    tokenizer, loaded = chat_tokenizer(), []
    for name in ("a.jsonl", "a.parquet"):
        task = get_task(str(write(tmp_path / name, rows)), chat_template=True)
        loaded.append(load_prompts(task, "oracle", tokenizer, 199, 99, num_prompts=50, seed=1))
    assert loaded[0] == loaded[1]
    for prompt in loaded[0]:
        messages = rows[int(prompt.id)]["messages"]
        ids = tokenizer.apply_chat_template(messages[:2], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert prompt.token_ids == tuple(ids)
        assert prompt.text == f"system: Be brief.\nuser: {messages[1]['content']}"
        assert prompt.reference == messages[2]["content"]
        assert tokenizer.decode(prompt.reference_ids[:-1]) == prompt.reference
        assert prompt.reference_ids[-1] == tokenizer.eos_token_id


def test_a_text_is_the_one_message_of_a_user_also_of_a_task_that_ships(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    base = texts(60)
    plain = write(tmp_path / "a.jsonl", [{"prompt": text, "id": i} for i, text in enumerate(base)])
    talk = write(tmp_path / "b.jsonl", [{"prompt": said(text), "id": i} for i, text in enumerate(base)])
    found = [
        load_prompts(get_task(str(path), chat_template=True), "oracle", tokenizer, 99, 24) for path in (plain, talk)
    ]
    assert found[0] == found[1]
    for limit in (30, 40):
        for prompt in load_prompts(get_task("define", chat_template=True), "oracle", tokenizer, limit, 24, 30):
            ids = tokenizer.apply_chat_template(said(prompt.text), add_generation_prompt=True, return_dict=True)
            assert prompt.token_ids == tuple(ids["input_ids"])
            assert len(prompt.token_ids) <= limit
            assert tokenizer.decode(prompt.reference_ids).startswith(str(prompt.reference)[:8])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": []}, "'prompt' does not end with a message of the user"),
        ({"messages": []}, "'messages' does not end with a message of the user (and an answer to it)"),
        ({"messages": "text"}, "'messages' is str, not a list of messages"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, "'prompt' message 1 has the role 'tool': it must be one of"),
        ({"prompt": [{"role": ["user"], "content": "x"}]}, "message 1 has the role ['user']"),
        ({"prompt": [{"content": "x"}]}, "message 1 has the role None"),
        ({"prompt": [*said("x"), {"role": "user"}]}, "message 2 'content' is NoneType, not text"),
        ({"prompt": [{"role": "user", "content": " "}]}, "message 1 'content' is empty"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "message 1 'content' is list, not text"),
        ({"prompt": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "message 1 has 'tool_calls': only"),
        ({"prompt": [*said("x"), {"role": "assistant", "content": "y"}]}, "does not end with a message of the user"),
        ({"messages": [{"role": "assistant", "content": "y"}]}, "does not end with a message of the user"),
        (
            {"messages": [*said("x"), {"role": "assistant", "content": "y"}], "reference": "z"},
            "has a final assistant message and a 'reference': leave one of them out",
        ),
    ],
)
def test_a_conversation_that_cannot_be_used_is_refused_by_line(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(AssayError) as caught:
        read_split(write(tmp_path / "a.jsonl", [{"prompt": "one"}, row]), None)
    assert "1 of 2 lines cannot be used: line 2 " in str(caught.value)
    assert words in str(caught.value)


def test_conversations_need_the_chat_template_and_take_no_other(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": said(text)} for text in texts(40)])
    with pytest.raises(AssayError, match=r"line \d+ of task .* is a conversation: set task\.chat_template"):
        load_prompts(get_task(str(path)), "oracle", chat_tokenizer(), 99, 24)
    with pytest.raises(AssayError, match=r"line 1 is a conversation, which no template fills"):
        load_prompts(get_task(str(path), "Say: {prompt}", chat_template=True), "oracle", chat_tokenizer(), 99, 24)


def test_the_line_that_a_template_cannot_render_is_named(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    task = get_task(str(write(tmp_path / "a.jsonl", [{"prompt": "hello"}])), chat_template=True, with_oracle=False)
    with pytest.raises(AssayError, match=r"line 1 of task .* cannot render messages of user: System role not supp"):
        [load_prompts(task, split, tokenizer, 99, 24) for split in ("distillation", "held_out")]


def test_conversations_are_compared_by_their_text_whoever_says_it(tmp_path: Path) -> None:
    base = texts(120, length=12)
    rows: list[dict[str, Any]] = [{"prompt": text} for text in base]
    rows += [{"prompt": said(" ".join(text.split()[6:]), " ".join(text.split()[:6]))} for text in base[:30]]
    found = read_split(write(tmp_path / "a.jsonl", rows), None)
    assert found.duplicates == [(121 + i, 1 + i) for i in range(30)]
    near = [{"prompt": said(f"{text} indeed", "word")} for text in base]
    leaky = leakage_report(write(tmp_path / "b.jsonl", rows[:120] + near))
    assert sum(leaky.near_duplicates.values()) > 30


# --- columns of the user's choice


def test_references_come_from_the_column_that_is_named(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "messages": [*said(text), {"role": "assistant", "content": "not this"}],
            "gold": f"{i}",
            "reference": "nor this",
        }
        for i, text in enumerate(texts(50))
    ]
    path = write(tmp_path / "a.jsonl", rows)
    assert [row["reference"] for row in read_split(path, None, "gold").rows] == [str(i) for i in range(50)]
    with pytest.raises(AssayError, match=r"unknown column of references in .* 'golf': did you mean 'gold'"):
        read_split(path, None, "golf")
    plain = write(tmp_path / "b.jsonl", [{"prompt": "a", "gold": "b", "says": "c"}])
    for column in ("gold", "reference", "says"):
        with pytest.raises(AssayError, match=f"shows '{column}', which the model must not see"):
            read_split(plain, f"{{prompt}} {{{column}}}", "gold", "says")
    with pytest.raises(AssayError, match="line 1 'gold' is int, not text"):
        read_split(write(tmp_path / "c.jsonl", [{"prompt": "a", "gold": 3}]), None, "gold")
    with pytest.raises(AssayError, match="name one column"):
        validate(Experiment(task=TaskConfig(reference="gold", responses="gold")))


def test_a_task_that_ships_has_other_references_too() -> None:
    tokenizer = load_tokenizer("define-oracle")
    task = get_task("define", "{gloss} is", reference="lemmas")
    for prompt in load_prompts(task, "held_out", tokenizer, 60, 60, 20):
        row = corpus_rows(task)[int(prompt.id.removeprefix("define-"))]
        assert prompt.reference == row["lemmas"]
        assert prompt.text == f"{row['gloss']} is"
    for what in ("reference", "responses"):
        with pytest.raises(
            AssayError, match=rf"unknown column of {what}s? in task 'define' 'glos': did you mean 'gloss'"
        ):
            load_prompts(get_task("define", **{what: "glos"}), "held_out", tokenizer, 60, 60, 20)


def test_responses_of_the_teacher_are_tokenised_as_references_are(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": text, "says": ["short", f"{text} at length" * 3], "reference": "short"} for text in texts(60)
    ]
    rows[7]["says"] = "only one"
    tokenizer = load_tokenizer("define-oracle")
    task = get_task(str(write(tmp_path / "a.jsonl", rows)), responses="says", with_oracle=False)
    prompts = load_prompts(task, "distillation", tokenizer, 99, 20) + load_prompts(task, "held_out", tokenizer, 99, 20)
    assert len(prompts) == 60
    for prompt in prompts:
        if prompt.id == "line-000008":
            assert [tokenizer.decode(ids[:-1]) for ids in prompt.response_ids] == [" only one"]
            continue
        short, long = prompt.response_ids
        assert short == prompt.reference_ids
        assert short[-1] == tokenizer.eos_token_id
        assert len(long) == 20
        assert tokenizer.eos_token_id not in long
    assert all(p.response_ids == () for p in load_prompts(get_task(task.name), "oracle", tokenizer, 99, 20))


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (None, "'says' holds no response of the teacher"),
        ([], "'says' holds no response of the teacher"),
        (3, "'says' is int, not text or a list of texts"),
        ("", "'says' is empty"),
        (["a", 3], "'says' response 2 is int, not text"),
        (["a", "\ud800"], "'says' response 2 holds half of a surrogate pair"),
    ],
)
def test_a_row_without_a_response_is_named_by_its_line(says: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "says": "b"}, {"prompt": "c", "says": says}])
    with pytest.raises(AssayError, match="1 of 2 lines cannot be used: line 2 ") as caught:
        read_split(path, None, responses="says")
    assert words in str(caught.value)


def test_rows_of_one_prompt_with_other_responses_stay(tmp_path: Path) -> None:
    rows = [{"prompt": text, "says": word} for text in texts(30) for word in ("yes", "no", "Yes.")]
    path = write(tmp_path / "a.jsonl", rows)
    assert len(read_split(path, None, responses="says").rows) == 60
    assert len(read_split(path, None).rows) == 30


# --- without an oracle


def test_what_is_held_out_is_the_same_with_and_without_an_oracle(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": text} for text in texts(600)])
    lab, distil = read_split(path, None).rows, read_split(path, None, with_oracle=False).rows
    assert [row["id"] for row in lab] == [row["id"] for row in distil]
    assert {row["split"] for row in distil} == {"distillation", "held_out"}
    for one, other in zip(lab, distil, strict=True):
        assert (one["split"] == "held_out") == (other["split"] == "held_out")
    tokenizer = load_tokenizer("define-oracle")
    for name in (str(path), "define"):
        both = [get_task(name), get_task(name, with_oracle=False)]
        held_out = [load_prompts(task, "held_out", tokenizer, 60, 24, 40, seed=3) for task in both]
        assert held_out[0] == held_out[1]
        splits = {f"{name}-{i:06d}": row["split"] for i, row in enumerate(corpus_rows(both[0]))}
        found = [splits.get(p.id, "") for p in load_prompts(both[1], "distillation", tokenizer, 60, 24, 400)]
        assert set(found) == ({"oracle", "distillation"} if name == "define" else {""})
        with pytest.raises(AssayError, match="has no split 'oracle'"):
            load_prompts(both[1], "oracle", tokenizer, 60, 24)


def test_a_file_says_itself_what_is_held_out(tmp_path: Path) -> None:
    names = ["train", "distillation", "validation", "test", "held_out"]
    path = write(tmp_path / "a.jsonl", [{"prompt": text, "split": names[i % 5]} for i, text in enumerate(texts(50))])
    splits = [row["split"] for row in read_split(path, None, with_oracle=False).rows]
    assert splits == ["distillation", "distillation", "held_out", "held_out", "held_out"] * 10
    with pytest.raises(AssayError, match="has a column 'split', which a run with an oracle cannot use"):
        read_split(path, None)
    for name in (None, "dev", 3):
        bad = write(tmp_path / "b.jsonl", [{"prompt": "a", "split": "train"}, {"prompt": "b", "split": name}])
        with pytest.raises(AssayError, match=f"line 2 has the split {name!r}: it must be one of distillation, train,"):
            read_split(bad, None, with_oracle=False)


def test_a_group_that_a_file_puts_in_two_splits_is_refused_by_its_lines(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": text, "split": "train"} for text in texts(9)]
    again = {"prompt": rows[3]["prompt"].upper(), "reference": "an answer"}
    agreeing = write(tmp_path / "a.jsonl", [*rows, again | {"split": "distillation"}])
    assert len(read_split(agreeing, None, with_oracle=False).rows) == 10
    for other in (again, {"prompt": rows[3]["prompt"]}):  # of the same group, or a mere repeat
        parted = write(tmp_path / "b.jsonl", [*rows, other | {"split": "test"}])
        with pytest.raises(AssayError, match=r"line 10 is in held_out, but line 4 of its group in distillation"):
            read_split(parted, None, with_oracle=False)
    half = [{"prompt": f"{text} {i}", "group": "all", "split": "train"} for i, text in enumerate(texts(9))]
    assert read_split(write(tmp_path / "c.jsonl", half), None, with_oracle=False).largest_group == 9


def test_tasks_check_without_an_oracle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": said(text), "split": "test" if i % 5 == 0 else "train"} for i, text in enumerate(texts(100))]
    main(["tasks", "check", str(write(tmp_path / "a.jsonl", rows)), "--without-oracle"])
    printed = capsys.readouterr().out
    assert "\ndistillation: 80 rows\nheld_out: 20 rows\n" in printed
    assert "possible at most: --distillation.num-prompts 80 --probe.num-prompts 20 (" in printed
    with pytest.raises(SystemExit):
        main(["tasks", "check", "define"])
    assert "assay tasks check is for your own text" in capsys.readouterr().err


# --- a task among tasks


def test_a_file_that_changes_has_another_digest_and_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": text} for text in texts(100)])
    task, tokenizer = get_task(str(path)), load_tokenizer("define-oracle")
    digest, prompts = corpus_digest(task), load_prompts(task, "oracle", tokenizer, 60, 24)
    write(path, [{"prompt": text} for text in texts(100, seed=1)])
    assert corpus_digest(task) != digest
    assert {p.text for p in load_prompts(task, "oracle", tokenizer, 60, 24)}.isdisjoint(p.text for p in prompts)


def test_there_is_no_base_split(tmp_path: Path) -> None:
    task = get_task(str(write(tmp_path / "a.jsonl", [{"prompt": "a"}])))
    with pytest.raises(AssayError, match="no split 'base', only oracle, distillation, held_out"):
        load_prompts(task, "base", load_tokenizer("define-oracle"), 16, 24)
