"""Three kills in a row on one run, each at another stage; `make chaos` has the many, at random moments."""

from __future__ import annotations

import dataclasses
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from assay import run_experiment, runs
from chaos import content, controlled, difference, draw, kill, place_of_run, scenarios, text_of
from test_experiment import summary_of

EXPERIMENT = dataclasses.replace(controlled(), arms=controlled().arms[:1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos")
    run_experiment(EXPERIMENT, folder / "run")
    return folder / "run"


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not list(folder.glob(pattern)):
        assert process.poll() is None, (folder / "said.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_in_three_stages_a_run_ends_in_the_same_files(whole: Path, tmp_path: Path) -> None:
    """The whole group twice; then the parent alone, whose workers must notice. The log then also loses half a line."""
    scenario = dataclasses.replace(scenarios("")[0], files={"config.json": text_of(EXPERIMENT)})
    scenario.prepare(tmp_path / "killed")
    folder = tmp_path / "killed" / "run"
    for pattern, victim in (
        ("stage1/oracle-*.parquet", "all"),
        ("stage1/checkpoints-*/step-*", "all"),
        ("arms/*/checkpoints/step-*", "parent"),
    ):
        process = scenario.start(tmp_path / "killed")
        wait_for(tmp_path / "killed", f"run/{pattern}", process)
        kill(process, victim)
    assert not (folder / "arms" / "offline" / "finished.json").exists()
    log = folder / "arms" / "offline" / "metrics.jsonl"
    with log.open("ab") as file:
        file.write(b'{"arm": "offline", "step": 1')
    (folder / "arms" / "offline" / ".best.ab12cd34.unfinished" / "best").mkdir(parents=True)
    run_experiment(EXPERIMENT, folder)
    assert difference(content(whole), content(folder)) == ""
    assert summary_of(folder)["arms"] == summary_of(whole)["arms"]
    (repair,) = runs.read_records(folder / runs.REPAIRS)
    assert f"the last line of {str(log)!r} was torn" in repair["repair"]
    assert "put right when it was resumed" in (folder / "report.html").read_text()
    assert "put right" not in (whole / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "metrics.jsonl").write_text('{"step": 0}\n'), "metrics.jsonl differs"),
        (lambda f: (f / "arms/offline/best/model.safetensors").write_bytes(b"w"), "best/model.safetensors differs"),
        (lambda f: (f / "arms/offline/.x.ab12cd34.unfinished").mkdir(), ".x.ab12cd34.unfinished is left over"),
        (lambda f: (f / "summary.json").unlink(), "summary.json is missing"),
        (lambda f: (f / "probe.parquet").write_bytes((f / "responses.parquet").read_bytes()), "probe.parquet differs"),
    ],
)
def test_the_comparison_sees_every_difference(whole: Path, tmp_path: Path, change: Any, words: str) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "run"))
    assert difference(content(whole), content(copy)) == ""
    change(copy)
    assert words in difference(content(whole), content(copy))


def test_at_least_fifty_kills_are_drawn_over_all_scenarios() -> None:
    drawn = {s.name: draw(s, 10.0, random.Random(1)) for s in scenarios("")}
    assert sum(len(moments) for runs_ in drawn.values() for moments in runs_) >= 50
    assert set(drawn) == {"run", "distill", "policy", "sweep", "answers"}
    for moments in drawn.values():
        assert all(0 < seconds <= 10 for run in moments for seconds, _ in run)


def test_where_a_run_is_can_be_told_from_its_files(whole: Path) -> None:
    assert place_of_run(whole.parent) == "ended"
    assert place_of_run(whole) == "starting"
