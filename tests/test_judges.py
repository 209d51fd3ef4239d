"""Judges: the values that they were asked for, one sentence for each way to fail, and nothing else of a run changed."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from assay import read_log, run_experiment, runs, stages, workers, write_report
from assay.config import ARMS, Experiment, JudgeConfig, ProbeConfig, to_dict
from assay.config_file import from_dict
from assay.errors import AssayError
from assay.evaluation import build_probe, judged, write_responses
from assay.forecast import forecast
from assay.judges import CommandJudge, FunctionJudge, JudgeError, ModelJudge, open_judge
from assay.results import per_prompt
from assay.types import Batch, Progress, Prompt, Response
from assay.validation import validate
from test_evaluation import CONFIG, PROMPTS
from test_experiment import without_times
from test_without_oracle import without_oracle
from tiny_models import gpt2

ASKED = [
    Prompt("a", "one\ntwo\u2028three", (1, 2), "3 4 5"),
    Prompt("b", "prompt", (2,)),
    Prompt("c", "ünïcode", (3, 1, 2), "7"),
]
SAID = [
    Response("a", (3, 4, 9, 0), "student", False),
    Response("b", (5, 5), "student", True),
    Response("c", (8,), "student", True),
]
HELD_OUT = PROMPTS[:20]


def decode(token_ids: Sequence[int]) -> str:
    return " ".join(str(token) for token in token_ids if token)


def shared_words(prompt: str, response: str, reference: str | None) -> float:
    """So many words of the reference are in the response; -1 without a reference."""
    return -1 if reference is None else len(set(response.split()) & set(reference.split()))


def program(path: Path, text: str, **config: Any) -> CommandJudge:
    path.write_text(text)
    return CommandJudge(JudgeConfig("it", "command", shlex.join([sys.executable, str(path)]), **config), decode)


# --- values


def test_a_function_sees_prompt_response_and_reference_and_its_word_is_taken() -> None:
    seen = []

    def function(*asked: str | None) -> float:
        seen.append(asked)
        return shared_words(*asked)  # type: ignore[arg-type]

    found = judged(FunctionJudge(JudgeConfig("it", "function", "a:b"), function, decode), ASKED, SAID)
    assert seen == [("one\ntwo\u2028three", "3 4 9", "3 4 5"), ("prompt", "5 5", None), ("ünïcode", "8", "7")]
    assert found.metric == "judge_it"
    assert found.prompt_ids == ["a", "b", "c"]
    assert found.value_nats.tolist() == [2, -1, 0]
    assert found.num_tokens.tolist() == [4, 2, 1]


def test_a_program_sees_the_same_and_is_started_once(tmp_path: Path) -> None:
    judge = program(
        tmp_path / "judge.py",
        "import json, sys\n"
        f"log = open({str(tmp_path / 'seen')!r}, 'a')\n"
        "print('a new start', file=log)\n"
        "for line in sys.stdin:\n"
        "    one = json.loads(line)\n"
        "    print(json.dumps(one), file=log)\n"
        "    print(len(one['response'].split()) / 2)\n",
    )
    assert judge.values(ASKED, SAID).tolist() == [1.5, 1.0, 0.5]
    first, *rest = (tmp_path / "seen").read_text().splitlines()
    assert first == "a new start"
    assert [json.loads(line) for line in rest] == [
        {"id": p.id, "prompt": p.text, "response": decode(r.token_ids), "reference": p.reference}
        for p, r in zip(ASKED, SAID, strict=True)
    ]


def test_a_model_that_reads_the_student_gives_its_nll_per_token() -> None:
    model = gpt2(4)
    found = ModelJudge(JudgeConfig("it", "model", "x", walks_on="student"), model).values(ASKED, SAID)
    for value, prompt, response in zip(found, ASKED, SAID, strict=True):
        log_p_NV = model.log_probs(Batch([prompt.token_ids], [response.token_ids])).detach().double()
        by_hand = [-float(log_p_NV[i, token]) for i, token in enumerate(response.token_ids)]
        assert value == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)


def probe_with(*judges: Any, config: ProbeConfig = CONFIG) -> Any:
    models = {"oracle": gpt2(3), "teacher": gpt2(1), "student": gpt2(2)}
    responses = {
        role: write_responses(model, role, HELD_OUT, 5, purpose="held_out", seed=0)  # type: ignore[arg-type]
        for role, model in models.items()
    }
    train = (HELD_OUT[:10], responses["teacher"][:10])
    return build_probe(models, HELD_OUT, responses, train, config, max_response_tokens=5, seed=0, judges=judges)  # type: ignore[arg-type]


def test_a_model_that_walks_on_its_own_responses_is_measured_as_teacher_and_oracle_are() -> None:
    judges = [ModelJudge(JudgeConfig(f"of_{seed}", "model", "x"), gpt2(seed)) for seed in (1, 3, 5)]
    found = probe_with(*judges).evaluate(gpt2(2), 0)
    means = found.means
    assert means["judge_of_1"] == means["proxy_nats"]
    assert means["judge_of_1_stderr"] == means["proxy_stderr"]
    assert means["judge_of_3"] == means["golden_nats"]
    assert means["judge_of_5"] not in (means["proxy_nats"], means["golden_nats"])
    assert not [key for key in means if key.startswith("judge_") and key.endswith(("_nats", "_per_token"))]
    itself = probe_with(ModelJudge(JudgeConfig("it", "model", "x"), gpt2(2))).evaluate(gpt2(2), 0)
    assert itself.means["judge_it"] == pytest.approx(0, abs=1e-4)


def test_judges_read_the_very_responses_that_the_monitors_are_of() -> None:
    judge = FunctionJudge(
        JudgeConfig("tokens", "function", "a:b"), lambda p, response, r: len(response.split()), decode
    )
    everything = dataclasses.replace(CONFIG, num_shown=CONFIG.num_monitored)
    found = probe_with(judge, config=everything).evaluate(gpt2(2), 3)
    expected = [len(decode(response.token_ids).split()) for response in found.samples]
    values = next(v for v in found.per_prompt if v.metric == "judge_tokens")
    assert values.value_nats.tolist() == expected
    assert found.means["judge_tokens"] == np.mean(expected)
    assert values.num_tokens.mean() == found.means["response_tokens_mean"]
    without = probe_with(config=everything).evaluate(gpt2(2), 3)
    assert {k: v for k, v in found.means.items() if not k.startswith("judge_")} == without.means
    assert found.samples == without.samples


# --- refusals


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys; sys.stdin.read(); print('1\\n2\\n3'); sys.exit(3)", "exit code 3: nothing on stderr"),
        ("raise SystemExit('no such metric')", "exit code 1: no such metric"),
        ("print('1\\n2')", "answers 3 responses with 2 lines"),
        ("print('1\\n2\\n3\\n4')", "answers 3 responses with 4 lines"),
        ("print('1\\ngood\\n3')", "line 2 .* is 'good'"),
        ("print('1\\n2\\nnan')", "line 3 .* is 'nan'"),
        ("import sys; sys.stdout.buffer.write(b'1\\n\\xff\\n3')", "line 2"),
    ],
)
def test_a_program_that_does_not_answer_as_asked_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(JudgeError, match=words):
        program(tmp_path / "judge.py", text).values(ASKED, SAID)


def test_a_program_may_leave_its_input_unread(tmp_path: Path) -> None:
    judge = program(tmp_path / "judge.py", "print('\\n'.join('2' * 6000))")
    assert judge.values(ASKED * 2000, SAID * 2000).tolist() == [2.0] * 6000


def test_a_program_that_hangs_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    text = (
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"  # it holds the pipes open
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(JudgeError, match="has not answered within 2 seconds"):
        program(tmp_path / "judge.py", text, timeout_seconds=2.0).values(ASKED, SAID)
    status = Path(f"/proc/{child.read_text()}/stat")
    deadline = time.monotonic() + 20
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_programs_and_functions_that_are_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_of_judges.py").write_text("number = 3\n")
    with pytest.raises(JudgeError, match="cannot start 'no-such-program'"):
        CommandJudge(JudgeConfig("it", "command", "no-such-program -x"), decode).values(ASKED, SAID)
    for target, words in (
        ("no_such_module:f", "cannot be imported"),
        ("mine_of_judges:f", "no function 'f'"),
        ("mine_of_judges:number", "no function 'number'"),
    ):
        with pytest.raises(JudgeError, match=words):
            open_judge(JudgeConfig("it", "function", target), lambda name: gpt2(), decode)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1", [1.0]])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    judge = FunctionJudge(JudgeConfig("it", "function", "a:b"), lambda p, r, ref: value, decode)
    with pytest.raises(JudgeError, match="return a finite number"):
        judge.values(ASKED, SAID)


@pytest.mark.parametrize(
    ("judges", "words"),
    [
        ([{"name": "a", "kind": "command", "target": "x"}] * 2, "two judges have the same name"),
        ([{"name": "A b", "kind": "command", "target": "x"}], "names a column"),
        ([{"name": "a_stderr", "kind": "command", "target": "x"}], "names a column"),
        ([{"name": "a", "kind": "command", "target": " "}], "has no target"),
        ([{"name": "a", "kind": "command", "target": "x 'y"}], "No closing quotation"),
        ([{"name": "a", "kind": "command", "target": "''"}], "names no program"),
        ([{"name": "a", "kind": "function", "target": "module.function"}], "package.module:function"),
        ([{"name": "a", "kind": "model", "target": "http://host:1/v1"}], "behind a server"),
        ([{"name": "a", "kind": "model", "target": "x", "higher_is_better": True}], "distance in nats"),
        ([{"name": "a", "kind": "command", "target": "x", "walks_on": "student"}], "leave walks_on out"),
        ([{"name": "a", "kind": "command", "target": "x", "timeout_seconds": 0}], "must be above 0"),
    ],
)
def test_configs_that_make_no_sense_are_refused(judges: list[dict[str, Any]], words: str) -> None:
    config = to_dict(Experiment())
    config["probe"]["judges"] = judges
    with pytest.raises(AssayError, match=words):
        validate(from_dict(config))


# --- whole runs

FUNCTION = """
def words(prompt, response, reference):
    return len(set(response.split()) & set(reference.split()))
