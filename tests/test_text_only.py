"""A teacher that gives text only: its responses are a column of the prompts' file, and that is all there is of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from assay import runs
from assay.config import Experiment
from assay.config_file import from_dict
from assay.data.splitting import Survey
from assay.data.tasks import corpus_rows, get_task
from assay.diagnosing import diagnosis_of
from assay.errors import AssayError
from assay.integrations.logs import read_log
from assay.models.loading import load_model, load_tokenizer
from assay.recipes.own import Distill, filled
from assay.results import per_prompt
from assay.types import Batch
from assay.validation import validate
from assay.workspace import Workspace, survey
from command_line import assay
from runs_in_process import run_in_process

NUM_ROWS = 200


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, two responses of the embedded teacher to each, and human references."""
    rows = [row for row in corpus_rows(get_task("define")) if row["split"] == "distillation"][:NUM_ROWS]
    prompts = [f"{row['part_of_speech']}: {row['lemmas'].split(', ')[0]}:" for row in rows]
    teacher, tokenizer = load_model("define-teacher"), load_tokenizer("define-teacher")
    ids = [tuple(tokenizer.encode(prompt)) for prompt in prompts]
    drawn = [teacher.sample(ids, range(seed, seed + NUM_ROWS), 12) for seed in (0, 10_000)]
    texts = [[tokenizer.decode(list(r), skip_special_tokens=True).strip() or "?" for r in part] for part in drawn]
    lines = [
        json.dumps({"prompt": prompt, "answers": [texts[0][i], texts[1][i]], "gold": rows[i]["gloss"]})
        for i, prompt in enumerate(prompts)
    ]
    path = tmp_path_factory.mktemp("text") / "answers.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "text-only"
    result = assay(
        *(
            "distill",
            "--student",
            "define-student",
            "--prompts",
            file,
            "--responses",
            "answers",
            "--references",
            "gold",
        ),
        *("--max-prompt-tokens", 24, "--max-response-tokens", 12, "--learning-rate", 3e-4, "--out", folder),
        *("--distillation.training.num-steps", 8, "--probe.num-evaluations", 4),
    )
    assert result.returncode == 0, result.stderr
    assert "NLL of its held-out responses" in " ".join(result.stdout.split())
    return folder


def experiment_of(run: Path) -> Experiment:
    return from_dict(runs.read_json(run / "manifest.json")["config"])


def test_the_proxy_is_the_nll_of_the_teachers_held_out_text(run: Path) -> None:
    summary = runs.read_json(run / "summary.json")
    assert summary["proxy_is"] == "up_to_a_constant"
    assert summary["truth"] == "references"
    work = Workspace(experiment_of(run), run)
    prompt = sorted(work.held_out(), key=lambda p: p.id)[2]
    log_q_NV = load_model("define-student").log_probs(Batch([prompt.token_ids], [prompt.response_ids[0]]))
    nll = -sum(float(log_q_NV[i, token].detach()) for i, token in enumerate(prompt.response_ids[0]))
    _, values_SP = per_prompt(pq.read_table(run / "probe.parquet"), "distill", "proxy")
    assert values_SP[0, 2] == pytest.approx(nll, rel=1e-5)


def test_shown_tokens_are_scored_by_the_student_alone(run: Path) -> None:
    tokens = pq.read_table(run / "tokens.parquet")
    assert set(tokens["writer"].to_pylist()) == {"student", "teacher", "dataset"}
    assert tokens["log_prob_oracle"].null_count == tokens["log_prob_teacher"].null_count == len(tokens) > 0


def test_every_response_of_the_file_is_trained_on_and_none_is_written(run: Path) -> None:
    experiment = experiment_of(run)
    assert experiment.distillation.completions_per_prompt == 2
    assert experiment.distillation.training.divergence == "hard_labels"
    last = runs.read_records(run / "metrics.jsonl")[-1]
    assert (last["generated_tokens"], last["teacher_tokens"]) == (0, 0)
    assert last["teacher_entropy_nats_per_token"] is None
    assert last["top_overlap"] is None
    assert last["train_proxy_nats"] < runs.read_records(run / "metrics.jsonl")[0]["train_proxy_nats"]
    given = Workspace(experiment, run).distillation_pool()
    pairs = pq.read_table(run / "responses.parquet").filter(pc.field("split") == "distillation").to_pylist()
    by_id = {prompt.id: prompt.response_ids for prompt in given}
    assert all(tuple(row["token_ids"]) in by_id[row["prompt_id"]] for row in pairs)
    assert runs.read_json(run / "arms" / "distill" / "diversity.json")["num_pairs"] == 2 * len(given)


def test_the_page_and_the_card_say_that_the_level_is_unknown(run: Path) -> None:
    assert "up to a constant: NLL of its held-out responses" in (run / "report.html").read_text()
    assert "text only" in (run / "arms" / "distill" / "best" / "README.md").read_text()


def test_a_prompt_without_a_response_is_named_by_its_line(file: Path, tmp_path: Path) -> None:
    lines = file.read_text().splitlines()
    lines[6] = json.dumps({"prompt": "noun: nothing:"})
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join(lines) + "\n")
    result = assay(
        *("distill", "--student", "define-student", "--prompts", broken, "--responses", "answers"),
        *("--out", tmp_path / "run"),
    )
    assert result.returncode == 2
    assert "line 7" in result.stderr
    assert not (tmp_path / "run").exists()


def test_without_references_nothing_is_known_that_could_decide(file: Path, tmp_path: Path) -> None:
    """Whatever the detector makes of a proxy that is known up to a constant; with references they are listened to."""
    wish = Distill(
        student="define-student", prompts=str(file), responses="answers", max_prompt_tokens=24, max_response_tokens=12
    )
    draft = wish.draft()
    experiment = filled(wish, draft, survey(draft))
    (arm,) = experiment.arms
    assert (arm.policy, arm.alarm) == ("off", "detector")
    training = dataclasses.replace(experiment.distillation.training, num_steps=3)
    experiment = dataclasses.replace(
        experiment,
        distillation=dataclasses.replace(experiment.distillation, training=training),
        probe=dataclasses.replace(experiment.probe, num_evaluations=4),
    )
    run_in_process(experiment, tmp_path / "run")
    (entry,) = runs.read_json(tmp_path / "run" / "summary.json")["arms"]
    assert entry["verdict"] == "undecided"
    assert entry["best_step"] == 3
    folder = tmp_path / "run" / "arms" / "distill"
    assert load_model(str(folder / "best")).digest == load_model(str(folder / "student")).digest
    assert diagnosis_of(read_log(tmp_path / "run")).verdict == "undecided"
    given = filled(wish, draft, Survey({"distillation": 100, "held_out": 50}, 2, num_references=50)).arms[0]
    assert (given.policy, given.alarm) == ("stop", "references")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"divergence": "forward_kl"}, "needs its probabilities"),
        ({"teacher": "define-teacher"}, "name the teacher by --teacher, or the column"),
        ({"responses": None}, "name the teacher by --teacher, or the column"),
        ({"source": "online_student"}, "drop --source"),
        ({"budget": 1000}, "drop --source, --budget"),
    ],
)
def test_what_text_alone_cannot_do_is_refused(changes: dict[str, str | int | None], said: str) -> None:
    wish = {"student": "define-student", "prompts": "p.jsonl", "responses": "answers"} | changes
    with pytest.raises(AssayError, match=said):
        validate(Distill(**wish).draft())  # type: ignore[arg-type]
