"""Arbitrary and mutated bytes in every reader: what it gives is a result or one sentence, and nothing else.

Seeds are the inputs of tests/bad_inputs, good ones and bad ones alike.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay import runs
from assay.comparison import compare_runs
from assay.config import Experiment, to_dict
from assay.config_file import from_dict, load
from assay.data.signal_store import SignalStore
from assay.data.store import RESPONSES_SCHEMA, read_responses
from assay.data.user_rows import read_rows
from assay.data.user_text import leakage_report
from assay.errors import AssayError
from assay.integrations.logs import read_log
from assay.models.sizes import size_of
from assay.observation import Observer
from assay.provenance import open_manifest
from assay.report.tables import read_study
from assay.types import Batch
from assay.validation import validate
from tiny_models import gpt2

BAD = Path(__file__).parent / "bad_inputs"
quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ODD = st.one_of(
    JSON, st.just(10**400), st.just("\ud800"), st.just("../../x"), st.just("\0"), st.just("\x1b[2J"), st.just(-0.0)
)


def succeeds_or_refuses(read: Callable[[], Any]) -> None:
    """Nothing but ``AssayError`` comes out, and that is one line."""
    said = "a result"
    try:
        read()
    except AssayError as error:
        said = str(error)
    assert said.strip()
    assert len(said.splitlines()) == 1


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """``whole`` cut off, with bytes changed, put in, taken out, or a part of it twice."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["cut", "flip", "insert", "delete", "repeat", "token"]))
        if kind == "cut":
            del data[at:]
        elif kind == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=6))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 30))]
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 60))]
        else:
            data[at:at] = draw(
                st.sampled_from([b"\0", b"NaN", b"1e999", b"[[", b"}", b'"', b"\xff\xfe", b"\n", b"\r", b"-1"])
            )
    return bytes(data)


