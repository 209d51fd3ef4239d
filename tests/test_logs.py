"""Training logs of every format: the same numbers give the same evaluations, and damage ends in one sentence."""

from __future__ import annotations

import csv
import json
import math
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.errors import AssayError
from assay.integrations.logs import Log, read_log

Record = dict[str, float | None]


def column(log: Log, name: str) -> list[float]:
    return log.trajectory.columns[name].tolist()


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def names_of(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def write_csv(folder: Path, records: Sequence[Record], delimiter: str = ",", suffix: str = "csv", **how: Any) -> Path:
    path = folder / f"log.{suffix}"
    with path.open("w", newline="", encoding=how.pop("encoding", "utf-8")) as file:
        names = names_of(records)
        writer = csv.writer(file, delimiter=delimiter, **how)
        writer.writerow(names)
        writer.writerows([["" if record.get(name) is None else record[name] for name in names] for record in records])
    return path


def write_lines(folder: Path, records: Sequence[Record], between: str = "\n", name: str = "log.jsonl") -> Path:
    return write(folder / name, "".join(json.dumps(record) + between for record in records))


def write_state(folder: Path, records: Sequence[Record]) -> Path:
    return write(folder / "trainer_state.json", json.dumps({"epoch": 1, "log_history": records}, indent=2))


def write_parquet(folder: Path, records: Sequence[Record]) -> Path:
    names = names_of(records)
    columns = {name: pa.array([record.get(name) for record in records], pa.float64()) for name in names}
    pq.write_table(pa.table(columns), folder / "log.parquet", row_group_size=3)
    return folder / "log.parquet"


def write_trackio(folder: Path, runs: dict[str, Sequence[Record]]) -> Path:
    path = folder / "project.db"
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TEXT NOT NULL, run_name TEXT NOT NULL,"
        " step INTEGER NOT NULL, metrics TEXT NOT NULL)"
    )
    for run, records in runs.items():
        for record in records:
            blob = json.dumps({name: value for name, value in record.items() if name != "step"}).encode()
            row = ("2026-01-01T00:00:00", run, record["step"], blob)
            connection.execute("INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?)", row)
    connection.commit()
    connection.close()
    return path


def write_events(folder: Path, records: Sequence[Record], new_style: bool = False) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("*tfevents*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for record in records:
            for name, value in record.items():
                if name != "step" and value is not None:
                    writer.add_scalar(name, value, record["step"], new_style=new_style)
    return folder


FORMATS: dict[str, Callable[[Path, Sequence[Record]], Path]] = {
    "csv": write_csv,
    "tsv": lambda folder, records: write_csv(folder, records, "\t", "tsv"),
    "semicolons": lambda folder, records: write_csv(folder, records, ";"),
    "quoted": lambda folder, records: write_csv(folder, records, quoting=csv.QUOTE_ALL),
    "bom_and_unix_lines": lambda folder, records: write_csv(folder, records, encoding="utf-8-sig", lineterminator="\n"),
    "blank_lines": lambda folder, records: write_csv(folder, records, lineterminator="\n\n"),
    "unknown_extension": lambda folder, records: write_csv(folder, records, suffix="log"),
    "jsonl": write_lines,
    "jsonl_blank_lines": lambda folder, records: write_lines(folder, records, "\r\n\r\n"),
    "jsonl_in_json": lambda folder, records: write_lines(folder, records, name="log.json"),
    "jsonl_bom": lambda folder, records: write(
        folder / "log.ndjson", b"\xef\xbb\xbf" + write_lines(folder, records).read_bytes()
    ),
    "list": lambda folder, records: write(folder / "list.json", json.dumps(records)),
    "state": write_state,
    "parquet": write_parquet,
    "trackio": lambda folder, records: write_trackio(folder, {"one": records}),
    "tensorboard": write_events,
    "tensorboard_2": lambda folder, records: write_events(folder, records, new_style=True),
}

COLUMNS_USED = ("proxy", "train_proxy", "golden", "top_overlap")
numbers = st.none() | st.floats(-1e6, 1e6, width=32)


@st.composite
def tables(draw: st.DrawFn) -> list[Record]:
    """Rows of one log, in any order, the proxy in at least two of them."""
    steps = draw(st.lists(st.integers(0, 10**6), min_size=2, max_size=9, unique=True))
    rows: list[Record] = [{"step": step, **{name: draw(numbers) for name in COLUMNS_USED}} for step in steps]
    for row in rows[:2]:
        row["proxy"] = draw(st.floats(-1e6, 1e6, width=32))
    return draw(st.permutations(rows))


def expected(records: Sequence[Record]) -> dict[str, list[float]]:
    """What the evaluations must be, read off the records one by one."""
    rows = sorted(records, key=lambda record: record["step"] or 0)
    out: dict[str, list[float]] = {name: [] for name in ("step", *COLUMNS_USED)}
    for i, row in enumerate(rows):
        if row["proxy"] is None:
            continue
        before = max((j for j in range(i) if rows[j]["proxy"] is not None), default=-1)
        out["step"].append(row["step"] or 0)
        for name in COLUMNS_USED:
            until = [each[name] for each in rows[: i + 1] if each[name] is not None]
            since = [each[name] for each in rows[before + 1 : i + 1] if each[name] is not None]
            last = until[-1] if until else math.nan
            out[name].append(float(np.mean(since)) if name == "train_proxy" and since else last)
    return out


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=tables())
def test_every_format_gives_the_same_evaluations(tmp_path: Path, form: str, records: list[Record]) -> None:
    log = read_log(FORMATS[form](tmp_path, records))
    want = expected(records)
    assert log.trajectory.steps.tolist() == want.pop("step")
    for name, values in want.items():
        if name in log.trajectory.columns:
            np.testing.assert_allclose(log.trajectory.columns[name], values, rtol=1e-12, atol=1e-9)
        else:
            assert all(math.isnan(value) for value in values)
    assert log.guesses == []


