"""``assay diagnose`` as users run it: real files, real processes, one JSON object, one sentence for what is wrong."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from assay.cli import main
from assay.diagnostics.trajectory import Trajectory
from known_logs import hacked, healthy


def write(path: Path, log: Trajectory, names: dict[str, str] | None = None) -> Path:
    names = names or {name: name for name in log.columns}
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", *names.values()])
        rows = np.column_stack([log.steps, *(log.columns[name] for name in names)])
        np.random.default_rng(0).shuffle(rows)  # rows are sorted by the reader
        table.writerows(rows.tolist())
    return path


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "assay", "diagnose", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_a_hacked_log_is_told_in_words_with_a_figure(tmp_path: Path) -> None:
    found = run(write(tmp_path / "metrics.csv", hacked()), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("teacher hacking (score ")
    assert "keep the checkpoint of step" in found.stdout
    assert "lost transfer (AS004)" in found.stdout
    assert found.stderr == ""  # exact names are no guesses
    figure = (tmp_path / "diagnosis.svg").read_text()
    for words in ("its law", "95 % of new evaluations", "keep this checkpoint", "held-out proxy", "NLL of references"):
        assert words in figure


def test_json_is_one_object_and_guesses_go_to_stderr(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", healthy(), {"proxy": "eval_loss", "train_proxy": "loss"})
    found = run(path, "--json", cwd=tmp_path)
    assert found.returncode == 0
    diagnosis = json.loads(found.stdout)
    assert diagnosis["schema"] == "assay.diagnosis/1"
    assert diagnosis["verdict"] == "healthy"
    assert "took the column 'eval_loss'" in found.stderr
    assert not (tmp_path / "diagnosis.svg").exists()


def test_named_columns_and_a_trainer_state(tmp_path: Path) -> None:
    log = hacked()
    history = []
    for i, step in enumerate(log.steps[1:], 1):
        history.append({"step": int(step), "loss": log.columns["train_proxy"][i], "epoch": 1.0})
        history.append({"step": int(step), "eval_loss": log.columns["proxy"][i], "epoch": 1.0})
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": history, "global_step": 300}))
    named = run(path, "--proxy", "eval_loss", "--train", "loss", "--json", cwd=tmp_path)
    assert json.loads(named.stdout)["verdict"] == "hacking_suspected"
    assert named.stderr == ""


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ("step,loss\n1,2\n2,1\n", ["--proxy", "eval_los"], "unknown column"),
        ("step,proxy\n1,2\n2,nan\n", [], "line 3"),
        ("step,proxy\n1,2\n1,3\n2,1\n", [], "step 1"),
        ("step,proxy\n1,2\n", [], "one"),
        ("step,proxy\n1,abc\n2,3\n", [], "line 2"),
        ("", [], "empty"),
        ("step,proxy\n1,3\n2,2\n3,1\n", ["--figure", "a.png"], "name it a.svg"),
        ("step,proxy\n1,3\n2,2\n3,1\n", ["--columns", "top_overlap"], "write name=column"),
        ("step,proxy\n1,3\n2,2\n3,1\n", ["--columns", "topp_overlap=x"], "did you mean 'top_overlap'"),
    ],
)
def test_bad_input_gets_one_sentence(
    content: str, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.csv").write_text(content)
    with pytest.raises(SystemExit) as caught:
        main(["diagnose", "log.csv", *arguments])
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv"]


def run_folder(path: Path) -> Path:
    """A finished run's folder, as far as a diagnosis reads it, with golden that rises."""
    log = hacked(golden=5 + np.log1p(hacked().steps / 30))
    path.mkdir()
    with (path / "metrics.jsonl").open("w") as file:
        for i, step in enumerate(log.steps):
            names = {"proxy": "proxy_nats", "golden": "golden_nats", "reference_nll": "reference_nll_nats"}
            record = {name: log.columns[column][i] for column, name in names.items()}
            file.write(json.dumps({"arm": "offline", "step": int(step), **record, "other": 1.0 + i}) + "\n")
    (path / "summary.json").write_text("{}")
    return path


def of_a_summary(monkeypatch: pytest.MonkeyPatch, verdict: str) -> None:
    entry = {"source": "offline", "verdict": verdict, "reason": "[red]so\x1b[2J", "best_step": 40, "onset_step": None}
    monkeypatch.setattr("assay.diagnosing.read_summary", lambda path: {"truth": "oracle", "arms": [entry]})


def test_a_run_folder_has_its_own_verdict_unless_another_golden_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(run_folder(tmp_path / "run"))
    of_a_summary(monkeypatch, "undecided")
    main(["diagnose", folder, "--json"])
    own = json.loads(capsys.readouterr().out)
    assert (own["verdict"], own["recommended_step"], own["reasons"][0]) == ("undecided", 40, "[red]so␛[2J")
    main(["diagnose", folder, "--json", "--golden", "other"])
    assert json.loads(capsys.readouterr().out)["recommended_step"] == 0
    main(["diagnose", folder, "--figure", str(tmp_path / "a.svg")])
    assert "  [red]so␛[2J" in capsys.readouterr().out  # neither colour nor escape


def test_a_verdict_that_assay_never_wrote_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_a_summary(monkeypatch, "[blink]fine[/blink]")
    with pytest.raises(SystemExit) as caught:
        main(["diagnose", str(run_folder(tmp_path / "run"))])
    assert caught.value.code == 2
    assert "unknown verdict" in capsys.readouterr().err


def test_it_never_imports_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", healthy())
    code = (
        "import sys; from assay.cli import main; main(sys.argv[1:]);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, "diagnose", str(path)], check=True, cwd=tmp_path, capture_output=True)
