"""Runs without an oracle: the truth is what held-out references say, or nothing is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from assay import compare_runs, run_experiment, runs, write_report
from assay.config import ARMS, ArmConfig, Experiment, SourceConfig
from assay.config_file import from_dict
from assay.errors import AssayError
from assay.forecast import forecast
from assay.frozen_set import FrozenSet
from assay.models.loading import load_model
from assay.results import per_prompt, write_summary
from assay.types import Batch, Response
from assay.validation import validate
from assay.workspace import Workspace
from test_experiment import small


def without_oracle() -> Experiment:
    base = small(num_steps=8)
    models = dataclasses.replace(base.models, oracle=None)
    return dataclasses.replace(base, models=models, arms=(ARMS["offline"], ARMS["online_teacher"]))


def prompts_file(path: Path, with_references: bool) -> str:
    """As many rows of the embedded text as the small run needs, as a user's file."""
    work = Workspace(small(), path)
    rows = []
    for split in ("distillation", "held_out"):
        for prompt in work.prompts(split, 400):
            row = {"prompt": prompt.text, "id": prompt.id}
            rows.append(row | ({"reference": prompt.reference} if with_references else {}))
    file = path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "references"
    run_experiment(without_oracle(), folder)
    return folder


@pytest.fixture(scope="module")
def unjudged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose prompts have no references."""
    folder = tmp_path_factory.mktemp("runs")
    task = dataclasses.replace(without_oracle().task, name=prompts_file(folder, with_references=False))
    experiment = dataclasses.replace(without_oracle(), task=task, arms=(ARMS["offline"],))
    run_experiment(experiment, folder / "unjudged")
    return folder / "unjudged"


def test_golden_up_to_a_constant_is_the_nll_of_all_held_out_references(run: Path) -> None:
    summary = runs.read_json(run / "summary.json")
    assert summary["truth"] == "references"
    assert summary["references"]["d_oracle_teacher"] is None
    probe = pq.read_table(run / "probe.parquet")
    assert "golden" not in probe["metric"].to_pylist()
    work = Workspace(without_oracle(), run)
    held_out = work.held_out()
    _, values_SP = per_prompt(probe, "offline", "reference_nll")
    assert values_SP.shape[1] == len(held_out)
    student = load_model("define-student")
    prompt = sorted(held_out, key=lambda p: p.id)[3]
    log_q_NV = student.log_probs(Batch([prompt.token_ids], [prompt.reference_ids]))
    nll = -sum(float(log_q_NV[i, token].detach()) for i, token in enumerate(prompt.reference_ids))
    assert values_SP[0, 3] == pytest.approx(nll, rel=1e-5)
    for arm in summary["arms"]:
        assert arm["golden"]["initial"] == pytest.approx(values_SP[0].mean())
        assert arm["detector"]["verdict"]


def test_no_stage_one_is_run_and_teacher_and_student_begin_as_they_are(run: Path) -> None:
    files = {path.name for path in (run / "stage1").iterdir()}
    assert files == {"held_out-teacher.parquet", "held_out-student.parquet", "held_out-dataset.parquet"}
    digests = runs.read_json(run / "manifest.json")["digests"]
    assert digests["teacher"] == load_model("define-teacher").digest
    assert "oracle" not in digests


def test_the_best_student_is_that_of_the_most_likely_references(run: Path) -> None:
    for arm in ("offline", "online_teacher"):
        records = runs.read_records(run / "arms" / arm / "metrics.jsonl")
        assert all(record["golden_nats"] is None for record in records)
        best = min(records, key=lambda record: record["reference_nll_nats"])["step"]
        expected = load_model(str(run / "arms" / arm / "best")).digest
        if best == records[-1]["step"]:
            assert expected == load_model(str(run / "arms" / arm / "student")).digest
        else:
            assert expected != load_model(str(run / "arms" / arm / "student")).digest


def test_the_report_says_what_the_truth_is(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "golden up to a constant" in page
    assert "d(oracle" not in page
    assert not (run / "figures" / "theory_terms.svg").exists()


def test_shown_tokens_have_no_oracle(run: Path, unjudged: Path) -> None:
    for folder, writers in ((run, {"student", "teacher", "dataset"}), (unjudged, {"student", "teacher"})):
        tokens = pq.read_table(folder / "tokens.parquet")
        assert set(tokens["writer"].to_pylist()) == writers
        assert tokens["log_prob_oracle"].null_count == len(tokens) > 0
        assert tokens["log_prob_teacher"].null_count == 0


def test_two_arms_are_compared_by_references(run: Path) -> None:
    comparison = compare_runs([run])
    (contrast,) = comparison.paired
    assert not isinstance(contrast.golden, str)
    probe = pq.read_table(run / "probe.parquet")
    last = [per_prompt(probe, arm, "reference_nll")[1][-1] for arm in ("online_teacher", "offline")]
    assert abs(contrast.golden.interval.value) == pytest.approx(abs(float(np.mean(last[0] - last[1]))))


def test_without_references_the_detector_judges(unjudged: Path) -> None:
    summary = runs.read_json(unjudged / "summary.json")
    assert summary["truth"] is None
    (arm,) = summary["arms"]
    assert arm["golden"] is None
    assert arm["severity_nats"] is None
    assert arm["verdict"] == arm["detector"]["verdict"]
    assert arm["best_step"] == arm["detector"]["recommended_step"]
    probe = pq.read_table(unjudged / "probe.parquet")
    assert set(probe["metric"].to_pylist()) == {"proxy", "train_proxy", "kl_from_start"}
    responses = pq.read_table(unjudged / "responses.parquet")
    assert not len(responses.filter(pc.field("writer") == "dataset"))


def test_without_references_the_recommended_student_is_kept(unjudged: Path) -> None:
    (arm,) = runs.read_json(unjudged / "summary.json")["arms"]
    folder = unjudged / "arms" / "offline"
    assert arm["best_step"] == 8, "a healthy run of eight steps is kept to its end"
    assert load_model(str(folder / "best")).digest == load_model(str(folder / "student")).digest
    assert not (folder / "kept").exists()
    assert runs.read_json(folder / "finished.json")["recommended_step"] == arm["best_step"]


def test_the_best_step_of_a_run_without_truth_is_that_of_the_student_it_kept(unjudged: Path, tmp_path: Path) -> None:
    """Whatever the detector makes of the whole log: a policy that goes back has it forget what was undone."""
    shutil.copytree(unjudged, tmp_path / "run")
    path = tmp_path / "run" / "arms" / "offline" / "finished.json"
    runs.write_json(path, runs.read_json(path) | {"recommended_step": 3})
    experiment = from_dict(runs.read_json(unjudged / "manifest.json")["config"])
    write_summary(tmp_path / "run", experiment, ["offline"], 0.0)
    assert runs.read_json(tmp_path / "run" / "summary.json")["arms"][0]["best_step"] == 3


def test_a_report_without_truth_opens_and_runs_of_unlike_truth_share_none(
    run: Path, unjudged: Path, tmp_path: Path
) -> None:
    page = write_report([unjudged], tmp_path).read_text()
    assert "no truth" in page
    assert not (tmp_path / "figures" / "proxy_golden_plane.svg").exists()
    with pytest.raises(AssayError, match="measure unlike things"):
        write_report([run, unjudged], tmp_path)
    with pytest.raises(AssayError, match="no truth to compare by"):
        compare_runs([run, unjudged])


def test_what_needs_an_oracle_is_refused_without_one() -> None:
    base = without_oracle()
    models = base.models
    replay = ArmConfig("replay", (SourceConfig("oracle", prompts="oracle", learn="text"),))
    for experiment, said in (
        (dataclasses.replace(base, models=dataclasses.replace(models, num_teachers=2)), "num_teachers needs an oracle"),
        (dataclasses.replace(base, models=dataclasses.replace(models, teacher_is_oracle=True)), "needs an oracle"),
        (dataclasses.replace(base, arms=(replay,)), "takes from the oracle"),
    ):
        with pytest.raises(AssayError, match=said):
            validate(experiment)


def test_a_run_without_an_oracle_costs_no_oracle() -> None:
    found, lab = forecast(without_oracle()), forecast(dataclasses.replace(without_oracle(), models=small().models))
    assert found.flops is not None
    assert lab.flops is not None
    assert found.flops < lab.flops
    assert found.generated_tokens < lab.generated_tokens


def test_a_teacher_in_half_of_the_memory_says_nearly_the_same(tmp_path: Path) -> None:
    base = without_oracle()
    half = dataclasses.replace(base, models=dataclasses.replace(base.models, frozen_precision="bfloat16"))
    exact, rounded = (Workspace(experiment, tmp_path) for experiment in (base, half))
    teacher, student = rounded.tuned("teacher"), rounded.student()
    assert teacher.module.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert student.module.dtype == torch.float32, "what is trained stays exact"
    prompts = exact.held_out()[:32]
    texts = exact.base("teacher").sample([p.token_ids for p in prompts], range(32), 12)
    answers = [Response(p.id, ids, "teacher", False) for p, ids in zip(prompts, texts, strict=True)]
    proxy, rounded_proxy = (
        FrozenSet("proxy", prompts, answers, work.base("teacher")).against(student)[0].value_nats.mean()
        for work in (exact, rounded)
    )
    assert rounded_proxy == pytest.approx(proxy, rel=0.02)
    assert rounded_proxy != proxy