def test_a_trainer_state_has_losses_between_evaluations_and_their_mean_at_the_end(tmp_path: Path) -> None:
    history = [
        {"epoch": 0.1, "loss": 8.0, "grad_norm": math.nan, "step": 10},
        {"epoch": 0.2, "loss": 6.0, "step": 20},
        {"epoch": 0.2, "eval_loss": 5.0, "eval_runtime": 1.0, "step": 20},
        {"epoch": 0.3, "loss": 3.0, "step": 30},
        {"epoch": 0.4, "eval_loss": 4.0, "eval_runtime": 1.0, "step": 40},
        {"epoch": 0.4, "eval_loss": 4.5, "eval_runtime": 1.0, "step": 45},
        {"epoch": 0.4, "train_loss": 5.5, "train_runtime": 9.0, "step": 45},
    ]
    log = read_log(write_state(tmp_path, history))
    assert log.trajectory.steps.tolist() == [20, 40, 45]
    assert column(log, "proxy") == [5, 4, 4.5]
    assert column(log, "train_proxy") == [7, 3, 3]
    assert log.guesses == ["proxy: took the column 'eval_loss'", "train_proxy: took the column 'loss'"]
    assert (log.arm, log.folder) == (None, None)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("Eval/Loss", "proxy"),
        ("val/loss", "proxy"),
        ("VALIDATION_LOSS", "proxy"),
        ("assay/proxy_nats", "proxy"),
        ("train/loss", "train_proxy"),
        ("train_loss_nats_per_token", "train_proxy"),
        ("train/proxy_nats", "train_proxy"),
        ("assay/golden_nats", "golden"),
        ("eval/golden", "golden"),
        ("train/completions/mean_length", "response_tokens"),
        ("eval_completions/clipped_ratio", "truncated"),
        ("train/eval_loss", None),
        ("train/golden", None),
        ("eval/train_loss", None),
        ("perplexity", None),
        ("run - loss__MIN", None),
    ],
)
def test_aliases(tmp_path: Path, name: str, meaning: str | None) -> None:
    records: list[Record] = [{"global_step": 1, name: 3.0}, {"global_step": 2, name: 2.0}]
    if meaning != "proxy":
        records = [record | {"proxy": 1.0} for record in records]
    log = read_log(write_lines(tmp_path, records))
    assert "step: took the column 'global_step'" in log.guesses
    if meaning is None:
        assert list(log.trajectory.columns) == ["proxy"]
    else:
        assert f"{meaning}: took the column {name!r}" in log.guesses
        assert column(log, meaning) == [3, 2]


