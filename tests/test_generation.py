"""`assay generate`: streamed, in whole files, restartable, and the same whatever the process and the shard."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay import runs
from assay.data.shards import MANIFEST, shard_path
from assay.data.tasks import get_task
from assay.data.user_rows import UserRow, read_rows, stream_rows
from assay.data.user_text import read_split
from assay.errors import AssayError
from assay.generation import SHARD_SCHEMA, MakeWriter, generate
from assay.text_writers import Generation, LeftOut, ModelWriter
from command_line import assay
from exact_writers import LETTERS, ExactWriter, changed

BASE = "define-teacher"


def prompts_file(path: Path, number: int, seed: int = 0) -> Path:
    draw = random.Random(seed)
    with path.open("w") as file:
        for n in range(number):
            prompt = "".join(draw.choices(LETTERS[1:], k=draw.randrange(1, 9)))
            file.write(json.dumps({"prompt": prompt, "id": f"p{n}", "group": n // 2}) + "\n")
    return path


def written(request: Generation, prompts: Path, out: Path, make_writer: MakeWriter = ExactWriter) -> Path:
    """``generate`` in this process."""
    return generate(request, prompts, out, 1, make_writer, make_executor=ThreadPoolExecutor)


def responses(folder: Path) -> list[tuple[str, list[str]]]:
    return [(row.id, row.columns["responses"]) for row in read_rows(folder)]


def test_a_response_depends_neither_on_the_shard_nor_on_the_process(tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path / "prompts.jsonl", 500)
    request = {"model": "exact", "max_response_tokens": 40}
    one = written(Generation(**request, shard_size=500), prompts, tmp_path / "one")
    many = generate(Generation(**request, shard_size=33), prompts, tmp_path / "many", 2, ExactWriter)
    assert responses(one) == responses(many)
    manifest = runs.read_json(many / MANIFEST)
    assert (manifest["num_prompts"], manifest["num_shards"], manifest["status"]) == (500, 16, "finished")
    assert manifest["num_rows"] + manifest["left_out"]["cut"] == 500
    assert 0 < manifest["left_out"]["cut"] < 250
    assert len({tuple(texts) for _, texts in responses(one)}) > 50
    other = written(Generation(**request, seed=1), prompts, tmp_path / "other")
    assert responses(other) != responses(one)
    assert {path.name for path in many.iterdir()} == {
        MANIFEST,
        runs.LOCK,
        *(f"shard-{i:05d}.parquet" for i in range(16)),
    }


def test_a_folder_serves_as_a_file_of_prompts(tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path / "prompts.jsonl", 200)
    out = written(Generation("exact", shard_size=50), prompts, tmp_path / "out")
    task = get_task(str(out), responses="responses", with_oracle=False)
    assert task.own
    rows = read_split(out, None, responses="responses", with_oracle=False).rows
    given = {row.id: row.columns["prompt"] for row in read_rows(prompts)}
    assert len(rows) > 100
    assert all(given[row["id"]] == row["prompt_text"] and row["responses"] for row in rows)
    shard_path(out, 2).unlink()
    with pytest.raises(AssayError, match=r"shard-00002.parquet' is missing: the command"):
        read_rows(out)
    written(Generation("exact", shard_size=50), prompts, out)
    assert [row["id"] for row in read_split(out, None, responses="responses", with_oracle=False).rows] == [
        row["id"] for row in rows
    ]
    runs.write_json(out / MANIFEST, runs.read_json(out / MANIFEST) | {"status": "running"})
    with pytest.raises(AssayError, match="is not finished"):
        read_rows(out)


def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path: Path) -> None:
    prompts, out = prompts_file(tmp_path / "prompts.jsonl", 20), tmp_path / "out"
    written(Generation("exact", shard_size=7), prompts, out)
    with pytest.raises(AssayError, match="holds responses to something else"):
        written(Generation("exact", shard_size=8), prompts, out)
    shard_path(out, 0).unlink()
    with pytest.raises(AssayError, match="the model has changed since"):
        written(Generation("exact", shard_size=7), prompts, out, changed)
    prompts_file(prompts, 20, seed=1)
    with pytest.raises(AssayError, match="holds responses to something else"):
        written(Generation("exact", shard_size=7), prompts, out)
    with pytest.raises(AssayError, match="is not empty and holds no responses"):
        written(Generation("exact"), prompts, tmp_path)
    prompts.write_text('{"prompt": "abc"}\n{"prompt": ""}\n')
    with pytest.raises(AssayError, match="line 2 'prompt' is empty"):
        written(Generation("exact"), prompts, tmp_path / "new")
    assert not (tmp_path / "new" / MANIFEST).exists()
    prompts.write_text('{"prompt": "abc"}\n')
    with pytest.raises(AssayError, match="no prompt has a response that can be used"):
        written(Generation("exact", max_response_tokens=1), prompts, tmp_path / "cut")
    for wrong in ({"number": 0}, {"shard_size": 0}, {"sampling_temperature": -1.0}):
        with pytest.raises(AssayError):
            Generation("exact", **wrong)


def test_rows_are_streamed_from_both_kinds_of_files(tmp_path: Path) -> None:
    lines = prompts_file(tmp_path / "prompts.jsonl", 3000)
    pq.write_table(pa.Table.from_pylist([row.columns for row in read_rows(lines)]), tmp_path / "prompts.parquet")
    for path in (lines, tmp_path / "prompts.parquet"):
        assert list(stream_rows(path)) == read_rows(path)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(AssayError, match="holds no rows"):
        list(stream_rows(empty))


class Echo:
    """Answers with the prompt, and keeps nothing."""

    digest = "echo"

    def __init__(self, request: Generation) -> None:
        pass

    def write(self, rows: Sequence[UserRow]) -> list[list[str]]:
        return [[row.columns["prompt"]] for row in rows]


def peaks(folder: Path) -> list[int]:
    """The most bytes that Python held while 500, 1,000 and 16,000 prompts were answered."""
    found = []
    for number in (500, 1_000, 16_000):  # the first makes what is made once
        prompts = prompts_file(folder / f"{number}.jsonl", number)
        tracemalloc.start()
        written(Generation("echo", shard_size=125), prompts, folder / f"out-{number}", Echo)
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path: Path) -> None:
    # In a process of its own: Python's table of interned names may be due to double at any path, by megabytes in a
    # process that has run other tests.
    code = "import sys; from pathlib import Path; from test_generation import peaks; print(peaks(Path(sys.argv[1])))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    _, few, many = json.loads(ended.stdout)
    assert many < 1.2 * few, ended.stdout


def test_a_model_writes_what_it_would_sample(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("a", "the word", "house", "b", "x" * 900)))
    rows = list(stream_rows(path))
    request = Generation(BASE, number=2, max_prompt_tokens=24, max_response_tokens=40, batch_size=4)
    texts = ModelWriter(request).write(rows)
    assert texts[-1] == LeftOut.TOO_LONG
    kept = [found for found in texts if isinstance(found, list)]
    assert len(kept) >= 2
    assert all(len(found) == 2 and found[0] != found[1] for found in kept)
    alone = ModelWriter(dataclasses.replace(request, batch_size=1)).write(rows[2:])
    assert list(alone) == list(texts[2:])


@pytest.mark.slow
def test_killed_and_begun_again_the_files_are_the_same(tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path / "prompts.jsonl", 400)
    flags = [
        "--model",
        BASE,
        "--shard-size",
        "20",
        "--max-prompt-tokens",
        "24",
        "--max-response-tokens",
        "40",
        "--processes",
        "2",
    ]
    whole = assay("generate", prompts, *flags, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.strip() == str(tmp_path / "whole")
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "assay", "generate", str(prompts), *flags, "--out", str(killed)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not shard_path(killed, 2).exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.random() * 0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    times = {path: path.stat().st_mtime_ns for path in killed.glob("shard-*")}
    assert 3 <= len(times) < 20
    again = assay("generate", prompts, *flags, "--out", killed)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in times} == times
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in killed.iterdir())
    for name in names:
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert pq.read_schema(shard_path(killed, 0)).equals(SHARD_SCHEMA)
