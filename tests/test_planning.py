"""``assay plan`` as a user meets it: a real small world, the table, the JSON object, one sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assay.cli import main
from command_line import in_a_terminal
from test_cli import assay

WORLD = {
    "seed": 7,
    "task": {"max_response_tokens": 12},
    "stage_one": {"num_oracle_prompts": 64, "teacher_epochs": 1.0},
    "distillation": {
        "num_prompts": 8,
        "training": {"num_steps": 60, "batch_size": 8, "learning_rate": 0.003},
    },
    "probe": {"num_prompts": 32, "num_train_pairs": 8, "num_monitored": 8, "num_evaluations": 5},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "little.json"
    path.write_text(json.dumps(WORLD))
    return path


@pytest.fixture(scope="module")
def found(world: Path) -> dict[str, Any]:
    arguments = (
        "--teacher-tokens=4000",
        "--pool=32",
        "--tokens=1e9",
        "--price-per-hour=2",
        "--runs",
        world.parent / "runs",
    )
    result = assay("plan", world, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_the_json_object_has_the_promised_shape(found: dict[str, Any]) -> None:
    assert found["schema"] == "assay.plan/1"
    assert (found["world"][-11:], found["seed"], found["metric"], found["pool"]) == ("little.json", 7, "golden", 32)
    assert [run["option"] for run in found["small_runs"]] == ["4 prompts × 1", "8 prompts × 1", "8 prompts × 2"]
    assert found["small_runs_teacher_tokens"] == sum(run["teacher_tokens"] for run in found["small_runs"])
    fitting = [option for option in found["options"] if option["fits"]]
    assert all(option["teacher_tokens"] <= 4000 for option in fitting)
    assert all(option["teacher_tokens"] > 4000 for option in found["options"] if not option["fits"])
    assert fitting[0]["name"] == found["recommended"]
    assert [option["predicted"] for option in fitting] == sorted(option["predicted"] for option in fitting)
    for option in fitting:
        low, high = option["ci"]
        assert low < option["predicted"] < high
        low, high = option["ci_above_first"]
        assert option["tied_with_first"] == (low <= 0 <= high)
    tied = [option["name"] for option in fitting[1:] if option["tied_with_first"]]
    assert found["cannot_tell_from"] == tied
    assert ("cannot tell" in found["sentence"]) == bool(tied)
    assert found["recommended"] in found["sentence"]
    assert found["scale_out"]["price"] == pytest.approx(2 * found["scale_out"]["machine_hours"])
    assert all(value >= 0 for value in found["seconds_per_token"].values())


def command(*arguments: object) -> int | str | None:
    """The command line in this process; its exit code."""
    try:
        main(["plan", *map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.slow
def test_finished_small_runs_are_not_run_again_and_the_table_says_the_same(
    found: dict[str, Any], world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_terminal(monkeypatch, 160)
    arguments = (world, "--teacher-tokens", 4000, "--pool", 32, "--runs", world.parent / "runs")
    assert command(*arguments, "--dry-run") == 0
    planned = capsys.readouterr().out
    assert "3 runs, 3 of them finished before" in planned
    assert "% of the budget" in planned
    assert command(*arguments) == 0
    shown = capsys.readouterr()
    assert "3 of them finished before" in shown.err
    assert found["sentence"] in " ".join(shown.out.split())  # a terminal wraps it
    listed = [line.split("│")[1].strip() for line in shown.out.splitlines() if line.startswith("│")]
    assert listed == ["option", *(option["name"] for option in found["options"] if option["fits"])]


def test_nothing_is_run_for_a_dry_run(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(world, "--teacher-tokens", 4000, "--pool", 32, "--runs", tmp_path, "--dry-run") == 0
    assert "3 runs, 0 of them finished before" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quickstart", "--teacher-tokens=-1", "--pool=256"], ["budget of -1", "positive"]),
        (["quickstart", "--teacher-tokens=6000", "--pool=256"], ["budget of 6000", "128 prompts", "at least 6144"]),
        (["quickstart", "--teacher-tokens=90000", "--pool=0"], ["pool of 0", "empty"]),
        (["quickstart", "--teacher-tokens=90000", "--pool=63"], ["pool of 63", "one batch", "64"]),
        (["quickstart", "--teacher-tokens=90000", "--pool=9999999"], ["9999999 were asked for"]),
        (["quickstart", "--teacher-tokens=90000", "--pool=256", "--price-per-hour=2"], ["needs --tokens"]),
        (
            ["quickstart", "--teacher-tokens=90000", "--pool=256", "--price-per-hour=-2", "--tokens=1e9"],
            ["price of -2"],
        ),
        (["quickstart", "--teacher-tokens=90000", "--pool=256", "--tokens=0"], ["--tokens 0"]),
        (["quikstart", "--teacher-tokens=90000", "--pool=256"], ["did you mean 'quickstart'"]),
    ],
)
def test_a_mistake_gets_one_sentence_and_writes_nothing(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("assay: ")
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []
