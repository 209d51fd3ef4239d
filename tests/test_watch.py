"""``assay watch``: what is on disk is what is shown, whatever state it is in, and nothing on disk is touched."""

from __future__ import annotations

import csv
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len
from rich.console import Console

from assay.cli import main
from assay.diagnostics.detector import diagnose
from assay.diagnostics.trajectory import Trajectory
from assay.errors import AssayError
from assay.integrations.logs import read_log
from assay.observation import Observation, Observer, Watched
from assay.watch_frame import duration, frame, sparkline
from known_logs import hacked, healthy
from test_report import ARMS, STEPS, edit_json, write_run

BLOCKS = " ▁▂▃▄▅▆▇█"
NOW = 2e9


def going_run(folder: Path, finished: tuple[str, ...] = ("offline",), begun: tuple[str, ...] = ARMS) -> Path:
    """A run as it is on disk while it goes: arms in their folders, those that are finished in the merged files too."""
    config = {"distillation": {"training": {"num_steps": 1200}}}
    run = write_run(folder, ARMS, finished or ("offline",), num_prompts=8, config=config)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for arm in begun:
        inner = run / "arms" / arm
        (inner / "samples").mkdir(parents=True)
        own = [record for record in records if record["arm"] == arm][: None if arm in finished else 8]
        (inner / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in own))
        for record in own[-2:]:
            text = f"{arm} at {record['step']}"
            table = pa.table({"prompt": ["noun: dog:", "noun: [red]\x1b[2J:"], "text": [text, "a 犬\nwolf"]})
            pq.write_table(table, inner / "samples" / f"{record['step']:08d}.parquet")
        if arm in finished:
            (inner / "finished.json").write_text('{"step": 1200, "kept_step": 1200}')
    merged = [record for record in records if record["arm"] in finished]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in merged))
    if not finished:
        for name in ("metrics.jsonl", "summary.json", "probe.parquet", "responses.parquet"):
            (run / name).unlink()
    return run


def write_log(path: Path, log: Trajectory, num_rows: int | None = None) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", *log.columns])
        table.writerows(np.column_stack([log.steps, *log.columns.values()])[:num_rows].tolist())
    return path


def shown(seen: Observation, width: int = 100, height: int | None = None, now: float = NOW) -> list[str]:
    console = Console(width=width, highlight=False, emoji=False, color_system=None)
    with console.capture() as capture:
        console.print(frame(seen, now, width, height))
    return capture.get().splitlines()


def look(target: Path, arm: str | None = None, **columns: str) -> Observation:
    return Observer(target, columns, arm).look()


def of(seen: Observation, name: str) -> Watched:
    return next(each for each in seen.watched if each.name == name)


def levels(lines: list[str]) -> list[int]:
    """Eighths of each column of a curve of several lines."""
    return [sum(BLOCKS.index(line[column]) for line in lines) for column in range(len(lines[0]))]


@pytest.mark.parametrize("height", [1, 3])
def test_a_curve_has_the_order_of_its_values_from_its_highest_to_its_lowest(height: int) -> None:
    steps = np.array([0.0, 1, 3, 10, 30, 100])
    drawn = levels(sparkline(steps, np.array([9.0, 8, 6, 5, 4, 3]), 100, 30, height))
    assert drawn == sorted(drawn, reverse=True)
    assert (drawn[0], drawn[-1]) == (8 * height, 1)
    rising = levels(sparkline(steps, np.array([3.0, 4, 5, 6, 8, 9]), 100, 30, height))
    assert (rising[0], rising[-1]) == (1, 8 * height)


def test_a_curve_ends_where_its_steps_do_over_the_logarithm() -> None:
    line = sparkline(np.array([0.0, 1, 3, 7]), np.array([4.0, 3, 2, 1]), 63, 60)[0]
    assert len(line.rstrip()) in (30, 31)  # log(1 + 7) is half of log(1 + 63)
    assert set(line[31:]) == {" "}