def test_the_better_alias_wins_whatever_the_order_and_an_empty_one_is_passed_over(tmp_path: Path) -> None:
    for order in (1, -1):
        names = ["train/train_loss", "train/loss", "train_loss_nats_per_token", "train_proxy_nats"][::order]
        records = [{"step": s, "proxy": 1.0, **{name: len(name) + s for name in names}} for s in (1, 2)]
        assert column(read_log(write_csv(tmp_path, records)), "train_proxy") == [17, 18]
    text = "step,proxy,eval_loss,val_loss\n1,,,4\n2,,,5\n"
    assert read_log(write(tmp_path / "a.csv", text)).guesses == ["proxy: took the column 'val_loss'"]


def test_given_names_win_and_none_leaves_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "step,proxy,loss,kl,when\n0,1,x,3,7\n1,2,x,4,9\n")
    log = read_log(path, {"proxy": "kl", "step": "when", "train_proxy": "none"})
    assert log.trajectory.steps.tolist() == [7, 9]
    assert {name: values.tolist() for name, values in log.trajectory.columns.items()} == {"proxy": [3, 4]}
    assert log.guesses == []
    with pytest.raises(AssayError, match=r"unknown column of .* \(--proxy klm\) 'klm': did you mean 'kl'"):
        read_log(path, {"proxy": "klm"})
    with pytest.raises(AssayError, match="unknown column 'proxi': did you mean 'proxy'"):
        read_log(path, {"proxi": "kl"})
    with pytest.raises(AssayError, match="no column of steps: name it with --step"):
        read_log(path, {"step": "none"})


def test_epochs_stand_in_for_steps(tmp_path: Path) -> None:
    log = read_log(write(tmp_path / "a.csv", "epoch,proxy\n0.5,2\n0.25,3\n"))
    assert (log.trajectory.steps.tolist(), column(log, "proxy")) == ([0.25, 0.5], [3, 2])
    assert log.guesses == ["step: took the column 'epoch', there is none of steps"]


def test_rows_of_one_step_are_merged_where_they_agree(tmp_path: Path) -> None:
    log = read_log(write(tmp_path / "a.csv", "step,proxy,golden\n1,5,\n1,,7\n1,5,7\n2,4,6\n"))
    assert (column(log, "proxy"), column(log, "golden")) == ([5, 4], [7, 6])


def test_large_values_do_not_overflow_their_mean(tmp_path: Path) -> None:
    log = read_log(write(tmp_path / "a.csv", "step,proxy,train_proxy\n0,,1e308\n1,1,1e308\n2,1,1\n"))
    assert column(log, "train_proxy") == [1e308, 1]


WANDB = '"Step","{0} - eval/loss","{0} - eval/loss__MIN","{0} - eval/loss__MAX","{0} - _step"'


def test_an_export_of_wandb(tmp_path: Path) -> None:
    path = write(
        tmp_path / "w.csv", WANDB.format("my - run") + '\n"1","2","2","2","1"\n"2","","","",""\n"3","1.5","1","2","3"\n'
    )
    log = read_log(path)
    assert log.trajectory.steps.tolist() == [1, 3]
    assert column(log, "proxy") == [2, 1.5]
    assert log.guesses == ["proxy: took the column 'my - run - eval/loss'", "step: took the column 'Step'"]


def test_two_runs_in_one_export_must_be_told_apart(tmp_path: Path) -> None:
    header = '"Step","a - eval/loss","b - eval/loss","a - train/loss","b - train/loss"'
    path = write(tmp_path / "w.csv", header + "\n1,2,3,4,5\n2,6,7,8,9\n")
    with pytest.raises(
        AssayError, match="several runs: name one with --proxy COLUMN: 'a - eval/loss', 'b - eval/loss'"
    ):
        read_log(path)
    log = read_log(path, {"proxy": "b - eval/loss"})
    assert (column(log, "proxy"), column(log, "train_proxy")) == ([3, 7], [5, 9])


def test_the_database_of_trackio_holds_runs(tmp_path: Path) -> None:
    first: list[Record] = [{"step": 0, "eval/loss": 3.0}, {"step": 1, "eval/loss": 2.0}]
    second: list[Record] = [{"step": 0, "eval/loss": 9.0}, {"step": 1, "eval/loss": 8.0}]
    path = write_trackio(tmp_path, {"calm-river-0": first, "wild-hill-1": second})
    log = read_log(path)
    assert (log.arm, column(log, "proxy")) == ("calm-river-0", [3, 2])
    assert log.guesses[0] == "2 arms: took 'calm-river-0' (--arm chooses another)"
    assert column(read_log(path, arm="wild-hill-1"), "proxy") == [9, 8]
    assert [file.name for file in tmp_path.iterdir()] == ["project.db"]
    with pytest.raises(AssayError, match="unknown arm 'wild': did you mean 'wild-hill-1'"):
        read_log(path, arm="wild")


