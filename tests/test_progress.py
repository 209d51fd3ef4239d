"""Verdicts in the terminal: readable at any width, from files that are not trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assay.errors import AssayError
from assay.progress import live_progress, print_verdicts
from assay.recipes import get_recipe
from assay.report.schedule import probe_share
from assay.report.tables import read_run
from assay.types import Progress
from command_line import in_a_terminal
from test_report import edit_json, write_run

PAIR = {
    "arm": "offline",
    "online_arm": "online_teacher",
    "golden_final_minus_online_nats": 2.05,
    "ci95_golden_final_minus_online": [1.85, 2.25],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", num_prompts=4, steps=(0, 1, 84, 1200))


def printed(run: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    in_a_terminal(monkeypatch, width)
    print_verdicts(run)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [40, 80, 130])
def test_a_live_line_has_room_for_its_count(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A remark does not push out bars and counts, and no line is longer than the terminal."""
    in_a_terminal(monkeypatch, width)
    monkeypatch.setenv("TERM", "xterm")
    with live_progress(get_recipe("quickstart")) as listen:
        listen(Progress("signals of the teacher: whole laws, as its vocabulary of 512 is at most 4,096", 1, 1))
        for arm in ("offline", "online_teacher"):
            listen(Progress(arm, 20, 300, golden_nats=12.31, proxy_nats=5.01))
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= width
    assert "signals of the teacher: whole laws," in " ".join(lines)
    for name in ("offline", "online teacher"):
        last = next(line for line in reversed(lines) if line.startswith(name))
        assert " 20/300" in last
        assert ("golden 12.31 proxy 5.01" in last) == (width >= 60)


def test_eighty_columns_give_two_whole_lines_for_each_arm(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(run, 80, monkeypatch, capsys)
    golden, proxy = (
        " → ".join(f"{json.loads((run / 'summary.json').read_text())['arms'][0][metric][key]:.2f}" for key in keys)
        for metric, keys in (("golden", ("initial", "best", "final")), ("proxy", ("initial", "best", "final")))
    )
    assert lines[0] == "offline: teacher hacking, hacking 1.92 [1.72, 2.12]"
    assert lines[1] == f"  golden {golden}   proxy {proxy}"
    assert lines[2].startswith("online teacher: healthy")
    assert lines[4].startswith("online student: healthy")
    assert max(map(len, lines)) <= 80


def test_wide_terminals_give_a_table_with_one_line_for_each_arm(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(run, 140, monkeypatch, capsys)
    (row,) = [line for line in lines if "offline" in line]
    assert "teacher hacking" in row
    assert "1.92 [1.72, 2.12]" in row
    assert row.count("→") == 4
    assert len([line for line in lines if "→" in line and "│" in line]) == 3


@pytest.mark.parametrize("width", [80, 140])
def test_names_from_files_are_text_and_nothing_else(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "[bold]a[/bold][/] \x1b[31m\ufffe"
    run = write_run(tmp_path / "run", [name], num_prompts=4, steps=(0, 1, 84, 1200))
    edit_json(run / "summary.json", lambda value: value.update(comparisons=[PAIR | {"arm": name}]))
    text = "\n".join(printed(run, width, monkeypatch, capsys))
    assert text.count("[bold]a[/bold][/] ␛[31m�") == 2


def test_comparisons_are_printed_and_may_be_absent(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "of golden above" not in " ".join(printed(run, 80, monkeypatch, capsys))
    edit_json(run / "summary.json", lambda value: value.update(comparisons=[PAIR]))
    text = " ".join(printed(run, 80, monkeypatch, capsys))
    assert "offline ends 2.05 nats of golden above online teacher (paired 95 % interval 1.85 to 2.25)." in text


def test_unknown_severities_are_dashes(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = {"severity_hacking_nats": None, "ci95_hacking": [None, None], "verdict": "undecided"}
    edit_json(run / "summary.json", lambda value: value["arms"][0].update(unknown))
    assert printed(run, 80, monkeypatch, capsys)[0] == "offline: undecided, hacking – [unknown]"


@pytest.mark.parametrize("damage", ["{}", "", "[]", '{"schema": "assay.summary/1"}'])
def test_a_damaged_summary_is_a_sentence(run: Path, damage: str) -> None:
    (run / "summary.json").write_text(damage)
    with pytest.raises(AssayError, match=r"summary\.json.* repeat the command that made the run$"):
        print_verdicts(run)


def test_probe_share_is_probe_seconds_over_all_seconds_but_those_counted_twice(run: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [record["seconds"] for record in {record["arm"]: record for record in records}.values()]
    total = 2.0 + 9.1 + 61.2 + sum(sum(seconds.values()) for seconds in last)
    assert probe_share(read_run(run)) == pytest.approx(sum(seconds["probe"] for seconds in last) / total)


@pytest.mark.parametrize(
    ("change", "share"),
    [
        (lambda manifest: manifest.update(stage_seconds={}), None),
        (lambda manifest: manifest.update(stage_seconds={"arms": 3.0}), None),
        (lambda manifest: manifest.update(stage_seconds={"sft": 3.0, "check_models": None}), 0.0),
    ],
)
def test_missing_phases_leave_the_share_out(
    change: Callable[[dict[str, Any]], None],
    share: float | None,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit_json(run / "manifest.json", change)
    records = [json.loads(line) | {"seconds": {}} for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert probe_share(read_run(run)) == share
    said = [line for line in printed(run, 80, monkeypatch, capsys) if line.startswith("probe:")]
    assert said == ([] if share is None else ["probe: 0% of the run's computing"])
