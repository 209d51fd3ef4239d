"""Every example in a process of its own, as a reader would start it, and what it says checked against what it shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
CHECKED_ELSEWHERE = {"attach_to_trl.py"}
"""By test_trainer_callback.py."""


def said_by(name: str, *arguments: object) -> str:
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_of_examples_names_each_of_them() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert set(re.findall(r"\]\((\w+\.(?:py|ipynb))\)", (EXAMPLES / "README.md").read_text())) == files
    tested = Path(__file__).read_text()
    assert all(f'"{name}"' in tested for name in files)


@pytest.mark.slow
def test_a_hundred_lines_distil_with_divergences_alone() -> None:
    text = (EXAMPLES / "distil_in_100_lines.py").read_text()
    assert len(text.splitlines()) <= 100
    assert re.findall(r"^(?:from|import) assay.*$", text, re.MULTILINE) == ["from assay import divergence"]
    rows = re.findall(r"(\w+): +(.+)", said_by("distil_in_100_lines.py").split("at steps")[1])
    assert [name for name, _ in rows] == ["forward_kl", "reverse_kl", "jeffreys"]
    for _, curve in rows:
        nats = [float(value) for value in curve.split()]
        assert nats == sorted(nats, reverse=True)
        assert nats[-1] < nats[0] / 4
    # along the teacher's responses KL(teacher‖student) is what the forward KL learns, so it does so best
    assert min(rows, key=lambda row: float(row[1].split()[-1]))[0] == "forward_kl"


def test_a_step_by_hand_is_the_step_of_assay() -> None:
    said = said_by("one_step_by_hand.py")
    by_hand, ours = map(float, re.findall(r"loss by hand ([\d.]+), by assay ([\d.]+)", said)[0])
    assert by_hand == pytest.approx(ours, abs=2e-5)
    largest, apart = map(float, re.findall(r"gradient ([\d.e-]+), largest difference of the two ([\d.e-]+)", said)[0])
    assert 0 < apart < 1e-4 * largest


def test_two_logs_get_two_verdicts() -> None:
    said = said_by("diagnose_a_csv.py")
    assert "offline.csv: hacking suspected" in said
    assert "online_student.csv: healthy" in said


def test_a_student_nearer_to_an_own_oracle_than_its_teacher_hacks_it() -> None:
    said = said_by("custom_oracle.py")
    rows = re.findall(r"^ +(\d+) +([\d.]+) +([\d.]+)$", said, re.MULTILINE)
    assert [int(step) for step, *_ in rows] == list(range(0, 241, 20))
    golden, proxy = ([float(row[column]) for row in rows] for column in (1, 2))
    assert golden[0] < proxy[0]
    assert proxy[-1] < 0.01 < golden[0] + 1 < golden[-1]
    assert said.splitlines()[-1].startswith("teacher hacking: ")


@pytest.mark.slow
def test_an_own_task_goes_through_the_lab(tmp_path: Path) -> None:
    said = said_by("custom_task.py", tmp_path)
    assert re.findall(r"^(\w+): [a-z ]+, severity of hacking -?[\d.]+ \[", said, re.MULTILINE) == [
        "offline",
        "online_teacher",
    ]
    assert Path(said.splitlines()[-1]).is_file()


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "logs", tmp_path / "logs")
    notebook = nbformat.read(EXAMPLES / "first_look.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    tables = [out for cell in notebook.cells for out in cell.get("outputs", ()) if "text/html" in out.get("data", {})]
    assert len(tables) >= 3