"""
PROGRAM = "import json, sys\nfor line in sys.stdin:\n    print(len(json.loads(line)['response']))\n"


def experiment_with(judges: tuple[JudgeConfig, ...]) -> Experiment:
    base = without_oracle()
    return dataclasses.replace(base, arms=(ARMS["offline"],), probe=dataclasses.replace(base.probe, judges=judges))


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "words_of_judges.py").write_text(FUNCTION)
    (folder / "letters.py").write_text(PROGRAM)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(folder)
    yield (
        JudgeConfig("same", "model", "define-teacher"),
        JudgeConfig("second_text", "model", "define-oracle", walks_on="student"),
        JudgeConfig("words", "function", "words_of_judges:words"),
        JudgeConfig("letters", "command", shlex.join([sys.executable, str(folder / "letters.py")])),
    )
    patch.undo()


@pytest.fixture(scope="module")
def run(judges: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "judged"
    run_experiment(experiment_with(judges), folder)
    return folder


COLUMNS = ("judge_same", "judge_second_text", "judge_words", "judge_letters")


def test_judges_are_forecast(judges: Any) -> None:
    """A judge that walks on its own responses is one more teacher for the student; a reader costs its reading."""
    plain, walker, reader, others = (
        forecast(experiment_with(some)) for some in ((), judges[:1], judges[1:2], judges[2:])
    )
    probe, num_tokens = experiment_with(()).probe, experiment_with(()).task.max_response_tokens
    assert walker.generated_tokens - plain.generated_tokens == probe.num_prompts * num_tokens
    assert walker.scored_tokens - plain.scored_tokens == probe.num_prompts * (1 + 5) * num_tokens
    assert reader.generated_tokens == plain.generated_tokens
    assert reader.scored_tokens - plain.scored_tokens == probe.num_monitored * 5 * num_tokens
    for more in (walker, reader):
        assert more.flops > plain.flops  # type: ignore[operator]
        assert more.memory_bytes > plain.memory_bytes  # type: ignore[operator]
        assert more.disk_bytes > plain.disk_bytes  # type: ignore[operator]
    assert (others.flops, others.memory_bytes) == (plain.flops, plain.memory_bytes)
    unknown = forecast(experiment_with((dataclasses.replace(judges[0], target="some/model"),)))
    assert unknown.unknown_models == ("some/model",)


def test_a_run_writes_means_and_values_per_prompt(run: Path) -> None:
    records = runs.read_records(run / "metrics.jsonl")
    probe = pq.read_table(run / "probe.parquet")
    for column in COLUMNS:
        _, values_SP = per_prompt(probe, "offline", column)
        assert [record[column] for record in records] == pytest.approx(values_SP.mean(axis=1).tolist(), rel=1e-12)
        stderr_S = values_SP.std(axis=1, ddof=1) / values_SP.shape[1] ** 0.5
        assert [record[f"{column}_stderr"] for record in records] == pytest.approx(stderr_S.tolist())
    assert [record["judge_same"] for record in records] == [record["proxy_nats"] for record in records]
    assert runs.read_json(run / "manifest.json")["digests"]["judge define-teacher"]


def test_judges_change_nothing_else_of_a_run(run: Path, tmp_path: Path) -> None:
    run_experiment(experiment_with(()), tmp_path / "run")
    without = runs.read_records(tmp_path / "run" / "metrics.jsonl")
    judged = runs.read_records(run / "metrics.jsonl")
    left = [{k: v for k, v in record.items() if not k.startswith("judge_")} for record in judged]
    assert [json.dumps(without_times(r)) for r in left] == [json.dumps(without_times(r)) for r in without]
    summaries = [runs.read_json(folder / "summary.json") | {"wall_seconds": 0} for folder in (run, tmp_path / "run")]
    assert summaries[0] == summaries[1]
    assert not (tmp_path / "run" / "figures" / "judges.svg").exists()


def test_the_report_shows_each_judge_and_which_way_is_better(run: Path, tmp_path: Path) -> None:
    page = write_report([run], tmp_path).read_text()
    figure = (tmp_path / "figures" / "judges.svg").read_text()
    assert "What the judges say" in page
    assert figure.count("lower is better") >= 2
    assert figure.count("higher is better") >= 2
    header, *rows = (tmp_path / "tables" / "judges.csv").read_text().splitlines()
    assert header.endswith(",".join(f"{column},{column}_stderr" for column in COLUMNS))
    assert len(rows) == len(runs.read_records(run / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("metrics.jsonl", '"judge_words": ', '"judge_words": "a few", "was": '),
        ("manifest.json", '"kind": "model"', '"kind": 3'),
        ("manifest.json", '"higher_is_better": null', '"higher_is_better": "yes"'),
    ],
)
def test_the_report_refuses_damaged_words_of_judges(run: Path, tmp_path: Path, file: str, old: str, new: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(AssayError, match="the file is damaged"):
        write_report([tmp_path / "run"], tmp_path / "report")


def test_diagnose_ignores_judges_unless_one_is_named(run: Path) -> None:
    log = read_log(run)
    assert not any("judge" in guess for guess in log.guesses)
    named = read_log(run, {"reference_nll": "judge_second_text"}).trajectory.columns["reference_nll"]
    assert named.tolist() == [record["judge_second_text"] for record in runs.read_records(run / "metrics.jsonl")]
    assert log.trajectory.columns["reference_nll"].tolist() != named.tolist()


def begun(run: Path, folder: Path) -> Path:
    """A run whose arm is still to come."""
    shutil.copytree(run / "stage1", folder / "stage1")
    return folder


class Interrupted(Exception):
    pass


def test_a_resumed_arm_says_the_same_words_of_the_judges(judges: Any, run: Path, tmp_path: Path) -> None:
    folder, evaluations = begun(run, tmp_path), []

    def interrupt(progress: Progress) -> None:
        evaluations.append(len(runs.read_records(folder / "arms" / "offline" / "metrics.jsonl")))
        if progress.step == 8:
            raise Interrupted

    training = experiment_with(judges).distillation.training
    assert training.checkpoint_every == 5 < training.num_steps == 8
    with pytest.raises(Interrupted):
        stages.run_arm(experiment_with(judges), folder, "offline", report=interrupt)
    assert not (folder / "arms" / "offline" / "finished.json").exists()
    stages.run_arm(experiment_with(judges), folder, "offline", report=lambda progress: None)
    expected = [without_times(record) for record in runs.read_records(run / "metrics.jsonl")]
    again = runs.read_records(folder / "arms" / "offline" / "metrics.jsonl")
    assert [without_times(record) for record in again] == expected
    for file in sorted((run / "arms" / "offline" / "probe").iterdir()):
        assert pq.read_table(folder / "arms" / "offline" / "probe" / file.name).equals(pq.read_table(file))


def test_a_judge_that_fails_stops_a_run_before_anything_is_computed(judges: Any, tmp_path: Path) -> None:
    wrong = dataclasses.replace(judges[3], target="false")
    with pytest.raises(JudgeError, match="exit code 1"):
        run_experiment(experiment_with((wrong,)), tmp_path / "run")
    assert not (tmp_path / "run" / "stage1").exists()


def test_a_judge_that_fails_later_is_named_and_the_learning_rate_is_not_blamed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "thrice.py").write_text(
        f"import pathlib, sys\nseen = pathlib.Path({str(tmp_path / 'seen')!r})\n"
        "seen.touch(); seen.write_text(seen.read_text() + 'x')\n"
        "print('\\n'.join('1' for _ in sys.stdin) if len(seen.read_text()) < 3 else 'lost')\n"
    )
    judge = JudgeConfig("thrice", "command", shlex.join([sys.executable, str(tmp_path / "thrice.py")]))
    with pytest.raises(AssayError) as found:
        workers.run_stage(experiment_with((judge,)), begun(run, tmp_path / "run"), "run_arm", "offline")
    assert "arm 'offline': judge 'thrice' answers 16 responses with 1 lines" in str(found.value)
    assert "learning rate" not in str(found.value)
    assert len(runs.read_records(tmp_path / "run" / "arms" / "offline" / "metrics.jsonl")) == 2
