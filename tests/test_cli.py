"""The command line as a user meets it: real processes, one sentence for every mistake."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from assay import runs
from assay.checkpoints import save_model
from assay.config import to_dict
from assay.recipes import RECIPES
from assay.recipes.studies import STUDIES
from tiny_models import gpt2

TINY = [
    "--stage-one.num-oracle-prompts=64",
    "--distillation.num-prompts=16",
    "--distillation.training.num-steps=4",
    "--probe.num-prompts=16",
    "--probe.num-monitored=16",
    "--probe.num-train-pairs=16",
    "--probe.num-evaluations=4",
]


def assay(*arguments: object, **named: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "assay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **named)  # type: ignore[call-overload,no-any-return]


def assert_one_sentence(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("assay: ")
    for word in words:
        assert word in last


def test_help_lists_the_commands_and_recipes_the_recipes() -> None:
    result = assay("--help")
    assert result.returncode == 0
    assert all(command in result.stdout for command in ("quickstart", "run", "report", "recipes", "bases"))
    recipes, studies = assay("recipes").stdout.split("\n\n")
    assert [line.split()[0] for line in recipes.splitlines()] == list(RECIPES)
    assert [line.split()[0] for line in studies.splitlines()[1:]] == list(STUDIES)
    assert "--distillation.training.learning-rate" in assay("run", "quickstart", "--help").stdout


def test_bases_prints_the_cards() -> None:
    result = assay("bases")
    assert result.returncode == 0
    for name in ("define-oracle", "define-teacher", "define-student"):
        assert name in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quikstart"], ["unknown recipe 'quikstart'", "did you mean 'quickstart'"]),
        (["run", "absent.yaml"], ["absent.yaml", "No such file"]),
        (["report", "absent"], ["absent"]),
        (["run", "quickstart", "--task.name", "defin"], ["unknown task 'defin'", "did you mean 'define'"]),
        (["run", "quickstart", "--models.oracle", "no-such-model"], ["cannot load", "no-such-model"]),
        (["run", "quickstart", "--task.max-response-tokens", "60"], ["76 tokens", "context of 64"]),
        (["run", "quickstart", "--distillation.num-prompts", "99999"], ["99999 were asked for"]),
        (["run", "quickstart", "--distillation.training.divergence", "forwrd_kl"], ["did you mean 'forward_kl'"]),
        (["run", "quickstart", "--distillation.num-prompts", "0"], ["distillation.num_prompts"]),
    ],
)
def test_a_mistake_gets_one_sentence(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    assert_one_sentence(assay(*arguments, cwd=tmp_path), *words)


def test_an_unknown_flag_names_the_nearest(tmp_path: Path) -> None:
    result = assay("run", "quickstart", "--distillation.num-promts", "5", cwd=tmp_path)
    assert result.returncode == 2
    assert "--distillation.num-prompts" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_field_of_a_config_file_names_the_nearest(tmp_path: Path) -> None:
    config = to_dict(RECIPES["quickstart"]())
    config["distillation"]["num_promts"] = 5
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert_one_sentence(assay("run", path, cwd=tmp_path), "'num_promts'", "did you mean 'num_prompts'")


def test_models_of_different_vocabularies_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    save_model(gpt2(1, vocab_size=23), tmp_path / "student")
    result = assay("run", "quickstart", "--models.student", tmp_path / "student", "--out", tmp_path / "run")
    assert_one_sentence(result, "512 tokens", "23", "one vocabulary")
    assert not (tmp_path / "run" / "stage1").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_sentence(assay("quickstart", "--out", tmp_path / "file" / "run"), "cannot make the run folder")
    assert_one_sentence(assay("quickstart", "--out", "/proc/assay"), "cannot make the run folder")


@pytest.mark.slow
def test_a_disk_that_is_full_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """The kernel refuses to let any file grow beyond 200 kB: weights do not fit, tables do."""

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    folder = tmp_path / "run"
    result = assay("run", "quickstart", *TINY, "--out", folder, preexec_fn=limit)
    assert_one_sentence(result, "cannot write", "free space")
    leftovers = [p.name for p in folder.rglob("*") if "step-" in p.name or p.name.startswith(".step")]
    assert leftovers == []
    resumed = assay("run", "quickstart", *TINY, "--out", folder)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.strip().endswith("report.html")


def test_a_run_folder_of_another_config_is_refused(tmp_path: Path) -> None:
    other = {"config": {"seed": 3}, "config_hash": "0", "status": "finished", "assay_version": "0", "digests": {}}
    runs.write_json(tmp_path / "manifest.json", other | {"stage_seconds": {}, "wall_seconds": 0.0})
    assert_one_sentence(assay("quickstart", "--out", tmp_path), "another config", "--out")
