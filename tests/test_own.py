"""`assay distill` and `assay lab`: from a wish and a file of prompts to a run, its students and their cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from assay import runs
from assay.config import ARMS, Experiment
from assay.data.splitting import Split, Survey
from assay.data.tasks import corpus_rows, get_task
from assay.errors import AssayError
from assay.recipes.own import MOST_COMPLETIONS, Distill, filled
from assay.report.model_card import model_card
from assay.report.tables import read_run
from assay.validation import validate
from assay.workload import responses_counted
from command_line import assay

PROMPTS: dict[Split, int] = {"distillation": 300, "held_out": 60, "oracle": 400}


def wish(**changes: Any) -> Distill:
    return Distill(**{"student": "define-student", "teacher": "define-teacher", "prompts": "p.jsonl"} | changes)


def set_out(asked: Distill, num_prompts: dict[Split, int] | None = None) -> Experiment:
    return filled(asked, asked.draft(), Survey(num_prompts or PROMPTS))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row for row in corpus_rows(get_task("define")) if row["split"] == "distillation"][:420]
    lines = [
        json.dumps({"prompt": f"{row['part_of_speech']}: {row['lemmas']}:", "reference": row["gloss"]}) for row in rows
    ]
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def distilled(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    result = assay(
        *("distill", "--teacher", "define-teacher", "--student", "define-student", "--prompts", prompts),
        *("--max-prompt-tokens", 24, "--max-response-tokens", 12, "--out", folder),
        *("--distillation.training.num-steps", 6, "--probe.num-evaluations", 4),
    )
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_distill_ends_with_a_student_that_from_pretrained_reads(distilled: tuple[Path, str]) -> None:
    folder, said = distilled
    best = folder / "arms" / "distill" / "best"
    assert str(best) in said
    assert str(folder / "report.html") in said
    model, tokenizer = AutoModelForCausalLM.from_pretrained(best), AutoTokenizer.from_pretrained(best)
    ids = tokenizer("noun: dog:", return_tensors="pt").input_ids
    assert model(ids).logits.isfinite().all()


def test_the_card_beside_the_weights_says_how_and_what_of_it(distilled: tuple[Path, str]) -> None:
    folder, _ = distilled
    (entry,) = runs.read_json(folder / "summary.json")["arms"]
    for which in ("best", "student"):
        text = (folder / "arms" / "distill" / which / "README.md").read_text()
        assert text.startswith('---\nbase_model: "define-student"\n')
        assert "define-teacher" in text
        assert entry["verdict"].replace("_", " ") in text
        assert "golden up to a constant" in text
    card = model_card(read_run(folder), "distill", "best")
    assert f"step {entry['best_step']}: the one to keep" in card


def test_a_card_holds_no_markup_of_what_it_quotes(distilled: tuple[Path, str]) -> None:
    run = read_run(distilled[0])
    run.manifest["config"]["models"]["teacher"] = "evil|<script>alert(1)</script>\n# no"
    text = model_card(run, "distill", "best")
    assert "<script>" not in text
    assert "\n# no" not in text


@pytest.mark.slow
def test_a_lab_in_ones_own_world_has_an_oracle_and_three_arms(prompts: Path, tmp_path: Path) -> None:
    flags = ("--oracle", "define-oracle", "--teacher", "define-teacher", "--student", "define-student")
    result = assay(
        *("lab", *flags, "--prompts", prompts, "--max-prompt-tokens", 24, "--max-response-tokens", 12),
        *("--out", tmp_path / "lab", "--distillation.training.num-steps", 4, "--probe.num-evaluations", 4),
    )
    assert result.returncode == 0, result.stderr
    summary = runs.read_json(tmp_path / "lab" / "summary.json")
    assert summary["truth"] == "oracle"
    assert [arm["source"] for arm in summary["arms"]] == ["offline", "online_teacher", "online_student"]


def test_without_a_budget_the_policy_may_add_responses() -> None:
    experiment = set_out(wish())
    validate(experiment)
    assert experiment.distillation.num_prompts == 300
    assert experiment.distillation.completions_per_prompt == 1
    assert [arm.policy for arm in experiment.arms] == ["auto"]
    assert experiment.probe.num_prompts == 60


@pytest.mark.parametrize("responses", [2, 100, 299, 300, 900, 2000, 3599, 3600, 100_000])
def test_a_budget_is_never_overdrawn_and_buys_more_prompts_first(responses: int) -> None:
    budget = responses * 2 * 128
    experiment = set_out(wish(budget=budget))
    validate(experiment)
    (arm,) = experiment.arms
    assert arm.policy == "stop"
    _, by_teacher = responses_counted(experiment, arm)
    assert by_teacher * 128 <= budget
    distillation = experiment.distillation
    assert distillation.num_prompts == min(300, responses)
    assert distillation.completions_per_prompt <= MOST_COMPLETIONS
    is_fresh = arm.sources[0].refresh_every == 1
    assert is_fresh == (responses >= distillation.training.num_steps * distillation.training.batch_size)


def test_a_budget_too_small_and_too_few_prompts_are_refused() -> None:
    with pytest.raises(AssayError, match="buys 1 responses"):
        set_out(wish(budget=300))
    with pytest.raises(AssayError, match="15 held-out ones"):
        set_out(wish(), PROMPTS | {"held_out": 15})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--teacher", "nowhere"), "cannot load the tokenizer 'nowhere'"),
        (("--prompts", "none.jsonl"), "cannot read 'none.jsonl'"),
        (("--max-prompt-tokens", "1"), "add prompts, or raise --max-prompt-tokens"),
        (("--references", "referense"), "unknown column of references"),
        (("--task.template", "{promt}"), "did you mean 'prompt'"),
    ],
)
def test_bad_input_is_one_sentence(prompts: Path, tmp_path: Path, flags: tuple[str, str], said: str) -> None:
    given = {"--teacher": "define-teacher", "--student": "define-student", "--prompts": str(prompts)} | dict([flags])
    result = assay("distill", *(part for pair in given.items() for part in pair), "--out", tmp_path / "run")
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_references_and_the_chat_template_become_fields_of_the_task() -> None:
    task = set_out(wish(references="gold", chat_template=True)).task
    assert (task.name, task.reference, task.chat_template) == ("p.jsonl", "gold", True)


def test_a_source_may_be_named_unless_a_budget_chooses() -> None:
    (arm,) = set_out(wish(source="online_student")).arms
    assert arm.sources == ARMS["online_student"].sources
    with pytest.raises(AssayError, match="not both"):
        set_out(wish(source="offline", budget=100_000))