def corrupted(value: Any, draw: st.DrawFn) -> Any:
    """A JSON value with one part replaced by another kind of thing, or taken out."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 5)):
            return {name: inner for name, inner in value.items() if name != key}
        return value | {key: corrupted(value[key], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], corrupted(value[at], draw), *value[at + 1 :]]
    return draw(ODD)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", errors="surrogatepass")


# ---- logs

LOG = b"".join(dumped({"step": 10 * i, "eval_loss": 3 / (i + 1), "loss": 2 / (i + 1)}) + b"\n" for i in range(6))
STATE = dumped({"global_step": 60, "log_history": [json.loads(line) for line in LOG.splitlines()]})
TABLE = b"step,eval_loss,loss\n" + b"".join(b"%d,%.3f,%.2f\n" % (10 * i, 3 / (i + 1), 2 / (i + 1)) for i in range(6))
LOGS: dict[str, Callable[[], bytes]] = {
    "a.jsonl": lambda: LOG,
    "trainer_state.json": lambda: STATE,
    "a.csv": lambda: TABLE,
    "a.tsv": lambda: TABLE.replace(b",", b"\t"),
    "a.parquet": lambda: (BAD / "logs" / "steps-twice.parquet").read_bytes(),
    "a.db": lambda: (BAD / "logs" / "database-of-no-rows.db").read_bytes(),
    "events.out.tfevents.1": lambda: (BAD / "logs" / "events.out.tfevents.of-one-point").read_bytes(),
}


@pytest.mark.parametrize("name", LOGS)
def test_mutated_logs(name: str, tmp_path: Path) -> None:
    path = tmp_path / name

    @quick
    @given(mutated(LOGS[name]()))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        succeeds_or_refuses(lambda: read_log(path))

    check()


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a", "a.parquet", "events.out.tfevents.1"])
def test_arbitrary_bytes_as_a_log(name: str, tmp_path: Path) -> None:
    @quick
    @given(st.sampled_from([b"", b"PAR1", b"SQLite format 3\0", b"[", b"{", b"step,proxy\n"]), st.binary(max_size=200))
    def check(start: bytes, content: bytes) -> None:
        (tmp_path / name).write_bytes(start + content)
        succeeds_or_refuses(lambda: read_log(tmp_path / name))

    check()


def test_records_of_other_types_as_a_log(tmp_path: Path) -> None:
    @quick
    @given(st.data())
    def check(data: st.DataObject) -> None:
        records = corrupted([json.loads(line) for line in LOG.splitlines()], data.draw)
        (tmp_path / "a.json").write_bytes(dumped(records))
        succeeds_or_refuses(lambda: read_log(tmp_path / "a.json"))
        lines = records if isinstance(records, list) else [records]
        (tmp_path / "a.jsonl").write_bytes(b"\n".join(map(dumped, lines)))
        succeeds_or_refuses(lambda: read_log(tmp_path / "a.jsonl"))

    check()


# ---- prompts

ROWS = [
    {"prompt": "Define dog.", "reference": "an animal", "id": "a", "group": "pets", "split": "train"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], "split": "test"},
    {"prompt": "Define cow.", "responses": ["an animal", "a mammal"], "split": "train"},
]


def test_mutated_prompts(tmp_path: Path) -> None:
    @quick
    @given(mutated(b"".join(dumped(row) + b"\n" for row in ROWS)))
    def check(content: bytes) -> None:
        (tmp_path / "a.jsonl").write_bytes(content)
        succeeds_or_refuses(lambda: leakage_report(tmp_path / "a.jsonl", with_oracle=False))

    check()


def test_prompts_of_other_types(tmp_path: Path) -> None:
    @quick
    @given(st.data(), st.sampled_from([None, "responses"]), st.sampled_from([None, "{prompt} {id}"]))
    def check(data: st.DataObject, responses: str | None, template: str | None) -> None:
        rows = corrupted(ROWS, data.draw)
        lines = rows if isinstance(rows, list) else [rows]
        (tmp_path / "a.jsonl").write_bytes(b"\n".join(map(dumped, lines)))
        succeeds_or_refuses(lambda: leakage_report(tmp_path / "a.jsonl", template, responses=responses))

    check()


def test_mutated_tables_of_prompts(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["Define dog.", "Define cat."] * 20, "id": [f"{i}" for i in range(40)]})
    pq.write_table(table, tmp_path / "whole.parquet")

    @quick
    @given(mutated((tmp_path / "whole.parquet").read_bytes()))
    def check(content: bytes) -> None:
        (tmp_path / "a.parquet").write_bytes(content)
        succeeds_or_refuses(lambda: read_rows(tmp_path / "a.parquet"))

    check()


# ---- configs


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_mutated_configs(name: str, tmp_path: Path) -> None:
    import yaml

    whole = to_dict(Experiment())
    text = json.dumps(whole) if name == "a.json" else yaml.safe_dump(whole)

    @quick
    @given(mutated(text.encode()))
    def check(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        succeeds_or_refuses(lambda: validate(load(tmp_path / name)))

    check()


def test_arbitrary_text_as_a_config(tmp_path: Path) -> None:
    @settings(quick, max_examples=200)
    @given(
        st.text(alphabet="abseed:[]{}&*!|>-?#%@`'\",\n \t\\0123.~=<é\x85\u2028", max_size=60) | st.binary(max_size=60)
    )
    def check(content: str | bytes) -> None:
        (tmp_path / "a.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
        succeeds_or_refuses(lambda: validate(load(tmp_path / "a.yaml")))

    check()


def test_configs_of_other_types() -> None:
    @settings(quick, max_examples=120)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        values = corrupted(to_dict(Experiment()), data.draw)
        if isinstance(values, dict):
            succeeds_or_refuses(lambda: validate(from_dict(values)))

    check()


# ---- run folders


def read_run_in_every_way(folder: Path) -> None:
    for read in (
        lambda: read_study([folder]),
        lambda: compare_runs([folder], None),
        lambda: read_log(folder),
        lambda: Observer(folder, {}, None).look(),
        lambda: open_manifest(Experiment(), folder),
        lambda: runs.read_records(folder / "metrics.jsonl"),
        lambda: runs.read_table(folder / "probe.parquet"),
        lambda: read_responses(folder / "responses.parquet"),
    ):
        succeeds_or_refuses(read)


FILES = ["manifest.json", "summary.json", "metrics.jsonl", "probe.parquet", "responses.parquet", "tokens.parquet"]


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_of_a_run(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(BAD / "runs" / "whole", tmp_path / "run")

    @settings(quick, max_examples=25)
    @given(mutated((folder / name).read_bytes()))
    def check(content: bytes) -> None:
        (folder / name).write_bytes(content)
        read_run_in_every_way(folder)

    check()


@pytest.mark.parametrize("name", FILES[:3])
def test_files_of_a_run_with_other_types(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(BAD / "runs" / "whole", tmp_path / "run")
    lines = (folder / name).read_text().splitlines() if name == "metrics.jsonl" else [(folder / name).read_text()]
    whole = [json.loads(line) for line in lines]

    @settings(quick, max_examples=40)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(whole) - 1))
        changed = [*whole[:at], corrupted(whole[at], data.draw), *whole[at + 1 :]]
        (folder / name).write_bytes(b"\n".join(map(dumped, changed)) + b"\n")
        read_run_in_every_way(folder)

    check()


# ---- stores and models


def test_mutated_responses(tmp_path: Path) -> None:
    row = dict.fromkeys(RESPONSES_SCHEMA.names) | {"prompt_id": "a", "token_ids": [1, 2], "writer": "oracle"}
    row |= {"truncated": False, "response_seed": 1, "sampling_temperature": 1.0, "step": 0}
    pq.write_table(pa.Table.from_pylist([row] * 20, RESPONSES_SCHEMA), tmp_path / "whole.parquet")
    assert len(read_responses(tmp_path / "whole.parquet")) == 20

    @quick
    @given(mutated((tmp_path / "whole.parquet").read_bytes()))
    def check(content: bytes) -> None:
        (tmp_path / "a.parquet").write_bytes(content)
        succeeds_or_refuses(lambda: read_responses(tmp_path / "a.parquet"))

    check()


@pytest.mark.parametrize("name", ["index.json", "signals.safetensors"])
def test_a_mutated_store_gives_what_was_kept_or_computes_it_again(name: str, tmp_path: Path) -> None:
    model, batch = gpt2(), Batch([(1, 2), (3,)], [(4, 5), (6, 7, 8)])
    expected = SignalStore(model, tmp_path / "whole").compute(batch)
    (shard,) = (tmp_path / "whole").glob("*/shard-*")
    content = (shard / name).read_bytes()

    @settings(quick, max_examples=25)
    @given(mutated(content))
    def check(changed: bytes) -> None:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / shard.relative_to(tmp_path / "whole") / name).write_bytes(changed)
        found = SignalStore(model, folder).compute(batch)
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in other)

    check()


def test_sizes_of_mutated_models(tmp_path: Path) -> None:
    folder = shutil.copytree(BAD / "models" / "whole", tmp_path / "model")
    whole = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}

    @quick
    @given(st.data(), st.sampled_from(sorted(whole)))
    def check(data: st.DataObject, name: str) -> None:
        content = whole[name][:4000] if name == "model.safetensors" else whole[name]
        (folder / name).write_bytes(data.draw(mutated(content)) + whole[name][len(content) :])
        succeeds_or_refuses(lambda: size_of(str(folder)))
        (folder / name).write_bytes(whole[name])

    check()


def test_configs_of_models_with_other_types(tmp_path: Path) -> None:
    folder = shutil.copytree(BAD / "models" / "whole", tmp_path / "model")
    whole = json.loads((folder / "config.json").read_text())

    @quick
    @given(st.data())
    def check(data: st.DataObject) -> None:
        (folder / "config.json").write_bytes(dumped(corrupted(whole, data.draw)))
        succeeds_or_refuses(lambda: size_of(str(folder)))

    check()