@pytest.mark.parametrize("unit", [1e-300, 1e-3, 1e300])
def test_a_curve_has_no_unit_and_noise_is_flat(unit: float) -> None:
    steps, values = np.array([0.0, 1, 5, 20]), np.array([3.0, 2.5, np.nan, 1.0])
    assert sparkline(steps, unit * values, 20, 40) == sparkline(steps, values, 20, 40)
    assert len(set(sparkline(steps, unit * np.array([1.0, 1.001, 1.0, 1.001]), 20, 40)[0])) == 1
    assert sparkline(steps, np.full(4, np.nan), 20, 5) == [" " * 5]


@pytest.mark.parametrize("size", [(40, 8), (60, 12), (60, 30), (100, 24), (100, 40), (220, 90)])
@pytest.mark.parametrize("finished", [(), ("offline",), ARMS])
def test_a_frame_fits_the_terminal(size: tuple[int, int], finished: tuple[str, ...], tmp_path: Path) -> None:
    seen = look(going_run(tmp_path / "run", finished))
    seen = replace(seen, title="犬" * 200, notes=("note " * 50,), troubles=("trouble " * 90,))
    for each in (seen, replace(seen, watched=seen.watched * 9)):
        lines = shown(each, *size)
        assert len(lines) <= size[1]
        assert max(cell_len(line) for line in lines) <= size[0]
        assert "trouble" in lines[-1]  # what is wrong is never what is cut off


def test_the_shape_of_a_frame_stays_while_arms_begin(tmp_path: Path) -> None:
    early = shown(look(going_run(tmp_path / "early", (), ARMS[:1])), 100, 40)
    late = shown(look(going_run(tmp_path / "late", (), ARMS[:2])), 100, 40)
    assert [line[:14] for line in early[2:9]] == [line[:14] for line in late[2:9]]
    assert len(early) < len(late) <= 40


def test_finished_arms_have_the_verdict_of_the_summary_and_the_others_the_detectors_so_far(tmp_path: Path) -> None:
    run = going_run(tmp_path / "run")
    edit_json(run / "summary.json", lambda summary: summary["arms"][0].update(verdict="overfitting", best_step=23))
    seen = look(run)
    done, open_ = of(seen, "offline"), of(seen, "online_teacher")
    assert done.is_finished
    assert not open_.is_finished
    assert done.diagnosis is not None
    assert (done.diagnosis.verdict, done.diagnosis.recommended_step) == ("overfitting", 23)
    own = read_log(run / "arms" / "online_teacher" / "metrics.jsonl")
    assert open_.diagnosis is not None
    assert open_.diagnosis.to_dict() == diagnose(own.trajectory).to_dict()
    text = "\n".join(shown(seen))
    assert "overfitting · score" in text
    assert f"so far by golden · score {open_.diagnosis.score:.2f}" in text
    assert f"step {STEPS[7]}/1,200" in text
    assert "stage 2: 1 of 3 arms finished" in text
    assert of(seen, "online_student").step is None
    assert [each.name for each in look(run, "online_teacher").watched] == ["online_teacher"]


def test_values_are_the_last_ones_with_their_change_and_the_lowest(tmp_path: Path) -> None:
    steps = np.array([0.0, 1, 10, 100])
    log = Trajectory(steps, {"proxy": np.array([8.0, 4, 3, 3.5]), "golden": np.array([20.0, 18, 19, 20])})
    lines = shown(look(write_log(tmp_path / "log.csv", log)))
    (proxy,) = [line for line in lines if line.startswith("  proxy")]
    (golden,) = [line for line in lines if line.startswith("  golden")]
    assert proxy.split()[-5:] == ["3.50", "−4.50", "3.00", "at", "10"]
    assert golden.split()[-5:] == ["20.00", "0.00", "18.00", "at", "1"]


@pytest.mark.parametrize("absent", [True, False])
def test_a_run_without_an_oracle_has_no_golden(absent: bool, tmp_path: Path) -> None:
    run = going_run(tmp_path / "run", ())
    for metrics in run.glob("arms/*/metrics.jsonl"):
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
        for record in records:
            for name in [name for name in record if "golden" in name]:
                record.pop(name) if absent else record.update({name: None})
        metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    seen = look(run)
    lines = shown(seen)
    assert not seen.troubles
    assert not any("golden" in line for line in lines)
    assert any(line.startswith("  references") for line in lines)
    assert all(each.diagnosis is not None for each in seen.watched[:2])
    assert not any("golden" in name for each in seen.watched for _, values in each.records for name in values)