def test_a_database_that_is_being_written_shows_what_is_in_its_write_ahead_log(tmp_path: Path) -> None:
    path = write_trackio(tmp_path, {"one": [{"step": 0, "proxy": 3.0}]})
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES ('', 'one', 5, '{\"proxy\": 2}')")
    writer.commit()
    try:
        assert column(read_log(path), "proxy") == [3, 2]
    finally:
        writer.close()


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_an_export_of_trackio_holds_runs(tmp_path: Path, form: str) -> None:
    table = {"timestamp": ["t"] * 4, "run_name": ["a", "b", "a", "b"], "step": [0, 0, 1, 1], "proxy": [1.0, 2, 3, 4]}
    rows = pa.table(table).to_pylist()
    if form == "parquet":
        path = tmp_path / "project.parquet"
        pq.write_table(pa.table(table), path)
    else:
        path = write_csv(tmp_path, rows) if form == "csv" else write_lines(tmp_path, rows)
    assert (read_log(path).arm, column(read_log(path), "proxy")) == ("a", [1, 3])
    assert column(read_log(path, arm="b"), "proxy") == [2, 4]


def test_rows_without_a_name_belong_to_the_only_run(tmp_path: Path) -> None:
    log = read_log(write(tmp_path / "a.csv", "step,proxy,arm\n1,3,x\n2,4,\n"))
    assert (log.arm, column(log, "proxy"), log.guesses) == ("x", [3, 4], [])


def test_event_files_of_several_runs_are_not_mixed(tmp_path: Path) -> None:
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        write_events(tmp_path / run, [{"step": 1, "eval/loss": 2.0}, {"step": 2, "eval/loss": 1.0}])
    with pytest.raises(AssayError, match="give one of its folders: one, two"):
        read_log(tmp_path)
    file = next((tmp_path / "one").iterdir())
    assert column(read_log(file), "proxy") == [2, 1]


def test_without_tensorboard_its_files_are_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(AssayError, match=r"pip install 'assay\[logs\]'"):
        read_log(write(tmp_path / "events.out.tfevents.1", b"x"))


# ---- run folders ---------------------------------------------------------------------------------------------------

ARMS = ("online", "offline")
STEPS = (0, 5, 9)
PROMPTS = 12


def write_run(folder: Path, arms: Sequence[str] = ARMS, with_probe: bool = True) -> dict[tuple[str, str], np.ndarray]:
    """A run folder's metrics and probe, and the values per arm and metric [S, P]."""
    generator = np.random.default_rng(0)
    values = {(arm, metric): generator.normal(5, 1, (len(STEPS), PROMPTS)) for arm in arms for metric in METRICS}
    lines, probe = [], []
    for arm in arms:
        for i, step in enumerate(STEPS):
            record: dict[str, Any] = {"arm": arm, "seed": 0, "step": step, "epoch": step / 9, "seconds": {"probe": 1}}
            record |= {f"{metric}_nats": values[arm, metric][i].mean() for metric in METRICS}
            record |= {"reference_nll_nats": None, "distinct_2": 0.5, "train_loss_nats_per_token": 99.0}
            lines.append(json.dumps(record) + "\n")
            for metric in METRICS:
                keys = {"arm": arm, "seed": 0, "step": step, "metric": metric}
                probe += [keys | {"prompt_id": f"p{j}", "value_nats": v} for j, v in enumerate(values[arm, metric][i])]
    write(folder / "metrics.jsonl", "".join(lines))
    if with_probe:
        generator.shuffle(probe)
        pq.write_table(pa.Table.from_pylist(probe), folder / "probe.parquet")
    return values


METRICS = ("golden", "proxy", "train_proxy")


