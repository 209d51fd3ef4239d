"""What users give by mistake: each file, folder and command line of tests/bad_inputs ends in one clear sentence.

``bad_inputs/KIND.jsonl`` lists the inputs, and what the sentence on each must hold: each must be refused for its own
reason. Models and runs are made by tools/build_bad_models.py and build_bad_runs.py, tables by build_bad_tables.py.
"""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from command_line import assay, assay_here

ROOT = Path(__file__).parent / "bad_inputs"
LONGEST = 400
"""Characters of a sentence, without the folders of this machine."""
PROGRESS = re.compile(r"prompts that fit: |\[ *\d+ s\] loading models: 0/1|assay: loading the models")
BEGUN = {".lock", "manifest.json"}
"""All that is in the folder of a run whose models were refused: nothing is computed, and another command may follow."""
COMMANDS = {
    "config": ["run", "{input}"],
    "logs": ["diagnose", "{input}", "--json"],
    "rows": ["tasks", "check", "{input}"],
    "report": ["report", "{input}"],
    "compare": ["compare", "{input}"],
    "diagnose": ["diagnose", "{input}", "--json"],
    "watch": ["watch", "{input}", "--once"],
}
SHORT = ["--max-prompt-tokens=8", "--max-response-tokens=8", "--distillation.training.num-steps=2"]


def entries(*kinds: str) -> list[dict[str, Any]]:
    lines = [line for kind in kinds for line in (ROOT / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines]


def named(entry: dict[str, Any]) -> str:
    return str(entry.get("input") or entry["name"])


def assemble(entry: dict[str, Any], place: Path) -> Path:
    """The input itself, or a whole run or model in which the case's files stand in place of their own."""
    kind = entry["input"].split("/")[0]
    if kind not in ("runs", "models"):
        return ROOT / entry["input"]
    shutil.copytree(ROOT / kind / "whole", place)
    for file in (ROOT / entry["input"]).iterdir():
        if file.suffix == ".absent":
            (place / file.stem).unlink()
        else:
            shutil.copy(file, place / file.name)
    return place


def command(entry: dict[str, Any], tmp_path: Path) -> list[str]:
    if "arguments" in entry:
        return entry["arguments"]
    given, kind = assemble(entry, tmp_path / "given"), entry["input"].split("/")[0]
    if kind == "models":
        roles = {"teacher": ROOT / "models" / "whole", "student": ROOT / "models" / "whole"}
        roles[entry.get("role", "student")] = given
        flags = [f"--{role}={path}" for role, path in roles.items()]
        return ["distill", f"--prompts={ROOT}/models/prompts.jsonl", *SHORT, *flags, *entry.get("flags", [])]
    words = COMMANDS[entry.get("command", kind)]
    return [word.format(input=given) for word in words] + entry.get("flags", [])


def check(entry: dict[str, Any], result: Any, tmp_path: Path, left: set[str]) -> None:
    """One sentence with what it must hold, nothing on stdout, nothing written."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    said = result.stderr.replace(f"{tmp_path}/", "").replace(f"{ROOT}/", "")
    assert entry["says"] in said
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", said)
    if entry.get("by_the_parser"):  # a box of the command line's library: the option, and where help is
        assert "Traceback" not in said
        assert len(said.splitlines()) < 30
    else:
        *before, sentence = said.splitlines()
        assert all(PROGRESS.match(line) for line in before), said
        assert sentence.startswith("assay: ")
        assert len(sentence) < LONGEST
    assert left <= (BEGUN if entry.get("begins_a_run") or entry.get("input", "").startswith("models/") else set())


def files_under(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() or path.is_symlink() or path.name[:3] == "the"}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in. Stages run in this process: starting one of their own takes seconds each time."""
    monkeypatch.setattr("assay.workers.local_executor", lambda number, messages=None: ThreadPoolExecutor(1))
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.mark.parametrize("entry", entries("config", "logs", "rows", "tables", "runs", "arguments"), ids=named)
def test_a_bad_input_gets_one_sentence(entry: dict[str, Any], work: Path, tmp_path: Path) -> None:
    result = assay_here(*command(entry, tmp_path), folder=work)
    check(entry, result, tmp_path, files_under(work))


@pytest.mark.parametrize("entry", entries("models"), ids=named)
def test_a_bad_model_gets_one_sentence(entry: dict[str, Any], work: Path, tmp_path: Path) -> None:
    result = assay_here(*command(entry, tmp_path), folder=work)
    check(entry, result, tmp_path, files_under(work))


SAMPLE = (
    "config/billion-laughs.yaml",
    "logs/git-lfs-pointer.csv",
    "rows/id-that-climbs-out.jsonl",
    "rows/cut-off.parquet",
    "runs/probe-cut-off",
    "models/weights-pickled-with-a-payload",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_in_a_process_of_its_own_it_is_the_same(name: str, tmp_path: Path) -> None:
    kinds = ("config", "logs", "rows", "tables", "runs", "models", "arguments")
    entry = next(entry for entry in entries(*kinds) if named(entry) == name)
    (tmp_path / "work").mkdir()
    result = assay(*command(entry, tmp_path), folder=tmp_path / "work")
    check(entry, result, tmp_path, files_under(tmp_path / "work"))


def test_what_the_damaged_folders_were_made_of_is_good(work: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "runs" / "whole", tmp_path / "run")
    for kind in ("report", "compare", "diagnose", "watch"):
        words = [word.format(input=tmp_path / "run") for word in COMMANDS[kind]]
        assert assay_here(*words, folder=work).returncode == 0
    whole = ROOT / "models" / "whole"
    doctor = [
        "doctor",
        f"--teacher={whole}",
        f"--student={whole}",
        f"--prompts={ROOT}/models/prompts.jsonl",
        *SHORT[:2],
    ]
    assert assay_here(*doctor, folder=work).returncode in (0, 1)


def test_every_file_of_the_corpus_is_fed_and_has_a_name_of_its_own() -> None:
    kinds = ("config", "logs", "rows", "tables", "runs", "models", "arguments")
    names = [named(entry) for entry in entries(*kinds)]
    assert len(names) == len(set(names)) >= 300
    there = {
        f"{kind}/{path.name}"
        for kind in ("config", "logs", "rows", "runs", "models")
        for path in (ROOT / kind).iterdir()
        if path.name != "whole" and f"{kind}/{path.name}" != "models/prompts.jsonl"
    }
    assert there == {name for name in names if "/" in name and (ROOT / name.split("/")[0]).is_dir()} - {"run ./"}