def test_a_finished_arm_without_an_oracle_has_the_verdict_of_the_summary_too(tmp_path: Path) -> None:
    run = going_run(tmp_path / "run", ARMS)
    for metrics in (run / "metrics.jsonl", *run.glob("arms/*/metrics.jsonl")):
        metrics.write_text(metrics.read_text().replace('"golden_', '"golden_nothing_'))
    probe = pq.read_table(run / "probe.parquet")
    pq.write_table(probe.filter(pc.field("metric") != "golden"), run / "probe.parquet")

    def of_references(summary: dict[str, Any]) -> None:
        summary["truth"] = "references"
        summary["references"]["d_oracle_teacher"] = None
        summary["arms"][0].update(verdict="overfitting", best_step=23)

    edit_json(run / "summary.json", of_references)
    seen = look(run)
    assert not seen.troubles
    diagnosis = of(seen, "offline").diagnosis
    assert diagnosis is not None
    assert (diagnosis.verdict, diagnosis.recommended_step) == ("overfitting", 23)


def test_time_left_is_steps_left_times_computing_per_step(tmp_path: Path) -> None:
    run = going_run(tmp_path / "run", (), ARMS[:1])
    metrics = run / "arms" / "offline" / "metrics.jsonl"
    os.utime(metrics, (NOW, NOW))
    each = of(look(run), "offline")
    last, before = STEPS[7], STEPS[6]
    spent = (0.001 + 0.01 + 0.035) * (last - before) + 1.3
    assert each.seconds_per_step == pytest.approx(spent / (last - before))
    left = (1200 - last) * spent / (last - before)
    assert each.seconds_left(NOW) == pytest.approx(left)
    assert each.seconds_left(NOW + 30) == pytest.approx(left - 30)
    assert each.seconds_left(NOW + 1e6) == 0
    whole = 1200 * spent / (last - before)
    assert look(run).seconds_left(NOW) == pytest.approx(left + 2 * whole)  # two arms wait for this one


def test_time_left_of_a_trainers_log_comes_from_the_times_of_its_file(tmp_path: Path) -> None:
    log = healthy()
    observer = Observer(tmp_path, {}, None)
    for rows, at in ((6, 1000.0), (9, 1060.0)):
        steps = log.steps[:rows]
        history = [{"step": step, "eval_loss": value} for step, value in zip(steps, log.columns["proxy"], strict=False)]
        state = tmp_path / f"checkpoint-{steps[-1]:.0f}" / "trainer_state.json"
        state.parent.mkdir()
        state.write_text(json.dumps({"log_history": history, "global_step": steps[-1], "max_steps": 300}))
        os.utime(state, (at, at))
        seen = observer.look()
    each = seen.watched[0]
    assert seen.place == str(state)
    assert each.seconds_per_step == pytest.approx(60 / (log.steps[8] - log.steps[5]))
    assert each.seconds_left(1060.0) == pytest.approx((300 - log.steps[8]) * each.seconds_per_step)
    assert not seen.is_finished
    edit_json(state, lambda whole: whole.update(global_step=300))
    assert observer.look().is_finished


def test_samples_are_the_newest_and_harmless(tmp_path: Path) -> None:
    run = going_run(tmp_path / "run")
    newest = run / "arms" / "online_teacher" / "samples" / f"{STEPS[7]:08d}.parquet"
    os.utime(newest, (NOW, NOW))
    lines = shown(look(run))
    assert f"samples  online teacher at step {STEPS[7]}: prompt → response" in lines
    assert f"  noun: dog: → online_teacher at {STEPS[7]}" in lines
    assert "  noun: [red]␛[2J: → a 犬␊wolf" in lines