@pytest.mark.parametrize("arm", [None, *ARMS])
def test_a_run_folder(tmp_path: Path, arm: str | None) -> None:
    values = write_run(tmp_path)
    log = read_log(tmp_path, arm=arm)
    taken = arm or "online"
    assert (log.arm, log.folder) == (taken, tmp_path)
    assert log.guesses == ([] if arm else ["2 arms: took 'online' (--arm chooses another)"])
    assert log.trajectory.steps.tolist() == list(STEPS)
    assert "reference_nll" not in log.trajectory.columns
    assert column(log, "distinct") == [0.5, 0.5, 0.5]
    for metric in METRICS:
        np.testing.assert_allclose(log.trajectory.columns[metric], values[taken, metric].mean(axis=1))
    for metric in ("golden", "proxy"):
        changes = np.diff(values[taken, metric], axis=0)
        errors = changes.std(axis=1, ddof=1) / math.sqrt(PROMPTS)
        np.testing.assert_allclose(log.trajectory.columns[f"{metric}_diff_stderr"], [errors[0], *errors])


def test_a_run_folder_before_its_results(tmp_path: Path) -> None:
    write(tmp_path / "manifest.json", "{}")
    with pytest.raises(AssayError, match="holds no evaluation yet"):
        read_log(tmp_path)
    (tmp_path / "arms").mkdir()
    with pytest.raises(AssayError, match="holds no evaluation yet"):
        read_log(tmp_path)
    for arm in ("a", "b"):
        write_run(tmp_path / "arms" / arm, [arm], with_probe=False)
    with (tmp_path / "arms" / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"arm": "b", "step": 10, "pro')
    log = read_log(tmp_path, arm="b")
    assert (log.arm, log.trajectory.steps.tolist()) == ("b", list(STEPS))
    assert log.guesses == ["left out line 4, the last: it is not written to its end"]
    assert "proxy_diff_stderr" not in log.trajectory.columns
    assert read_log(tmp_path).guesses == ["2 arms: took 'a' (--arm chooses another)"]
    with pytest.raises(AssayError, match="unknown arm 'c'"):
        read_log(tmp_path, arm="c")


def test_a_damaged_probe_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path)
    write(tmp_path / "probe.parquet", b"PAR1 no")
    with pytest.raises(AssayError, match=r"probe\.parquet"):
        read_log(tmp_path)


# ---- damage --------------------------------------------------------------------------------------------------------

