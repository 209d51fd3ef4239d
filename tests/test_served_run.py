"""A whole run with a teacher behind a server: what is measured lies between what lists and whole laws say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from assay import runs
from assay.config import ARMS, Experiment, ServerConfig
from assay.errors import AssayError
from assay.frozen_set import FrozenSet
from assay.models.cached import CachedLogProbs
from assay.models.causal import CausalModel
from assay.models.loading import load_model, load_tokenizer
from assay.results import merge_arms, per_prompt, write_summary
from assay.stages import answer_held_out, check_models, run_arm
from assay.types import Framing
from assay.workspace import Workspace
from servers.stub import MODEL, Stub
from test_experiment import small

NUM_LISTED = 12


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    model = load_model("define-teacher")
    assert isinstance(model, CausalModel)
    with Stub(model, load_tokenizer("define-teacher")) as stub:
        stub.models[0]["max_model_len"] = model.max_context_tokens
        yield stub


def served(stub: Stub) -> Experiment:
    base = small(num_steps=3)
    models = dataclasses.replace(
        base.models, oracle=None, teacher=stub.url, server=ServerConfig(MODEL, NUM_LISTED, concurrency=2)
    )
    return dataclasses.replace(
        base,
        models=models,
        task=dataclasses.replace(base.task, max_response_tokens=8),
        arms=(ARMS["offline"],),
        distillation=dataclasses.replace(base.distillation, num_prompts=16),
        probe=dataclasses.replace(
            base.probe, num_prompts=16, num_train_pairs=8, num_monitored=8, num_shown=2, num_evaluations=4
        ),
    )


@pytest.fixture(scope="module")
def run(stub: Stub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiment, folder = served(stub), tmp_path_factory.mktemp("runs")
    digests = check_models(experiment, folder, lambda progress: None)
    assert set(digests) == {"teacher", "student", "corpus"}
    for role in ("teacher", "student"):
        assert answer_held_out(experiment, folder, role, lambda progress: None) == digests[role]
    run_arm(experiment, folder, "offline", lambda progress: None)
    merge_arms(folder, ["offline"])
    write_summary(folder, experiment, ["offline"], 0.0)
    return folder


def test_the_proxy_lies_between_that_of_shorter_lists_and_that_of_the_whole_law(stub: Stub, run: Path) -> None:
    """The server lists a response's own token too, so its lists say at least what the likeliest tokens alone do."""
    work = Workspace(served(stub), run)
    student, prompts, responses = work.student(), work.held_out(), work.held_out_responses("teacher")
    _, values_SP = per_prompt(pq.read_table(run / "probe.parquet"), "offline", "proxy")
    order = np.argsort([prompt.id for prompt in prompts])
    listed, whole = (
        FrozenSet("proxy", prompts, responses, CachedLogProbs(load_model("define-teacher"), k)).against(student)
        for k in (NUM_LISTED, None)
    )
    assert (values_SP[0] >= listed[0].value_nats[order] - 1e-5).all()
    assert (values_SP[0] <= whole[0].value_nats[order] + 1e-5).all()
    assert values_SP[0].mean() < whole[0].value_nats.mean() - 0.01


def test_the_records_say_how_much_of_the_law_was_listed_and_the_summary_that_it_is_a_bound(run: Path) -> None:
    records = runs.read_records(run / "arms" / "offline" / "metrics.jsonl")
    assert all(0.3 < record["captured_mass"] < 1 for record in records)
    assert records[0]["teacher_entropy_nats_per_token"] is None
    assert records[-1]["train_proxy_nats"] < records[0]["train_proxy_nats"]
    assert runs.read_json(run / "summary.json")["proxy_is"] == "lower_bound"
    assert (run / "arms" / "offline" / "diversity.json").exists()


def test_shown_tokens_cost_the_server_nothing(run: Path) -> None:
    tokens = pq.read_table(run / "tokens.parquet")
    assert len(tokens["prompt_id"].unique()) == 2
    assert tokens["log_prob_teacher"].null_count == len(tokens)


def test_a_server_that_is_gone_ends_the_run_in_one_sentence(stub: Stub, tmp_path: Path) -> None:
    experiment = served(stub)
    away = dataclasses.replace(experiment.models, teacher="http://127.0.0.1:9/v1")
    with pytest.raises(AssayError, match=r"127\.0\.0\.1:9"):
        check_models(dataclasses.replace(experiment, models=away), tmp_path, lambda progress: None)
    assert not list(tmp_path.iterdir())


def test_prompts_that_end_with_a_token_of_their_own_have_no_served_teacher(stub: Stub, tmp_path: Path) -> None:
    work = Workspace(served(stub), tmp_path)
    work.framing = Framing(after=(0,))  # T5's tokenizer closes every prompt
    with pytest.raises(AssayError, match="encoder-decoder model: distil from its text"):
        _ = work.served_teacher