def test_what_a_policy_did_is_told(tmp_path: Path) -> None:
    run = going_run(tmp_path / "run", ())
    metrics = run / "arms" / "offline" / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    action = {"kind": "add_completions", "reason": "score 0.61", "to_step": None, "completions": 3, "fraction": None}
    records[4] |= {"alarm": True, "action": action}
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = shown(look(run))
    assert any(line.endswith(f"alarm from step {STEPS[4]}") for line in lines)
    assert f"  step {STEPS[4]}: 3 more responses per prompt (score 0.61)" in lines
    records[4]["action"]["fraction"] = "half"
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "damaged" in of(look(run), "offline").trouble


def test_phases_before_the_first_evaluation(tmp_path: Path) -> None:
    run = going_run(tmp_path / "run", (), ())
    assert look(run).phase == "loading models"
    (run / "stage1").mkdir()
    assert look(run).phase == "stage 1: responses and fine-tuning"
    assert [line for line in shown(look(run)) if "not begun" in line] == [
        f"{arm.replace('_', ' ')}  not begun" for arm in ARMS
    ]
    inner = run / "arms" / "offline"
    inner.mkdir(parents=True)
    (inner / "metrics.jsonl").write_text('{"arm": "offline", "step": 0, "proxy_nats": 3.0}\n')
    assert "  one evaluation" in shown(look(run))


def test_a_torn_line_is_not_read_and_no_trouble(tmp_path: Path) -> None:
    run = going_run(tmp_path / "run", ())
    before = look(run)
    with (run / "arms" / "offline" / "metrics.jsonl").open("a") as file:
        file.write('{"arm": "offline", "step": 84, "proxy_na')
    after = look(run)
    assert of(after, "offline").step == of(before, "offline").step
    assert not after.troubles


def test_a_log_that_is_half_written_keeps_the_last_frame_and_heals(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.csv", hacked(), 10)
    observer = Observer(path, {}, None)
    good = observer.look()
    with path.open("a") as file:
        file.write("61.0,2")
    torn = observer.look()
    assert torn == replace(good, troubles=torn.troubles)
    assert "cells, but the header names" in torn.troubles[0]
    assert shown(torn)[: len(shown(good))] == shown(good)
    write_log(path, hacked())
    assert not observer.look().troubles
    assert observer.look().watched[0].step == 300


DAMAGES: tuple[Callable[[bytes], bytes], ...] = (
    lambda content: b"",
    lambda content: b"\xff\x00 not what it was",
    lambda content: content[: len(content) // 2],
    lambda content: b"[" * 5000 + b"\n",
    lambda content: content.replace(b"1", b"1e999").replace(b'"step": ', b'"step": "x'),
    lambda content: content.replace(b"{", b"[").replace(b"}", b"]"),
)


def test_whatever_is_damaged_the_last_good_frame_stays_with_a_reason(tmp_path: Path) -> None:
    run = going_run(tmp_path / "run")
    observer = Observer(run, {}, None)
    steps = [each.step for each in observer.look().watched]
    names = ("manifest.json", "summary.json", "metrics.jsonl", "probe.parquet")
    inner = run / "arms" / "online_teacher"
    files = [*(run / name for name in names), inner / "metrics.jsonl", inner / "samples" / f"{STEPS[7]:08d}.parquet"]
    for file in files:
        num_troubled = 0
        content = file.read_bytes()
        for damage in DAMAGES:
            file.write_bytes(damage(content))
            seen, anew = observer.look(), look(run)
            assert shown(anew, 60, 30)
            if seen.troubles:
                assert [each.step for each in seen.watched] == steps, file
                assert any(line.startswith("! ") for line in shown(seen, 60, 30))
            num_troubled += bool(anew.troubles)
            file.write_bytes(content)
            assert not observer.look().troubles
        assert num_troubled >= 4, file


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_it_writes_nothing_and_takes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = going_run(tmp_path / "run", ARMS)
    before = snapshot(tmp_path)
    main(["watch", str(run)])
    main(["watch", str(run), "--once"])
    assert snapshot(tmp_path) == before


def test_a_finished_run_ends_the_watch_with_a_line_for_each_arm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["watch", str(going_run(tmp_path / "run", ARMS))])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"{arm.replace('_', ' ')} 1,200/1,200" for arm in ARMS]
    assert "teacher hacking · score" in lines[0]