HEAD = "step,proxy\n"
DEEP = "[" * 200_000
MALFORMED = {
    "empty.csv": ("", "is empty"),
    "empty.jsonl": ("", "is empty"),
    "spaces.csv": (" \n\n", "is empty"),
    "blank.jsonl": ("\n \n", "holds no records"),
    "none.json": ("[]", "holds no records"),
    "header.csv": (HEAD, "no column with values .* there are 'step', 'proxy'"),
    "one.csv": (HEAD + "1,2\n", "only one point, at step 1: at least two"),
    "no_proxy.csv": (
        ",".join(["step", *(f"c{i}" for i in range(30))]) + "\n" + ",".join("1" * 31),
        "name it with --proxy; there are 'step', 'c0', .* 'c10' and 19 more$",
    ),
    "no_step.csv": ("proxy,x\n1,2\n2,3\n", "no column of steps: name it with --step; there are 'proxy', 'x'"),
    "nan.csv": (HEAD + "1,2\n2,nan\n", "'proxy' in line 3 of .* is nan, and not a finite number"),
    "inf.csv": (HEAD + "1,2\n\n2,-inf\n", "'proxy' in line 4 of .* is -inf"),
    "nan.jsonl": ('{"step":1,"proxy":1}\n{"step":2,"proxy":NaN}\n', "'proxy' in line 2 of .* is nan"),
    "large.jsonl": ('{"step":1,"proxy":1}\n{"step":2,"proxy":1e999}\n', "'proxy' in line 2 of .* is inf"),
    "huge.jsonl": ('{"step":1,"proxy":1}\n{"step":2,"proxy":1' + "0" * 400 + "}\n", "'proxy' in line 2 of .* is inf"),
    "digits.jsonl": ('{"step":1,"proxy":1}\n{"step":2,"proxy":1' + "0" * 5000 + "}\n", "line 2 of .*"),
    "huge.csv": (HEAD + "1,1\n2,1" + "0" * 400 + "\n", "'proxy' in line 3 of .* is inf"),
    "text.csv": (HEAD + "1,2\n2,n/a\n3,oops\n", "'proxy' in line 3 of .* is 'n/a', and not a finite number"),
    "underscore.csv": (HEAD + "1,2\n2,1_0\n", "line 3 of .* is '1_0'"),
    "comma.csv": ("step;proxy\n1;2\n2;1,5\n", "line 3 of .* is '1,5'"),
    "bool.csv": (HEAD + "1,2\n2,True\n", "line 3 of .* is 'True'"),
    "text_step.csv": (HEAD + "1,2\nx,2\n", "'step' in line 3 of .* is 'x'.* name another with --step"),
    "text_other.csv": ("step,proxy,loss\n1,2,a\n2,3,b", "'loss' in line 2 of .* is 'a'.* --train none"),
    "text.jsonl": ('{"step":1,"proxy":"1"}\n{"step":2,"proxy":1}', "'proxy' in line 1 of .* is '1'"),
    "bool.jsonl": ('{"step":1,"proxy":true}\n{"step":2,"proxy":1}', "'proxy' in line 1 of .* is True"),
    "bool_step.jsonl": ('{"step":true,"proxy":1}\n{"step":2,"proxy":1}', "'step' in line 1 of .* is True"),
    "nested.jsonl": ('{"step":1,"proxy":{"a":1}}\n{"step":2,"proxy":1}', "'proxy' in line 1 of .* is {'a': 1}"),
    "list.jsonl": ('{"step":1,"proxy":1}\n[1]\n{"step":2,"proxy":1}', r"line 2 of .* is \[1\]: every record must"),
    "invalid.jsonl": ('{"step":1,"proxy":1}\n{"step"}\n{"step":2,"proxy":1}\n', "line 2 of .* is not valid JSON"),
    "whole.jsonl": ('{"step":1,"proxy":1}\n{"step":2,"pro\n', "line 2 of .* is not valid JSON"),
    "prose.jsonl": ("this is no log", "line 1 of .* is not valid JSON"),
    "deep.jsonl": ('{"step":1,"proxy":1}\n{"a":' + DEEP + "\n1\n", "nested too deep"),
    "deep_last.jsonl": ('{"step":1,"proxy":1}\n' + DEEP, "nested too deep"),
    "deep.json": (DEEP, "nested too deep"),
    "deep_first.json": ('{"a":' + DEEP + "}\n{}", "nested too deep"),
    "invalid.json": ('[\n{"step": 1},\n{"step" 2}]', "line 3 of .* is not valid JSON"),
    "digits.json": ("[1" + "0" * 5000 + "]", "is not valid JSON"),
    "object.json": ('{"config": 1}', "neither a list of records nor a trainer's state"),
    "history.json": ('{"log_history": {"step": 1}}', "neither a list of records nor a trainer's state"),
    "number.json": ("3", "neither a list of records"),
    "entry.json": ('[{"step":1,"proxy":1}, 3]', "entry 2 of .* is 3: every record must"),
    "nan.json": ('[{"step":1,"proxy":1}, {"step":2,"proxy":NaN}]', "'proxy' in entry 2 of .* is nan"),
    "negative.csv": (HEAD + "1,2\n-3,4\n", "line 3 of .* has the step -3: steps must not be negative"),
    "twice.csv": (HEAD + "1,2\n2,3\n1,4\n", "'proxy' is 2 in line 2 and 4 in line 4 of .*, both at step 1"),
    "twice_other.csv": ("step,proxy,golden\n1,2,3\n1,,4\n2,1,1", "'golden' is 3 in line 2 and 4 in line 3 of .*"),
    "stepless.csv": (HEAD + "1,2\n,3\n4,5\n", "line 3 of .* has a value of 'proxy' but no step"),
    "stepless_last.csv": (HEAD + "1,2\n4,5\n,3\n", "line 4 of .* has a value of 'proxy' but no step"),
    "headers.csv": ("step,proxy,proxy\n1,2,3\n", "two columns with the name 'proxy': rename one"),
    "few.csv": (HEAD + "1,2\n3\n4,5\n", "line 3 of .* has 1 cells, but the header names 2"),
    "many.csv": (HEAD + "1,2\n\n3,4,5\n", "line 4 of .* has 3 cells, but the header names 2"),
    "quote.csv": ('step,proxy\n1,2\n2,"' + "x" * 200_000, "is not valid CSV: field larger"),
    "newline.csv": ('step,proxy,note\n1,2,"a\nb"\n2,x,c\n', "'proxy' in line 4 of .* is 'x'"),
    "binary.csv": (b"\x80\x81\xff\x00", "is not UTF-8 text"),
    "nul.csv": (b"step,proxy\n1,\0\n", "is not UTF-8 text"),
    "wide.csv": ("step,proxy\n1,2\n".encode("utf-16"), "is not UTF-8 text"),
    "binary.jsonl": (b'{"step":1,"proxy":1}\n\xff\xfe\n{}\n', "is not UTF-8 text"),
    "nul.jsonl": (b'{"step":1,"proxy":1}\n\0\0\n{}\n', "is not UTF-8 text"),
    "binary.json": (b"\x1e\x8b\x08", "is not UTF-8 text"),
    "torn.parquet": (b"PAR1abcdefgh", "is not a whole parquet file"),
    "torn.db": (b"SQLite format 3\0" + b"x" * 200, "cannot be read as the database of a Trackio project"),
    "names.csv": ("step,proxy,run_name\n1,2,a\n2,3,a\n", "holds names, not numbers: name another with --proxy"),
    "events.out.tfevents.1": (b"no events at all", "holds no scalars"),
    "events.out.tfevents.2": (b"", "is empty|holds no scalars"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_damage_ends_in_one_sentence(tmp_path: Path, name: str) -> None:
    content, words = MALFORMED[name]
    path = write(tmp_path / name, content)
    with pytest.raises(AssayError, match=words) as caught:
        read_log(path, {"proxy": "run_name"} if name == "names.csv" else {})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


PARQUETS = {
    "text": ({"step": [1, 2], "proxy": ["a", None]}, "'proxy' in row 1 of .* is 'a'"),
    "bool": ({"step": [1, 2], "proxy": [None, True]}, "'proxy' in row 2 of .* is True"),
    "list": ({"step": [1, 2], "proxy": [[1.0], [2.0]]}, r"'proxy' in row 1 of .* is \[1.0\]"),
    "struct": ({"step": [1, 2], "proxy": [{"a": 1}, None]}, "'proxy' in row 1 of .* is {'a': 1}"),
    "nan": ({"step": [1, 2, 3], "proxy": [None, math.nan, 1.0]}, "'proxy' in row 2 of .* is nan"),
    "null": ({"step": [1, 2], "proxy": [None, None]}, "no column with values that could be the proxy"),
    "empty": ({"step": [], "proxy": []}, "no column with values that could be the proxy"),
}


@pytest.mark.parametrize("name", PARQUETS)
def test_parquet_of_other_types(tmp_path: Path, name: str) -> None:
    columns, words = PARQUETS[name]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(AssayError, match=words):
        read_log(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.decimal128(12, 2)])
def test_parquet_of_other_numbers(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"step": pa.array([1, 2, 3], pa.int32()), "proxy": pa.array([3, None, 2], pa.int32()).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    log = read_log(tmp_path / "a.parquet")
    assert (log.trajectory.steps.tolist(), column(log, "proxy")) == ([1, 3], [3, 2])


@pytest.mark.parametrize("blob", ["no", "[1]", "null", DEEP, b"\xff"])
def test_metrics_of_trackio_that_are_no_record(tmp_path: Path, blob: str | bytes) -> None:
    path = write_trackio(tmp_path, {"one": [{"step": 0, "proxy": 3.0}]})
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO metrics VALUES (2, '', 'one', 1, ?)", (blob,))
    connection.close()
    with pytest.raises(AssayError, match="row 2 of"):
        read_log(path)


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssayError, match=r"cannot read .*gone\.csv': No such file"):
        read_log(tmp_path / "gone.csv")
    with pytest.raises(AssayError, match="is no run folder of assay and holds no TensorBoard events"):
        read_log(tmp_path)
    with pytest.raises(AssayError, match="neither a file nor a folder"):
        read_log(Path("/dev/null"))
    with pytest.raises(AssayError, match="no path has a NUL"):
        read_log(Path("a\0b"))
    path = write(tmp_path / "a.csv", HEAD + "1,2\n2,3\n")
    with pytest.raises(AssayError, match="does not name arms or runs: leave out --arm x"):
        read_log(path, arm="x")
    with pytest.raises(AssayError, match="Not a directory"):
        read_log(path / "b")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AssayError, match=r"cannot read .*a\.csv': Permission denied"):
        read_log(path)


def test_reading_logs_imports_nothing_heavy() -> None:
    code = "import sys, assay.integrations.logs; print({'torch', 'pyarrow', 'scipy', 'tensorboard'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