def test_once_is_plain_text_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    main(["watch", str(write_log(tmp_path / "log.csv", hacked())), "--once"])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "hacking suspected" in out or "teacher hacking" in out
    assert max(map(len, out.splitlines())) <= 70


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", "--once"], "does not exist yet"),
        (["empty.csv", "--once"], "is empty"),
        (["run", "--once", "--arm", "ofline"], "did you mean 'offline'"),
        (["run", "--arm", "ofline"], "did you mean 'offline'"),
        (["run", "--interval", "0"], "above 0"),
        (["run", "--interval", "inf"], "at most 3600"),
        (["run", "--columns", "top_overlap"], "write name=column"),
        (["run", "--trackers", "tensorbord"], "did you mean 'tensorboard'"),
    ],
)
def test_what_waiting_does_not_mend_gets_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    going_run(tmp_path / "run")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(SystemExit) as caught:
        main(["watch", *arguments])
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_arm_that_no_run_has_is_refused_as_soon_as_there_is_a_run(tmp_path: Path) -> None:
    observer = Observer(tmp_path / "run", {}, "ofline")
    assert "waiting" in observer.look().troubles[0]
    going_run(tmp_path / "run")
    with pytest.raises(AssayError, match="did you mean 'offline'"):
        observer.look()


class Terminal:
    """``assay watch`` in a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self.master, slave = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "90", "LINES": "30"}
        command = [sys.executable, "-m", "assay", "watch", *map(str, arguments), "--interval", "0.1"]
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        self.text = ""

    def wait_for(self, words: str) -> None:
        end = time.monotonic() + 60
        while words not in self.text:
            assert self._read(), self.text[-3000:]
            assert time.monotonic() < end, self.text[-3000:]

    def end(self) -> int:
        while self._read():
            pass
        os.close(self.master)
        return self.process.wait(60)

    def _read(self) -> bool:
        ready, _, _ = select.select([self.master], [], [], 60)
        try:
            data = os.read(self.master, 65536) if ready else b""
        except OSError:  # the other side is closed
            data = b""
        self.text += data.decode(errors="replace")
        return bool(data)


def test_in_a_terminal_it_follows_a_log_until_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    terminal = Terminal(path)
    terminal.wait_for("waiting for it")
    write_log(path, hacked(), 9)
    terminal.wait_for("9 evaluations")
    write_log(path, hacked(), 14)
    terminal.wait_for("14 evaluations")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text
    *_, after = terminal.text.split("\x1b[?1049l")  # the screen that was there before
    assert "14 evaluations" in after  # the last frame stays


def test_in_a_terminal_it_ends_with_the_run(tmp_path: Path) -> None:
    run = going_run(tmp_path / "run")
    terminal = Terminal(run)
    terminal.wait_for("1 of 3 arms finished")
    done = going_run(tmp_path / "done", ARMS)
    shutil.copytree(done, run, dirs_exist_ok=True)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text
    assert "finished" in terminal.text.split("\x1b[?1049l")[-1]


def test_it_never_imports_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from assay.cli import main; main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'accelerate', 'tensorboard'} & set(sys.modules)"
    )
    for target in (going_run(tmp_path / "run"), write_log(tmp_path / "log.csv", healthy())):
        command = [sys.executable, "-c", code, "watch", str(target), "--once"]
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (90, "2 min"), (7260, "2 h 1 min"), (200_000, "2.3 days")]
)
def test_durations_are_as_rough_as_they_are_known(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_steps_that_are_parts_of_an_epoch_are_counted_for_trackers(tmp_path: Path) -> None:
    log: dict[str, Any] = {"proxy": np.array([3.0, 2.0, 1.0])}
    whole = look(write_log(tmp_path / "a.csv", Trajectory(np.array([0.0, 5, 9]), log))).watched[0].records
    parts = look(write_log(tmp_path / "b.csv", Trajectory(np.array([0.5, 1.0, 1.5]), log))).watched[0].records
    assert [step for step, _ in whole] == [0, 5, 9]
    assert [step for step, _ in parts] == [0, 1, 2]
    assert [values["assay/proxy"] for _, values in whole] == [3.0, 2.0, 1.0]
